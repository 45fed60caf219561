"""The fields of a config that hold a precision of training, and what stands in the place of their "auto"."""

from collections.abc import Mapping

from tfigkd.config.experiment import Config, override, to_mapping
from tfigkd.config.reading import value_at

FIELDS = {"teacher": "teacher.training.precision", "student": "training.precision"}


def auto_roles(config: Config) -> set[str]:
    """Return the networks of a config, "teacher" and "student", whose precision is "auto"."""
    values = to_mapping(config)
    return {role for role, name in FIELDS.items() if value_at(values, name) == "auto"}


def with_precisions(config: Config, chosen: Mapping[str, str]) -> Config:
    """Return the config with the precision of a role, such as "float32", in the place of its "auto"."""
    return override(config, {FIELDS[role]: chosen[role] for role in auto_roles(config)})

"""The command that repeats a run, from what the run has left of its settings."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import Config, read_experiment, smoke, to_mapping
from tfigkd.config.reading import differences, field_types, value_at
from tfigkd.runtime.errors import UserError
from tfigkd.stages.workdir import TEACHERS, Workdir, default_folder

AS_RUN = "_as_run"


def repeat_command(config: Config, run: Mapping[str, Any], workdir: Workdir | None = None) -> tuple[str, str]:
    """Return the command line of a run, and the experiment file it needs beside it.

    Args:
        config: The run's, as its settings file has it: a precision "auto" stays one.
        run: `experiment`, `seed` and `smoke`, as `config.json` has them.
        workdir: Where the run wrote; its folders are named where they are not the defaults.

    Returns:
        The command; and empty, or for an experiment that is not shipped the content of the file `own_file` that the
        command names. It holds what the run was given on the command line as well, and no file of the user's has its
        name.
    """
    name, toml = run["experiment"], ""
    words = ["--experiment", name, "--seed", str(run["seed"])]
    try:
        base = read_experiment(name)[1]
    except UserError:  # an experiment of the user's own, which may have gone since
        from tfigkd.config.toml import to_toml

        toml, base = to_toml(config, f"{name}, all fields that differ from the defaults"), config
        words[1] = str(own_file(name, workdir))
    if run["smoke"]:  # which shrinks what the experiment says, and not what the command line adds
        base = smoke(base)
    words += ["--smoke"] if run["smoke"] else []
    resolved = to_mapping(config)
    for field in dict.fromkeys(_field(name) for name in differences(to_mapping(base), resolved)):
        words += _flag(field, value_at(resolved, field))
    if workdir is not None and not toml:
        default = default_folder(name, run["seed"], smoke=run["smoke"])
        words += [] if workdir.run == default else ["--workdir", str(workdir.run)]
    if workdir is not None:
        words += [] if workdir.teachers == TEACHERS else ["--teachers", str(workdir.teachers)]
    return f"python -m tfigkd.run {shlex.join(words)}", toml


def own_file(experiment: str, workdir: Workdir | None) -> Path:
    """Return where the resolved fields of an experiment that is not shipped are kept: in the run's folder."""
    name = f"{experiment.removesuffix(AS_RUN)}{AS_RUN}.toml"
    return workdir.run / name if workdir is not None else Path(name)


def _field(dotted: str) -> str:
    """Return the field that a dotted name is, or is an entry of, as `training.class_weight.cat` of a dictionary."""
    return next(field for field in field_types(Config) if f"{dotted}.".startswith(f"{field}."))


def _flag(field: str, value: Any) -> list[str]:
    """Return a field as tyro takes it: switches have no value."""
    if isinstance(value, bool):
        table, _, last = field.rpartition(".")
        return [f"--{field}" if value else f"--{table}.no_{last}"]
    if isinstance(value, dict):
        return [f"--{field}", *(str(word) for pair in value.items() for word in pair)]
    return [f"--{field}", *(map(str, value) if isinstance(value, list) else [str(value)])]

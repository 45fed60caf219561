"""Which runs of a study may be averaged: those of one arm and size whose configs are equal but for the seed.

The column `config` of a row is a hash of all fields, so it differs where only a folder has another name, and from seed
to seed where a study sets fields to the seed. The column `protocol`, which `collect` adds, is a hash of what decides
how the student was trained: no seed, no folders, and the data and the teacher by their content.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tfigkd.config.experiment import Config, override, to_mapping
from tfigkd.config.reading import differences, value_at
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.text import percent
from tfigkd.stages.runner import FREE
from tfigkd.stages.workdir import SETTINGS, config_as_run, read_settings
from tfigkd.study.plan import title_of

COLUMN = "protocol"
DATA = ("data.name", "data.image_size", "data.limit", "data.background", "data.fit", "data.group", "data.splits.")
"""Fields that the fingerprint of the data replaces."""

Row = Mapping[str, str]


def protocol_of(run: Path, seed_fields: Sequence[str] = ()) -> str:
    """Return the hash of what decides how a run's student was trained, apart from its seed.

    Args:
        run: Folder of a finished run.
        seed_fields: Fields that the study sets to the seed.

    Returns:
        The hash; empty if the run has no settings file, as a row that was copied alone.

    Raises:
        UserError: the settings of the run are damaged.
    """
    path = run / SETTINGS
    if not path.is_file():
        return ""
    try:
        settled = read_settings(run)[1]
        config = override(config_as_run(run, settled) or settled, dict.fromkeys(seed_fields, 0))
    except (UserError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {run} and run the study again") from error
    trained = read_manifest(run / "distill") or {}
    known = [trained["data"]] if trained.get("data") else []
    free = FREE + (DATA if known else ())
    known += trained.get("corrections", [])
    if not config.needs_teacher:
        free += ("teacher.", "attribution.")
    elif trained.get("teacher") and not _teacher_follows(seed_fields, config):
        known.append(trained["teacher"])
        free += ("teacher.",)
    unset, values = to_mapping(Config()), to_mapping(config)
    # only what differs from its default, so that a field of a later version changes no hash
    changed = [name for name in differences(unset, values) if not name.startswith(free)]
    return fingerprint("protocol", known, {name: value_at(values, name) for name in changed})


def _teacher_follows(seed_fields: Iterable[str], config: Config) -> bool:
    """Return whether the teacher depends on a field that a study sets to the seed."""
    unbalanced = config.data.imbalance > 1  # of which teacher and student train on the same subset
    return any(name.startswith("teacher.") or (unbalanced and name == "data.subset_seed") for name in seed_fields)


def _by_kind(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """Return the rows of each size and arm by their protocol, or by their config if a row has no protocol."""
    arms: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        arms[row["size"], row["arm"]].append(row)
    kinds: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for key, own in arms.items():
        column = COLUMN if all(row.get(COLUMN) for row in own) else "config"
        kinds[key] = defaultdict(list)
        for row in own:
            kinds[key][row.get(column) or ""].append(row)
    return kinds


def _seeds(rows: Iterable[Row]) -> str:
    seeds = sorted({int(row["seed"]) for row in rows})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def mixed_arms(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return size and arm of rows of several configs, each with a phrase that names the seeds of each config."""
    found = {}
    for (size, arm), kinds in _by_kind(rows).items():
        if len(kinds) > 1:
            parts = "; ".join(f"{kind or 'no config'}: {_seeds(own)}" for kind, own in sorted(kinds.items()))
            found[size, arm] = f"{title_of(arm, size)} ({parts})"
    return found


def refuse_mixed(rows: Sequence[Row], where: str, remedy: str) -> None:
    """Refuse rows of one arm and size that are of several configs, because their mean has no meaning.

    Args:
        rows: Rows of one study.
        where: The study or the file, for the error message.
        remedy: What the user can do; the end of the message.

    Raises:
        UserError: there are such rows.
    """
    found = list(mixed_arms(rows).values())
    if found:
        raise UserError(f"{where}: expected one config per arm and size, got several of {'; '.join(found)}; {remedy}")


def remarks(rows: Sequence[Row]) -> str:
    """Return sentences that name the arms whose runs are of several commits, or had teachers of different accuracy."""
    said = []
    for column, what in (("commit", "commits"), ("teacher_accuracy", "teachers, of test accuracy")):
        for (size, arm), kinds in _by_kind(rows).items():
            values: dict[str, list[Row]] = defaultdict(list)
            for own in kinds.values():
                for row in own:
                    values[row.get(column) or "unknown"].append(row)
            if len(values) > 1:
                parts = "; ".join(f"{_value(value)}: {_seeds(own)}" for value, own in sorted(values.items()))
                said.append(f"The runs of {title_of(arm, size)} are of {len(values)} {what} ({parts}).")
    return " ".join(said)


def _value(text: str) -> str:
    try:
        return percent(float(text)) if "." in text else text
    except ValueError:
        return text

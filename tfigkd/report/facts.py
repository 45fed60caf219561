"""All that the stages of one run have left for its page, read and verified; what is missing is None or empty."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tfigkd.config.fields import FORMATS, Config
from tfigkd.config.reading import to_mapping
from tfigkd.measure import gallery
from tfigkd.measure.gallery import Gallery
from tfigkd.report.table import ROLES, Roles
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import Workdir, read_manifest
from tfigkd.stages.export import file_name
from tfigkd.stages.teacher import teacher_folder
from tfigkd.store.maps import parse_record, store_folder
from tfigkd.store.shards import open_store, read_all
from tfigkd.training.fit import LEDGER
from tfigkd.training.ledger import read_ledger

History = list[dict[str, float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What a page is made of.

    Attributes:
        config: The resolved config as nested plain values.
        row: The run's row of results.
        roles: Figures by role.
        command: What repeats the run.
        toml: The experiment's file, where it is not a shipped one.
        study: The command of the study that the run is part of; empty for a run of its own.
        taught: Whether the student learned from a teacher, which may have gone since.
        data: Manifests of the stages, None where a stage has not run.
        evaluated: As `data`.
        exported: As `data`.
        timed: As `data`.
        store: As `data`, of the overlay store.
        errors: Completeness errors of the store's maps, float32 [N].
        histories: Role to the logs of each epoch.
        ledger: Entries of the loss ledger.
        gallery: Examples with their maps.
    """

    config: dict[str, Any]
    row: dict[str, Any]
    roles: Roles
    evaluated: dict[str, Any]
    command: str = ""
    toml: str = ""
    study: str = ""
    taught: bool = False
    data: dict[str, Any] | None = None
    exported: dict[str, Any] | None = None
    timed: dict[str, Any] | None = None
    store: dict[str, Any] | None = None
    errors: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    histories: dict[str, History] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    gallery: Gallery | None = None


def figures(workdir: Workdir, results: Mapping[str, Any]) -> Roles:
    """Roles to what is known of them; what benchmarks and exports have not measured is left out.

    Args:
        workdir: Where the run wrote.
        results: Of stage `evaluate`.
    """
    roles = {role: dict(results[role]) for role in ROLES if role in results}
    timed = read_manifest(workdir.stage("benchmark"))
    exported = read_manifest(workdir.stage("export"))
    for role, values in roles.items():
        for format in FORMATS:
            name = file_name(role, format)
            if timed and name in timed["results"]:
                values[f"{format}_bytes"] = timed["results"][name]["bytes"]
                milliseconds = timed["results"][name]["milliseconds"]
                values[f"{format}_ms"] = milliseconds[str(timed["threads"][0])]["p50"]
            if exported and name in exported["parity"]:
                values[f"{format}_parity"] = exported["parity"][name]["agreement"]
            values |= {f"{format}_{metric}": value for metric, value in results.get(name, {}).items()}
    return roles


def gather(
    config: Config,
    workdir: Workdir,
    row: dict[str, Any],
    roles: Roles,
    evaluated: dict[str, Any],
    repeat: tuple[str, str],
) -> Facts:
    """Read what a run has left.

    Args:
        config: The run's.
        workdir: Where it wrote.
        row: Its row of results.
        roles: From `figures`.
        evaluated: The manifest of stage `evaluate`.
        repeat: From `repeat.command`.

    Raises:
        UserError: a file is damaged.
    """
    folder = workdir.stage("evaluate")
    store, errors = _store(config, workdir)
    histories = {"student": _history(workdir.stage("distill"))}
    if config.needs_teacher:
        histories["teacher"] = _known(lambda: _history(teacher_folder(config, workdir)), [])
    return Facts(
        config=to_mapping(config),
        row=row,
        roles=roles,
        evaluated=evaluated,
        command=repeat[0],
        toml=repeat[1],
        study=_study(workdir.run / "job.json"),
        taught=config.needs_teacher,
        data=read_manifest(workdir.stage("data")),
        exported=read_manifest(workdir.stage("export")),
        timed=read_manifest(workdir.stage("benchmark")),
        store=store,
        errors=errors,
        histories={role: history for role, history in histories.items() if history},
        ledger=read_ledger(workdir.stage("distill") / LEDGER),
        gallery=Gallery.load(folder / gallery.FILE) if gallery.FILE in evaluated["files"] else None,
    )


def _known(read: Callable[[], T], otherwise: T) -> T:
    """What the teacher's folder tells, which may have been deleted since the training."""
    try:
        return read()
    except UserError:
        return otherwise


def _history(folder: Path) -> History:
    try:
        return json.loads((folder / "history.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'history.json'} is damaged ({error}); delete it, or run the stage again") from error


def _store(config: Config, workdir: Workdir) -> tuple[dict[str, Any] | None, np.ndarray]:
    """The overlay store's manifest and the completeness error of each of its maps."""
    nothing = None, np.empty(0, np.float32)
    if not config.needs_store:
        return nothing
    folder = _known(lambda: store_folder(config, workdir), None)
    if folder is None or read_manifest(folder) is None:
        return nothing
    try:
        manifest = open_store(folder, {})
        errors = [record["error"] for record in read_all(folder, manifest["files"], parse_record)]
    except UserError as error:  # shards may go when training is over
        console.say(f"  report without the maps' errors: {error}")
        return nothing
    return manifest, np.array(errors, np.float32)


def _study(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""

"""Run the stages of one experiment in a workdir. Imports the stages themselves, and TensorFlow, only when it runs."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfigkd.config.declare import free_fields
from tfigkd.config.experiment import Config, to_mapping, trainings
from tfigkd.config.reading import differences, from_mapping
from tfigkd.runtime import console, hosts
from tfigkd.runtime.cluster import Cluster
from tfigkd.runtime.errors import UserError, closest
from tfigkd.runtime.files import locked, read_manifest, write_text
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.quiet import quiet_stderr, quiet_tensorflow
from tfigkd.stages.parts import StorePart
from tfigkd.stages.workdir import SETTINGS, VERDICT, Workdir, read_settings

STAGES = ("data", "teacher", "overlays", "distill", "compress", "export", "evaluate", "benchmark", "report")
DATA_FIELD = "data.name"
FILE_FIELDS = ("teacher.model", "teacher.weights", "student.model", "student.weights")
"""Fields that may name a file, which is known by its content."""

AFTER_TRAINING = ("compress.", "export.", "evaluation.", "benchmark.")
"""Tables of the stages that come after the student's training."""
INERT = free_fields(Config())
"""Fields on which no result depends: places, what is shown, how something is computed."""
FREE = INERT + AFTER_TRAINING
"""Fields that may change between two calls of one run: those without effect, and those of the stages after training,
which are cheap to redo."""


def _lines(table: dict[str, Any], unset: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a config as one line a table, in TOML's words, without the values that `unset` has as well."""
    own = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    if own.get("weight") == 0 or own.get("method") == "none":  # a loss or a stage that is switched off
        return []
    shown = {key: value for key, value in own.items() if key not in unset or unset[key] != value}
    text = "  ".join(f"{key} = {json.dumps(value)}" for key, value in shown.items())
    lines = [f"[{prefix}]  {text}" if prefix else text] if shown else []
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, unset.get(key, {}), f"{prefix}.{key}" if prefix else key)
    return lines


@dataclass(frozen=True)
class Run:
    """One experiment, one seed, one workdir.

    Attributes:
        experiment: Its name, which is the stem of its TOML file.
        config: All fields, resolved.
        workdir: Where it writes; it has the seed.
        stages: Which stages to run.
        smoke: Whether the config was shrunk by `smoke`.
        preview: Whether the time of the run and remarks on its sizes are printed before it starts; the trial steps and
            networks for it take half a minute.
    """

    experiment: str
    config: Config
    workdir: Workdir
    stages: tuple[str, ...] = STAGES
    smoke: bool = False
    preview: bool = True

    @property
    def needed(self) -> list[str]:
        """Those of the stages, in order, that have something to do."""
        return [stage for stage in STAGES if stage in self.stages and stage not in _unneeded(self.config)]

    @property
    def settings(self) -> dict[str, Any]:
        """What `config.json` says of the run, as plain JSON values."""
        seed, config = self.workdir.seed, to_mapping(self.config)
        return {"experiment": self.experiment, "seed": seed, "smoke": self.smoke, "config": config}


def read_stages(text: str) -> tuple[str, ...]:
    """Return the stages that are named in a text, separated by commas.

    Raises:
        UserError: One of them is unknown.
    """
    stages = tuple(stage.strip() for stage in text.split(","))
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}; {closest(stage, STAGES)}")
    return stages


def _refuse_other_settings(chosen: Run) -> None:
    """Refuse a workdir with a student of other settings."""
    workdir = chosen.workdir
    path = workdir.run / SETTINGS
    if path.exists() and workdir.stage("distill").exists():
        changed = changed_settings(path, chosen)
        if changed:
            raise UserError(
                f"{workdir.run} holds a run with other settings ({', '.join(changed)}); choose another --workdir"
            )


def changed_settings(path: Path, chosen: Run, free: tuple[str, ...] = FREE) -> list[str]:
    """Return dotted names of the settings in which a settings file differs from a run, except free ones.

    A data set may go by another name, as one that was packed into a file for another machine, where its student has
    recorded the fingerprint that the data of this name have; a file of a model may have another path, where the student
    has recorded the fingerprint that its content gives.

    Raises:
        UserError: the file is damaged, or there is no data set of the new name.
    """
    try:
        before, _ = read_settings(path.parent)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); choose another --workdir or delete it") from error
    changed = changed_fields(before, chosen.settings, free)
    if DATA_FIELD in changed and _same_data(path.parent, chosen.config):
        changed.remove(DATA_FIELD)
    moved = [name for name in changed if name in FILE_FIELDS]
    if moved and moved == changed and _is_begun(path.parent, chosen):
        return []
    return changed


def changed_fields(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]) -> list[str]:
    """Return dotted names of the values in which two mappings of settings differ, those of fields as they are typed.

    Args:
        before: Settings as a file has them, with a `"config"`. Fields that a newer version has brought stand at their
            defaults.
        now: The same of today.
        free: Beginnings of the names of fields that may differ.

    Raises:
        UserError: A value of a config is none that its field can have.
    """
    then, today = ({**one, "config": _settled(one["config"])} for one in (before, now))
    names = (name.removeprefix("config.") for name in differences(then, today))
    return [name for name in names if not name.startswith(free)]


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a config, with what is decided where nothing is given in its place."""
    config = from_mapping(Config, values)
    values = to_mapping(config)
    values["teacher"]["train"] = config.teacher.trains
    return values


def _is_begun(folder: Path, chosen: Run) -> bool:
    """Return whether a folder holds the very student that a run would train."""
    with quiet_tensorflow():
        from tfigkd.stages.distill import is_begun
        from tfigkd.stages.precision import resolve

        workdir = Workdir(folder, chosen.workdir.teachers, chosen.workdir.seed)
        try:
            return is_begun(resolve(chosen.config, workdir), workdir)
        except UserError:  # the teacher or its store does not exist
            return False


def _same_data(folder: Path, config: Config) -> bool:
    """Return whether a config's data are those that the student of a run was trained on, whatever they are called."""
    trained = read_manifest(Workdir(folder, folder).stage("distill"))
    if trained is None or "data" not in trained:
        return False
    from tfigkd.stages.data import dataset

    data = dataset(config.data)
    return trained["data"] == data.fingerprint or trained.get("trained_on") == data.training_fingerprint


def _refuse_incremental(chosen: Run) -> None:
    """Refuse an experiment that another command trains."""
    if chosen.config.incremental.steps:
        raise UserError(
            f"the classes of {chosen.experiment} come in steps; python -m tfigkd.incremental --experiment "
            f"{chosen.experiment} trains it, or set incremental.steps = 0"
        )


def run(chosen: Run, *, dry_run: bool = False) -> bool:
    """Run the chosen stages of an experiment.

    Args:
        chosen: What to run.
        dry_run: Check the run, say what it would do and how long it takes, and write nothing.

    Returns:
        Whether nothing wrong was found with the result, as far as stage `report` judged it.

    Raises:
        UserError: anything that the user can correct.
    """
    workdir = chosen.workdir
    _refuse_incremental(chosen)
    if dry_run:
        _refuse_other_settings(chosen)
        with quiet_tensorflow():
            from tfigkd.stages.precision import with_assumed_precisions
        _prepare(chosen, with_assumed_precisions(chosen.config))
        return True
    if not hosts.is_first_process():
        return _run(chosen)
    with locked(workdir.run, wait=False):
        _refuse_other_settings(chosen)
        write_text(workdir.run / SETTINGS, json.dumps(chosen.settings, indent=1) + "\n")
        return _run(chosen)


def check_hosts(chosen: Run) -> None:
    """Refuse what several hosts cannot do together.

    Raises:
        UserError: There are stages other than trainings, or a training has one device.
    """
    recipes = {"teacher": chosen.config.teacher.training, "distill": chosen.config.training}
    if not {*chosen.stages} <= {*recipes}:
        raise UserError(
            f"several hosts ({hosts.COUNT} is set) train together: --stages teacher, distill or both, got "
            f"{','.join(chosen.stages)}; run the others on one host, without these variables"
        )
    for stage, field in (("teacher", "teacher.training.devices"), ("distill", "training.devices")):
        trains = stage == "distill" or (chosen.config.needs_teacher and chosen.config.teacher.trained)
        if stage in chosen.stages and trains and recipes[stage].devices == "one":
            raise UserError(f"several hosts ({hosts.COUNT} is set) need {field} = all, got one")


def run_stores(chosen: Run, share: StorePart | Cluster) -> None:
    """Compute the stores of a run together with others. Nothing is written into the workdir, which they share.

    Args:
        chosen: The run.
        share: The part of this process, while others compute the other parts; or the machines that do it all, one
            shard a call.

    Raises:
        UserError: anything that the user can correct.
    """
    started = time.monotonic()
    if "overlays" in _unneeded(chosen.config):
        raise UserError(f"{chosen.experiment} stores nothing of its teacher; leave the stage overlays out")
    config = _resolved(chosen)
    with quiet_stderr():
        from tfigkd.stages import overlays
    if isinstance(share, StorePart):
        console.say(f"{chosen.experiment}, part {share.number} of {share.count} of the stores")
        overlays.store_part(config, chosen.workdir, share)
    else:
        console.say(f"{chosen.experiment}, shards of the stores on {share}")
        overlays.store_on_cluster(config, chosen.workdir, share)
    console.say(f"done in {time.monotonic() - started:.0f} s", last=True)


def print_estimate(chosen: Run, workers: int) -> None:
    """Print what each stage of a run costs on so many machines like this one; nothing is written.

    Raises:
        UserError: anything that the user can correct.
    """
    _refuse_incremental(chosen)
    with quiet_tensorflow():
        from tfigkd.stages.cost import lines, measured_costs
        from tfigkd.stages.precision import with_assumed_precisions

        costs = measured_costs(with_assumed_precisions(chosen.config), chosen.workdir, chosen.needed, workers)
    console.show_columns(["stage", "time", "memory", "disk", "network"], lines(costs), 4, last=True)
    if workers > 1:
        console.say(f"{workers} machines share the stage overlays; the other stages run on one of them", last=True)


def _resolved(chosen: Run) -> Config:
    """Import TensorFlow without its greetings, and return the config with what is measured at the first start."""
    with quiet_tensorflow():
        from tfigkd.stages.precision import resolve
    return resolve(chosen.config, chosen.workdir)


def _unneeded(config: Config) -> set[str]:
    """Return the stages that have nothing to do for this config."""
    unneeded = {"teacher": not config.needs_teacher, "compress": config.compress.method == "none"}
    unneeded["overlays"] = not any(each.needs_stored for each in trainings(config))
    return {stage for stage, idle in unneeded.items() if idle}


def _prepare(chosen: Run, config: Config) -> None:
    """Check a config, and say what the run will do: all that is known before the first step."""
    workdir, needed = chosen.workdir, chosen.needed
    with quiet_stderr():
        from tfigkd.stages.distill import refuse_changed_inputs
        from tfigkd.stages.estimate import estimate
        from tfigkd.stages.preflight import (
            check_compress_and_export,
            check_crops,
            check_networks,
            early_remarks,
        )
    console.say(f"{chosen.experiment}, seed {workdir.seed}, config {fingerprint(config)}, in {workdir.run}")
    with quiet_stderr():
        if any(STAGES.index(stage) >= STAGES.index("distill") for stage in needed):
            refuse_changed_inputs(config, workdir, needed)
        if {"teacher", "distill"} & {*needed}:
            check_crops(config)
        if config.needs_teacher and "distill" in needed:
            check_networks(config)
        if "distill" in needed:
            check_compress_and_export(config, needed)
        early = early_remarks(config) if chosen.preview and not chosen.smoke and "distill" in needed else []
        about = f"; about {estimate(config, workdir, needed)} on this machine" if chosen.preview else ""
    for remark in early:
        console.say(f"warning: {remark.sentence}")
    console.say(f"stages: {', '.join(needed)}{about}")


def _run(chosen: Run) -> bool:
    """Run the chosen stages of an experiment in a workdir that no other process writes to."""
    workdir, needed = chosen.workdir, chosen.needed
    for line in _lines(to_mapping(chosen.config), {} if console.is_verbose() else to_mapping(Config())):
        console.say(line)
    started = time.monotonic()
    config = _resolved(chosen)
    with quiet_stderr():
        from tfigkd.report.verdict import read_remarks
        from tfigkd.stages import pipeline
    _prepare(chosen, config)
    asked = [stage for stage in STAGES if stage in chosen.stages]
    with console.stages(asked, skipped=[stage for stage in asked if stage not in needed]) as work:
        for stage in needed:
            with work(stage):
                pipeline.STAGES[stage](config, workdir)
                hosts.meet(f"the end of stage {stage}")
    if not hosts.is_first_process():
        return True
    console.say(f"done in {time.monotonic() - started:.0f} s; everything is in {workdir.run}", last=True)
    for line in _last_lines(workdir, replace(chosen, stages=STAGES).needed, needed):
        console.say(line, last=True)
    if "report" not in needed:
        return True
    remarks = [remark.sentence for remark in read_remarks(workdir.run / VERDICT)]
    for sentence in remarks or ["nothing wrong was found with this run"]:
        console.say(f"verdict: {sentence}", last=True)
    return chosen.smoke or not remarks


def _last_lines(workdir: Workdir, planned: Sequence[str], done: Sequence[str]) -> Iterator[str]:
    """Return where things are, as far as they are there, and what to type next."""
    models = [path for path in (workdir.student, workdir.compressed) if path.is_file()]
    files = sorted(workdir.stage("export").glob("*.tflite"))
    reports = [path for path in (workdir.run / "report.html", workdir.run / "report.md") if path.is_file()]
    if models:
        yield f"model: {', '.join(map(str, models))}"
    if files:
        yield f"files: {workdir.stage('export')}/ ({', '.join(path.name for path in files)})"
    if "report" in done and reports:
        yield f"report: {reports[0]}   curves: tensorboard --logdir {shlex.quote(str(workdir.run))}"
    rest = planned[planned.index(done[-1]) + 1 :] if done else []
    if rest:
        yield f"next: the same command with --stages {','.join(rest)}"
    elif files:
        smallest = [path for path in files if path.name in ("compressed.int8.tflite", "student.int8.tflite")]
        yield f"next: python -m tfigkd.predict {shlex.quote(str((smallest or files)[0]))} PICTURE.png --resize"

"""The results of a search: its trials as a table and as rows, the page of a budget, and the best as an experiment."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import Config, override
from tfigkd.config.export_fields import file_name
from tfigkd.config.toml import to_toml
from tfigkd.report.pareto import Point
from tfigkd.report.pareto_page import page
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_stage, write_text
from tfigkd.runtime.rows import as_csv
from tfigkd.runtime.text import counted, percent
from tfigkd.search.budget import QUANTITIES, excess, format_budget
from tfigkd.search.candidates import Candidate, Candidates
from tfigkd.search.options import OBJECTIVE, Options
from tfigkd.search.space import Dimension, changes, format_values, trial_config
from tfigkd.stages.workdir import Workdir


@dataclass(frozen=True)
class Search:
    """A search, as it was asked for.

    Attributes:
        name: Of the experiment.
        options: Of the command line.
        config: The experiment that the best trial's values are set in.
        space: What is varied.
        folder: Where it writes.
        source: The last columns of its rows, from `origin`.
        candidates: What was measured for a budget; None without one.
    """

    name: str
    options: Options
    config: Config
    space: Sequence[Dimension]
    folder: Path
    source: dict[str, str]
    candidates: Candidates | None = None


def finish(search: Search, trials: Sequence[Any]) -> Path:
    """Print the trials, write their rows and the experiment file of the best one.

    With a budget the best one is the first whose file is within it after training as well, and a page shows accuracy
    against latency and size.

    Args:
        search: What was searched.
        trials: Those of KerasTuner's oracle.

    Returns:
        Path of the experiment file.

    Raises:
        UserError: No trial has finished, all have failed, or no student is within the budget.
    """
    # a continued search loads its trials in any order; of equal scores, the first trial is the best
    ended = [trial for trial in trials if trial.score is not None]
    ended.sort(key=lambda one: (math.isnan(one.score), -one.score, one.trial_id))
    if not ended:
        raise UserError(_nothing(search))
    if search.candidates is not None:
        return _finish_within(search, search.candidates, ended)
    console.say(f"{len(ended)} trials, best first:")
    for trial in ended:
        console.say(f"  trial {trial.trial_id}: {_accuracy(trial)}  {format_values(trial.hyperparameters.values)}")
    write_text(search.folder / "trials.csv", as_csv([_row(search, trial) | search.source for trial in ended]))
    if math.isnan(ended[0].score):
        raise UserError(_all_failed(search, len(ended)))
    return _write_best(search, ended[0], len(ended))


def _finish_within(search: Search, candidates: Candidates, ended: Sequence[Any]) -> Path:
    """Do what `finish` does, with a budget."""
    measured = [(trial, candidates.measure(_config(search, trial), _values(trial))) for trial in ended]
    refused = [one for one in candidates.all if one.refused]
    console.say(f"{len(ended)} trials, best first, and {len(refused)} students that were not trained:")
    lines = [_line(f"trial {trial.trial_id}", _accuracy(trial), one) for trial, one in measured]
    lines += [_line("refused", "", one) for one in refused]
    console.show_columns(("", "accuracy", *QUANTITIES, "student"), lines, right=2 + len(QUANTITIES))
    points = [_point(trial, one, search.options) for trial, one in measured if not math.isnan(trial.score)]
    if points:
        write_text(search.folder / "pareto.html", page(points, accuracy="validation accuracy"))
        console.say(f"accuracy against latency and size: {search.folder / 'pareto.html'}")
    rows = [_row(search, trial) | _columns(candidates, one.measured, _outcome(trial)) for trial, one in measured]
    best = None
    for trial, before in measured:
        if best is None and not math.isnan(trial.score):
            row, over = _measure_again(search, candidates, trial, before)
            rows.append(row)
            best = None if over else trial
    blank = dict.fromkeys(rows[0], "")
    rows += [
        blank | _settings(search) | changes(one.values) | _columns(candidates, one.measured, f"refused: {one.refused}")
        for one in refused
    ]
    write_text(search.folder / "trials.csv", as_csv([row | search.source for row in rows]))
    if not points:
        raise UserError(_all_failed(search, len(ended)))
    if best is None:
        raise UserError(
            f"no trained student is within the budget ({format_budget(candidates.budget)}) when its file is measured "
            f"again; see {search.folder / 'trials.csv'}, and raise --budget a little"
        )
    return _write_best(search, best, len(ended))


def _measure_again(search: Search, candidates: Candidates, trial: Any, before: Candidate) -> tuple[dict[str, Any], str]:
    """Return the row of a trained student's file, and what of it exceeds the budget."""
    run = Workdir(search.folder / "trials" / trial.trial_id / "0", search.options.teachers)
    path = search.folder / file_name(f"trial_{trial.trial_id}", candidates.format)
    measured, report = candidates.measure_trained(run.student, _config(search, trial), path)
    over = excess(measured, candidates.budget)
    scored = {"file_accuracy": report["accuracy"], "file_agreement": report["agreement"], "file_n": report["examples"]}
    console.say(
        f"trained file of trial {trial.trial_id}: {percent(report['accuracy'])} of {report['examples']:,} validation "
        f"images, {', '.join(QUANTITIES[name].format(value) for name, value in measured.items())}"
        f"{f'; it exceeds the budget: {over}' if over else ''}"
    )
    outcome = f"trained file: {over}" if over else "trained file: within the budget"
    return _row(search, trial) | _columns(candidates, before.measured | measured, outcome) | scored, over


def _nothing(search: Search) -> str:
    """Return why a search has no trials."""
    nearest = None if search.candidates is None else search.candidates.nearest()
    if search.candidates is not None and nearest is None:
        return "the values of the space never go together (see the lines 'refused:'); change --vary"
    if search.candidates is None or nearest is None:
        return f"no trial of the search in {search.folder} finished; see {search.folder}/trials/*/*/run.log"
    limits = format_budget(search.candidates.budget)
    return (
        f"none of {len(search.candidates.all)} students is within the budget ({limits}); "
        f"the nearest is {_student(nearest)}: {nearest.refused}; raise --budget, or --vary smaller students"
    )


def _all_failed(search: Search, count: int) -> str:
    logs = f"{search.folder}/trials/*/*/run.log"
    return f"all {count} trials of the search failed; see {logs}, and delete {search.folder} to search anew"


def _accuracy(trial: Any) -> str:
    return "failed" if math.isnan(trial.score) else percent(trial.score)


def _values(trial: Any) -> dict[str, Any]:
    return trial.hyperparameters.values


def _config(search: Search, trial: Any) -> Config:
    return trial_config(search.config, _values(trial))


def _student(candidate: Candidate) -> str:
    """Return what a search has chosen of a student, such as model resnet8  width 0.5."""
    return format_values({name.removeprefix("student."): value for name, value in candidate.values.items()})


def _outcome(trial: Any) -> str:
    return "failed" if math.isnan(trial.score) else "trained"


def _settings(search: Search) -> dict[str, Any]:
    """Return the first columns of all rows of a search."""
    return {"experiment": search.name, "tuner": search.options.tuner, "seed": search.options.seed}


def _row(search: Search, trial: Any) -> dict[str, Any]:
    """Return the row of a trial: its values, training time, number of training images and score."""
    paths = (search.folder / "trials" / trial.trial_id).glob("*/distill/manifest.json")
    trained = [require_stage(path.parent, "distill") for path in paths]
    seconds = sum(one["seconds"] for one in trained)
    return (
        _settings(search)
        | {"trial": trial.trial_id, "students": search.options.seeds}
        | {OBJECTIVE: trial.score, "train_seconds": round(seconds, 1)}
        | {"n_train": trained[0]["n_train"] if trained else ""}
        | dict.fromkeys((one.field for one in search.space), "")
        | changes(_values(trial))
    )


def _columns(candidates: Candidates, measured: Mapping[str, float], outcome: str) -> dict[str, Any]:
    """Return the columns of a budget: what a student takes, on what it was measured, and whether it was trained."""
    taken = {name: round(measured[name], QUANTITIES[name].decimals) if name in measured else "" for name in QUANTITIES}
    scored = dict.fromkeys(("file_accuracy", "file_agreement", "file_n"), "")
    about = {"format": candidates.format, "reference_ms": round(candidates.reference_ms, 4)}
    about |= {"n_validation": candidates.n_validation}
    return taken | about | {"budget": format_budget(candidates.budget), "outcome": outcome} | scored


def _line(what: str, accuracy: str, candidate: Candidate) -> tuple[str, ...]:
    """Return a line of the table of a search with a budget."""
    taken = candidate.measured
    cells = (QUANTITIES[name].format(taken[name]) if name in taken else "" for name in QUANTITIES)
    return what, accuracy, *cells, _student(candidate)


def _point(trial: Any, candidate: Candidate, options: Options) -> Point:
    """Return a trained student as a point of the page."""
    taken = candidate.measured
    named = _student(candidate), options.format, trial.score, None, options.seeds
    return Point(*named, taken["latency"], taken["size"], int(taken["parameters"]))


def _write_best(search: Search, best: Any, count: int) -> Path:
    """Write the experiment file of the best trial, and say what comes next."""
    values = {key: value for key, value in _values(best).items() if not key.startswith("tuner/")}
    options, name, folder = search.options, search.name, search.folder
    students = f"{counted(options.seeds, 'student')} a trial"
    description = f"{name}, the best of {count} trials on validation ({percent(best.score)})"
    comment = f"{search.source['command']}: {students}, by {OBJECTIVE}."
    path = folder / f"{name}_best.toml"
    chosen = dataclasses.replace(override(search.config, changes(values)), description=description)
    write_text(path, to_toml(chosen, comment))
    console.say(f"best: {path}   all trials: {folder / 'trials.csv'}, tensorboard --logdir {folder / 'tensorboard'}")
    teachers = [] if options.teachers == Options.teachers else ["--teachers", str(options.teachers)]
    console.say(f"next: python -m tfigkd.run {shlex.join(['--experiment', str(path), *teachers])}", last=True)
    return path

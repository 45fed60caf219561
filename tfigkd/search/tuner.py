"""Search with KerasTuner: each trial runs stages of the pipeline, and the objective is its validation accuracy."""

import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfigkd.config.declare import require_seed
from tfigkd.config.experiment import Config, override, read_experiment, smoke, to_mapping
from tfigkd.config.flags import with_flags
from tfigkd.runtime import console
from tfigkd.runtime.command import INTERRUPTED
from tfigkd.runtime.errors import InUseError, UserError, system_line
from tfigkd.runtime.files import locked, make_folder, read_signed, require_stage, write_signed, write_text
from tfigkd.runtime.processes import CONTEXT, settle
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.quiet import quiet_stderr, quiet_tensorflow
from tfigkd.runtime.text import percent
from tfigkd.search.budget import format_budget, read_budget
from tfigkd.search.options import OBJECTIVE, Options
from tfigkd.search.oracle import make_oracle, propose_within, save_whole_files
from tfigkd.search.space import (
    Dimension,
    dimensions,
    format_values,
    neutral_student,
    student_space,
    trial_config,
    usual_space,
)
from tfigkd.stages.data import dataset, forget_datasets
from tfigkd.stages.runner import INERT, Run, changed_fields, run
from tfigkd.stages.workdir import Workdir

PROJECT = "tuner"  # the folder of KerasTuner's own files
REFUSALS = 50
"""Students refused in a row after which a search with a budget ends."""


def _process(chosen: Run, ended: Any) -> None:
    """Train one student in this process; send to `ended` None, or an error line and whether the trial caused it."""
    try:
        settle(chosen.workdir.run / "run.log")
        run(chosen)
        ended.send(None)
    except InUseError as error:
        ended.send((str(error), False))
    except UserError as error:
        ended.send((str(error), True))
    except OSError as error:
        ended.send((system_line(error), False))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _train(chosen: Run) -> None:
    """Train a student in a child process, because TensorFlow never frees the graphs of a training.

    Raises:
        UserError: the trial cannot be trained with its values.
        FatalError: the training failed for another reason, such as a full disk.
    """
    from keras_tuner.errors import FatalError

    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_process, args=(chosen, there))
    process.start()
    there.close()
    try:
        fault = here.recv()
        process.join()
    except EOFError:
        process.join()
        fault = _died(chosen.workdir.run, process.exitcode)
    finally:
        process.terminate()  # has no effect, unless Ctrl-C interrupted the lines above
        process.join()
    if fault is not None:
        line, of_trial = fault
        raise UserError(line) if of_trial else FatalError(line)


def _died(folder: Path, status: int | None) -> tuple[str, bool]:
    """Return an error line on a process that ended without a result, and whether the trial caused it.

    What killed it may be gone, such as another program that took the memory. The second time the trial has failed.
    """
    line = f"the training ended without a result (status {status}); see {folder}/run.log"
    if status == INTERRUPTED:
        return line, False
    try:
        note = make_folder(folder) / "killed"
        before = note.is_file()
        write_text(note, f"{line}\n")
    except OSError as error:
        return system_line(error), False
    return line, before


def try_out(options: Options, name: str, config: Config, folder: Path) -> float:
    """Train the students of one trial, continuing from checkpoints, and return their mean validation accuracy."""
    scores = []
    for seed in range(options.seeds):
        console.say(f"    training student {seed + 1} of {options.seeds}; its progress: {folder / str(seed)}/run.log")
        workdir = Workdir(folder / str(seed), options.teachers, seed)
        stages = ("data", "teacher", "overlays", "distill")
        _train(Run(name, config, workdir, stages, smoke=options.smoke, preview=False))
        scores.append(require_stage(workdir.stage("distill"), "distill")[OBJECTIVE])
    return sum(scores) / len(scores)


def _log_hparams(folder: Path, values: Mapping[str, Any], score: float) -> None:
    """Write one line of TensorBoard's HParams page."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard imports pkg_resources
        from tensorboard.plugins.hparams import api
    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams({name: value for name, value in values.items() if value is not None}, trial_id=folder.name)
        tf.summary.scalar(OBJECTIVE, score, step=1)


def _tuner(
    options: Options, name: str, config: Config, space: Sequence[Dimension], folder: Path, candidates: Any
) -> Any:
    import keras_tuner

    class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
        """A tuner that runs a trial through the stages of the pipeline."""

        def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
            values, began = trial.hyperparameters.values, time.monotonic()
            console.say(f"  trial {trial.trial_id} begins:  {format_values(values)}")
            try:
                score = try_out(options, name, trial_config(config, values), folder / "trials" / trial.trial_id)
            except UserError as error:  # such as a NaN loss; the next trial may succeed
                console.say(f"  trial {trial.trial_id} failed: {error}")
                return {OBJECTIVE: math.nan}
            seconds = time.monotonic() - began
            ended = [one.score for one in self.oracle.trials.values() if one.score is not None]
            best = max((one for one in [*ended, score] if not math.isnan(one)), default=score)
            after = f"({seconds:.0f} s; best so far: {percent(best)})"
            console.say(f"  trial {trial.trial_id}: {percent(score)}  {format_values(values)}  {after}")
            with quiet_stderr():  # TensorFlow greets when it is imported
                _log_hparams(folder / "tensorboard" / trial.trial_id, values, score)
            return {OBJECTIVE: score}

        def save(self) -> None:
            if not self._is_worker():
                self.oracle.save()
            write_signed(Path(self._get_tuner_fname()), self.get_state())

    oracle = make_oracle(options, config, space)
    save_whole_files(oracle)
    if candidates is not None:

        def admits(values: Mapping[str, Any]) -> bool:
            try:
                tried = trial_config(config, values)
            except UserError as error:  # values that do not go together
                console.say(f"  refused: {error}:  {format_values(values)}")
                return False
            return not candidates.measure(tried, values).refused

        propose_within(oracle, admits, REFUSALS)
    tuner = Tuner(oracle, directory=str(folder), project_name=PROJECT)
    if tuner.oracle is oracle:  # not a worker: a search killed in its first trial needs a saved state to continue
        tuner.save()
    return tuner


def check_state(folder: Path) -> None:
    """Check the files of a stopped search, and remove a trial that was killed before the search recorded it.

    Raises:
        UserError: a file is damaged.
    """
    remedy = f"delete {folder.parent} to search anew"
    try:
        state = read_signed(folder / "oracle.json", remedy, names=("start_order",), unsigned=True)
    except FileNotFoundError:
        return
    for path in folder.glob("trial_*/trial.json"):
        if read_signed(path, remedy, names=("trial_id",), unsigned=True)["trial_id"] not in state["start_order"]:
            path.unlink()
    for path in folder.glob("tuner*.json"):
        read_signed(path, remedy, unsigned=True)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a search, or check that the folder holds a search with the same settings.

    Raises:
        UserError: the folder holds another search.
    """
    path = folder / "search.json"
    with locked(folder, wait=True):  # chief and workers start at the same time
        if path.exists():
            before = read_signed(path, f"delete {folder} to search anew", unsigned=True)
            try:
                known = "pictures" in before  # which earlier versions did not write
                changed = changed_fields({"pictures": settings["pictures"]} | before, settings, INERT)
            except (UserError, KeyError) as error:
                raise UserError(f"{path} is damaged ({error}); delete {folder} to search anew") from error
            if changed:
                raise UserError(f"{folder} holds another search ({', '.join(changed)}); choose another --workdir")
        if not (path.exists() and known):
            write_signed(path, settings)


def search(options: Options, flags: Sequence[str], command: str = "") -> Path | None:
    """Run a search.

    Args:
        options: Experiment, search space and number of trials.
        flags: Fields with fixed values, as on the command line.
        command: The command that repeats the search; a column of its rows.

    Returns:
        Path of the experiment file with the best values. None in a worker, because the chief writes the file.

    Raises:
        UserError: an option is wrong, the folder holds another search, or the search failed.
    """
    if options.trials < 1 or options.seeds < 1:
        raise UserError("--trials and --seeds must be at least 1")
    require_seed(options.seed, "--seed")
    budget = read_budget(options.budget) if options.budget else {}
    role = os.environ.get("KERASTUNER_TUNER_ID", "")
    if budget and role:
        raise UserError("--budget measures on one quiet machine; search in one process, without KERASTUNER_TUNER_ID")
    name, config = read_experiment(options.experiment)
    config = neutral_student(config) if options.student else config
    config = smoke(config) if options.smoke else config
    config = with_flags(config, flags, Options)
    final = config
    # trials are compared on validation, so validation must not be used for training
    config = override(config, {"data.train_split": "train"})
    space = _space(options, config)
    ending = f"{'-budget' if budget else ''}{'-smoke' if options.smoke else ''}"
    folder = options.workdir or Path("runs/search") / f"{name}-{options.tuner}{ending}"
    _announce(options, config, space, budget)
    if options.dry_run:
        console.say(f"it would write to {folder}")
        return None
    with locked(folder / (role or "search"), wait=False):
        with quiet_tensorflow(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            claim(folder, _settings(options, name, config, space, budget))
            if not budget:
                forget_datasets()  # each trial reads its own in a process of its own
            if role in ("", "chief"):
                check_state(folder / PROJECT)
            from tfigkd.search.candidates import Candidates
            from tfigkd.search.outcome import Search, finish

            candidates = Candidates(folder, config, budget, options.format) if budget else None
            tuner = _tuner(options, name, config, space, folder, candidates)
        _run_trials(tuner)
        if role and role != "chief":
            return None
        searched = Search(name, options, final, space, folder, origin(command), candidates)
        return finish(searched, list(tuner.oracle.trials.values()))


def _settings(
    options: Options, name: str, config: Config, space: Sequence[Dimension], budget: Mapping[str, float]
) -> dict[str, Any]:
    """Return what a search is known by when it continues, as JSON keeps it."""
    settings: dict[str, Any] = {"experiment": name, "config": to_mapping(config)}
    settings |= {"tuner": options.tuner, "seeds": options.seeds, "seed": options.seed}
    settings["pictures"] = dataset(config.data).training_fingerprint  # trials on other pictures cannot be compared
    settings["space"] = [[one.field, list(one.values), one.scale] for one in space]
    return settings | ({"budget": budget, "format": options.format} if budget else {})


def _announce(options: Options, config: Config, space: Sequence[Dimension], budget: Mapping[str, float]) -> None:
    """Print the space, the budget and, of a dry run, the number of trials."""
    for one in space:
        only = f", with {', '.join(one.networks)}" if one.networks else ""
        console.say(f"  {one.field}: {', '.join(map(str, one.values))} ({one.scale}{only})")
    if budget:
        console.say(f"  budget of the {options.format} file: {format_budget(budget)}")
    if config.needs_teacher and config.teacher.weights is not None:
        console.say("  note: the published teacher was trained on validation; values that rely on it look too good")
    if options.dry_run:
        trials = "as many trials as hyperband chooses" if options.tuner == "hyperband" else f"{options.trials} trials"
        console.say(f"{options.tuner}: {trials} of {options.seeds} students and {config.training.epochs} epochs each")


def _run_trials(tuner: Any) -> None:
    """Run the trials of a tuner of KerasTuner.

    Raises:
        UserError: KerasTuner stops, as where a worker cannot reach its chief.
    """
    import keras_tuner

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN")  # KerasTuner's best of trials that have failed
            tuner.search(verbose=0)
    except keras_tuner.errors.FatalError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        raise UserError(f"the search stopped: {str(error).strip().splitlines()[-1]}") from error


def _space(options: Options, config: Config) -> list[Dimension]:
    """Return the search space of a command.

    Raises:
        UserError: A field is unknown, given twice, none that trials can differ in, or one that hyperband sets itself.
    """
    if options.student:
        space = student_space(config, options.vary)
    else:
        space = dimensions(options.vary, config) or usual_space(config)
    if options.tuner == "hyperband" and any(one.field == "training.epochs" for one in space):
        raise UserError("hyperband sets training.epochs itself; leave it out of --vary, or choose another --tuner")
    return space

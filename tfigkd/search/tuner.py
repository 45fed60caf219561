"""Search by KerasTuner: each trial runs through the stages of the pipeline, and validation accuracy judges it."""

import dataclasses
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tfigkd.config.experiment import Config, override, read_experiment, smoke, to_mapping
from tfigkd.config.flags import with_flags
from tfigkd.config.loss_fields import require_seed
from tfigkd.config.reading import differences
from tfigkd.config.toml import to_toml
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError, system_line
from tfigkd.runtime.files import locked, read_signed, require, write_signed, write_text
from tfigkd.runtime.processes import CONTEXT, settle
from tfigkd.runtime.provenance import as_csv, origin
from tfigkd.search.space import Dimension, dimension, hyperparameters, usual_space
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir

PROG = "python -m tfigkd.search"
OBJECTIVE = "validation_accuracy"
PROJECT = "tuner"  # the folder of KerasTuner's own files


@dataclass(frozen=True)
class Options:
    """Search an experiment's fields for the best validation accuracy; any other flag is a field that is held fixed."""

    experiment: str
    """Name of a shipped experiment or path of a .toml file."""
    tuner: Literal["hyperband", "bayesian", "random"] = "bayesian"
    """How KerasTuner picks what is tried next."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C; may be repeated. Not given: the usual ones."""
    trials: int = 20
    """How many settings are tried, those of an earlier call included; hyperband has a number of its own."""
    seeds: int = 1
    """Students a setting; the objective is their mean."""
    workdir: Path | None = None
    """Where the search lies. Default: runs/search/EXPERIMENT-TUNER."""
    teachers: Path = Path("runs/teachers")
    """Where teachers and their stores lie, shared with all runs."""
    seed: int = 0
    """Seed of what is tried."""
    smoke: bool = False
    """Shrink every trial to a few steps of a small slice."""


def _oracle(options: Options, config: Config, space: Sequence[Dimension]) -> Any:
    import keras_tuner

    settings: dict[str, Any] = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": hyperparameters(space),
        "seed": options.seed + 1,  # KerasTuner takes 0 for none, and draws anew each time
    }
    if options.tuner == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(max_epochs=config.training.epochs, **settings)
    if options.tuner == "bayesian":
        return keras_tuner.oracles.BayesianOptimizationOracle(max_trials=options.trials, **settings)
    return keras_tuner.oracles.RandomSearchOracle(max_trials=options.trials, **settings)


def _changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a trial sets, as many epochs as hyperband grants it among them."""
    changes = {name: value for name, value in values.items() if not name.startswith("tuner/")}
    return changes | ({"training.epochs": values["tuner/epochs"]} if "tuner/epochs" in values else {})


def trial_config(config: Config, values: Mapping[str, Any]) -> Config:
    """The config of one trial, from what KerasTuner calls its values."""
    return override(config, _changes(values))


def _process(chosen: Run, ended: Any) -> None:
    """The process of one student; what went wrong goes to `ended`, as one line and whether it is the trial's fault."""
    try:
        settle(chosen.workdir.run / "run.log")
        run(chosen)
        ended.send(None)
    except UserError as error:
        ended.send((str(error), True))
    except OSError as error:
        ended.send((system_line(error), False))
    except KeyboardInterrupt:
        sys.exit(130)


def _train(chosen: Run) -> None:
    """Train a student in a process of its own: each training leaves TensorFlow with graphs that it never frees.

    Raises:
        UserError: the trial cannot be trained.
        FatalError: it cannot be trained here and now, as on a full disk.
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
        fault = (
            f"the training ended without a word (status {process.exitcode}); see {chosen.workdir.run}/run.log",
            False,
        )
    finally:
        process.terminate()  # nothing, unless Ctrl-C came in between
        process.join()
    if fault is not None:
        line, of_trial = fault
        raise UserError(line) if of_trial else FatalError(line)


def try_out(options: Options, name: str, config: Config, folder: Path) -> float:
    """Train the students of one trial, going on where they were stopped; returns their mean validation accuracy."""
    scores = []
    for seed in range(options.seeds):
        workdir = Workdir(folder / str(seed), options.teachers, seed)
        stages = ("data", "teacher", "overlays", "distill")
        _train(Run(name, config, workdir, stages, smoke=options.smoke))
        scores.append(require(workdir.stage("distill"), "distill")[OBJECTIVE])
    return sum(scores) / len(scores)


def _log_hparams(folder: Path, values: Mapping[str, Any], score: float) -> None:
    """One line of TensorBoard's HParams page."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's import of pkg_resources
        from tensorboard.plugins.hparams import api
    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams({name: value for name, value in values.items() if value is not None}, trial_id=folder.name)
        tf.summary.scalar(OBJECTIVE, score, step=1)


def _words(values: Mapping[str, Any]) -> str:
    """The values of a trial on one line."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return "  ".join(f"{key} {value}" for key, value in shown.items())


def _tuner(options: Options, name: str, config: Config, space: Sequence[Dimension], folder: Path) -> Any:
    import keras_tuner

    class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
        """Runs a trial through the stages of the pipeline."""

        def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
            values = trial.hyperparameters.values
            try:
                score = try_out(options, name, trial_config(config, values), folder / "trials" / trial.trial_id)
            except UserError as error:  # a loss became NaN, a range went too far: the next trial may do better
                console.say(f"  trial {trial.trial_id} failed: {error}")
                return {OBJECTIVE: math.nan}
            console.say(f"  trial {trial.trial_id}: {100 * score:.2f} %  {_words(values)}")
            _log_hparams(folder / "tensorboard" / trial.trial_id, values, score)
            return {OBJECTIVE: score}

        def save(self) -> None:
            if not self._is_worker():
                self.oracle.save()
            write_signed(Path(self._get_tuner_fname()), self.get_state())

    oracle = _oracle(options, config, space)
    # KerasTuner writes over its files in place, and a kill in the middle of that would end the search for good
    oracle.save = lambda: write_signed(Path(oracle._get_oracle_fname()), oracle.get_state())
    oracle._save_trial = lambda trial: write_signed(
        Path(oracle._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state()
    )
    tuner = Tuner(oracle, directory=str(folder), project_name=PROJECT)
    if tuner.oracle is oracle:  # no worker of a chief: a kill in the first trial must find something to go on from
        tuner.save()
    return tuner


def _check_state(folder: Path) -> None:
    """Look at what a stopped search has left, and drop the trial that a kill cut off before the search knew of it.

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


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what is searched, unless a search of something else is there."""
    path = folder / "search.json"
    with locked(folder, wait=True):  # chief and workers come at the same time
        if path.exists():
            before = read_signed(path, f"delete {folder} to search anew", unsigned=True)
            changed = differences(before, settings)
            if changed:
                raise UserError(f"{folder} holds another search ({', '.join(changed)}); choose another --workdir")
        else:
            write_signed(path, settings)


def search(options: Options, flags: Sequence[str], command: str = "") -> Path | None:
    """Search; returns the best setting's experiment file, which a worker of a chief leaves to the chief.

    Args:
        options: What is searched.
        flags: Fields that are held fixed, as on the command line.
        command: What repeats the search; a column of its rows.
    """
    if options.trials < 1 or options.seeds < 1:
        raise UserError("--trials and --seeds must be at least 1")
    require_seed(options.seed, "--seed")
    name, config = read_experiment(options.experiment)
    config = smoke(config) if options.smoke else config
    config = with_flags(config, flags, PROG)
    final = config
    # every choice is made on validation, so nothing may be trained on it
    config = override(config, {"data.train_split": "train"})
    space = [dimension(text, config) for text in options.vary] or usual_space(config)
    folder = options.workdir or Path("runs/search") / f"{name}-{options.tuner}{'-smoke' if options.smoke else ''}"
    role = os.environ.get("KERASTUNER_TUNER_ID", "")
    settings = json.loads(json.dumps({"experiment": name, "config": to_mapping(config)}))
    settings |= {"tuner": options.tuner, "seeds": options.seeds, "seed": options.seed}
    settings["space"] = [[one.field, list(one.values), one.scale] for one in space]
    for one in space:
        console.say(f"  {one.field}: {', '.join(map(str, one.values))} ({one.scale})")
    if config.needs_teacher and config.teacher.weights is not None:
        console.say("  note: a published teacher has seen validation, which flatters whatever leans on it")
    with locked(folder / (role or "search"), wait=False):
        _claim(folder, settings)
        with console.quiet_stderr():
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if role in ("", "chief"):
                    _check_state(folder / PROJECT)
                tuner = _tuner(options, name, config, space, folder)
                import keras_tuner
        try:
            tuner.search(verbose=0)
        except keras_tuner.errors.FatalError as error:
            raise UserError(str(error)) from error
        except RuntimeError as error:  # KerasTuner gives up after three trials that failed one after another
            raise UserError(f"the search stopped: {str(error).strip().splitlines()[-1]}") from error
        if role and role != "chief":
            return None
        return _finish(tuner.oracle, options, final, folder, name, command)


def _rows(trials: Sequence[Any], options: Options, folder: Path, name: str, command: str) -> list[dict[str, Any]]:
    """One row a trial: what was tried, how long it took, what became of it."""
    source, rows = origin(command), []
    for trial in trials:
        paths = (folder / "trials" / trial.trial_id).glob("*/distill/manifest.json")
        seconds = sum(require(path.parent, "distill")["seconds"] for path in paths)
        rows.append(
            {"experiment": name, "tuner": options.tuner, "seed": options.seed, "trial": trial.trial_id}
            | {"students": options.seeds, OBJECTIVE: trial.score, "train_seconds": round(seconds, 1)}
            | _changes(trial.hyperparameters.values)
            | source
        )
    return rows


def _finish(oracle: Any, options: Options, config: Config, folder: Path, name: str, command: str) -> Path:
    """Show the trials, write their rows and the best one's experiment file."""
    # a search that was stopped finds its trials again in any order: of equals the first is the best
    ended = [trial for trial in oracle.trials.values() if trial.score is not None]
    trials = sorted(ended, key=lambda one: (math.isnan(one.score), -one.score, one.trial_id))
    if not trials:
        raise UserError(f"no trial of the search in {folder} came to an end; its files say why")
    console.say(f"{len(trials)} trials, best first:")
    for trial in trials:
        console.say(f"  trial {trial.trial_id}: {100 * trial.score:.2f} %  {_words(trial.hyperparameters.values)}")
    write_text(folder / "trials.csv", as_csv(_rows(trials, options, folder, name, command)))
    best = trials[0]
    values = {key: value for key, value in best.hyperparameters.values.items() if not key.startswith("tuner/")}
    chosen = override(config, values)
    students = f"{options.seeds} student{'s' if options.seeds > 1 else ''} a trial"
    description = f"{name}, the best of {len(trials)} trials on validation ({100 * best.score:.2f} %)"
    comment = f"python -m tfigkd.search --experiment {name} --tuner {options.tuner}: {students}, by {OBJECTIVE}."
    path = folder / f"{name}_best.toml"
    write_text(path, to_toml(dataclasses.replace(chosen, description=description), comment))
    console.say(f"best: {path}   all trials: {folder / 'trials.csv'}, tensorboard --logdir {folder / 'tensorboard'}")
    return path

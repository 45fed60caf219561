"""The command line: find the experiment, apply typed overrides, say what will run, call the pipeline.

python -m tfigkd.run --experiment quickstart
python -m tfigkd.run --experiment ig_kd --seed 1 --losses.kd.temperature 4
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tfigkd.config.compress_fields import trainings
from tfigkd.config.fields import Config
from tfigkd.config.loss_fields import require_seed
from tfigkd.config.reading import (
    closest,
    differences,
    dotted_names,
    experiments_folder,
    fingerprint,
    from_mapping,
    read_experiment,
    smoke,
    to_mapping,
    value_at,
)
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError, system_line
from tfigkd.runtime.files import Workdir, locked, read_manifest, write_text

STAGES = ("data", "teacher", "overlays", "distill", "compress", "export", "evaluate", "benchmark", "report")
SETTINGS = "config.json"
DATA = "config.data.name"
# fields that a finished run may be repeated with: they name places, or concern only stages that are cheap to redo
FREE = (
    "data.dir",
    "description",
    "compress.",
    "export.",
    "evaluation.",
    "benchmark.",
    "ledger.",
    "tensorboard.",
    "attribution.batch_size",
)


@dataclass(frozen=True)
class Command:
    """Compress an image classifier: data, teacher, overlays, distill, compress, export, evaluate, benchmark, report.

    Every field of the experiment can be overridden by its dotted name. A run that was interrupted goes on where it
    stopped when the same command is given again.
    """

    experiment: str
    """Name of a shipped experiment (see --list) or path of a .toml file."""
    workdir: Path | None = None
    """Where the run writes. Default: runs/EXPERIMENT/SEED (runs/EXPERIMENT-smoke/SEED with --smoke)."""
    teachers: Path = Path("runs/teachers")
    """Where teachers and their overlay stores lie, shared by all runs."""
    stages: str = ",".join(STAGES)
    """Which stages to run, separated by commas; each needs those before it to have run."""
    smoke: bool = False
    """Shrink the experiment to a few steps of a small slice."""
    seed: int = 0
    """Seed of the student: initial weights, order, crops, overlays. The teacher has its own."""
    list: bool = False
    """Show the shipped experiments and stop."""
    quiet: bool = False
    """Show errors and the last lines only."""
    verbose: bool = False
    """Show every epoch, all that the stages say, and what libraries warn of."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def list_experiments() -> None:
    """Print name and description of each shipped experiment."""
    names = sorted(path.stem for path in experiments_folder().glob("*.toml"))
    width = max(map(len, names))
    for name in names:
        console.say(f"{name:<{width}}  {read_experiment(name)[1].description}")


def parse(arguments: Sequence[str], base: Config | None = None) -> tuple[Command, str]:
    """The command with its resolved config, and the experiment's name.

    Args:
        arguments: Of the command line.
        base: The config that the arguments override, in place of the experiment's own.

    Raises:
        UserError: an unknown experiment, flag, stage or field, or a value of the wrong type or range.
    """
    given = _first_value(arguments, "--experiment")
    asks_help = {"-h", "--help"} & {*arguments}
    if not given and not asks_help:
        raise UserError("--experiment NAME_OR_FILE is missing; --list shows the experiments")
    name, config = read_experiment(given) if given else ("EXPERIMENT", Config())
    if "--smoke" in arguments:
        config = smoke(config)
    config = config if base is None else base
    said = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            if not asks_help:  # a usage error becomes one line
                stack.enter_context(contextlib.redirect_stdout(said))
                stack.enter_context(contextlib.redirect_stderr(said))
            command, unknown = tyro.cli(
                Command,
                prog="python -m tfigkd.run",
                args=_switches(arguments, config),
                default=Command(name, config=config),
                return_unknown_args=True,
                use_underscores=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # a box of title, rule, message, rule, help text: the message is what a single line has room for
        title, *parts = re.split(r"[─-]{20,}", re.sub(r"[╭╮╰╯│]", " ", said.getvalue()))
        message = next((part for part in parts if part.split()), title)
        raise UserError(" ".join(message.split())) from None
    if unknown:
        # a switch that is given a value comes back as the value alone
        whole = next((one for one in arguments if one == unknown[0] or one.endswith(f"={unknown[0]}")), unknown[0])
        raise UserError(f"unknown argument {whole!r}; {_hint(whole, config)}")
    if command.quiet and command.verbose:
        raise UserError("--quiet and --verbose exclude each other; give one of them")
    require_seed(command.seed, "--seed")
    for stage in command.stages.split(","):
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}; {closest(stage, STAGES)}")
    return command, name


def _switches(arguments: Sequence[str], config: Config) -> list[str]:
    """Arguments in tyro's words: a switch that is given true or false, as in TOML, becomes `--a.b` or `--a.no_b`."""
    values = to_mapping(config)
    known = {name for name in dotted_names(values) if isinstance(value_at(values, name), bool)}
    said: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not equals and said and argument.lower() in ("true", "false") and said[-1].removeprefix("--") in known:
            flag, value = said.pop(), argument
        name = flag.removeprefix("--")
        if name in known and value.lower() in ("true", "false"):
            table, _, last = name.rpartition(".")
            flag = flag if value.lower() == "true" else f"--{table}.no_{last}"
            said.append(flag)
        else:
            said.append(argument)
    return said


def _first_value(arguments: Sequence[str], flag: str) -> str:
    """The value of a flag, before the real parse, which needs the experiment's fields; empty where it has none."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments) and not arguments[position + 1].startswith("--"):
            return arguments[position + 1]
    return ""


def _hint(flag: str, config: Config) -> str:
    near = closest(flag.removeprefix("--"), dotted_names(to_mapping(config)))
    return near if near.startswith("did you mean") else "--help shows them all"


def _lines(table: dict[str, Any], prefix: str = "") -> list[str]:
    """A config as one line a table, in TOML's words."""
    own = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    if own.get("weight") == 0 or own.get("method") == "none":  # a loss or a stage that is switched off
        return []
    text = "  ".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    lines = [f"[{prefix}]  {text}" if prefix else text] if own else []
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}.{key}" if prefix else key)
    return lines


def _claim(workdir: Workdir, name: str, command: Command) -> None:
    """Write the config into the workdir, unless a student of other settings is there."""
    path = workdir.run / SETTINGS
    if path.exists() and workdir.stage("distill").exists():
        changed = changed_settings(path, name, command)
        if changed:
            raise UserError(
                f"{workdir.run} holds a run with other settings ({', '.join(changed)}); choose another --workdir"
            )
    write_text(path, json.dumps(_settings(name, command), indent=1) + "\n")


def _settings(name: str, command: Command) -> dict[str, Any]:
    config = to_mapping(command.config)
    return {"experiment": name, "seed": command.seed, "smoke": command.smoke, "config": config}


def changed_settings(path: Path, name: str, command: Command) -> list[str]:
    """Dotted names of the settings in which the run of a settings file differs from a command, but for `FREE` ones.

    A data set may go by another name, as one that was packed into a file for another machine, where its student has
    recorded the fingerprint that the data of this name have.

    Raises:
        UserError: the file is damaged, or there is no data set of the new name.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        # a field that a newer version has brought stands at its default
        before["config"] = to_mapping(from_mapping(Config, before["config"]))
        changed = [field for field in differences(before, _settings(name, command)) if not _free(field)]
    except (UserError, OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another --workdir or delete it") from error
    if DATA in changed and _same_data(path.parent, command.config):
        changed.remove(DATA)
    return changed


def _same_data(run: Path, config: Config) -> bool:
    """Whether a config's data are those that the student of a run was trained on, whatever they are called."""
    trained = read_manifest(Workdir(run, run).stage("distill"))
    if trained is None or "data" not in trained:
        return False
    from tfigkd.stages.data import dataset

    return dataset(config.data).fingerprint == trained["data"]


def _free(field: str) -> bool:
    return field.removeprefix("config.").startswith(FREE)


def run(command: Command, name: str) -> None:
    """Run the chosen stages of an experiment.

    Raises:
        UserError: anything the user can mend.
    """
    default = Path("runs") / (f"{name}-smoke" if command.smoke else name) / str(command.seed)
    workdir = Workdir(command.workdir or default, command.teachers, command.seed)
    config = command.config
    console.configure(quiet=command.quiet, verbose=command.verbose)
    unneeded = {"teacher": not config.needs_teacher, "compress": config.compress.method == "none"}
    unneeded["overlays"] = not any(each.needs_stored for each in trainings(config))
    asked = [stage for stage in STAGES if stage in command.stages.split(",")]
    chosen = [stage for stage in asked if not unneeded.get(stage)]
    with locked(workdir.run, wait=False):
        _claim(workdir, name, command)
        for line in _lines(to_mapping(config)):
            console.say(line)
        started = time.monotonic()
        with console.quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1" if command.verbose else "2")
            from tfigkd.stages import pipeline
            from tfigkd.stages.distill import check
            from tfigkd.stages.estimate import estimate
        console.say(f"{name}, seed {command.seed}, config {fingerprint(config)}, in {workdir.run}")
        with console.quiet_stderr():
            if config.needs_teacher and "distill" in chosen:
                check(config)
            about = estimate(config, workdir, chosen)
        console.say(f"stages: {', '.join(chosen)}; about {about} on this machine")
        with console.stages(asked, skipped=[stage for stage in asked if stage not in chosen]) as work:
            for stage in chosen:
                with work(stage):
                    pipeline.STAGES[stage](config, workdir)
        console.say(f"done in {time.monotonic() - started:.0f} s; everything is in {workdir.run}", last=True)
        for line in _last_lines(workdir, [stage for stage in STAGES if not unneeded.get(stage)], chosen):
            console.say(line, last=True)


def _last_lines(workdir: Workdir, needed: Sequence[str], chosen: Sequence[str]) -> Iterator[str]:
    """Where things are, as far as they are there, and what to type next."""
    students = [workdir.stage("distill") / "student.keras", workdir.stage("compress") / "compressed.keras"]
    models = [path for path in students if path.is_file()]
    files = sorted(workdir.stage("export").glob("*.tflite"))
    reports = [path for path in (workdir.run / "report.html", workdir.run / "report.md") if path.is_file()]
    if models:
        yield f"model: {', '.join(map(str, models))}"
    if files:
        yield f"files: {workdir.stage('export')}/ ({', '.join(path.name for path in files)})"
    if "report" in chosen and reports:
        yield f"report: {reports[0]}   curves: tensorboard --logdir {shlex.quote(str(workdir.run))}"
    rest = needed[needed.index(chosen[-1]) + 1 :] if chosen else []
    if rest:
        yield f"next: the same command with --stages {','.join(rest)}"
    elif files:
        smallest = [path for path in files if path.name in ("compressed.int8.tflite", "student.int8.tflite")]
        yield f"next: python -m tfigkd.predict {shlex.quote(str((smallest or files)[0]))} PICTURE.png --resize"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m tfigkd.run`; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if "--list" in arguments:
            list_experiments()
            return 0
        command, name = parse(arguments)
        run(command, name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nstopped; nothing finished is lost. Go on with: python -m tfigkd.run {shlex.join(arguments)}",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

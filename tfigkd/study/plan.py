"""Studies: many arms times many seeds, in parallel processes, going on where an earlier call stopped.

python -m tfigkd.study --experiment ablation --processes 4
python -m tfigkd.study --experiment lowdata --teacher.weights weights/resnet56.npz
python -m tfigkd.study collect
python -m tfigkd.study report

A study is one TOML file in experiments/studies. Arms of one seed share initial weights, order and crops, so seeds pair
them. Every run has a folder of its own and holds it while it works: a second call, at once or after a kill, repeats
none that is finished and goes on with one that is not.
"""

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import tyro

from tfigkd.config.fields import Config
from tfigkd.config.reading import closest, experiments_folder, from_mapping, read_experiment, read_toml, smoke
from tfigkd.run import SETTINGS, Command, changed_settings, parse, run
from tfigkd.runtime import console
from tfigkd.runtime.errors import InUseError, UserError, system_line
from tfigkd.runtime.files import locked, write_signed
from tfigkd.runtime.processes import CONTEXT, settle

ROWS = "rows.csv"
LABEL = "job.json"
DONE, FAILED, BUSY = 0, 1, 3  # how the process of one run ends


@dataclass(frozen=True)
class Study:
    """What a study's TOML file says.

    Attributes:
        name: The file's stem.
        description: One line.
        arms: Arm to experiment; of one seed they run in this order.
        seeds: How many, from 0.
        stages: Of each run.
        overrides: Fields of every arm, as nested tables.
        sizes: Name to fields of a size; every arm runs at every size.
        seed_fields: Dotted fields that follow the seed, such as the draw of a subset.
        comparisons: Pairs of arms that the study is there to compare, chosen before any result.
    """

    name: str
    description: str
    arms: dict[str, str]
    seeds: int = 5
    stages: str = "data,teacher,overlays,distill,compress,export,evaluate,report"
    overrides: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    seed_fields: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Options:
    """Run a study: every arm, seed and size that is not finished. `study collect` copies results into the checkout.

    Any other flag is a field of the experiments (`--teacher.weights PATH`) and holds for all arms.
    """

    experiment: str
    """Name of a shipped study (ablation, best, compression, lowdata, lowdata_best, monte_carlo) or a .toml file."""
    workdir: Path = Path("runs/studies")
    """Where the runs lie: WORKDIR/STUDY/ARM[-SIZE]/SEED."""
    teachers: Path = Path("runs/teachers")
    """Where teachers and their stores lie, shared by all runs."""
    processes: int = 1
    """Runs at once; on a machine without accelerator one keeps two cores busy."""
    seeds: int | None = None
    """How many seeds, from 0; not given: as the study says (1 with --smoke)."""
    arms: str | None = None
    """Only these arms, separated by commas."""
    stages: str | None = None
    """Only these stages of each run, separated by commas; not given: as the study says."""
    minutes: float | None = None
    """Stop after this time; a run that is cut off goes on at its last epoch next time."""
    smoke: bool = False
    """Shrink every run to a few steps of a small slice."""
    dry_run: bool = False
    """Show what would run, and stop."""


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    study: str
    arm: str
    size: str
    experiment: str
    command: Command
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's workdir."""
        assert self.command.workdir is not None
        return self.command.workdir

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.arm}{f' {self.size}' if self.size else ''}, seed {self.command.seed}"


def read_study(name_or_file: str) -> Study:
    """Read a study by its shipped name or from a TOML file.

    Raises:
        UserError: no such study, malformed TOML, unknown keys, or values that make no study.
    """
    folder = experiments_folder() / "studies"
    path = Path(name_or_file) if name_or_file.endswith(".toml") else folder / f"{name_or_file}.toml"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.toml")]
        raise UserError(f"unknown study {name_or_file!r}; {closest(name_or_file, known)} (or a .toml file)")
    table = read_toml(path, "study")
    fields = {one.name for one in dataclasses.fields(Study)} - {"name"}
    for key in table:
        if key not in fields:
            raise UserError(f"study {path}: unknown key {key!r}; {closest(key, fields)}")
    _check_types(path, table)
    table["seed_fields"] = tuple(table.get("seed_fields", ()))
    table["comparisons"] = tuple(tuple(pair) for pair in table.get("comparisons", ()))
    try:
        study = Study(path.stem, **table)
    except TypeError as error:
        raise UserError(f"study {path}: {str(error).partition(') ')[2]}") from error
    if not study.arms or study.seeds < 1:
        raise UserError(f"study {path}: it needs at least one arm and one seed")
    for pair in study.comparisons:
        if len(pair) != 2 or not {*pair} <= study.arms.keys():
            raise UserError(f"study {path}: a comparison is of two of its arms, got {list(pair)}")
    return study


def _check_types(path: Path, table: Mapping[str, Any]) -> None:
    """Refuse values of other kinds than a study's; what the fields of experiments hold is checked with these."""
    hints = get_type_hints(Study)
    for key, value in table.items():
        kind = get_origin(hints[key]) or hints[key]
        if not isinstance(value, list if kind is tuple else kind) or isinstance(value, bool):
            raise UserError(
                f"study {path}: {key} is {value!r}; expected a {'list' if kind is tuple else kind.__name__}"
            )
    texts = [*table.get("arms", {}).values(), *table.get("seed_fields", ())]
    if any(not isinstance(text, str) for text in texts):
        raise UserError(f"study {path}: arms and seed_fields are names, got {texts}")
    tables = [*table.get("sizes", {}).values(), *table.get("comparisons", ())]
    if any(not isinstance(one, dict | list) for one in tables):
        raise UserError(f"study {path}: sizes are tables and comparisons are lists, got {tables}")


def _config(experiment: str, study: Study, size: str, seed: int, *, small: bool) -> tuple[str, Config]:
    """The name of an arm's experiment, and its config at a size and seed."""
    name, config = read_experiment(experiment)
    following: dict[str, Any] = {}
    for dotted in study.seed_fields:
        *tables, last = dotted.split(".")
        table = following
        for one in tables:
            table = table.setdefault(one, {})
        table[last] = seed
    for changes in (study.overrides, study.sizes[size], following):
        config = from_mapping(Config, changes, base=config)
    return name, smoke(config) if small else config


def plan(study: Study, options: Options, flags: Sequence[str] = ()) -> list[Job]:
    """All runs of a study: seed by seed, so that whatever is finished compares all arms.

    Args:
        study: The arms, sizes and seeds.
        options: Which of them, and where.
        flags: Fields of the experiments, as on the command line.

    Raises:
        UserError: an unknown arm or field, or a value out of range.
    """
    chosen = list(study.arms) if options.arms is None else options.arms.split(",")
    for arm in chosen:
        if arm not in study.arms:
            raise UserError(f"unknown arm {arm!r}; {closest(arm, study.arms)}")
    seeds = options.seeds or (1 if options.smoke else study.seeds)
    jobs = []
    for seed in range(seeds):
        for size in study.sizes:
            for arm in chosen:
                experiment = study.arms[arm]
                name, base = _config(experiment, study, size, seed, small=options.smoke)
                root = options.workdir / (f"{study.name}-smoke" if options.smoke else study.name)
                command = Command(
                    experiment,
                    workdir=root / (f"{arm}-{size}" if size else arm) / str(seed),
                    teachers=options.teachers,
                    stages=options.stages or study.stages,
                    smoke=options.smoke,
                    seed=seed,
                    config=parse(["--experiment", experiment, *flags], base)[0].config if flags else base,
                )
                jobs.append(Job(study.name, arm, size, name, command, tuple(flags)))
    return jobs


def finished_row(job: Job) -> bool:
    """Whether a run has left its row, with the job's settings.

    Raises:
        UserError: the run there has other settings, or its settings file is damaged.
    """
    if not (job.folder / ROWS).is_file():
        return False
    changed = changed_settings(job.folder / SETTINGS, job.experiment, job.command)
    if changed:
        raise UserError(
            f"{job.folder} holds a run with other settings ({', '.join(changed)}); choose another --workdir"
        )
    return True


def work(job: Job) -> int:
    """Do one run, unless it is done or another process does it; returns how it ended."""
    try:
        with locked(job.folder / "claim", wait=False):
            if finished_row(job):
                return DONE
            write_signed(job.folder / LABEL, _label(job))
            run(job.command, job.experiment)
    except InUseError:
        return BUSY
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        return FAILED
    return DONE


def _label(job: Job) -> dict[str, str]:
    """What `collect` adds to the run's row."""
    own = ["--experiment", job.study, "--arms", job.arm, "--seeds", str(job.command.seed + 1), *job.flags]
    command = f"python -m tfigkd.study {shlex.join(own)}"
    return {"study": job.study, "arm": job.arm, "size": job.size, "command": command}


def _process(job: Job) -> None:
    """The process of one run: what it prints goes to a file in the run's folder."""
    try:
        settle(job.folder / "run.log")
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        sys.exit(FAILED)
    try:
        sys.exit(work(job))
    except KeyboardInterrupt:
        sys.exit(130)


def run_all(jobs: Sequence[Job], *, processes: int, minutes: float | None = None) -> Mapping[str, list[Job]]:
    """Run jobs in processes of their own, so many at once, in their order.

    Args:
        jobs: Finished ones are passed over.
        processes: How many at once.
        minutes: After this time no run is started and those that work are stopped; they go on next time.

    Returns:
        The jobs by how they ended: "done" here, "before", "busy" elsewhere, "failed", "left" for the next call.
    """
    started = time.monotonic()
    deadline = None if minutes is None else started + 60 * minutes
    ended: dict[str, list[Job]] = {"done": [], "before": [], "busy": [], "failed": [], "left": []}
    pending: list[Job] = []
    for job in jobs:
        (ended["before"] if finished_row(job) else pending).append(job)
    if ended["before"]:
        console.say(f"{len(ended['before'])} of {len(jobs)} runs were finished before")
    running: dict[Any, tuple[Job, Any, float]] = {}
    try:
        while pending or running:
            while pending and len(running) < processes:
                job = pending.pop(0)
                process = CONTEXT.Process(target=_process, args=(job,), name=job.title)
                process.start()
                running[process.sentinel] = (job, process, time.monotonic())
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            for sentinel in wait(list(running), left):
                job, process, begun = running.pop(sentinel)
                process.join()
                how = {DONE: "done", BUSY: "busy"}.get(process.exitcode, "failed")
                ended[how].append(job)
                seconds = time.monotonic() - begun
                rest = seconds * len(pending) / processes / 60
                note = f" (see {job.folder / 'run.log'})" if how == "failed" else ""
                console.say(f"{job.title}: {how}, {seconds:.0f} s{note}; {len(pending)} to go, about {rest:.0f} min")
    finally:
        for job, process, _ in running.values():
            process.terminate()
            ended["left"].append(job)
        for _, process, _ in running.values():
            process.join()
        ended["left"] += pending
    return ended


def study(options: Options, flags: Sequence[str]) -> int:
    """Run a study; returns the exit status."""
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, got {options.processes}")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    described = read_study(options.experiment)
    jobs = plan(described, options, flags)
    console.say(f"{described.name}: {described.description}")
    stages = options.stages or described.stages
    console.say(f"{len(jobs)} runs, stages {stages}, {options.processes} at once, in {options.workdir}")
    if options.dry_run:
        for job in jobs:
            console.say(
                f"  {job.title}: {job.experiment}, {'finished' if finished_row(job) else 'to do'}, {job.folder}"
            )
        return 0
    ended = run_all(jobs, processes=options.processes, minutes=options.minutes)
    console.say(", ".join(f"{len(some)} {how}" for how, some in ended.items() if some))
    if ended["left"] or ended["busy"]:
        console.say("the same command goes on with what is left")
    return 1 if ended["failed"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m tfigkd.study`; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments[:1] in (["collect"], ["report"]):
            from tfigkd.study import collect
            from tfigkd.study import tables as study_report

            return (collect if arguments[0] == "collect" else study_report).main(arguments[1:])
        options, flags = tyro.cli(
            Options, prog="python -m tfigkd.study", args=list(arguments), return_unknown_args=True, use_underscores=True
        )
        return study(options, flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing finished is lost. The same command goes on with what is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The plan of a study: its TOML file and its runs, one for each arm, seed and size.

A study is one TOML file in experiments/studies. Arms with the same seed share initial weights, order and crops, so that
they can be compared in pairs. Each run has its own folder.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tfigkd.config.experiment import Config, experiments_folder, override, read_experiment, smoke
from tfigkd.config.flags import with_flags
from tfigkd.config.reading import from_mapping, read_toml
from tfigkd.runtime.errors import UserError, closest
from tfigkd.stages.runner import Run, read_stages
from tfigkd.stages.workdir import TEACHERS, Workdir

PROG = "python -m tfigkd.study"


@dataclass(frozen=True)
class Study:
    """The content of a study's TOML file.

    Attributes:
        name: The file's stem.
        description: One line.
        arms: Arm to experiment, in the order in which the arms of a seed run. The path of a .toml file is relative to
            the folder of the study's file.
        seeds: Number of seeds, from 0.
        stages: Stages of each run.
        overrides: Fields set in every arm, as nested tables.
        sizes: Name to fields of a size; every arm runs at every size.
        seed_fields: Dotted fields that are set to the seed, such as the seed of a subset.
        comparisons: Pairs of arms to compare, chosen before any result is known.
        judged_on: Whose accuracies are shown and compared: the student's on test, or on validation where something is
            chosen; or the compressed student's on test.
        source: What the study is called on the command line: its name, or the path of a file that is not shipped.
    """

    name: str = ""
    description: str = ""
    arms: dict[str, str] = field(default_factory=dict)
    seeds: int = 5
    stages: str = "data,teacher,overlays,distill,compress,export,evaluate,report"
    overrides: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    seed_fields: tuple[str, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    judged_on: Literal["test", "validation", "compressed"] = "test"
    source: str = ""

    @property
    def role(self) -> Literal["student", "compressed"]:
        """Which network of a run is shown: the beginning of the columns that are its figures."""
        return "compressed" if self.judged_on == "compressed" else "student"


@dataclass(frozen=True)
class Options:
    """Run a study: every arm, seed and size that is not finished. `study collect` copies results into the checkout.

    Fields that are given on the command line (`--teacher.weights PATH`) hold for all arms.
    """

    experiment: str
    """Name of a shipped study (experiments/studies: cifar10, ablation, lowdata, …) or a .toml file of your own:
    experiments/README.md, "A study of your own", has an example and all keys."""
    workdir: Path = Path("runs/studies")
    """Folder of the runs, which are in WORKDIR/STUDY/ARM[-SIZE]/SEED."""
    teachers: Path = TEACHERS
    """Folder of teachers and their stores, shared by all runs."""
    processes: int | None = None
    """Number of runs at the same time; the cores are divided among them. Default: one for each core, as far as 4 GiB of
    memory for each allow; 1 with an accelerator. With --cluster: one for each of its GPUs, or cores."""
    seeds: int | None = None
    """Number of seeds, from 0. Default: that of the study (1 with --smoke)."""
    first_seed: int = 0
    """Leave out the seeds before this one, for example because another machine runs them."""
    arms: str | None = None
    """Only these arms, separated by commas."""
    stages: str | None = None
    """Only these stages of each run, separated by commas. Default: those of the study."""
    minutes: float | None = None
    """Stop after this time; the next call continues an interrupted run from its last epoch."""
    smoke: bool = False
    """Shrink every run to a few steps of a small slice."""
    cluster: str | None = None
    """Do the runs on a Ray cluster whose machines share the folders. auto: that of this machine, or only this machine;
    or HOST:PORT of the cluster's head. Needs tfigkd[cluster]."""
    dry_run: bool = False
    """Print the runs without running them."""


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        study: Its name.
        arm: The run's arm.
        size: The run's size.
        run: Experiment, config, folders and stages.
        flags: Fields given on the command line.
        seed_fields: Fields that are set to the seed.
        source: What the study is called on the command line.
        stages_given: Whether the stages are those of the command line, and not the study's.
    """

    study: str
    arm: str
    size: str
    run: Run
    flags: tuple[str, ...] = ()
    seed_fields: tuple[str, ...] = ()
    source: str = ""
    stages_given: bool = False

    @property
    def folder(self) -> Path:
        """The run's workdir."""
        return self.run.workdir.run

    @property
    def seed(self) -> int:
        """The student's seed."""
        return self.run.workdir.seed

    @property
    def title(self) -> str:
        """Arm, size and seed, for messages."""
        return f"{title_of(self.arm, self.size)}, seed {self.seed}"


def words_of(study: Study, workdir: Path, teachers: Path = TEACHERS) -> str:
    """Return the options that name a study and, where they are not the defaults, the folders of runs and teachers."""
    where = [] if workdir == Options.workdir else ["--workdir", str(workdir)]
    where += [] if teachers == TEACHERS else ["--teachers", str(teachers)]
    return shlex.join(["--experiment", study.source or study.name, *where])


def read_study(name_or_file: str) -> Study:
    """Read a study by its shipped name or from a TOML file.

    Raises:
        UserError: the study or its base does not exist, its TOML is malformed, or it has unknown names or invalid
            values.
    """
    folder = experiments_folder() / "studies"
    path = Path(name_or_file) if name_or_file.endswith(".toml") else folder / f"{name_or_file}.toml"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.toml")]
        raise UserError(f"unknown study {name_or_file!r}; {closest(name_or_file, known)} (or a .toml file)")
    table, what = _with_base(read_toml(path, "study"), path), f"study {path}"
    for given in {"name", "source"} & table.keys():
        raise UserError(f"{what}: a study is named by its file; remove the line `{given}`")
    shipped = path.resolve().parent == folder.resolve()
    if not shipped and (folder / path.name).is_file():
        raise UserError(f"{what}: {path.stem} is a shipped study, and this file is another one; rename it")
    source = path.stem if shipped else str(path)
    study = from_mapping(Study, table, what=what)
    arms = {arm: _beside(path, experiment) for arm, experiment in study.arms.items()}
    study = replace(study, arms=arms, name=path.stem, source=source)
    if not (study.arms and study.sizes) or study.seeds < 1:
        raise UserError(f"{what}: expected at least one arm, one size and one seed")
    for part in (*study.arms, *study.sizes):
        if "/" in part or part in (".", "..") or (part in study.arms and not part.strip()):
            raise UserError(f"{what}: {part!r} cannot name a folder; choose a name without slashes, not . or ..")
    for arm in study.arms:
        if "," in arm or arm != arm.strip():
            raise UserError(f"{what}: --arms cannot name {arm!r}; choose a name without commas and blanks at its ends")
    for pair in study.comparisons:
        if len({*pair} & study.arms.keys()) < 2:
            raise UserError(f"{what}: expected comparisons of two of its arms, got {list(pair)}")
    if len({frozenset(pair) for pair in study.comparisons}) < len(study.comparisons):
        raise UserError(f"{what}: expected each comparison once, got {[*map(list, study.comparisons)]}")
    return study


def _with_base(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what the file of a study says, and, where it is silent, what the shipped study says that is its `base`.

    Fields of `overrides` are added to those of the base; any other key takes the place of the base's.
    """
    base = table.pop("base", None)
    if base is None:
        return table
    known = [file.stem for file in (experiments_folder() / "studies").glob("*.toml")]
    if base not in known:
        raise UserError(f"study {path}: no shipped study {base!r} for its base; {closest(str(base), known)}")
    parent = read_toml(experiments_folder() / "studies" / f"{base}.toml", "study")
    if "base" in parent:
        raise UserError(f"study {path}: base {base!r} has a base itself; one level is the most")
    if "overrides" in parent and isinstance(table.get("overrides"), dict):
        table = table | {"overrides": _merged(parent["overrides"], table["overrides"])}
    return parent | table


def _merged(parent: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with the fields of its base where it is silent, in the tables inside it too."""
    both = {
        name for name in parent.keys() & table.keys() if all(isinstance(one[name], dict) for one in (parent, table))
    }
    return parent | table | {name: _merged(parent[name], table[name]) for name in both}


def _beside(path: Path, experiment: str) -> str:
    """Return an arm's experiment as `read_experiment` finds it from any folder: its name, or the path of its file.

    A file that is not beside the study is looked for in the current folder, as earlier versions did.
    """
    beside = path.parent / experiment
    return str(beside) if experiment.endswith(".toml") and beside.is_file() else experiment


def folder_of(arm: str, size: str) -> str:
    """Return the name of the folder with an arm's runs at a size; the study's one size may have no name."""
    return f"{arm}-{size}" if size else arm


def title_of(arm: str, size: str) -> str:
    """Return what an arm at a size is called in tables and messages; the study's one size may have no name."""
    return f"{arm} {size}".strip()


def _config(experiment: str, study: Study, size: str, seed: int, *, small: bool) -> tuple[str, Config]:
    """Return the name of an arm's experiment, and its config at a size and seed."""
    name, config = read_experiment(experiment)
    for changes in (study.overrides, study.sizes[size]):
        config = from_mapping(Config, changes, base=config)
    config = override(config, dict.fromkeys(study.seed_fields, seed))
    return name, smoke(config) if small else config


def plan(study: Study, options: Options, flags: Sequence[str] = ()) -> list[Job]:
    """List all runs of a study, seed by seed, so that the finished runs of a stopped study cover all arms.

    Args:
        study: The arms, sizes and seeds.
        options: Selection of arms, seeds and stages, and folders.
        flags: Fields of the experiments, as on the command line.

    Raises:
        UserError: an arm or field is unknown, a value is out of range, or no seed is left.
    """
    chosen = list(study.arms)
    if options.arms is not None:
        chosen = list(dict.fromkeys(arm.strip() for arm in options.arms.split(",")))
    for arm in chosen:
        if arm not in study.arms:
            raise UserError(f"unknown arm {arm!r}; {closest(arm, study.arms)}")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    seeds = range(options.first_seed, options.seeds or (1 if options.smoke else study.seeds))
    if not seeds or options.first_seed < 0:
        raise UserError(f"--first_seed must be from 0 to {seeds.stop - 1}, got {options.first_seed}")
    root = options.workdir / (f"{study.name}-smoke" if options.smoke else study.name)
    stages = read_stages(options.stages or study.stages)
    folders = [folder_of(arm, size) for size in study.sizes for arm in study.arms]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"study {study.name}: two arms with their sizes have the folder {folder}; rename one")
    jobs = []
    for seed in seeds:
        for size in study.sizes:
            for arm in chosen:
                name, config = _config(study.arms[arm], study, size, seed, small=options.smoke)
                config = with_flags(config, flags, Options)
                if study.judged_on == "validation" and config.data.train_split != "train":
                    raise UserError(
                        f"study {study.name} is judged on validation, on which {arm} would train; set train_split = "
                        '"train" under [overrides.data]'
                    )
                if study.judged_on == "compressed" and config.compress.method == "none":
                    raise UserError(
                        f"study {study.name} is judged on compressed students, and {arm} is not compressed; set "
                        "method under [overrides.compress]"
                    )
                if study.judged_on == "compressed" and not {"compress", "evaluate"} <= {*read_stages(study.stages)}:
                    raise UserError(f"study {study.name} is judged on compressed students; add the stage to `stages`")
                workdir = Workdir(root / folder_of(arm, size) / str(seed), options.teachers, seed)
                run = Run(name, config, workdir, stages, smoke=options.smoke, preview=False)
                about = (tuple(flags), study.seed_fields, study.source)
                jobs.append(Job(study.name, arm, size, run, *about, stages_given=options.stages is not None))
    return jobs

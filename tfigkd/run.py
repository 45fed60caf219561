"""`python -m tfigkd.run`: run the stages of an experiment.

python -m tfigkd.run --experiment quickstart
python -m tfigkd.run --experiment ig_kd --seed 1 --losses.kd.temperature 4
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from tfigkd.config.experiment import Config, experiments_folder, read_experiment
from tfigkd.config.flags import read_experiment_options
from tfigkd.runtime import console, hosts
from tfigkd.runtime.cluster import connected
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.limit import stop_after
from tfigkd.stages.parts import read_part
from tfigkd.stages.runner import STAGES, Run, check_hosts, print_estimate, read_stages, run, run_stores
from tfigkd.stages.workdir import TEACHERS, Workdir, default_folder

PROG = "python -m tfigkd.run"
BAD_VERDICT = 2  # exit status; 1 is that of an error


@dataclass(frozen=True)
class Options:
    """Compress an image classifier: data, teacher, overlays, distill, compress, export, evaluate, benchmark, report.

    A run that was interrupted goes on where it stopped when the same command is given again.
    """

    experiment: str
    """Name of a shipped experiment (see --list) or path of a .toml file."""
    workdir: Path | None = None
    """Where the run writes. Default: runs/EXPERIMENT/SEED (runs/EXPERIMENT-smoke/SEED with --smoke)."""
    teachers: Path = TEACHERS
    """Where teachers and their overlay stores lie, shared by all runs."""
    stages: str = ",".join(STAGES)
    """Which stages to run, separated by commas; each needs those before it to have run."""
    smoke: bool = False
    """Shrink the experiment to a few steps of a small slice."""
    seed: int = 0
    """Seed of the student: initial weights, order, crops, overlays. The teacher has its own."""
    minutes: float | None = None
    """Stop after this time, as at Ctrl-C; the same command continues from the last finished epoch."""
    part: str | None = None
    """With --stages overlays: compute only one part of the stores, such as 2/8 in the second of eight processes that
    share the folders. Whoever comes last writes the manifest; the result is that of one process."""
    cluster: str | None = None
    """With --stages overlays: compute the shards of the stores on a Ray cluster that shares the folders. auto: that of
    this machine, or only this machine; or HOST:PORT of the cluster's head. Needs tfigkd[cluster]."""
    dry_run: bool = False
    """Check the run, show what it would do and how long it takes, and stop; nothing is written."""
    estimate: bool = False
    """Print time, memory, disk and network of each stage, from a few trial steps on this machine, and stop."""
    workers: int = 1
    """With --estimate: machines like this one that share the stores (--cluster, --part)."""
    strict: bool = False
    """End with exit status 2 if the verdict finds anything wrong with the result."""
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


def parse(arguments: Sequence[str]) -> tuple[Options, Run]:
    """Return the options, and the run that they describe with its resolved config.

    Args:
        arguments: Of the command line.

    Raises:
        UserError: an unknown experiment, flag, stage or field, or a value of the wrong type or range.
    """
    options, name = read_experiment_options(Options, arguments, prog=PROG, hint="--list shows the shipped ones")
    if options.quiet and options.verbose:
        raise UserError("--quiet and --verbose exclude each other; give one of them")
    stages = read_stages(options.stages)
    if options.strict and "report" not in stages:
        raise UserError(f"--strict needs the verdict of stage report, got --stages {options.stages}; add report")
    if options.part is not None:
        read_part(options.part)
        if options.cluster is not None:
            raise UserError("--part and --cluster exclude each other; give one of them")
    for flag in ("part", "cluster"):
        if getattr(options, flag) is not None and stages != ("overlays",):
            raise UserError(
                f"--{flag} needs exactly --stages overlays, got --stages {options.stages}; run data,teacher first"
            )
    if options.workers < 1 or (options.workers > 1 and not options.estimate):
        raise UserError(f"--workers must be at least 1 and needs --estimate, got {options.workers}")
    folder = options.workdir or default_folder(name, options.seed, smoke=options.smoke)
    workdir = Workdir(folder, options.teachers, options.seed)
    return options, Run(name, options.config, workdir, stages, smoke=options.smoke)


def _run_together(options: Options, chosen: Run) -> int:
    """Train as one of several processes, of which only the first one prints; return the exit status."""
    check_hosts(chosen)
    if options.dry_run or options.estimate or options.part is not None or options.cluster is not None:
        raise UserError(f"--dry_run, --estimate, --part and --cluster are for one process; unset {hosts.COUNT}")
    with hosts.joined(), stop_after(options.minutes):
        if not hosts.is_first_process():
            console.configure(quiet=True, verbose=False)
            chosen = replace(chosen, preview=False)
        run(chosen)
    return 0


@command(stopped=f"stopped; nothing finished is lost. Go on with: {PROG} {{arguments}}")
def main(arguments: list[str]) -> int:
    """Run `python -m tfigkd.run`."""
    if "--list" in arguments:
        list_experiments()
        return 0
    options, chosen = parse(arguments)
    console.configure(quiet=options.quiet, verbose=options.verbose)
    if hosts.is_asked():
        return _run_together(options, chosen)
    if options.estimate:
        print_estimate(chosen, options.workers)
        return 0
    with stop_after(options.minutes):
        if options.part is not None and not options.dry_run:
            run_stores(chosen, read_part(options.part))
            return 0
        if options.cluster is not None and not options.dry_run:
            with connected(options.cluster) as cluster:
                run_stores(chosen, cluster)
            return 0
        good = run(chosen, dry_run=options.dry_run)
    return BAD_VERDICT if options.strict and not good else 0


if __name__ == "__main__":
    sys.exit(main())

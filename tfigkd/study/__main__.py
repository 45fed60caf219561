"""`python -m tfigkd.study`: run, collect and report studies.

python -m tfigkd.study --experiment ablation --processes 4
python -m tfigkd.study --experiment lowdata --teacher.weights weights/resnet56.npz
python -m tfigkd.study collect
python -m tfigkd.study report --experiment my_study.toml
"""

import sys
from collections.abc import Sequence
from typing import Any

from tfigkd.config.flags import read_all_options, read_options
from tfigkd.runtime import console, hosts
from tfigkd.runtime.cluster import Cluster, connected
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError, closest
from tfigkd.runtime.limit import require_minutes
from tfigkd.runtime.machine import cores
from tfigkd.runtime.processes import processes_that_fit
from tfigkd.study.plan import PROG, Job, Options, Study, plan, read_study, words_of
from tfigkd.study.runs import is_finished, run_all, run_on_cluster


def study(options: Options, flags: Sequence[str]) -> int:
    """Run a study and return the exit status."""
    hosts.require_alone()
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes must be at least 1, got {options.processes}")
    require_minutes(options.minutes)
    described = read_study(options.experiment)
    jobs = plan(described, options, flags)
    console.say(f"{described.name}: {described.description}")
    if options.cluster is None or options.dry_run:
        return _do(described, jobs, options, None)
    with connected(options.cluster) as cluster:
        return _do(described, jobs, options, cluster)


def _do(described: Study, jobs: Sequence[Job], options: Options, cluster: Cluster | None) -> int:
    """Do the runs on this machine or on a cluster, show what they show, and return the exit status."""
    stages = options.stages or described.stages
    at_once = processes_that_fit() if cluster is None else cluster.accelerators or cluster.cores
    processes = options.processes or min(at_once, len(jobs))
    threads = max(1, cores() // processes if cluster is None else min(cluster.largest, cluster.cores // processes))
    where = "" if cluster is None else f" on {cluster}"
    console.say(
        f"{len(jobs)} runs, stages {stages}, {processes} at once{where}, threads of each: {threads}, in "
        f"{options.workdir}"
    )
    if options.dry_run:
        for job in jobs:
            console.say(
                f"  {job.title}: {job.run.experiment}, {'finished' if is_finished(job) else 'to do'}, {job.folder}"
            )
        return 0
    given: dict[str, Any] = {"processes": processes, "threads": threads, "minutes": options.minutes}
    ended = run_all(jobs, **given) if cluster is None else run_on_cluster(jobs, cluster, **given)
    console.say(", ".join(f"{len(some)} {how}" for how, some in ended.items() if some))
    if ended["done"] or ended["before"]:
        _show(described, options)
    if ended["left"] or ended["busy"]:
        console.say("the same command continues with the remaining runs")
    return 1 if ended["failed"] else 0


def _show(described: Study, options: Options) -> None:
    """Print what the finished runs show, and the next command; runs without a row, and smoke runs, show nothing."""
    try:
        from tfigkd.study.report import show_results
    except ImportError as error:  # an accelerator machine that has only JAX
        console.say(f"no table of results: {error}")
        return
    if options.smoke or not show_results(described, options.workdir, options.teachers):
        return
    words = words_of(described, options.workdir, options.teachers)
    console.say(f"next: {PROG} collect {words}  (its rows in one table)", last=True)


@command(stopped="stopped; finished runs are kept. The same command continues with the remaining runs")
def main(arguments: list[str]) -> int:
    """Run `python -m tfigkd.study`."""
    if arguments[:1] == ["collect"]:
        from tfigkd.study import collect

        collect.collect(read_all_options(collect.Options, arguments[1:], prog=f"{PROG} collect"))
        return 0
    if arguments[:1] == ["report"]:
        from tfigkd.study import report

        report.write_report(read_all_options(report.Options, arguments[1:], prog=f"{PROG} report"))
        return 0
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"unknown command {arguments[0]!r}; {closest(arguments[0], ('collect', 'report'))}")
    options, flags = read_options(Options, arguments, prog=PROG)
    return study(options, flags)


if __name__ == "__main__":
    sys.exit(main())

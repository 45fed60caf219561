"""Execution of a study's jobs in child processes, several at the same time, in order."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from tfigkd.runtime import console
from tfigkd.runtime.cluster import Cluster
from tfigkd.runtime.errors import InUseError, UserError, system_line
from tfigkd.runtime.files import locked, read_manifest, write_signed
from tfigkd.runtime.processes import CONTEXT, settle
from tfigkd.stages.runner import INERT, changed_settings, run
from tfigkd.stages.workdir import JOB_FILE, ROWS, SETTINGS
from tfigkd.study.plan import PROG, Job

IN_THE_RUN = ("distill", "compress", "export", "evaluate", "benchmark")
"""Stages with a manifest in the run's folder."""
DONE, FAILED, BUSY = 0, 1, 3  # exit statuses of the process of one run


def is_finished(job: Job) -> bool:
    """Return whether a run is finished: it has written its row with the job's settings, and has all of its stages.

    Stages can be missing where the study's file, or the command line, names more of them than before.

    Raises:
        UserError: the run in the folder has other settings, or its settings file is damaged.
    """
    if not (job.folder / ROWS).is_file():
        return False
    changed = changed_settings(job.folder / SETTINGS, job.run)
    if changed:
        raise UserError(
            f"{job.folder} holds a run with other settings ({', '.join(changed)}); choose another --workdir"
        )
    late = changed_settings(job.folder / SETTINGS, job.run, free=INERT)  # the late stages are done again
    return not late and _has_stages(job)


def _has_stages(job: Job) -> bool:
    """Return whether each stage that a job needs has left its manifest; only `report` is always written anew."""
    kept = [stage for stage in job.run.needed if stage in IN_THE_RUN]
    return bool(kept) and all(read_manifest(job.run.workdir.stage(stage)) is not None for stage in kept)


def work(job: Job) -> int:
    """Do one run, unless it is finished or another process is doing it; return DONE, FAILED or BUSY."""
    try:
        with locked(job.folder / "claim", wait=False):
            if is_finished(job):
                return DONE
            write_signed(job.folder / JOB_FILE, job_record(job))
            if "report" in job.run.stages:  # which writes it anew: it is of other settings of the late stages
                (job.folder / ROWS).unlink(missing_ok=True)
            run(job.run)
    except InUseError:
        return BUSY
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        return FAILED
    return DONE


def job_record(job: Job) -> dict[str, Any]:
    """Return the columns that `collect` adds to the run's row, and the fields that the study sets to the seed.

    The command is one that trains the student: stages that are done again later are not named in it.
    """
    own = ["--experiment", job.source or job.study, "--arms", job.arm, "--seeds", str(job.seed + 1)]
    own += ["--first_seed", str(job.seed)] if job.seed else []
    trained = read_manifest(job.run.workdir.stage("distill")) is not None
    own += ["--stages", ",".join(job.run.stages)] if job.stages_given and not trained else []
    command = f"{PROG} {shlex.join([*own, *job.flags])}"
    label = {"study": job.study, "arm": job.arm, "size": job.size, "command": command}
    return {**label, "seed_fields": list(job.seed_fields)}


def _process(job: Job, threads: int) -> None:
    """Do one run as a child process, with its output in run.log of the run's folder."""
    try:
        settle(job.folder / "run.log", threads)
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        sys.exit(FAILED)
    try:
        sys.exit(work(job))
    except KeyboardInterrupt:
        sys.exit(130)


def _process_of(job: Job, threads: int) -> Any:
    return CONTEXT.Process(target=_process, args=(job, threads), name=job.title)


def run_job(job: Job, threads: int) -> int:
    """Do one run in a child process of this one, and return its exit status."""
    process = _process_of(job, threads)
    process.start()
    process.join()
    return process.exitcode


def sort_jobs(jobs: Sequence[Job]) -> tuple[dict[str, list[Job]], list[Job]]:
    """Return the jobs by result, so far those that were finished before, and those that are left."""
    ended: dict[str, list[Job]] = {"done": [], "before": [], "busy": [], "failed": [], "left": []}
    pending: list[Job] = []
    for job in jobs:
        (ended["before"] if is_finished(job) else pending).append(job)
    if ended["before"]:
        console.say(f"{len(ended['before'])} of {len(jobs)} runs were finished before")
    return ended, pending


def _how(status: int | None) -> str:
    """Return what an exit status says of a run."""
    return "done" if status == DONE else "busy" if status == BUSY else "failed"


def _line(job: Job, how: str, seconds: float, left: int, at_once: int) -> str:
    """Return the line for a run that has ended."""
    note = f" (see {job.folder / 'run.log'})" if how == "failed" else ""
    rest = seconds * left / at_once / 60
    return f"{job.title}: {how}, {seconds:.0f} s{note}; {left} to go, about {rest:.0f} min"


def run_on_cluster(
    jobs: Sequence[Job], cluster: Cluster, *, processes: int, threads: int, minutes: float | None = None
) -> Mapping[str, list[Job]]:
    """Run jobs on the machines of a cluster, each as a call, in order; as `run_all` on this machine.

    A run whose machine dies goes on elsewhere from its last checkpoint.

    Args:
        jobs: Jobs to run; finished ones are skipped.
        cluster: Where they run.
        processes: Number of runs at the same time, for the estimate of the time.
        threads: Cores and threads of each.
        minutes: Stop after this time; the next call continues them. None: no limit.

    Returns:
        As for `run_all`.
    """
    ended, pending = sort_jobs(jobs)
    left = {index: job for index, job in enumerate(pending)}
    seconds = None if minutes is None else 60 * minutes
    try:
        for end in cluster.call(run_job, [(job, threads) for job in pending], cores=threads, seconds=seconds):
            job, how = left.pop(end.index), _how(end.value)
            ended[how].append(job)
            console.say(_line(job, how, end.seconds, len(left), processes) + f"; on {end.node}")
    finally:
        ended["left"] += left.values()
    return ended


def run_all(
    jobs: Sequence[Job], *, processes: int, threads: int, minutes: float | None = None
) -> Mapping[str, list[Job]]:
    """Run jobs in child processes, several at the same time, in order.

    Args:
        jobs: Jobs to run; finished ones are skipped.
        processes: Number of processes at the same time.
        threads: Threads of each.
        minutes: Stop all runs after this time; the next call continues them. None: no limit.

    Returns:
        The jobs by result: "done" in this call, finished "before", "busy" in another process, "failed", or "left" for
        the next call.
    """
    started = time.monotonic()
    deadline = None if minutes is None else started + 60 * minutes
    ended, pending = sort_jobs(jobs)
    running: dict[Any, tuple[Job, Any, float]] = {}
    try:
        while pending or running:
            while pending and len(running) < processes:
                job = pending.pop(0)
                process = _process_of(job, threads)
                process.start()
                running[process.sentinel] = (job, process, time.monotonic())
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            for sentinel in wait(list(running), left):
                job, process, begun = running.pop(sentinel)
                process.join()
                how = _how(process.exitcode)
                ended[how].append(job)
                console.say(_line(job, how, time.monotonic() - begun, len(pending) + len(running), processes))
    finally:
        for job, process, _ in running.values():
            process.terminate()
            ended["left"].append(job)
        for _, process, _ in running.values():
            process.join()
        ended["left"] += pending
    return ended

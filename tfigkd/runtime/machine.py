"""Cores and memory that this process may use: the machine's, or what its container leaves of them.

Docker, Kubernetes and Slurm limit a process by Linux's control groups. Python and TensorFlow see the whole machine.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Control groups of version 2."""
OWN_GROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
THREADS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")
"""Variables of the environment with the number of threads of TensorFlow and NumPy, read when they are imported."""


def cores() -> int:
    """Return the number of cores that this process may use, at least 1; parts of a core count as one."""
    quotas = [words.split() for words in _limits("cpu.max")]
    allowed = [max(1, math.ceil(int(quota) / int(period))) for quota, period in quotas if quota != "max"]
    return min([_visible_cores(), *allowed])


def _visible_cores() -> int:
    """Return the number of cores that TensorFlow sees, one thread for each of which it would start."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads_to_container() -> None:
    """Let TensorFlow, and NumPy where it is not imported yet, start a thread for each core that the container leaves.

    A number of threads that is set stays.
    """
    count = cores()
    if count < _visible_cores():
        for name in THREADS:
            os.environ.setdefault(name, str(count))


def limit_threads(count: int) -> None:
    """Let TensorFlow and NumPy, which must not be imported yet, start at most so many threads."""
    for name in THREADS:
        given = os.environ.get(name, "")
        if not (given.isascii() and given.isdigit() and 0 < int(given) <= count):
            os.environ[name] = str(count)


def memory() -> int:
    """Return the bytes of memory that this process could have if nothing else ran."""
    limits = [int(limit) for limit in _limits("memory.max") if limit != "max"]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def free_memory() -> int:
    """Return the bytes of memory that this process can still use."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_free_in_groups()]))


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group leaves: its limit without what is used, but for files that can be dropped."""
    for group in _groups():
        limit, used, details = (_read(group / f"memory.{name}") for name in ("max", "current", "stat"))
        if limit not in ("", "max") and used:
            lines = dict(line.split(maxsplit=1) for line in details.splitlines())
            yield int(limit) - int(used) + int(lines.get("inactive_file", 0))


def _limits(name: str) -> list[str]:
    """Return the contents of a file in the control groups of this process, as far as they exist."""
    return [content for group in _groups() if (content := _read(group / name))]


def _groups() -> Iterator[Path]:
    """Yield the control group of this process and those that it lies in."""
    for line in _read(OWN_GROUP).splitlines():
        if line.startswith("0::"):
            group = GROUPS / line.removeprefix("0::").lstrip("/")
            yield from (group, *(above for above in group.parents if above.is_relative_to(GROUPS)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""

"""Threads that prepare images while a network computes; NumPy and reads of files let them run side by side."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.precision import on_cpu
from tfigkd.runtime import processes

Result = TypeVar("Result")

MOST = 8
"""More hardly help, as they wait for each other, and each holds a batch."""


def spare_threads() -> int:
    """Return how many threads may prepare images: one when training runs on the CPU, else one a core."""
    return 1 if on_cpu() else min(MOST, processes.threads())


def batch_threads(recipe: TrainingConfig) -> int:
    """Return how many threads make the batches of a recipe."""
    return recipe.batch_threads or spare_threads()


def done_in_order(tasks: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """Yield the results of tasks in the order of the tasks, which may be endless.

    Args:
        tasks: Functions that do not depend on each other.
        threads: How many are done at once, ahead of what is asked for; with one, each is done when it is asked for.
    """
    if threads == 1:
        for task in tasks:
            yield task()
        return
    pool = ThreadPoolExecutor(threads, "batches")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where nothing more is asked for
        pool.shutdown(wait=False, cancel_futures=True)

"""Latency of LiteRT files, measured in one runtime and in alternation. Needs neither TensorFlow nor Keras."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.data.spaces import noise_images
from tfigkd.edge.litert import input_details, input_values, open_classifier

TURN = 10
"""Timed inferences of a file before the next file is timed."""

LONGEST = 2.0
"""Seconds of timed inferences that are enough for any file, so that a slow file does not delay the others."""

FEWEST = 10
"""Minimum number of timed inferences of each file, however slow it is, if at least that many are requested."""

PAUSE = 0.02
"""Seconds between two turns: the threads of an interpreter stay busy for a short time after its last inference."""


def run_count(asked: int, seconds: float) -> int:
    """Return how many inferences are enough: as asked, fewer of a slow file, but at least `FEWEST`.

    Args:
        asked: The number that is asked for, which is never exceeded.
        seconds: Of one inference.
    """
    return min(asked, max(FEWEST, int(LONGEST / max(seconds, 1e-6))))


def latencies(paths: Sequence[Path], config: BenchmarkConfig) -> dict[Path, dict[int, dict[str, float]]]:
    """Measure the milliseconds of one inference of each file, batch 1, with each number of threads.

    The files alternate every few inferences, so that a change of the machine's load affects all of them. The first
    inference of a turn is not timed, because the caches still contain another file's weights.

    Args:
        paths: LiteRT files.
        config: Runs, warm-up and threads.

    Returns:
        File to number of threads to median, 90th and 99th percentile (p50, p90, p99) and the fastest inference (`min`),
        in milliseconds, and `runs`, the number of timed inferences.
    """
    results: dict[Path, dict[int, dict[str, float]]] = {path: {} for path in paths}
    for threads in config.threads:
        runners = {path: _runner(path, threads) for path in paths}
        seconds: dict[Path, list[float]] = {path: [] for path in paths}
        wanted = {}
        for path, run in runners.items():
            fastest = min(run() for _ in range(max(config.warmup, 1)))
            wanted[path] = run_count(config.runs, fastest)
        while any(len(seconds[path]) < wanted[path] for path in paths):
            for path, run in runners.items():
                left = wanted[path] - len(seconds[path])
                if left > 0:
                    time.sleep(PAUSE)
                    run()
                    seconds[path] += [run() for _ in range(min(TURN, left))]
        for path, values in seconds.items():
            percentiles = {f"p{one}": float(1e3 * np.percentile(values, one)) for one in (50, 90, 99)}
            results[path][threads] = percentiles | {"min": 1e3 * min(values), "runs": len(values)}
    return results


def _runner(path: Path, threads: int) -> Callable[[], float]:
    """Return a function that runs one inference of a file on noise and returns its seconds."""
    interpreter = open_classifier(path, threads=threads)
    source = input_details(interpreter)
    noise = noise_images(tuple(source["shape"]))
    interpreter.set_tensor(source["index"], input_values(noise, source))

    def run() -> float:
        start = time.perf_counter()
        interpreter.invoke()
        return time.perf_counter() - start

    return run

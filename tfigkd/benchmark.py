"""Size and latency of exported files: one runtime, batch 1, the files taking turns."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd import console
from tfigkd.config import fingerprint
from tfigkd.data import to_model_input
from tfigkd.data.stage import dataset
from tfigkd.fields import BenchmarkConfig, Config
from tfigkd.litert import open_litert, quantize
from tfigkd.provenance import hardware
from tfigkd.workdir import Workdir, finished, make_folder, require, write_manifest


def _runner(path: Path, image: np.ndarray, threads: int) -> Any:
    interpreter = open_litert(path, threads=threads)
    source = interpreter.get_input_details()[0]
    value = to_model_input(image[None])
    interpreter.set_tensor(source["index"], value if source["dtype"] == np.float32 else quantize(value, source))
    return interpreter


def latencies(paths: list[Path], image: np.ndarray, config: BenchmarkConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of one inference of each file.

    The files take turns, so that a change of the machine's load meets all of them.

    Args:
        paths: LiteRT files.
        image: uint8 [H,W,3].
        config: Runs, warm-up and threads.

    Returns:
        File name to median, 90th and 99th percentile, in milliseconds.
    """
    runners = {path.name: _runner(path, image, config.threads) for path in paths}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(config.warmup + config.runs):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.invoke()
            if turn >= config.warmup:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {f"p{percent}": float(1e3 * np.percentile(values, percent)) for percent in (50, 90, 99)}
        for name, values in seconds.items()
    }


def benchmark(config: Config, workdir: Workdir) -> None:
    """Stage `benchmark`: latency and size of the exported files on this machine."""
    folder = make_folder(workdir.stage("benchmark"))
    exported = require(workdir.stage("export"), "export")
    identity = fingerprint("benchmark", exported["files"], config.benchmark, hardware())
    if finished(folder, identity):
        console.say(f"  done before: {folder}")
        return
    paths = [workdir.stage("export") / name for name in sorted(exported["files"])]
    timed = latencies(paths, dataset(config.data).test.images[0], config.benchmark)
    files = {path.name: {"bytes": path.stat().st_size, "milliseconds": timed[path.name]} for path in paths}
    write_manifest(folder, identity, results=files, hardware=hardware(), threads=config.benchmark.threads)
    for name, result in files.items():
        median, tail = result["milliseconds"]["p50"], result["milliseconds"]["p90"]
        console.say(f"  {name}: {median:.2f} ms (median), {tail:.2f} ms (p90)")

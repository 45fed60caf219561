"""Stage `benchmark`: latency, memory and size of the exported files on this machine."""

from collections.abc import Mapping

from tfigkd.config.experiment import Config
from tfigkd.edge.footprint import footprint
from tfigkd.edge.latency import latencies
from tfigkd.runtime import console
from tfigkd.runtime.files import fingerprint, finished, make_folder, require, write_manifest
from tfigkd.runtime.provenance import hardware
from tfigkd.stages.workdir import Workdir


def benchmark(config: Config, workdir: Workdir) -> None:
    """Stage `benchmark`: latency, memory and size of the exported files on this machine."""
    folder = make_folder(workdir.stage("benchmark"))
    exported = require(workdir.stage("export"), "export")
    identity = fingerprint("benchmark", exported["files"], config.benchmark, hardware())
    if finished(folder, identity):
        console.say(f"  done before: {folder}")
        return
    paths = [workdir.stage("export") / name for name in sorted(exported["parity"])]
    timed = latencies(paths, config.benchmark)
    files = {path.name: footprint(path).columns() | {"milliseconds": timed[path]} for path in paths}
    write_manifest(folder, identity, results=files, hardware=hardware(), threads=config.benchmark.threads)
    for path in paths:
        console.say(f"  {path.name}: {_line(timed[path])}")


def _line(timed: Mapping[int, Mapping[str, float]]) -> str:
    """Latency in words."""
    return "; ".join(
        f"{threads} thread{'s' * (threads > 1)} {values['p50']:.2f} ms (median), {values['p90']:.2f} ms (p90)"
        for threads, values in timed.items()
    )

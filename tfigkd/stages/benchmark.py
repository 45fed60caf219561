"""Stage `benchmark`: latency, memory and size of the exported files on this machine, and the int8 files' profiles."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import Config
from tfigkd.config.export_fields import file_name, role_of
from tfigkd.edge.footprint import footprint
from tfigkd.edge.latency import latencies
from tfigkd.edge.layer_differences import compare
from tfigkd.edge.profile import about_layers, about_times, profile, rows
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import finished, make_folder, require_stage, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.provenance import hardware, versions
from tfigkd.runtime.text import counted
from tfigkd.stages.data import dataset
from tfigkd.stages.workdir import Workdir

PROFILED = ("student", "compressed")
"""Roles whose int8 files are profiled."""
IMAGES = 32
"""Validation images on which the layers of an int8 file are compared with float32."""


def benchmark(config: Config, workdir: Workdir) -> None:
    """Stage `benchmark`: latency, memory and size of the exported files on this machine, and profiles of int8 files."""
    folder = make_folder(workdir.stage("benchmark"))
    exported = require_stage(workdir.stage("export"), "export")
    identity = fingerprint("benchmark", exported["files"], config.benchmark, hardware(), versions(("ai-edge-litert",)))
    if finished(folder, identity):
        console.status(f"already done: {folder}")
        return
    paths = [workdir.stage("export") / name for name in sorted(exported["parity"])]
    timed = latencies(paths, config.benchmark)
    files = {path.name: asdict(footprint(path)) | {"milliseconds": timed[path]} for path in paths}
    floats = {role: workdir.stage("export") / file_name(role, "float32") for role in PROFILED}
    profiles = {
        path.name: _profile(path, floats[role] if floats[role] in paths else None, config)
        for role in PROFILED
        for path in paths
        if path.name == file_name(role, "int8")
    }
    about: dict[str, Any] = {"hardware": hardware(), "threads": config.benchmark.threads, "profiles": profiles}
    sums = {path.name: exported["files"][path.name] for path in paths}
    write_manifest(folder, identity, results=files, exported=sums, **about)
    for path in paths:
        console.status(f"{path.name}: {_line(timed[path])}", note=role_of(path.name) != "teacher")


def _profile(path: Path, reference: Path | None, config: Config) -> dict[str, Any]:
    """Return the operations of an int8 file with sentences on them; its layers are compared where the data are there.

    Args:
        path: The file.
        reference: The float32 file of the same model, if there is one.
        config: The run's.
    """
    profiled, compared = profile(path, config.benchmark), None
    if reference is not None:
        try:
            compared = compare(path, reference, dataset(config.data).validation.images[-IMAGES:])
        except UserError as error:  # benchmarked where the data are not
            console.status(f"{path.name}: layers not compared: {error}")
    return {
        "operations": rows(profiled, compared),
        "times": about_times(profiled),
        "layers": [] if compared is None else about_layers(compared),
        "images": 0 if compared is None else compared.images,
    }


def _line(timed: Mapping[int, Mapping[str, float]]) -> str:
    """Return a latency in words."""
    return "; ".join(
        f"{counted(threads, 'thread')} {values['p50']:.2f} ms (median), {values['p90']:.2f} ms (p90)"
        for threads, values in timed.items()
    )

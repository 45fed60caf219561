"""Profiles of LiteRT files in a row each: where the time goes, and which layers of an int8 file add most noise.

    python experiments/benchmarks/profiles.py resnet20.float32.tflite resnet20.int8.tflite --data-dir DIR

Appends to experiments/results/profiles.csv. An int8 file is compared with the float32 file beside it, on 64 validation
images of CIFAR-10, or on noise where it takes images of another size. `*_share` are shares of the time inside
operations. `python -m tfigkd.profile` lists the operations themselves.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from tfigkd import data
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.data.spaces import noise_images
from tfigkd.edge.contract import verified_contract
from tfigkd.edge.layer_differences import Comparison, compare
from tfigkd.edge.litert import input_details, open_classifier
from tfigkd.edge.profile import profile, rows
from tfigkd.profile import float_file
from tfigkd.runtime import provenance
from tfigkd.runtime.rows import append_row

RESULTS = Path(__file__).parents[1] / "results" / "profiles.csv"
IMAGES, WORST = 64, 3
KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "AVERAGE_POOL_2D")


def compared(path: Path, options: argparse.Namespace) -> tuple[Comparison | None, str]:
    """Return the comparison of an int8 file with the float32 file beside it, and on what."""
    reference = float_file(path, None)
    if reference is None:
        return None, ""
    shape = tuple(map(int, input_details(open_classifier(path))["shape"][1:]))
    images = noise_images((IMAGES, *shape))
    on = "noise"
    if shape == (32, 32, 3):
        images, on = data.load("cifar10", directory=options.data_dir).validation.images[-IMAGES:], "cifar10, validation"
    return compare(path, reference, images), on


def row(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return a file's row."""
    verified_contract(path)
    found, on = compared(path, options)
    profiled = profile(path, BenchmarkConfig(options.runs, options.warmup, (1,)))
    made = rows(profiled, found)
    name, _, format = path.stem.rpartition(".")
    columns = {"model": name, "format": format, "bytes": path.stat().st_size, "operations": len(made)}
    columns |= {"multiply_adds": sum(one["multiply_adds"] for one in made)}
    columns |= {"ms_p50_1t": round(profiled.milliseconds, 4), "profiled_ms": round(profiled.profiled or 0, 4)}
    columns |= {"inside_ms": round(profiled.inside, 4), "runs": profiled.runs, "groups": profiled.groups}
    columns["litert_share"] = share([one for one in made if one["runs_on"] == "LiteRT"])
    for kind in KINDS:
        own = [one for one in made if one["operation"] == kind]
        columns[f"{kind.lower()}_share"] = share(own)
        total = columns["multiply_adds"] or 1
        columns[f"{kind.lower()}_multiply_adds"] = round(sum(one["multiply_adds"] for one in own) / total, 4)
    worst = [] if found is None else found.worst(WORST)
    columns |= {"worst": " ".join(f"{one.operation.layer}:{one.sqnr:.1f}dB" for one in worst)}
    last = None if found is None else found.differences[-1]
    columns |= {"output_sqnr_db": last and round(last.sqnr, 2), "output_saturated": last and round(last.saturated, 5)}
    return columns | {"compared_on": on, "n_images": found.images if found else 0}


def share(made: list[dict[str, Any]]) -> float:
    """Return the share of the time of some operations."""
    return round(sum(one["share"] or 0.0 for one in made), 4)


def main() -> None:
    """Profile the files and append their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help=".tflite files named MODEL.FORMAT.tflite")
    parser.add_argument("--data-dir", help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--rows", type=Path, default=RESULTS, help="the .csv to append to")
    parser.add_argument("--runs", type=int, default=200, help="profiled inferences")
    parser.add_argument("--warmup", type=int, default=20)
    options = parser.parse_args()
    command = shlex.join(["python", "experiments/benchmarks/profiles.py", *sys.argv[1:]])
    for path in options.files:
        made = row(path, options)
        append_row(options.rows, made | provenance.origin(command))
        print(*made.values(), flush=True)


if __name__ == "__main__":
    main()

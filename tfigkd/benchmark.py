"""What exported files take on this machine: latency, memory and size, all in one runtime, the files taking turns.

python -m tfigkd.benchmark teacher.int8.tflite student.int8.tflite --data cifar10 --rows edge.csv
"""

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.data_fields import Reading
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.config.reading import refused_as
from tfigkd.edge.classifier_files import file_predictor, reading_for
from tfigkd.edge.contract import verified_contract
from tfigkd.edge.footprint import Footprint, footprint
from tfigkd.edge.input_range import assumption
from tfigkd.edge.latency import latencies
from tfigkd.edge.litert import open_classifier
from tfigkd.edge.options import (
    add_data_options,
    add_space_options,
    given_spaces,
    load_data,
    names_apart,
    refuse_without_data,
)
from tfigkd.runtime import console
from tfigkd.runtime.command import Parser, command
from tfigkd.runtime.files import require_folder_of
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.rows import append_row, require_columns
from tfigkd.runtime.text import counted, percent

PARITY = ("agreement", "kl", "max_difference", "mean_difference", "accuracy", "keras_accuracy")
SCORED = ("data", "data_fingerprint", "n_test", "accuracy")
DESCRIBED = ("model", "format", "parameters", *(f"validation_{name}" for name in PARITY), *SCORED)
"""Columns of `describe`."""
PERCENTILES = ("p50", "p90", "p99")


def rows(
    named: Mapping[Path, Mapping[str, Any]], config: BenchmarkConfig, command: str, *, repeat: int = 1
) -> list[dict[str, Any]]:
    """Return one row for each file: what it is, what it takes, and its latency beside that of the first file.

    Args:
        named: File to columns that say what it is.
        config: Runs, warm-up and threads.
        command: What repeats the rows.
        repeat: How often the whole measurement of latency is done; figures are medians over it.

    Returns:
        Rows with `ms_p50_1t` and the like; `ratio_1t` is the first file's median latency over this one's.
    """
    timed = [latencies(list(named), config) for _ in range(repeat)]
    source, first = origin(command), next(iter(named))
    made = []
    for path, columns in named.items():
        row = dict(columns) | dataclasses.asdict(footprint(path))
        for threads in config.threads:
            for percentile in PERCENTILES:
                values = [one[path][threads][percentile] for one in timed]
                row[f"ms_{percentile}_{threads}t"] = round(float(np.median(values)), 4)
            ratios = [one[first][threads]["p50"] / one[path][threads]["p50"] for one in timed]
            row[f"ratio_{threads}t"] = round(float(np.median(ratios)), 3)
        runs = int(timed[0][path][config.threads[0]]["runs"])
        made.append(row | {"runs": runs, "repeats": repeat} | source)
    return made


def row_names(config: BenchmarkConfig) -> list[str]:
    """Return the columns of the rows of this command, before anything is measured."""
    taken = [field.name for field in dataclasses.fields(Footprint)]
    timed = [f"{name}_{n}t" for n in config.threads for name in (*(f"ms_{one}" for one in PERCENTILES), "ratio")]
    return [*DESCRIBED, *taken, *timed, "runs", "repeats", *origin("")]


def describe(path: Path, data: Any = None, **spaces: Any) -> dict[str, Any]:
    """Return what a file is, from its contract, and what it scores on the test split of a data set, as columns.

    Args:
        path: The file.
        data: A data set, whose classes it must know; see `file_predictor`.
        spaces: `input_range` and `outputs` of the file.

    Raises:
        UserError: the contract is damaged or of another file, or the images or classes do not fit.
    """
    contract = verified_contract(path) or {}
    parity = contract.get("parity", {})
    columns = {"model": path.stem, "format": contract.get("format"), "parameters": contract.get("parameters")}
    columns |= {f"validation_{name}": parity.get(name) for name in PARITY}
    columns |= dict.fromkeys(SCORED)
    if data is not None:
        if note := assumption(open_classifier(path), contract, spaces.get("input_range")):
            console.say(f"{path}: {note}")
        logits = file_predictor(path, data.class_names, **spaces)(data.test.images)
        columns |= {"data": data.name, "data_fingerprint": data.fingerprint, "n_test": len(data.test)}
        columns["accuracy"] = float(np.mean(logits.argmax(axis=1) == data.test.labels))
    return columns


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.benchmark`; argparse, since an edge board need not have tyro."""
    defaults = BenchmarkConfig()
    parser = Parser(
        prog="python -m tfigkd.benchmark", description="Latency, memory and size of LiteRT files on this machine."
    )
    parser.add_argument(
        "files", type=Path, nargs="+", help=".tflite classifiers; latencies are compared with the first"
    )
    helped = f"thread counts to time each file with (default: {' '.join(map(str, defaults.threads))})"
    parser.add_argument("--threads", type=int, nargs="+", default=list(defaults.threads), help=helped)
    parser.add_argument("--runs", type=int, default=defaults.runs, help="timed inferences of each file")
    parser.add_argument("--warmup", type=int, default=defaults.warmup, help="inferences before the clock starts")
    add_data_options(parser, "measure accuracy on the test split of this data set as well")
    add_space_options(parser)
    parser.add_argument("--rows", type=Path, help="append the results to this .csv")
    options = parser.parse_args(arguments)
    refuse_without_data(parser, options)
    require_folder_of(options.rows, "--rows")
    with refused_as("--"):
        config = BenchmarkConfig(options.runs, options.warmup, tuple(options.threads))
    require_columns(options.rows, row_names(config))
    spaces = given_spaces(options)

    @cache
    def data(reading: Reading) -> Any:
        return load_data(options, reading)

    named = {
        path: describe(path, data(reading_for(path, options)) if options.data else None, **spaces)
        for path in options.files
    }
    for path, name in zip(options.files, names_apart(options.files), strict=True):
        named[path]["model"] = name
    made = rows(named, config, f"python -m tfigkd.benchmark {shlex.join(arguments)}")
    for row in made:
        timed = ", ".join(
            f"{counted(threads, 'thread')} {row[f'ms_p50_{threads}t']:.2f} ms "
            f"(p90 {row[f'ms_p90_{threads}t']:.2f}, ratio {row[f'ratio_{threads}t']:.2f})"
            for threads in config.threads
        )
        memory = "" if row["peak_memory"] is None else f", {row['peak_memory'] / 1e6:.1f} MB of memory"
        score = f", accuracy {percent(row['accuracy'])}" if options.data else ""
        console.say(
            f"{row['model']}: {row['bytes'] / 1e3:,.1f} kB ({row['gzip_bytes'] / 1e3:,.1f} gzipped), "
            f"{row['multiply_adds'] / 1e6:,.2f} M multiply-adds{memory}; {timed}{score}"
        )
    for row in made if options.rows else ():
        append_row(options.rows, row)


if __name__ == "__main__":
    sys.exit(main())

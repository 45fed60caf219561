"""60,000 pictures of 224 pixels in folders: memory and time of each stage, on a machine that could not hold them.

The networks are tiny, so that what is measured is what the pictures cost.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.disk_pictures import write_pictures
from experiments.benchmarks.harness import Options, record
from tfigkd.config.experiment import Config, override
from tfigkd.config.toml import to_toml

MEMORY = 2.5e9
SMALL = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""What starts a command: a small process, as Linux lets a new process begin with the peak of the one that starts it."""
STAGES = ("data", "teacher", "overlays", "distill,export", "evaluate")


def settings(folder: Path, size: int) -> Config:
    """Return an experiment with two networks from files, of which the teacher is trained for an epoch."""
    changes = {
        "data.name": str(folder / "pictures"),
        "data.image_size": size,
        "data.resident": "disk",
        "teacher.model": str(folder / "teacher.keras"),
        "teacher.train": True,
        "teacher.normalization": "none",
        "teacher.training.epochs": 1,
        "student.model": str(folder / "student.keras"),
        "training.epochs": 2,
        "augment.crop_padding": 0,
        "augment.crop_area": [0.5, 1.0],
        "attribution.grid": size // 4,
        "attribution.n_steps": 2,
        "losses.kd.weight": 0.5,
        "overlay.probability": 0.1,
        "evaluation.attribution_examples": 64,
    }
    return override(Config(), changes)


def write_network(path: Path, size: int, filters: int) -> None:
    """Write a convolution of large strides with a dense layer, for ten classes."""
    import keras

    keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Conv2D(filters, 7, strides=8),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    ).save(path)


def measured(words: list[str]) -> tuple[float, int]:
    """Run a command and return its seconds, and the peak of resident memory in bytes of it or of a child."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SMALL, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - begin, 1024 * int(done.stdout.splitlines()[-1])


def run(options: Options) -> None:
    """Measure and append rows."""
    count, size = (600, 32) if options.tiny else (60_000, 224)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", count, size, tinted=True)
        for network, filters in (("teacher", 16), ("student", 8)):
            write_network(folder / f"{network}.keras", size, filters)
        (folder / "large.toml").write_text(to_toml(settings(folder, size), f"{count:,} pictures of {size} pixels"))
        for stages in STAGES:
            words = [sys.executable, "-m", "tfigkd.run", "--experiment", str(folder / "large.toml"), "--stages", stages]
            seconds, peak = measured([*words, "--workdir", str(folder / "run"), "--teachers", str(folder / "teachers")])
            record(
                options,
                f"peak memory of {stages}, {count:,} JPEG pictures of {size} pixels",
                f"{MEMORY / 1e9} GB",
                np.array([peak / MEMORY]),
                ours=peak / 1e6,
                theirs=MEMORY / 1e6,
                unit="MB",
                at_most=1.0,
                note=f"{seconds:.0f} s; decoded, the pictures have {3 * count * size * size / 1e9:.1f} GB",
            )

"""Pictures on disk beside pictures in memory: peak memory, batches a second, and the time to open them again.

python -m experiments.benchmarks.disk_pictures FOLDER memory|disk SIZE STEPS [THREADS]   (the child; prints a JSON line)
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.benchmarks.harness import Options, faster, record, take_turns, timed
from experiments.benchmarks.overlay_store import peak_memory, reset_peak
from tfigkd import models
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.data_fields import Reading
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import load
from tfigkd.training.distiller import Distiller

BATCH = 64
PAGE = 4096
"""Least peak of memory that is told, in bytes: a few pictures may fit into memory that the process already has."""


def measure(folder: Path, resident: Any, size: int, steps: int, threads: int = 0) -> dict[str, float]:
    """Load a folder and make training batches of it in this process; with threads, of crops that are resized.

    Returns:
        `peak`: peak memory in bytes above that of the imports; `load`: seconds to load; `rate`: images a second.
    """
    reset_peak()
    before, start = peak_memory(), time.perf_counter()
    data = load(str(folder), Reading(image_size=size, resident=resident))
    loaded = time.perf_counter()
    augment = AugmentConfig(crop_padding=0, crop_area=(0.08, 1.0)) if threads else AugmentConfig()
    recipe = TrainingConfig(batch_size=BATCH, batch_threads=max(1, threads))
    batches = TrainingBatches(data.train, recipe, augment, seed=0)(0)
    for _ in range(steps):
        next(batches)
    rate = steps * BATCH / (time.perf_counter() - loaded)
    return {"peak": max(PAGE, peak_memory() - before), "load": loaded - start, "rate": rate}


def write_pictures(folder: Path, count: int, size: int, *, tinted: bool = False) -> None:
    """Write JPEG pictures of smooth noise in ten classes, a sixth of them for test; tinted, a color tells the class."""
    tints = np.random.default_rng(1).integers(0, 256, (10, 3))
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("test" if index % 6 == 0 else "train") / f"class{index % 10}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        if tinted:
            noise = ((noise.astype(int) + tints[index % 10]) // 2).astype(np.uint8)
        Image.fromarray(noise).resize((size, size)).save(path, quality=85)


def child(folder: Path, resident: str, size: int, steps: int, threads: int = 0) -> dict[str, float]:
    """Run `measure` in a process of its own, and return its result."""
    words = ["experiments.benchmarks.disk_pictures", str(folder), resident, *map(str, (size, steps, threads))]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options: Options) -> None:
    """Measure and append rows; at tiny size all but the first measurement are of this process."""
    count, size, steps = (60, 8, 2) if options.tiny else (6000, 224, 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, count, size)
        first = child(folder, "disk", size, steps)
        rounds, taken = (1, measure) if options.tiny else (min(3, options.pairs), child)
        pairs = [(taken(folder, "disk", size, steps), taken(folder, "memory", size, steps)) for _ in range(rounds)]
        threads = [[taken(folder, "disk", size, steps, count)["rate"] for count in (1, 2)] for _ in range(rounds)]
    disk, memory = ({name: np.array([pair[side][name] for pair in pairs]) for name in first} for side in range(2))
    what = f"{count:,} JPEG pictures of {size} pixels on disk"
    about: dict[str, Any] = {"note": f"a process of its own for each; decoding them to disk took {first['load']:.1f} s"}
    _record_threads(options, threads, what)
    _record_training(options)
    for title, key, scale, unit, bound in (
        ("peak memory", "peak", 1e6, "MB", {"at_most": 0.5}),
        ("loading again", "load", 1.0, "s", {"at_most": 0.5}),
        ("training batches", "rate", 1.0, "images/s", {"at_least": 0.9}),
    ):
        ours, theirs = disk[key] / scale, memory[key] / scale
        values = {"ours": float(np.median(ours)), "theirs": float(np.median(theirs)), "unit": unit}
        record(options, f"{title}, {what}", "the same in memory", ours / theirs, **values, **bound, **about)


def _record_threads(options: Options, rates: list[list[float]], what: str) -> None:
    one, two = np.array(rates).T
    title, seconds = (
        f"training batches of resized crops by two threads, {what}",
        {"ours": 1 / two, "one thread": 1 / one},
    )
    faster(options, title, "one thread", seconds, work=1, unit="images/s", at_least=1.6)


def _record_training(options: Options) -> None:
    count, steps = (160, 2) if options.tiny else (2560, 16)
    name, directory = ("digits", None) if options.tiny else ("cifar10", str(options.data_dir))
    with tempfile.TemporaryDirectory() as cache:
        sides = {}
        for side in ("ours", "memory"):
            where = "disk" if side == "ours" else "memory"
            data = load(name, Reading(resident=where, cache=cache), directory=directory, limit=count)
            recipe = TrainingConfig(batch_size=128, batch_threads=1)
            batches = TrainingBatches(data.train, recipe, AugmentConfig(), seed=0)(0)
            shape = data.image_shape
            model = Distiller(models.mobilenet_v2(10, 17 if options.tiny else 5, input_shape=shape))
            model.compile("adam", metrics=["accuracy"], jit_compile=False)

            def train(model: Distiller = model, batches: Iterator = batches) -> None:
                model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

            sides[side] = timed(train)
        seconds = take_turns(sides, options.pairs)
    what = "training of the 4.12x student, batch 128, CIFAR-10 on disk"
    faster(options, what, "memory", seconds, work=128 * steps, unit="images/s", at_least=0.9)


if __name__ == "__main__":
    folder, where, *numbers = sys.argv[1:]
    print(json.dumps(measure(Path(folder), where, *map(int, numbers))))

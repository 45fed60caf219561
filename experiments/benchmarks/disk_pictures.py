"""Pictures on disk beside pictures in memory: peak memory, batches a second, and the time to open them again.

python -m experiments.benchmarks.disk_pictures FOLDER memory|disk SIZE STEPS     (the child process; prints a JSON line)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.benchmarks.harness import Options, record
from experiments.benchmarks.overlay_store import peak_memory, reset_peak

BATCH = 64


def measure(folder: Path, resident: Any, size: int, steps: int) -> dict[str, float]:
    """Load a folder and make training batches of it in this process.

    Returns:
        `peak`: peak memory in bytes above that of the imports; `load`: seconds to load; `rate`: images a second.
    """
    from tfigkd.batches.stream import training_batches
    from tfigkd.config.training_fields import AugmentConfig
    from tfigkd.data import load

    reset_peak()
    before, start = peak_memory(), time.perf_counter()
    data = load(str(folder), image_size=size, resident=resident)
    loaded = time.perf_counter()
    batches = training_batches(data.train, augment=AugmentConfig(), batch_size=BATCH, seed=0)(0)
    for _ in range(steps):
        next(batches)
    rate = steps * BATCH / (time.perf_counter() - loaded)
    return {"peak": peak_memory() - before, "load": loaded - start, "rate": rate}


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Write JPEG pictures of smooth noise in ten classes, a sixth of them for test."""
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("test" if index % 6 == 0 else "train") / f"class{index % 10}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size)).save(path, quality=85)


def child(folder: Path, resident: str, size: int, steps: int) -> dict[str, float]:
    """Run `measure` in a process of its own, and return its result."""
    words = ["experiments.benchmarks.disk_pictures", str(folder), resident, str(size), str(steps)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options: Options) -> None:
    """Measure and append rows."""
    count, size, steps = (60, 8, 2) if options.tiny else (6000, 224, 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, count, size)
        first = child(folder, "disk", size, steps)
        rounds = 1 if options.tiny else min(3, options.pairs)
        pairs = [(child(folder, "disk", size, steps), child(folder, "memory", size, steps)) for _ in range(rounds)]
    disk, memory = ({name: np.array([pair[side][name] for pair in pairs]) for name in first} for side in range(2))
    what = f"{count:,} JPEG pictures of {size} pixels on disk"
    about: dict[str, Any] = {"note": f"a process of its own for each; decoding them to disk took {first['load']:.1f} s"}
    for title, key, scale, unit, bound in (
        ("peak memory", "peak", 1e6, "MB", {"at_most": 0.5}),
        ("loading again", "load", 1.0, "s", {"at_most": 0.5}),
        ("training batches", "rate", 1.0, "images/s", {"at_least": 0.9}),
    ):
        ours, theirs = disk[key] / scale, memory[key] / scale
        values = {"ours": float(np.median(ours)), "theirs": float(np.median(theirs)), "unit": unit}
        record(options, f"{title}, {what}", "the same in memory", ours / theirs, **values, **bound, **about)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))

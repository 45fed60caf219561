"""Size of an overlay store, and peak memory of the stage that writes it, for 5,000 and 50,000 images.

python -m experiments.benchmarks.overlay_store FOLDER COUNT SIZE     (the child process; prints one JSON line)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Options, record

KILOBYTE = 1000


def measure(folder: Path, count: int, size: int) -> dict[str, Any]:
    """Write, read back and verify a store of random images in this process, with a tiny teacher and one IG step.

    Returns:
        `peak`: peak memory of the stage in bytes; `data`: the data set's part of it; `bytes`: store bytes per example.
    """
    import keras

    from tfigkd.attribution.examples import baseline_color
    from tfigkd.config.fields import AttributionConfig, DataConfig
    from tfigkd.data import train_and_validation
    from tfigkd.runtime.files import make_folder
    from tfigkd.stages.data import dataset
    from tfigkd.store import maps as overlays

    data = dataset(DataConfig(name=str(folder / "images.npz")))
    held = sum(part.images.nbytes for part in (data.train, data.validation, data.test))
    config = AttributionConfig(n_steps=1)
    inputs = keras.Input((size, size, 3))
    teacher = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(inputs)))
    identity = overlays.store_identity("tiny", data.fingerprint, config)
    store = make_folder(folder / "overlays" / overlays.fingerprint(identity))
    reset_peak()
    examples = train_and_validation(data)
    overlays.write_store(store, teacher, examples, baseline_color(config, data.train), config, identity, {})
    peak = peak_memory()
    weight = sum(path.stat().st_size for path in store.glob("*.tfrecord"))
    return {"peak": peak, "data": held, "bytes": weight / (len(data.train) + len(data.validation))}


def reset_peak() -> None:
    """Reset the kernel's peak of resident memory, so that reading the data set is not counted."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the peak of resident memory since `reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def child(count: int, size: int) -> dict[str, Any]:
    """Run `measure` in a child process on random images, and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (count + 20, size, size, 3)).astype(np.uint8)
        labels = np.arange(count + 20) % 10
        arrays = {"x_train": images[:count], "y_train": labels[:count]}
        np.savez(Path(folder) / "images.npz", **arrays, x_test=images[count:], y_test=labels[count:])
        command = [sys.executable, "-m", "experiments.benchmarks.overlay_store", folder, str(count), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options: Options) -> None:
    """Measure and append rows."""
    few, many, size = (40, 80, 8) if options.tiny else (5000, 50000, 32)
    pairs = [(child(few, size), child(many, size)) for _ in range(1 if options.tiny else min(3, options.pairs))]
    small, large = (np.array([side["peak"] - side["data"] for side in sides]) for sides in zip(*pairs, strict=True))
    record(
        options,
        f"peak memory of the overlay stage, {many:,} images",
        f"{few:,} images",
        large / small,
        ours=float(np.median(large)) / 1e6,
        theirs=float(np.median(small)) / 1e6,
        unit="MB",
        at_most=1.1,
        note="tiny teacher, 1 step; the data set's own size taken off; a process of its own for each",
    )
    weight = np.array([side["bytes"] for _, side in pairs]) / KILOBYTE
    record(
        options,
        "store, an example",
        "1 kB",
        weight,
        ours=float(np.median(weight)),
        theirs=1.0,
        unit="kB",
        at_most=1.25,
        note="uint8 map, 10 logits, id, error",
    )


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

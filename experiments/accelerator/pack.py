"""Packing of what `run.sh` needs on a machine without network or TensorFlow, in parts for small transfers.

    python experiments/accelerator/pack.py cifar10 --data-dir DIR --wheels --output parts
    python experiments/accelerator/pack.py --unpack parts

The first call writes the data set as NAME.packed.000, NAME.packed.001, … with SHA256SUMS; the second one, on the
machine, makes NAME.npz of them in the current folder. The pictures are in lossless WebP, 100 MB for CIFAR-10 in place
of 170 MB of an .npz. They keep the ids of the source, because an id is the hash of the pixels. COMMIT holds the
commit that the rows measured on the machine will name. `--wheels` downloads to wheels/ the packages that such a
machine lacks, 3.4 MB: keras 3.15.1, namex 0.1.0, packaging 26.3, tyro 1.0.17, docstring_parser 0.18.0, typeguard
4.6.0 and typing_extensions 4.16.0, which are pure Python, and optree 0.20.0 and google_crc32c 1.9.0, which are
compiled, but not against NumPy.
"""

import argparse
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from tfigkd.data import Dataset, concatenate, load
from tfigkd.runtime.provenance import commit

# expected there already: JAX, NumPy, SciPy, scikit-learn, rich, Pillow, h5py, absl-py and ml-dtypes
WHEELS = (
    "keras", "namex", "optree", "packaging", "tyro", "docstring-parser", "typeguard", "typing-extensions",
    "google-crc32c",
)  # fmt: skip
WEBP_SIDE = 16383
"""Largest height of a picture in WebP."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch_wheels(folder: Path, python: str) -> None:
    """Download wheels of the versions installed here, for the Python version of the other machine.

    Raises:
        CalledProcessError: pip found no such wheel, or has no network.
    """
    wanted = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, "--dest", str(folder), *wanted], check=True)


def packed(data: Dataset) -> bytes:
    """Return a data set as bytes; an unlimited one keeps its examples, splits and fingerprint."""
    arrays = {"class_names": np.array(data.class_names)}
    for split, examples in {"train": concatenate([data.train, data.validation]), "test": data.test}.items():
        strips = [as_webp(strip) for strip in _strips(examples.images)]
        arrays[f"strips_{split}"] = np.frombuffer(b"".join(strips), np.uint8)
        arrays[f"sizes_{split}"] = np.array([len(strip) for strip in strips])
        arrays[f"y_{split}"] = examples.labels.astype(np.int32)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def unpacked(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, from what `packed` returned."""
    given = np.load(io.BytesIO(content))
    arrays = {"class_names": given["class_names"]}
    for split in ("train", "test"):
        ends = np.cumsum(given[f"sizes_{split}"])
        strips = np.split(given[f"strips_{split}"], ends[:-1])
        pixels = [np.asarray(Image.open(io.BytesIO(strip.tobytes())).convert("RGB")) for strip in strips]
        wide = pixels[0].shape[1]
        arrays[f"y_{split}"] = given[f"y_{split}"]
        arrays[f"x_{split}"] = np.concatenate(pixels).reshape(len(arrays[f"y_{split}"]), -1, wide, 3)
    return arrays


def as_webp(pixels: np.ndarray) -> bytes:
    """Return an image, uint8 [H,W,3], in lossless WebP."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "WEBP", lossless=True, quality=75)
    return content.getvalue()


def _strips(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield images [N,H,W,3] one below the other, as many at a time as WebP takes."""
    count, high, wide, _ = images.shape
    for start in range(0, count, WEBP_SIDE // high):
        yield images[start : start + WEBP_SIDE // high].reshape(-1, wide, 3)


def unpack(parts: Path) -> None:
    """Join the parts in a folder and write NAME.npz to the current folder, unless it is there.

    Raises:
        SystemExit: a part is missing or damaged.
    """
    checksum, name = (parts / "SHA256SUMS").read_text(encoding="utf-8").split()
    target = Path(name).with_suffix(".npz")
    if target.exists():
        return
    content = b"".join(part.read_bytes() for part in sorted(parts.glob(f"{name}.[0-9]*")))
    if hashlib.sha256(content).hexdigest() != checksum:
        sys.exit(f"error: the parts of {name} in {parts} are incomplete or damaged")
    partial = target.with_suffix(".partial.npz")
    np.savez(partial, **unpacked(content))
    partial.rename(target)


def main() -> None:
    """Load the data set, pack it and split it into parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="?", help="tfds name, image folder or digits")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--output", type=Path, help="folder of the parts")
    parser.add_argument("--unpack", type=Path, metavar="PARTS", help="on the machine: join the parts in this folder")
    parser.add_argument("--megabytes", type=int, default=50, help="size of a part")
    parser.add_argument("--limit", type=int, help="keep only this many pictures of each split, for a test run")
    parser.add_argument("--wheels", action="store_true", help="also download the packages that the machine lacks")
    parser.add_argument("--python", default="3.12", help="the machine's Python, for --wheels")
    options = parser.parse_args()
    if options.unpack:
        return unpack(options.unpack)
    if not options.data or not options.output:
        parser.error("name the data and --output, or --unpack PARTS")

    data = load(options.data, directory=options.data_dir, limit=options.limit)
    options.output.mkdir(parents=True, exist_ok=True)
    whole, size = packed(data), options.megabytes * 10**6
    name = f"{Path(options.data).stem}.packed"
    for old in options.output.glob(f"{name}.[0-9]*"):  # parts of an earlier, larger data set
        old.unlink()
    for number, start in enumerate(range(0, len(whole), size)):
        part = whole[start : start + size]
        (options.output / f"{name}.{number:03d}").write_bytes(part)
    checksum = hashlib.sha256(whole).hexdigest()
    (options.output / "SHA256SUMS").write_text(f"{checksum}  {name}\n", encoding="utf-8")
    (options.output / "COMMIT").write_text(f"{commit()}\n", encoding="utf-8")
    print(
        f"{len(data.train) + len(data.validation):,} training and {len(data.test):,} test pictures, "
        f"{len(whole) / 1e6:.0f} MB, commit {commit() or 'unknown'}, {options.output}"
    )
    if options.wheels:
        fetch_wheels(options.output / "wheels", options.python)
        print("\n".join(path.name for path in sorted((options.output / "wheels").glob("*.whl"))))


if __name__ == "__main__":
    main()

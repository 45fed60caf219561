"""Packing of what `run.sh` needs on a machine without network or TensorFlow, in parts for small transfers.

    python experiments/accelerator/pack.py cifar10 --data-dir DIR --wheels --output parts

Writes the data set as NAME.npz.000, NAME.npz.001, … with SHA256SUMS; `cat NAME.npz.* > NAME.npz` joins them. Pictures
keep the ids of the source, because an id is the hash of the pixels. COMMIT holds the commit that the rows measured on
the machine will name. `--wheels` downloads to wheels/ the packages that such a machine lacks, 3.4 MB: keras 3.15.1,
namex 0.1.0, packaging 26.3, tyro 1.0.17, docstring_parser 0.18.0, typeguard 4.6.0 and typing_extensions 4.16.0, which
are pure Python, and optree 0.20.0 and google_crc32c 1.9.0, which are compiled, but not against NumPy.
"""

import argparse
import hashlib
import io
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

from tfigkd.data import Dataset, concatenate, load
from tfigkd.runtime.provenance import commit

# expected there already: JAX, NumPy, SciPy, scikit-learn, rich, Pillow, h5py, absl-py and ml-dtypes
WHEELS = (
    "keras", "namex", "optree", "packaging", "tyro", "docstring-parser", "typeguard", "typing-extensions",
    "google-crc32c",
)  # fmt: skip
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


def as_npz(data: Dataset) -> bytes:
    """Return a data set as the bytes of an .npz file; an unlimited one keeps its examples, splits and fingerprint."""
    train = concatenate([data.train, data.validation])
    arrays = {"x_train": train.images, "y_train": train.labels.astype(np.int32)}
    arrays |= {"x_test": data.test.images, "y_test": data.test.labels.astype(np.int32)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays, class_names=np.array(data.class_names))
    return content.getvalue()


def main() -> None:
    """Load the data set, pack it and split it into parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", help="tfds name, image folder or digits")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--megabytes", type=int, default=50, help="size of a part")
    parser.add_argument("--limit", type=int, help="keep only this many pictures of each split, for a test run")
    parser.add_argument("--wheels", action="store_true", help="also download the packages that the machine lacks")
    parser.add_argument("--python", default="3.12", help="the machine's Python, for --wheels")
    options = parser.parse_args()

    data = load(options.data, directory=options.data_dir, limit=options.limit)
    options.output.mkdir(parents=True, exist_ok=True)
    whole, size = as_npz(data), options.megabytes * 10**6
    name = f"{Path(options.data).stem}.npz"
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

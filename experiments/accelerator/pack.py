"""A data set as one .npz in parts that a small transfer can carry, for a machine without network or TensorFlow.

    python experiments/accelerator/pack.py cifar10 --data-dir DIR --output parts

Writes NAME.npz.000, NAME.npz.001, … and SHA256SUMS; `cat NAME.npz.* > NAME.npz` puts them together, and the ids of the
pictures are those of the source: an id is the hash of the pixels.
"""

import argparse
import hashlib
import io
from pathlib import Path

import numpy as np

from tfigkd.data import concatenate, load


def main() -> None:
    """Load, pack, split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", help="tfds name, image folder or digits")
    parser.add_argument("--data-dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the parts")
    parser.add_argument("--megabytes", type=int, default=50, help="size of a part")
    parser.add_argument("--limit", type=int, help="keep so many pictures of each split, for a rehearsal")
    options = parser.parse_args()

    data = load(options.data, directory=options.data_dir, limit=options.limit)
    train = concatenate([data.train, data.validation])
    content = io.BytesIO()
    arrays = {"x_train": train.images, "y_train": train.labels.astype(np.int32)}
    arrays |= {"x_test": data.test.images, "y_test": data.test.labels.astype(np.int32)}
    np.savez_compressed(content, **arrays)
    options.output.mkdir(parents=True, exist_ok=True)
    whole, size = content.getvalue(), options.megabytes * 10**6
    name = f"{Path(options.data).stem}.npz"
    for number, start in enumerate(range(0, len(whole), size)):
        part = whole[start : start + size]
        (options.output / f"{name}.{number:03d}").write_bytes(part)
    checksum = hashlib.sha256(whole).hexdigest()
    (options.output / "SHA256SUMS").write_text(f"{checksum}  {name}\n", encoding="utf-8")
    print(f"{len(train):,} training and {len(data.test):,} test pictures, {len(whole) / 1e6:.0f} MB, {options.output}")


if __name__ == "__main__":
    main()

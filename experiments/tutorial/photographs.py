"""Write photographs of the tfds set `imagenet_cifar10` as a folder of pictures, for section 8 of the tutorial.

python experiments/tutorial/photographs.py FOLDER --train 500
python experiments/tutorial/photographs.py FOLDER --train 60 --classes cat,dog,bird,automobile --flat
"""

import argparse
from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image


def write(folder: Path, train: int, classes: list[str], flat: bool) -> Counter[str]:
    """Write the first pictures of each class as PNG files.

    Args:
        folder: Where FOLDER/train/CLASS and FOLDER/test/CLASS are made.
        train: Pictures of each class for training, at most.
        classes: Their names; none stands for all.
        flat: Write FOLDER/CLASS alone, without test pictures.

    Returns:
        Pictures of each written split and class.
    """
    builder = tfds.builder("imagenet_cifar10")
    names = builder.info.features["label"].names
    written: Counter[str] = Counter()
    for source, split in (("train", "train"), ("validation", "test"))[: 1 if flat else 2]:
        for example in tfds.as_numpy(builder.as_dataset(split=source)):
            name = names[example["label"]]
            inside = name if flat else f"{split}/{name}"
            if (classes and name not in classes) or (split == "train" and written[inside] >= train):
                continue
            path = folder / inside / f"{written[inside]:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(example["image"]).save(path)
            written[inside] += 1
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Photographs of imagenet_cifar10 (64x64) as a folder of pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=500, help="training pictures of each class, at most")
    parser.add_argument("--classes", default="", help="only these, separated by commas")
    parser.add_argument("--flat", action="store_true", help="FOLDER/CLASS/*.png, without test pictures")
    given = parser.parse_args()
    print(dict(write(given.folder, given.train, [name for name in given.classes.split(",") if name], given.flat)))

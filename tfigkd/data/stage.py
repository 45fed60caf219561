"""Stage `data`: find the data set of a config, state what it is, and hand it to the other stages."""

import functools

from tfigkd import console
from tfigkd.config import fingerprint
from tfigkd.data import Dataset, Examples, concatenate, load
from tfigkd.fields import Config, DataConfig
from tfigkd.workdir import Workdir, make_folder, write_manifest


@functools.lru_cache(maxsize=2)
def dataset(config: DataConfig) -> Dataset:
    """The data set of a config, read once a process."""
    return load(config.name, directory=config.dir, image_size=config.image_size, limit=config.limit)


def holds_out_validation(config: DataConfig) -> bool:
    """Whether nothing is trained on the validation split."""
    return config.train_split == "train"


@functools.lru_cache(maxsize=2)
def training_examples(config: DataConfig) -> Examples:
    """What teacher and student are trained on."""
    data = dataset(config)
    return data.train if holds_out_validation(config) else concatenate([data.train, data.validation])


def prepare(config: Config, workdir: Workdir) -> None:
    """Stage `data`: read the examples and write down what they are."""
    data = dataset(config.data)
    counts = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    height, width, _ = data.image_shape
    console.say(f"  {data.name}: {sizes}, {data.num_classes} classes, {height}x{width}, fingerprint {data.fingerprint}")
    if data.test_train_overlap:
        console.say(f"  note: {data.test_train_overlap} test images are in train as well")
    write_manifest(
        make_folder(workdir.stage("data")),
        fingerprint("data", config.data, data.fingerprint),
        data=data.fingerprint,
        counts=counts,
        image_shape=list(data.image_shape),
        class_names=list(data.class_names),
        test_train_overlap=data.test_train_overlap,
    )

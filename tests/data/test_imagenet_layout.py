"""ImageNet-1k as tfds prepares it: 1,000 classes, JPEG of many sizes, labeled validation, test without labels."""

import json

import keras
import numpy as np
import pytest

from tfigkd.config.data_fields import Reading
from tfigkd.config.experiment import Config, override
from tfigkd.data import load, to_model_input
from tfigkd.stages.pipeline import STAGES
from tfigkd.stages.workdir import Workdir

TRAIN, HELD_OUT, CLASSES = 60, 20, 1000


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Prepared by tfds's own writer, with the features and splits of its builder."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("tfds")
    generator = np.random.default_rng(0)
    builder = tfds.builder_cls("imagenet2012")
    names = tfds.features.ClassLabel(names=[f"n{number:08}" for number in range(CLASSES)])
    features = {"image": tfds.features.Image(encoding_format="jpeg"), "label": names, "file_name": tfds.features.Text()}

    def pictures(split, count):
        for number in range(count):
            height, width = generator.integers(20, 40, 2)
            image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            label = -1 if split == "test" else 50 * (number % 20)
            yield number, {"image": image, "label": label, "file_name": f"{split}_{number}.JPEG"}

    counts = {"train": TRAIN, "validation": HELD_OUT, "test": 10}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet2012",
        version=str(builder.VERSION),
        data_dir=directory,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: pictures(split, count) for split, count in counts.items()},
    )
    return directory


@pytest.mark.parametrize("resident", ["memory", "disk"])
def test_labeled_validation_is_what_is_tested_on(directory, resident):
    """The test split has no labels, so validation is measured, and a part of train is held out."""
    data = load("imagenet2012", Reading(image_size=16, fit="crop", resident=resident), directory=str(directory))
    assert data.num_classes == CLASSES and len(data.test) == HELD_OUT
    assert len(data.train) + len(data.validation) == TRAIN
    assert set(data.test.labels) == {50 * number for number in range(20)}
    assert data.train.images.shape[1:] == (16, 16, 3)


def test_a_student_is_measured_by_the_first_and_the_first_five(directory, tmp_path):
    config = override(
        Config(),
        {
            "data.name": "imagenet2012",
            "data.dir": str(directory),
            "data.image_size": 16,
            "data.fit": "crop",
            "data.resident": "disk",
            "student.model": "resnet8",
            "student.drop_blocks": 0,
            "training.epochs": 1,
            "training.batch_size": 16,
            "augment.crop_padding": 0,
            "augment.crop_area": [0.3, 1.0],
        },
    )
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    for stage in ("data", "distill", "evaluate"):
        STAGES[stage](config, workdir)
    student = keras.saving.load_model(workdir.stage("distill") / "student.keras")
    data = load("imagenet2012", Reading(image_size=16, fit="crop"), directory=str(directory))
    logits = student(to_model_input(data.test.images), training=False)
    found = json.loads((workdir.stage("evaluate") / "manifest.json").read_text())["results"]["student"]
    for name, count in (("accuracy", 1), ("top5_accuracy", 5)):
        right = keras.metrics.sparse_top_k_categorical_accuracy(data.test.labels, logits, k=count)
        assert found[name] == pytest.approx(float(np.mean(right)))

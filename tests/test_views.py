"""Stored views: the teacher has seen exactly what the student sees."""

import itertools

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.batches import training_batches
from tfigkd.config import override
from tfigkd.controls import shuffle_views
from tfigkd.data.stage import dataset, training_examples
from tfigkd.errors import UserError
from tfigkd.fields import AugmentConfig, Config, ControlConfig
from tfigkd.teacher import FILE, teacher_folder, weights_fingerprint
from tfigkd.views import build_views, load_views, views_folder
from tfigkd.workdir import MANIFEST, Workdir, checksum, finished, write_manifest

CONFIG = override(
    Config(),
    {
        "data.name": "digits",
        "data.limit": 60,
        "augment.crop_padding": 2,
        "teacher.drop_blocks": 15,
        "teacher.width": 0.25,
        "losses.kd.weight": 0.5,
        "view.kind": "views",
        "view.views": 5,
    },
)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return models.mobilenet_v2(10, 15, input_shape=(8, 8, 3), width=0.25)


@pytest.fixture(scope="module")
def workdir(teacher, tmp_path_factory):
    """A workdir whose teacher is there and whose views are stored."""
    home = tmp_path_factory.mktemp("views")
    workdir = Workdir(home / "run", home / "teachers")
    folder = teacher_folder(CONFIG, workdir)
    folder.mkdir(parents=True)
    teacher.save(folder / FILE)
    write_manifest(folder, folder.name, files={FILE: checksum(folder / FILE)}, weights=weights_fingerprint(teacher))
    build_views(CONFIG, workdir)
    return workdir


def test_the_logits_that_are_looked_up_are_those_that_a_live_teacher_computes(teacher, workdir):
    examples = training_examples(CONFIG.data)
    views = load_views(CONFIG, workdir, examples)
    assert views.shape == (len(examples), 5, 10)
    assert views.dtype == np.float16
    stream = training_batches(
        examples, augment=CONFIG.augment, batch_size=16, seed=3, views=views, view_seed=CONFIG.view.seed, wanted=()
    )
    scale = np.abs(views).max()
    for images, targets in itertools.islice(stream(0), 8):  # two epochs
        live = keras.ops.convert_to_numpy(teacher(images, training=False))
        np.testing.assert_allclose(targets["teacher_logits"], live, atol=2e-3 * max(1, scale))


def test_the_views_of_an_image_differ_and_all_are_used(workdir):
    examples = training_examples(CONFIG.data)
    views = load_views(CONFIG, workdir, examples)
    assert (views[:, 0] != views[:, 1]).any(axis=1).mean() > 0.9
    stream = training_batches(
        examples, augment=CONFIG.augment, batch_size=len(examples), seed=0, views=views, view_seed=0, wanted=()
    )
    seen = set()
    for _, targets in itertools.islice(stream(0), 12):
        seen |= {tuple(np.flatnonzero((views == row).all(axis=2).any(axis=0))) for row in targets["teacher_logits"][:5]}
    assert {view for views_ in seen for view in views_} == set(range(5))


def test_a_store_of_other_views_is_another_store(workdir):
    for change in ({"view.views": 6}, {"view.seed": 1}):
        assert views_folder(override(CONFIG, change), workdir) != views_folder(CONFIG, workdir)
    with pytest.raises(UserError, match="no finished store"):
        load_views(override(CONFIG, {"view.seed": 1}), workdir, training_examples(CONFIG.data))


def test_a_resumed_store_is_the_same(workdir):
    folder = views_folder(CONFIG, workdir)
    before = finished(folder, folder.name)["files"]
    (folder / MANIFEST).unlink()
    next(folder.glob("*.tfrecord")).unlink()
    build_views(CONFIG, workdir)
    assert finished(folder, folder.name)["files"] == before


def test_the_control_permutes_views_across_images(workdir):
    views = load_views(CONFIG, workdir, dataset(CONFIG.data).train)
    shuffled = shuffle_views(views, ControlConfig(logits="shuffled"))
    assert (shuffled != views).any(axis=(1, 2)).all()
    assert shuffle_views(views, ControlConfig()) is views


def test_drawing_a_view_leaves_the_draws_of_other_arms_alone():
    """Arms that share a seed share the order of examples, whatever the teacher's view."""
    examples = training_examples(CONFIG.data)
    options = {"augment": AugmentConfig(2), "batch_size": 16, "seed": 1, "wanted": ()}
    plain = training_batches(examples, **options)(0)
    viewed = training_batches(examples, views=np.zeros((len(examples), 4, 10), np.float16), **options)(0)
    for (_, left), (_, right) in itertools.islice(zip(plain, viewed, strict=True), 4):
        np.testing.assert_array_equal(left["label"], right["label"])

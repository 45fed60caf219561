"""Limited teachers: each learns from its part of the images, and on each image they count by the label or alike."""

from dataclasses import replace

import numpy as np
import pytest

from tfigkd.config.experiment import fine_tuning, override, read_experiment
from tfigkd.models.ensemble import weighted_by_label
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest
from tfigkd.stages import distill, training_setup
from tfigkd.stages.data import dataset, shard, training_examples
from tfigkd.stages.overlays import load_views, store_knowledge, views_folder, views_name
from tfigkd.stages.preflight import check_networks
from tfigkd.stages.teacher import load_teacher, members, teacher_examples, teacher_fingerprint, train_teacher
from tfigkd.stages.workdir import Workdir

TINY = {
    "data.name": "digits",
    "data.limit": 120,
    "tensorboard.pictures": 0,
    "teacher.count": 2,
    "teacher.shards": 2,
    "teacher.widths": (8,),
    "teacher.training.epochs": 2,
    "teacher.training.batch_size": 16,
    "teacher.training.precision": "float32",
    "student.model": "resnet8",
    "view.views": 3,
    "training.batch_size": 16,
    "training.precision": "float32",
}


def test_parts_are_disjoint_whole_and_of_all_classes():
    examples = teacher_examples(override(read_experiment("cifar10_kd")[1], {"data.name": "digits"}))
    parts = [shard(examples, 4, which) for which in range(4)]
    ids = np.concatenate([part.ids for part in parts])
    assert sorted(ids) == sorted(examples.ids)
    counts = np.array([np.bincount(part.labels, minlength=10) for part in parts])
    assert np.ptp(counts, axis=0).max() <= 1
    assert shard(examples, 1, 0) is examples
    with pytest.raises(
        UserError, match=r"teacher\.shards must be at most \d+, the training images of a class, got 900"
    ):
        shard(examples, 900, 0)


def test_the_weights_of_teachers_by_hand():
    """Two teachers of two classes; the first gives the label p = 3/4, the second 1/4: weights 3/4 and 1/4."""
    logits = [np.log([[[3.0, 1.0]]]), np.log([[[1.0, 3.0]]])]
    mean = weighted_by_label(logits, np.array([0]))
    np.testing.assert_allclose(mean, [[[0.75 * np.log(3), 0.25 * np.log(3)]]], rtol=1e-6)
    np.testing.assert_allclose(weighted_by_label(logits, np.array([1])), mean[..., ::-1], rtol=1e-6)
    np.testing.assert_allclose(weighted_by_label(logits, np.array([0]), 1e-3), logits[0], atol=1e-6)
    np.testing.assert_allclose(weighted_by_label(logits, np.array([0]), 1e6), np.mean(logits, axis=0), atol=1e-5)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Return the config and workdir of two limited teachers with their stored views."""
    config = override(read_experiment("cifar10_shards")[1], TINY)
    workdir = Workdir(tmp_path_factory.mktemp("shards") / "run", tmp_path_factory.mktemp("teachers"))
    train_teacher(config, workdir)
    store_knowledge(config, workdir)
    return config, workdir


def test_each_teacher_learns_from_its_part(taught):
    config, workdir = taught
    seen = [teacher_examples(member) for member in members(config)]
    assert not {*seen[0].ids} & {*seen[1].ids}
    for member, examples in zip(members(config), seen, strict=True):
        manifest = read_manifest(workdir.teachers / teacher_fingerprint(member))
        assert manifest["n_train"] == len(examples)
    stems = [load_teacher(member, workdir).get_layer("whitening").get_weights()[0] for member in members(config)]
    assert not np.allclose(*stems)  # each of its own images
    assert sum(map(len, seen)) == len(training_examples(config.data))
    whole = replace(config.teacher, shards=1, count=1)
    assert teacher_fingerprint(replace(config, teacher=whole)) != teacher_fingerprint(members(config)[0])


def test_the_student_gets_the_logits_of_its_crop_weighted_by_its_label(taught):
    config, workdir = taught
    examples = training_examples(config.data)
    views = load_views(config, workdir, examples)
    each = [load_views(member, workdir, examples)[:].astype(np.float32) for member in members(config)]
    for row in (0, 7):
        for view in range(3):
            z = np.stack([one[row, view] for one in each])
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            known = p[:, examples.labels[row]]
            np.testing.assert_allclose(views[row, view], (known / known.sum()) @ z, rtol=1e-3, atol=1e-4)
    images, targets = next(training_setup.training_stream(config, workdir)(0))
    each = [load_teacher(member, workdir)(images, training=False) for member in members(config)]
    expected = weighted_by_label(each, targets["label"])
    np.testing.assert_allclose(targets["teacher_logits"], expected, atol=0.05 * np.abs(expected).max())


def test_one_model_stands_for_all_where_there_is_no_label(taught):
    """Its outputs are the mean; a student that is weighted otherwise is another one."""
    config, workdir = taught
    images = dataset(config.data).validation.images[:8] / np.float32(255)
    networks = [load_teacher(member, workdir) for member in members(config)]
    mean = np.mean([network(images) for network in networks], axis=0)
    np.testing.assert_allclose(load_teacher(config, workdir)(images), mean, rtol=1e-4, atol=1e-5)
    alike = replace(config, teacher=replace(config.teacher, weighting="mean"))
    assert teacher_fingerprint(alike) == teacher_fingerprint(config)
    assert views_name(alike, workdir) == views_folder(alike, workdir).name != views_name(config, workdir)
    names = {
        distill.student_fingerprint(one, workdir)
        for one in (config, alike, override(config, {"teacher.label_temperature": 0.5}))
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view.kind": "live"}, r"teacher\.weighting = label needs view\.kind = views, .*, got 'live'"),
        ({"view.kind": "plain"}, r"teacher\.weighting = label needs view\.kind = views, .*, got 'plain'"),
        ({"teacher.label_temperature": 0.0}, r"teacher\.label_temperature must be positive"),
        ({"teacher.shards": 0}, r"teacher\.shards must be at least 1"),
        (
            {"teacher.count": 1, "teacher.model": "resnet20", "teacher.weights": "resnet20.npz"},
            r"teacher\.shards must be at least 1, and 1 for a teacher that is not trained here, got 4",
        ),
        ({"training.mixup": 0.2}, r"training\.mixup and training\.cutmix must be 0"),
    ],
)
def test_teachers_that_cannot_be_weighted_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(read_experiment("cifar10_shards")[1], changes)
    assert "\n" not in str(caught.value)


def test_more_parts_than_images_of_a_class_are_refused_before_anything_is_trained():
    config = override(read_experiment("cifar10_shards")[1], TINY | {"teacher.shards": 90, "teacher.count": 90})
    with pytest.raises(UserError, match=r"teacher\.shards must be at most \d+, the training images of a class, got 90"):
        check_networks(config)


def test_a_student_that_is_compressed_under_its_own_eyes_has_no_teachers_to_weigh():
    changes = TINY | {"compress.method": "prune", "training.devices": "all"}
    tuned = fine_tuning(override(read_experiment("cifar10_shards")[1], changes))
    assert not tuned.teacher.by_label
    assert tuned.view.kind == "live"
    assert tuned.training.devices == "one"  # as compress trains
    by_teachers = override(read_experiment("cifar10_shards")[1], changes | {"compress.teacher": "teacher"})
    assert fine_tuning(by_teachers).teacher.by_label

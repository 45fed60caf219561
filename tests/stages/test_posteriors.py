"""Soft labels from neighbors in the teacher's space: by hand, as the loss counts them, stored once, and in a batch."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.config.experiment import override, read_experiment
from tfigkd.losses import OSAKD, neighbor_posteriors
from tfigkd.runtime.errors import UserError
from tfigkd.stages import posteriors, training_setup
from tfigkd.stages.data import training_examples
from tfigkd.stages.overlays import load_views, store_knowledge
from tfigkd.stages.teacher import train_teacher
from tfigkd.stages.workdir import Workdir
from tfigkd.training.distiller import Distiller

TINY = {
    "data.name": "digits",
    "data.limit": 96,
    "tensorboard.pictures": 0,
    "teacher.widths": (8,),
    "teacher.training.epochs": 1,
    "teacher.training.batch_size": 16,
    "teacher.training.precision": "float32",
    "view.views": 2,
    "losses.osakd.neighbors": 5,
    "training.batch_size": 16,
    "training.precision": "float32",
}
RNG = np.random.default_rng(0)


def test_shares_by_hand():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.1, 0.0], [9.0, 9.0]])
    shares = posteriors.class_shares(points, np.array([0, 1, 1, 0]), 2)
    np.testing.assert_array_equal(shares, [[0, 1], [0.5, 0.5], [0.5, 0.5], [0, 1]])
    everyone = posteriors.class_shares(points, np.array([0, 1, 1, 0]), 99)
    np.testing.assert_allclose(everyone[0], [1 / 3, 2 / 3], rtol=1e-6)


def test_shares_are_those_that_the_loss_counts():
    points, labels = RNG.normal(size=(60, 4)), RNG.integers(0, 4, 60)
    expected = neighbor_posteriors(points, points, labels, np.eye(60, dtype=bool), neighbors=7)
    np.testing.assert_allclose(posteriors.class_shares(points, labels, 7), expected, atol=1e-6)


def test_a_batch_has_the_soft_labels_of_its_images_and_they_are_computed_once(tmp_path, monkeypatch):
    config = override(read_experiment("cifar10_osakd_teacher")[1], TINY)
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    assert config.needs_views and not config.needs_live_teacher
    train_teacher(config, workdir)
    store_knowledge(config, workdir)
    examples = training_examples(config.data)
    every = load_views(config, workdir, examples)[:].astype(np.float32)
    expected = posteriors.class_shares(every.mean(axis=1), examples.labels, 5)
    _, first = next(training_setup.training_stream(config, workdir)(0))
    monkeypatch.setattr(posteriors, "class_shares", None)  # a second call reads what the first has written
    _, targets = next(training_setup.training_stream(config, workdir)(0))
    np.testing.assert_array_equal(targets["teacher_posteriors"], first["teacher_posteriors"])
    for logits, posterior in zip(targets["teacher_logits"], targets["teacher_posteriors"], strict=True):
        row = int(np.abs(every - logits).max(axis=2).min(axis=1).argmin())
        np.testing.assert_array_equal(posterior, expected[row])
    _, placebo = next(training_setup.training_stream(override(config, {"control.logits": "shuffled"}), workdir)(0))
    np.testing.assert_array_equal(placebo["label"], targets["label"])
    assert not np.array_equal(placebo["teacher_posteriors"], targets["teacher_posteriors"])


def student():
    keras.utils.set_random_seed(0)
    return models.mobilenet_v2(4, 17, input_shape=(8, 8, 3), width=0.25)


def distiller(weight):
    model = Distiller(student(), losses={"osakd": OSAKD(space="teacher")}, loss_weights={"osakd": weight})
    model.compile(keras.optimizers.SGD(0.05), jit_compile=False)
    return model


def test_the_loss_is_the_divergence_from_what_it_is_given(tmp_path):
    images, labels = RNG.random((8, 8, 8, 3)).astype(np.float32), np.arange(8) % 4
    soft = RNG.dirichlet(np.ones(4), 8).astype(np.float32)
    model = distiller(0.5)
    assert model.projectors == []
    terms, logits = model.compute_terms(images, {"label": labels, "teacher_posteriors": soft}, training=False)
    log_student = np.log(keras.ops.convert_to_numpy(keras.ops.softmax(logits)))
    expected = (soft * (np.log(soft) - log_student)).sum(axis=1).mean()
    np.testing.assert_allclose(terms["osakd_loss"], expected, rtol=1e-4)
    targets = {"label": labels, "teacher_posteriors": soft}
    alone, off, on = Distiller(student()), distiller(0.0), distiller(1.0)
    alone.compile(keras.optimizers.SGD(0.05), jit_compile=False)
    for each in (alone, off, on):
        each.train_on_batch(images, targets)
    for a, b, c in zip(*(each.student.trainable_variables for each in (alone, off, on)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.distillation_losses["osakd"].get_config() == {"neighbors": 16, "queue": 1024, "space": "teacher"}
    with pytest.raises(
        ValueError, match=r"loss 'osakd' needs targets \{'label': \.\.\., 'teacher_posteriors': \.\.\.\}"
    ):
        loaded.compute_terms(images, labels, training=True)


def test_what_cannot_be_is_refused_in_one_line():
    config = read_experiment("cifar10_osakd_teacher")[1]
    with pytest.raises(
        UserError, match=r"losses\.osakd\.space = teacher needs stored logits, .*, got 'live'"
    ) as caught:
        override(config, {"view.kind": "live"})
    assert "\n" not in str(caught.value)
    assert override(config, {"view.kind": "plain"}).needs_store
    with pytest.raises(ValueError, match="space must be 'student' or 'teacher', got 'both'"):
        OSAKD(space="both")

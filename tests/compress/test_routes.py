"""Each method gives an int8 file without float tensors that agrees with its Keras model."""

import itertools
from collections.abc import Iterator

import keras
import numpy as np
import pytest

from tfigkd.compress import finetune
from tfigkd.compress.methods import PHASES, compress_student
from tfigkd.config.compress_fields import CompressConfig
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import float_tensors
from tfigkd.edge.parity import parity
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.fake_quant import is_fake_quantized
from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint

STEPS = 45
STORED = ("prune", "prune_qat", "cqat")  # distilled from stored logits, the others from a live teacher
SPARSE = ("prune", "prune_tfmot", "prune_qat", "pqat")
CLUSTERED = ("cluster", "cqat")
QUANTIZED = ("qat", "prune_qat", "qat_tfmot", "pqat", "cqat")


def kernels(model: keras.Model) -> Iterator[np.ndarray]:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and "depthwise" not in layer.name:
            yield np.asarray(layer.kernel)


def small_student(case, *, normalized: bool = False) -> keras.Model:
    """Return a student of two layers with kernels, with or without batch normalization."""
    keras.utils.set_random_seed(0)
    image = keras.Input(case.data.image_shape)
    features = keras.layers.Conv2D(8, 3, use_bias=not normalized)(image)
    if normalized:
        features = keras.layers.BatchNormalization()(features)
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(features))
    return keras.Model(image, keras.layers.Dense(10)(features))


def test_a_student_without_batch_normalization_is_not_changed_by_its_pruning(case, tmp_path):
    """Its accuracy before the compression would else be that after it."""
    student = small_student(case)
    before = student.get_weights()
    config = CompressConfig(method="prune", sparsity=0.5, steps=STEPS, batch_size=32, learning_rate=1e-3)
    pruned = compress_student(student, config, case.tuning(tmp_path))
    for old, now in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(now, old)
    assert [np.mean(kernel == 0) for kernel in kernels(pruned)] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """Return a folder for all methods: a first phase that two of them train from equal targets is trained once."""
    return tmp_path_factory.mktemp("phases")


@pytest.mark.parametrize("method", PHASES)
def test_every_route_ends_in_an_int8_file(case, phases, tmp_path, method):
    share = 0.25 if method == "prune_channels" else 0.5
    config = CompressConfig(method=method, sparsity=share, steps=STEPS, batch_size=32, learning_rate=1e-3, clusters=8)
    stored = method in STORED
    tuning = case.tuning(phases / ("stored" if stored else "live"), cached=stored)
    model = compress_student(case.student, config, tuning)
    assert is_fake_quantized(model) == (method in QUANTIZED)
    logits, labels = predict_logits(model, case.data.validation.images), case.data.validation.labels
    assert accuracy(logits, labels) > accuracy(case.logits, labels) - 0.15

    path = tmp_path / "model.int8.tflite"
    calibration = None if method in QUANTIZED else case.data.validation.images[:64]
    path.write_bytes(convert(model, "int8", calibration))
    assert not float_tensors(path)
    report = parity(path, case.data.validation, logits)
    assert report["agreement"] >= 0.95
    assert report["mean_difference"] < 0.03 * np.abs(logits).max()

    if method in SPARSE:
        for kernel in kernels(model):
            assert np.mean(kernel == 0) == pytest.approx(0.5, abs=1 / kernel.size)
    if method == "cluster":
        assert all(len(np.unique(kernel)) <= 8 for kernel in kernels(model))
    if method == "cqat":  # batch normalization was folded, so clusters are counted for each output channel
        for kernel in kernels(model):
            flat = np.round(kernel.reshape(-1, kernel.shape[-1]), 5)
            assert all(len(np.unique(channel)) <= 8 for channel in flat.T)

    model.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras", safe_mode=True)
    np.testing.assert_array_equal(predict_logits(again, case.data.validation.images), logits)


def test_the_student_is_left_alone(case):
    np.testing.assert_array_equal(predict_logits(case.student, case.data.validation.images), case.logits)


@pytest.mark.parametrize("method", ["qat", "prune_channels"])
def test_native_methods_take_a_resnet(case, resnet, tmp_path, method):
    config = CompressConfig(method=method, steps=8, batch_size=32)
    model = compress_student(resnet, config, case.tuning(tmp_path))
    path = tmp_path / "model.int8.tflite"
    calibration = None if is_fake_quantized(model) else case.data.validation.images[:64]
    path.write_bytes(convert(model, "int8", calibration))
    assert not float_tensors(path)
    assert parity(path, case.data.validation, predict_logits(model, case.data.validation.images))["agreement"] > 0.9


@pytest.mark.parametrize("method", ["prune_tfmot", "cluster", "qat_tfmot", "pqat", "cqat"])
def test_tfmot_refuses_a_resnets_shortcut_in_one_line(case, resnet, tmp_path, method):
    with pytest.raises(
        UserError, match=r"resnet8 cannot go through tfmot: layer 'block_02_shortcut_pad'.*use qat"
    ) as e:
        compress_student(resnet, CompressConfig(method=method), case.tuning(tmp_path))
    assert "\n" not in str(e.value)


def test_checkpoints_stay_until_the_result_is_written(case, tmp_path, monkeypatch):
    """A kill between the training and its file would else repeat the training."""
    config, tuning = CompressConfig(method="qat", steps=4, batch_size=32), case.tuning(tmp_path)
    save = keras.Model.save
    there = []
    monkeypatch.setattr(
        keras.Model, "save", lambda *given: there.append(len([*tmp_path.rglob("*.ckpt")])) or save(*given)
    )
    compress_student(small_student(case), config, tuning)
    assert there[-1] > 0 and not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.parametrize("method", ["prune_qat", *(pytest.param(m, marks=pytest.mark.slow) for m in ("pqat", "cqat"))])
def test_an_interrupted_method_ends_as_an_uninterrupted_one(case, tmp_path, method, monkeypatch):
    """The method is interrupted after the first epoch of each of its two phases and started again."""
    monkeypatch.setattr(finetune, "CHECKPOINT_STEPS", 6)
    config = CompressConfig(method=method, steps=12, batch_size=32, clusters=8)

    def compressed(folder):
        student = small_student(case, normalized=True)
        return compress_student(student, config, case.tuning(tmp_path / folder, cached=True))

    whole = compressed("whole")
    save, calls = checkpoint.save, itertools.count()

    def dies(*arguments):
        save(*arguments)
        if next(calls) in (0, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                compressed("killed")
    for left, right in zip(compressed("killed").get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)

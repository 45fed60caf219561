"""Two devices train the weights of one, on both backends; in child processes, whose processor is split into two."""

import keras
import numpy as np
import pytest

from tests.children import JAX, run
from tests.test_jax import NEEDS_JAX
from tfigkd.batches.stream import batch_sizes

BACKENDS = ["tensorflow", pytest.param("jax", marks=NEEDS_JAX)]
SPLIT = """
import os
if os.environ["KERAS_BACKEND"] == "jax":
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
else:
    import tensorflow as tf
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
TRAIN = """
import split
import os
from pathlib import Path
import keras, numpy as np
from tests.training.test_fit import network
from tfigkd.batches.stream import TrainingBatches
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.losses import KLDivergence
from tfigkd.training.devices import device_count, on_devices
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training

COUNT = 48
images = np.random.default_rng(1).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
examples = Examples(ids, images, np.arange(COUNT) % 4, ids)
ones, logits = np.ones(COUNT, np.float32), images[:, 0, :2, :2].reshape(COUNT, -1)[:, :4].astype(np.float32) / 255
knowledge = Knowledge(logits, images[..., 0].copy(), ones, 0 * ones, ones > 0)
results, histories = [], []
for devices in ("one", "all"):
    recipe = {"optimizer": "sgd", "weight_decay": 0.01, "learning_rate": 0.1, "mixup": 1.0, "dot": 0.05}
    recipe["checkpoint_steps"] = 2  # of three
    config = TrainingConfig(epochs=2, batch_size=16, devices=devices, **recipe)
    assert device_count(devices) == {"one": 1, "all": 2}[devices]
    options = {"targets": TeacherTargets(knowledge), "overlay": OverlayConfig(probability=0.5)}
    stream = TrainingBatches(examples, config, AugmentConfig(1), seed=3, devices=device_count(devices), **options)
    folder = Path(devices)
    folder.mkdir()
    options = {"fingerprint": "f", "tensorboard": folder / "tb", "title": "t", "ledger_steps": 2}
    options |= {"examples": COUNT, "config": config, "folder": folder, "validation": examples.take(slice(8))}

    def train():
        with on_devices(devices):
            student = network(0, dropout=0.3 if os.environ["KERAS_BACKEND"] == "jax" else 0)
            model = Distiller(student, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
            return student, Training(model, stream, **options).run()

    student, history = train()
    results.append(student.get_weights())
    (folder / "checkpoint-00002.ckpt").unlink()  # as of a run that was killed in its second epoch
    for one, again in zip(results[-1], train()[0].get_weights(), strict=True):
        np.testing.assert_allclose(one, again, atol=1e-6)
    histories.append([each | {"seconds": 0, "step_ms": 0} for each in history])
    assert not any(getattr(layer, "synchronized", False) for layer in student.layers)
for one, two in zip(*results, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-5)
assert np.abs(results[0][0] - network(0).get_weights()[0]).max() > 1e-3  # it has learned
for one, two in zip(*histories, strict=True):
    assert one.keys() == two.keys() and "val_accuracy" in one
    np.testing.assert_allclose(list(one.values()), list(two.values()), atol=1e-5)
"""

WRONG = """
import split
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import E2KD, OPDF, OSAKD, RKD, KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training.devices import check_devices, check_losses
for check in (
    lambda: check_devices(TrainingConfig(batch_size=15, devices="all"), 48, "teacher.training"),
    lambda: check_devices(TrainingConfig(batch_size=16, devices="all"), 1),
    lambda: check_losses({"kd": KLDivergence(), "rkd": RKD()}, "all"),
    lambda: check_losses({"osakd": OSAKD()}, "all"),
    lambda: check_losses({"e2kd": E2KD("a", "b", shuffled=True)}, "all"),
    lambda: check_losses({"rkd": RKD()}, "one"),
    lambda: check_losses({"e2kd": E2KD("a", "b")}, "all"),
    lambda: check_losses({"opdf": OPDF(), "osakd": OSAKD(space="teacher")}, "all"),
):
    try:
        check()
    except UserError as error:
        print(error)
"""
RUN = """
import split
import runpy
runpy.run_module("tfigkd.run", run_name="__main__", alter_sys=True)
"""


def test_batches_are_shared_evenly():
    assert batch_sizes(49, 16, 2) == [16, 16, 16]  # one example is left out
    assert batch_sizes(47, 16, 4) == [16, 16, 12]
    assert batch_sizes(50, 16, 2) == [14, 12, 12, 12]  # a last batch of two would ruin batch normalization
    for examples, batch_size, devices in ((100, 8, 8), (1000, 96, 3), (7, 64, 4)):
        sizes = batch_sizes(examples, batch_size, devices)
        assert sum(sizes) == examples - examples % devices
        assert all(size % devices == 0 and 0 < size <= batch_size for size in sizes)


def split_run(folder, backend, code, *arguments):
    """Run a program in a child process whose processor is two devices, and return what it prints."""
    (folder / "split.py").write_text(SPLIT)
    (folder / "program.py").write_text(code)
    environment = JAX | {"KERAS_BACKEND": backend}
    done = run(folder, "program", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_devices_train_the_weights_of_one(tmp_path, backend):
    split_run(tmp_path, backend, TRAIN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_devices_cannot_share_is_refused(tmp_path, backend):
    said = split_run(tmp_path, backend, WRONG).splitlines()
    assert said[0].startswith("teacher.training.batch_size must be a multiple of the 2 devices that share a batch, got")
    assert said[1] == "training.devices must be one: 2 devices cannot share 1 examples"
    relating = [line.split()[0] for line in said[2:]]
    assert relating == (
        [] if backend == "jax" else ["losses.rkd", "losses.osakd", "losses.e2kd"]
    )  # JAX shows a loss the whole batch


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_on_two_devices_ends_with_a_student_that_keras_opens(tmp_path, backend):
    options = ("--experiment", "quickstart", "--smoke", "--teacher.drop_blocks", "14", "--student.drop_blocks", "16")
    options += ("--training.devices", "all", "--teacher.training.devices", "all", "--workdir", "here")
    split_run(tmp_path, backend, RUN, *options, "--stages", "data,teacher,overlays,distill,evaluate")
    student = keras.saving.load_model(tmp_path / "here/distill/student.keras")
    assert not any(getattr(layer, "synchronized", False) for layer in student.layers)
    assert np.isfinite(student(np.zeros((1, *student.input_shape[1:]), np.float32))).all()

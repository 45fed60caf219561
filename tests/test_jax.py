"""On a machine with JAX and no TensorFlow: the same experiments, and files that TensorFlow takes over."""

import csv
import importlib.util
import json

import numpy as np
import pytest

from tests.children import on_jax as run_on_jax
from tests.children import run

TRAIN = "data,teacher,overlays,distill,evaluate,report"
BLOCKED = ("tensorflow", "tensorflow_datasets", "tf_keras", "tensorboard", "ai_edge_litert")
WITHOUT_TENSORFLOW = f"""
import runpy, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # an import of it now fails
runpy.run_module("tfigkd.run", run_name="__main__", alter_sys=True)
"""

BATCHES = """
import itertools, json, sys
from unittest import mock
import numpy as np
from tfigkd.batches import stream as batches
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.config.fields import ControlConfig, OverlayConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
count, rng = 50, np.random.default_rng(1)
images = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(count)])
examples = Examples(ids, images, np.arange(count) % 4, ids)
logits, ones = rng.normal(size=(count, 4)).astype(np.float32), np.ones(count, np.float32)
given = json.loads(sys.argv[1])
step = given.pop("step", 1)  # of maps on a coarser grid
maps = images[:, ::step, ::step, 0].copy()
knowledge = Knowledge(logits, maps, ones, 0 * ones, np.arange(count) % 3 > 0)
options = {"seed": 2, "overlay": OverlayConfig(probability=0.5), "wanted": {"teacher_inputs", "teacher_map"}}
options["targets"] = TeacherTargets(knowledge)
options |= {"view": ViewConfig(**given.pop("view", {})), "control": ControlConfig(**given.pop("control", {}))}
augment = AugmentConfig(**given.pop("augment", {"crop_padding": 2}))
how = {"recipe": TrainingConfig(batch_size=16, **given), "augment": augment}
device = list(itertools.islice(batches.TrainingBatches(examples, **how, **options)(0), 5))
with mock.patch.object(batches, "on_device", batches._on_host):
    host = list(itertools.islice(batches.TrainingBatches(examples, **how, **options)(0), 5))
assert (host[0][0] != host[0][1]["teacher_inputs"]).any()
for (images, targets), (again, targets_again) in zip(host, device, strict=True):
    assert type(images) is np.ndarray and type(again).__module__.startswith("jax")
    np.testing.assert_allclose(images, np.asarray(again), atol=1e-6)
    assert targets.keys() == targets_again.keys()
    for name, values in targets.items():
        np.testing.assert_allclose(values, np.asarray(targets_again[name]), atol=1e-6, err_msg=name)
"""
PRUNING = """
import keras, numpy as np
from tfigkd import models
from tfigkd.compress import MagnitudePruning
from tfigkd.compress.pruning import sparsity
model = models.mobilenet_v2(4, 16, input_shape=(8, 8, 3), width=0.25)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images, labels = np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32"), np.arange(64) % 4
model.fit(images, labels, batch_size=16, epochs=3, verbose=0, callbacks=[MagnitudePruning(0.5, end=6, frequency=2)])
print(sparsity(model)["prunable_sparsity"])
"""
COPIES = """
import keras, numpy as np
from tfigkd import models
from tfigkd.compress import cut_channels, fake_quantized
from tfigkd import OverlayStore
from tfigkd.models import as_classifier, fold_batch_norm
images, labels = np.random.default_rng(0).random((8, 32, 32, 3)).astype("float32"), np.arange(8) % 4
def network():
    layers = [keras.layers.Conv2D(16, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.Conv2D(16, 3), keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Dense(4, activation="softmax")])
logits = lambda model: as_classifier(model)
for copy in (as_classifier, lambda model: fold_batch_norm(model), lambda model: fake_quantized(logits(model)),
             lambda model: cut_channels(logits(model), 0.5), lambda model: models.with_input_range(model, 0, 255)):
    model = network()
    before, made = np.asarray(model(images)), copy(model)
    made.predict(images, verbose=0)
    made.compile("sgd", "mse")
    made.fit(images, np.zeros((8, 4)), verbose=0)
    np.testing.assert_array_equal(np.asarray(model(images)), before)
OverlayStore.build("store", network(), ((255 * images).astype("uint8"), labels), n_steps=1)
"""
BROKEN = """
import sys
from pathlib import Path
import keras, numpy as np
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
from tfigkd.training.checkpoint_callback import STEPS_BETWEEN_CHECKS
STEPS = STEPS_BETWEEN_CHECKS + 10
def stream(epoch):
    rng = np.random.default_rng(epoch)
    for number in range(epoch * STEPS, 3 * STEPS):
        targets = {"label": np.arange(8) % 3, "teacher_logits": rng.random((8, 3), np.float32)}
        targets["teacher_logits"][0, 0] *= np.nan if number == STEPS + int(sys.argv[1]) - 1 else 1
        yield rng.random((8, 6, 6, 3), np.float32), targets
inputs = keras.Input((6, 6, 3))
student = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
model = Distiller(student, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
config = TrainingConfig(epochs=3, batch_size=8, schedule="constant")
folder = Path("step" + sys.argv[1])
folder.mkdir()
try:
    options = {"examples": 8 * STEPS, "fingerprint": "f", "tensorboard": folder / "tb", "title": "t"}
    Training(model, stream, config=config, folder=folder, **options).run()
except UserError as error:
    print(error)
"""
RESUMED = """
from pathlib import Path
import keras, numpy as np
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
STEPS = 10
def train(folder, broken=None, **recipe):
    def stream(epoch, skip=0):
        for number in range(epoch * STEPS + skip, 3 * STEPS):
            rng = np.random.default_rng(number)
            targets = {"label": np.arange(8) % 3, "teacher_logits": rng.random((8, 3), np.float32)}
            targets["teacher_logits"][0, 0] *= np.nan if number == broken else 1
            yield rng.random((8, 6, 6, 3), np.float32), targets
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(inputs))
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    student = keras.Model(inputs, keras.layers.Dense(3)(x))
    model = Distiller(student, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    config = TrainingConfig(epochs=3, batch_size=8, schedule="cosine", **recipe)
    Path(folder).mkdir(exist_ok=True)
    options = {"examples": 8 * STEPS, "fingerprint": "f", "tensorboard": Path(folder) / "tb", "title": "t"}
    history = Training(model, stream, config=config, folder=Path(folder), **options).run()
    return model.student.get_weights(), history
whole, history = train("whole", ema=0.9)
try:
    train("cut", broken=17, ema=0.9, checkpoint_steps=3)
except UserError as error:
    assert "step 8 of epoch 2; the checkpoint of step 6 of epoch 2 is kept" in str(error), error
resumed, again = train("cut", ema=0.9, checkpoint_steps=3)
for one, other in zip(whole, resumed, strict=True):
    np.testing.assert_array_equal(one, other)
for one, other in zip(history, again, strict=True):
    for name in one.keys() - {"seconds", "step_ms"}:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
"""
FLOAT16 = """
import keras, numpy as np
from tfigkd import Distiller
from tfigkd.losses import KLDivergence
keras.mixed_precision.set_dtype_policy("mixed_float16")
def network(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dropout(0.1)(keras.layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(5, dtype="float32")(hidden))
model = Distiller(network(0), losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=network(1))
model.compile(keras.optimizers.SGD(0.5), metrics=["accuracy"])
images, labels = np.random.default_rng(0).random((32, 6)).astype("float32"), np.arange(32) % 5
history = model.fit(images, labels, epochs=20, batch_size=16, verbose=0).history
assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0], history["loss"]
assert type(model.optimizer).__name__ == "LossScaleOptimizer"
"""
LEDGER = """
import sys
from pathlib import Path
import keras, numpy as np
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
from tfigkd.training.ledger import read_ledger
def train(name, broken=None, finetune_from=None, **recipe):
    def stream(epoch):
        for number in range(epoch * 4, 12):
            rng = np.random.default_rng(number)
            targets = {"label": np.arange(8) % 3, "teacher_logits": rng.random((8, 3), np.float32)}
            targets["teacher_logits"][0, 0] *= np.nan if number == broken else 1
            yield rng.random((8, 6, 6, 3), np.float32), targets
    inputs = keras.Input((6, 6, 3))
    hidden = keras.layers.Conv2D(4, 3, dtype=recipe.get("precision", "float32"))(inputs)
    student = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    options = {"loss_weights": {"kd": 0.5}, "finetune_from": finetune_from}
    model = Distiller(student, losses={"kd": KLDivergence()}, **options)
    config = TrainingConfig(epochs=3, batch_size=8, schedule="constant", **recipe)
    folder = Path(name)
    folder.mkdir()
    options = {"examples": 32, "fingerprint": "f", "tensorboard": folder / "tb", "title": "t"}
    Training(model, stream, config=config, folder=folder, ledger_steps=3, **options).run()
    return {one["step"]: one["terms"]["kd_loss"]["share"] for one in read_ledger(folder / "ledger.jsonl")}
shares = train("phases", finetune_from=8)
assert list(shares) == [1, 3, 6, 9, 12], shares
assert [share > 0 for share in shares.values()] == [True, True, True, False, False], shares
assert all(share > 0 for share in train("float16", precision="mixed_float16").values())
try:
    train("broken", broken=5, finetune_from=8)
except UserError as error:
    assert "kd_loss = NaN or infinity, in step 2 of epoch 2" in str(error), error
else:
    raise AssertionError("NaN was not seen")
"""
NEEDS_JAX = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="NEEDS JAX: pip install tfigkd[jax]")


def gradients():
    """Return value and gradient norm of each loss of a small student, for the Keras backend of this process."""

    from tfigkd import models
    from tfigkd.losses import Hint, KLDivergence
    from tfigkd.training.distiller import Distiller
    from tfigkd.training.ledger import gradient_norms

    rng = np.random.default_rng(0)
    student, teacher = (models.mobilenet_v2(4, drop, input_shape=(8, 8, 3), width=0.25) for drop in (16, 14))
    losses = {"kd": KLDivergence(), "hint": Hint("block_01", "block_04")}
    model = Distiller(student, losses=losses, loss_weights={"kd": 0.5, "hint": 0.5}, teacher=teacher)
    for variable in [*model.variables, *teacher.variables]:
        if not variable.path.startswith("seed_generator") and "moving" not in variable.path:
            variable.assign(rng.normal(size=variable.shape) / max(1, np.prod(variable.shape[:-1])) ** 0.5)
    images, labels = rng.random((16, 8, 8, 3)).astype("float32"), {"label": np.arange(16) % 4}
    return gradient_norms(model, images, labels)


GRADIENTS = """
import json
from tests.test_jax import gradients
print(json.dumps(gradients()))
"""
VIEWS = {"plain": "{}", "dim": '{"control": {"maps": "none"}}', "cut": '{"cutout": 3}'}
VIEWS["swap"] = '{"view": {"kind": "live"}, "control": {"logits": "shuffled"}}'
VIEWS |= {"resized": '{"augment": {"crop_padding": 0, "crop_area": [0.3, 1]}, "cutout": 2}', "cutmix": '{"cutmix": 1}'}
VIEWS["cells"] = '{"step": 2}'
CHECKS = {
    "check_changes": "attribution.test_changed_settings",
    "check_kernels_on_jax": "compress.test_quantization",
    "check_refused": "training.test_checked_data",
    "check_taken": "training.test_checked_data",
    "check_attached": "training.test_live_teacher",
    "check_attached_within_fit": "training.test_live_teacher",
    "check_retrained": "training.test_live_teacher",
    "check_pruned_copy": "training.test_live_teacher",
    "check_metrics": "training.test_single_logit",
}
"""Functions of other test files, most of them called on TensorFlow there, that return without an error."""
PROGRAMS = {
    **{f"batches {name}": (BATCHES, options) for name, options in VIEWS.items()},
    **{f"broken {step}": (BROKEN, step) for step in ("3", "55")},
    "gradients": (GRADIENTS, ""),
    "copies": (COPIES, ""),
    "pruning": (PRUNING, ""),
    "resumed": (RESUMED, ""),
    "ledger": (LEDGER, ""),
    **{check: (f"from tests.{module} import {check}\n{check}()", "") for check, module in CHECKS.items()},
    "float16": (FLOAT16, ""),  # at the end: it sets the policy of the process
}
ALL = """
import contextlib, io, json, sys, traceback
import keras
assert keras.backend.backend() == "jax"
ended = {}
for name, (program, argument) in json.loads(sys.argv[1]).items():
    sys.argv, said, error = ["-c", argument], io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(said):
            exec(program, {"__name__": "__main__"})
    except Exception:
        error = traceback.format_exc()
    ended[name] = said.getvalue(), error
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    """Return a function that returns what a program has printed; one process with JAX runs all of them."""
    folder = tmp_path_factory.mktemp("jax")
    ended = json.loads(run_on_jax(folder, ALL, json.dumps(PROGRAMS), fresh=True).splitlines()[-1])

    def printed(name):
        said, error = ended[name]
        assert not error, error
        return said

    return printed


@NEEDS_JAX
@pytest.mark.parametrize("options", VIEWS)
def test_batches_made_on_the_device_are_those_of_the_host(options, on_jax):
    on_jax(f"batches {options}")


@NEEDS_JAX
def test_the_ledger_measures_the_same_gradients(on_jax):
    by_jax, by_tensorflow = json.loads(on_jax("gradients")), gradients()
    assert by_jax.keys() == by_tensorflow.keys() == {"hard_loss", "kd_loss", "hint_loss"}
    for name, value_and_norm in by_jax.items():
        assert value_and_norm == pytest.approx(by_tensorflow[name], rel=1e-3), name


@NEEDS_JAX
@pytest.mark.parametrize("step", ["3", "55"])
def test_nan_names_its_step_and_term_though_steps_are_looked_at_later(step, on_jax):
    said = on_jax(f"broken {step}")
    assert f"kd_loss = NaN or infinity, in step {step} of epoch 2; the checkpoint of epoch 1 is kept" in said


@NEEDS_JAX
def test_a_run_goes_on_within_an_epoch(on_jax):
    """With averaged weights and dropout, cut in step 8 of epoch 2; to the last bit the weights of a whole run."""
    on_jax("resumed")


@NEEDS_JAX
def test_the_ledger_measures_within_an_epoch(on_jax):
    """Keras's trainer on JAX holds all values then, those of the optimizer too: its step, its factor of the loss."""
    on_jax("ledger")


@NEEDS_JAX
def test_a_copy_can_be_trained_and_leaves_its_original_as_it_was(on_jax):
    """Keras's trainer on JAX deletes the arrays that it is given, so that no copy may share one."""
    on_jax("copies")


@NEEDS_JAX
def test_pruning_leaves_its_zeros(on_jax):
    assert float(on_jax("pruning")) == pytest.approx(0.5, abs=0.01)


@NEEDS_JAX
@pytest.mark.parametrize("check", CHECKS)
def test_what_other_files_check_holds_on_jax(check, on_jax):
    on_jax(check)


@NEEDS_JAX
def test_jax_trains_where_there_is_no_tensorflow_and_tensorflow_exports_it(tmp_path):
    rng = np.random.default_rng(0)
    splits = {f"x_{split}": rng.integers(0, 256, (60, 8, 8, 3), np.uint8) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(60) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "pictures.npz", **splits, **labels)
    experiment = ["--experiment", "ig_kd", "--smoke", "--data.name", "pictures.npz"]
    experiment += ["--data.train_split", "train", "--augment.crop_padding", "1", "--view.kind", "views"]
    experiment += ["--teacher.drop_blocks", "15", "--teacher.width", "0.25", "--view.views", "2"]
    experiment += ["--student.drop_blocks", "16", "--student.width", "0.25", "--losses.kd.weight", "0.5"]
    run_on_jax(tmp_path, WITHOUT_TENSORFLOW, *experiment, "--stages", TRAIN, fresh=True)
    rows = tmp_path / "runs/ig_kd-smoke/0/rows.csv"
    by_jax = next(csv.DictReader(rows.read_text(encoding="utf-8").splitlines()))

    done = run(tmp_path, "tfigkd.run", *experiment, environment={"KERAS_BACKEND": "tensorflow"})
    assert done.returncode == 0, done.stdout + done.stderr
    by_tensorflow = next(csv.DictReader(rows.read_text(encoding="utf-8").splitlines()))
    assert by_jax.keys() <= by_tensorflow.keys()
    for column in ("config", "student_nll", "teacher_nll", "student_parameters", "n_train"):
        if column.endswith("nll"):
            assert float(by_jax[column]) == pytest.approx(float(by_tensorflow[column]), abs=1e-4)
        else:
            assert by_jax[column] == by_tensorflow[column]
    assert (tmp_path / "runs/ig_kd-smoke/0/export/student.int8.tflite").stat().st_size > 1000


@NEEDS_JAX
def test_float16_trains_on_jax(on_jax):
    on_jax("float16")

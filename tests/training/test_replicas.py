"""Replicas of TensorFlow take the steps of one device: norms of gradients, and normalization inside losses."""

from tests.training.test_devices import split_run

PROGRAM = """
import split
import keras, numpy as np
import tensorflow as tf
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import ReviewKD
from tfigkd.runtime.errors import UserError
from tfigkd.training.devices import check_devices, on_devices, whole_batch_statistics
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import make_optimizer

RNG = np.random.default_rng(0)
X, Y = RNG.random((16, 8, 8, 3), np.float32), RNG.integers(0, 4, 16)
X[8:] *= 0.2  # the parts of the two replicas differ

def net(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = keras.layers.ReLU(name="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))

def train(devices, review=False, **recipe):
    with on_devices(devices):
        config = TrainingConfig(learning_rate=1.0, devices=devices, **recipe)
        losses = {"reviewkd": ReviewKD(["conv", "relu"], ["conv", "relu"])} if review else {}
        student, teacher = net(0), net(1) if review else None
        model = Distiller(student, losses=losses, loss_weights=dict.fromkeys(losses, 1.0), teacher=teacher)
        model.compile(make_optimizer(config, 1), jit_compile=False)
        before = student.get_weights()
        with whole_batch_statistics(model, devices):
            logs = model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), verbose=0).history
        assert not any(getattr(one, "synchronized", False) for one in model._flatten_layers())
        return [a - b for a, b in zip(student.get_weights(), before)], logs

def norm(step):
    return np.sqrt(sum(np.square(part).sum() for part in step))

plain = {"optimizer": "sgd", "momentum": 0.0}
for precision in ("float32", "mixed_float16"):
    (one, _), (two, _) = (train(devices, clip_norm=1e-2, precision=precision, **plain) for devices in ("one", "all"))
    assert abs(norm(one) - 1e-2) < 1e-4 and abs(norm(two) - 1e-2) < 1e-4, (norm(one), norm(two))
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, atol=1e-4 * 1e-2 if precision == "float32" else 2e-4)
print("clipped")
one, two = (train(devices, review=True, **plain)[1] for devices in ("one", "all"))
np.testing.assert_allclose(one["reviewkd_loss"], two["reviewkd_loss"], rtol=1e-4)
print("normalized")
for devices in ("one", "all"):
    try:
        check_devices(TrainingConfig(lookahead=2, batch_size=16, devices=devices), 48, "teacher.training")
    except UserError as error:
        print(devices, error)
"""


def test_two_replicas_clip_and_normalize_as_one_device_and_refuse_lookahead(tmp_path):
    said = split_run(tmp_path, "tensorflow", PROGRAM).splitlines()
    assert said[:2] == ["clipped", "normalized"]
    (refused,) = said[2:]
    assert refused.startswith("all teacher.training.devices must be one with teacher.training.lookahead on TensorFlow")

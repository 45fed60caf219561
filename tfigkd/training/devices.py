"""Training on all devices of a machine: each computes a part of every batch, and all hold the same weights."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfigkd.batches.stream import Batch
from tfigkd.config.training_fields import Devices, TrainingConfig
from tfigkd.losses import OSAKD, PerExampleLoss
from tfigkd.models.layers import flatten_layers
from tfigkd.runtime.errors import UserError


def _tensorflow_devices() -> list[str]:
    import tensorflow as tf

    return [each.name for each in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


def device_count(devices: Devices) -> int:
    """Return how many devices a training with this value of `training.devices` has."""
    if devices == "one":
        return 1
    on_jax = keras.backend.backend() == "jax"
    return len(keras.distribution.list_devices() if on_jax else _tensorflow_devices())


@contextlib.contextmanager
def on_devices(devices: Devices) -> Iterator[None]:
    """Within this, models are built on the devices of a training, which has to take place in here as well."""
    if device_count(devices) == 1:
        yield
    elif keras.backend.backend() == "jax":
        with keras.distribution.DataParallel().scope():
            yield
    else:
        import tensorflow as tf

        names = _tensorflow_devices()
        # on GPUs the default, NCCL
        reduction = tf.distribute.ReductionToOneDevice() if "CPU" in names[0] else None
        with tf.distribute.MirroredStrategy(names, reduction).scope():
            yield


def check_devices(config: TrainingConfig, examples: int, name: str = "training") -> None:
    """Check that the devices of a recipe can share its batches evenly.

    Args:
        config: The recipe.
        examples: Examples of an epoch.
        name: Of its table in the config.

    Raises:
        UserError: They cannot.
    """
    count = device_count(config.devices)
    if config.batch_size % count:
        raise UserError(
            f"{name}.batch_size must be a multiple of the {count} devices that share a batch, got {config.batch_size}; "
            f"change it, or set {name}.devices = one"
        )
    if examples < count:
        raise UserError(f"{name}.devices must be one: {count} devices cannot share {examples} examples")


def check_losses(losses: dict[str, Any], devices: Devices) -> None:
    """Refuse losses whose value is not that of the whole batch where its parts lie on several devices.

    On JAX a loss sees the whole batch, on TensorFlow the part of a device.

    Raises:
        UserError: There is such a loss.
    """
    if device_count(devices) == 1 or keras.backend.backend() == "jax":
        return
    for name, loss in losses.items():
        queue = isinstance(loss, OSAKD) and loss.space == "student"
        if queue or not (isinstance(loss, PerExampleLoss) or loss.needs_tensors):
            raise UserError(
                f"losses.{name} relates the examples of a batch, of which TensorFlow shows each device a part; set "
                "training.devices = one, or the environment variable KERAS_BACKEND = jax"
            )


def repeatable(stream: Callable[[int], Iterator[Batch]], epoch: int) -> Any:
    """Return the batches of a stream as Keras takes them for several devices.

    On TensorFlow Keras then looks at some batches before it trains, which it loses of a generator.

    Args:
        stream: From first epoch to endless batches.
        epoch: The first one.
    """
    if keras.backend.backend() == "jax":
        return stream(epoch)
    import tensorflow as tf

    specs = keras.tree.map_structure(lambda one: tf.TensorSpec((None, *one.shape[1:]), one.dtype), next(stream(epoch)))
    return tf.data.Dataset.from_generator(lambda: stream(epoch), output_signature=specs).prefetch(tf.data.AUTOTUNE)


@contextlib.contextmanager
def whole_batch_statistics(model: keras.Model, devices: Devices) -> Iterator[None]:
    """Within this, batch normalization takes its statistics from the parts of the batch on all devices.

    On JAX it does so by itself. The layers are left as they were, so that saved models do not differ.
    """
    on_jax = keras.backend.backend() == "jax"
    several = device_count(devices) > 1 and not on_jax
    layers = [each for each in flatten_layers(model) if isinstance(each, keras.layers.BatchNormalization)]
    before = [each.synchronized for each in layers]
    for each in layers:
        each.synchronized = each.synchronized or several
    try:
        yield
    finally:
        for each, own in zip(layers, before, strict=True):
            each.synchronized = own

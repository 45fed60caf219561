"""Training on all devices of a machine, or of several: each computes a part of every batch, with the same weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from tfigkd.batches.stream import batch_sizes
from tfigkd.config.training_fields import Devices, TrainingConfig
from tfigkd.models.graph import flatten_layers
from tfigkd.runtime import hosts
from tfigkd.runtime.errors import UserError


def _tensorflow_devices() -> list[str]:
    import tensorflow as tf

    return [each.name for each in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


def device_count(devices: Devices) -> int:
    """Return how many devices a training with this value of `training.devices` has, on all hosts."""
    if devices == "one":
        return 1
    on_jax = keras.backend.backend() == "jax"
    return len(keras.distribution.list_devices() if on_jax else _tensorflow_devices())


@contextlib.contextmanager
def on_devices(devices: Devices) -> Iterator[None]:
    """Build models on the devices of a training for the time of the context; the training belongs into it as well.

    On several hosts each builds them for itself, and `Training` spreads them.
    """
    if device_count(devices) == 1 or hosts.process_count() > 1:
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


def epoch_sizes(examples: int, config: TrainingConfig) -> list[int]:
    """Return the examples of each step of an epoch, see `batch_sizes`.

    Args:
        examples: Examples of an epoch.
        config: The recipe.
    """
    return batch_sizes(examples, config.batch_size, device_count(config.devices))


def check_devices(config: TrainingConfig, examples: int, name: str = "training") -> None:
    """Check that the devices of a recipe can share its batches evenly, and take its steps.

    Args:
        config: The recipe.
        examples: Examples of an epoch.
        name: Of its table in the config.

    Raises:
        UserError: They cannot.
    """
    count = device_count(config.devices)
    if hosts.process_count() > 1 and config.devices == "one":
        raise UserError(f"{name}.devices must be all where several hosts train together, got one")
    if config.batch_size % count:
        raise UserError(
            f"{name}.batch_size must be a multiple of the {count} devices that share a batch, got {config.batch_size}; "
            f"change it, or set {name}.devices = one"
        )
    if config.lookahead and count > 1 and keras.backend.backend() == "tensorflow":
        raise UserError(
            f"{name}.devices must be one with {name}.lookahead on TensorFlow, got {count} devices; change one, or "
            "set the environment variable KERAS_BACKEND = jax"
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
        if loss.needs_whole_batch:
            raise UserError(
                f"losses.{name} relates the examples of a batch, of which TensorFlow shows each device a part; set "
                "training.devices = one, or the environment variable KERAS_BACKEND = jax"
            )


@contextlib.contextmanager
def whole_batch_statistics(model: keras.Model, devices: Devices) -> Iterator[None]:
    """Let batch normalization take its statistics from the batches of all devices for the time of the context.

    With a Distiller that includes the layers that losses train beside the student. On JAX it does so by itself. The
    layers are left as they were, so that saved models do not differ.
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


def synchronize(model: keras.Model) -> None:
    """Copy the values that Keras's JAX trainer holds during an epoch into the model's variables, which are empty then.

    Values that are assigned afterwards are taken up by the trainer. On TensorFlow nothing is to be done.
    """
    getattr(model, "jax_state_sync", lambda: None)()


@contextlib.contextmanager
def on_all_hosts(model: keras.Model) -> Iterator[None]:
    """Let Keras train and evaluate a model on the devices of all hosts for the time of the context.

    All hosts begin with the weights of the first one.

    Args:
        model: Compiled, with a built optimizer; its variables hold the same weights on every host afterwards.
    """
    if hosts.process_count() == 1:
        yield
        return
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)  # each host reads its own part
    _spread(_all_variables(model), distribution)
    with distribution.scope():
        yield
    for variable in _all_variables(model):  # not after an error: Keras has taken the values of a step that failed
        _keep_here(variable)


@contextlib.contextmanager
def on_this_host(model: keras.Model, *, changes: bool = False) -> Iterator[None]:
    """Let a model that `on_all_hosts` has spread compute on only this host for the time of the context.

    It keeps the weights that all hosts have.

    Args:
        model: As for `on_all_hosts`; any other is left as it is.
        changes: Whether it gets other weights in here, on every host; all go on with those of the first one. Otherwise
            hosts may do this alone.
    """
    distribution = keras.distribution.distribution()
    if hosts.process_count() == 1 or distribution is None:
        yield
        return
    # within an epoch Keras's trainer on JAX holds the values, and the variables are empty; it takes up what is set
    model.jax_state_sync()
    before = [(variable, variable.value) for variable in _all_variables(model)]
    for variable, _ in before:
        _keep_here(variable)
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
    if changes:
        _spread([variable for variable, _ in before], distribution)
        return
    for variable, value in before:
        variable._layout = distribution.get_variable_layout(variable)
        variable.assign(value)


def _all_variables(model: keras.Model) -> list[Any]:
    found = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return list({id(variable): variable for variable in found}.values())


def _spread(variables: list[Any], distribution: Any) -> None:
    """Let variables of this host hold the first one's values on the devices of all."""
    import jax

    values = hosts.from_first([keras.ops.convert_to_numpy(variable) for variable in variables])
    for variable, value in zip(variables, values, strict=True):
        variable._layout = distribution.get_variable_layout(variable)
        variable.assign(jax.make_array_from_process_local_data(variable._layout.backend_layout, value))


def _keep_here(variable: Any) -> None:
    """Let a variable hold its value on only this host."""
    value = keras.ops.convert_to_numpy(variable)
    variable._layout = None
    variable.assign(value)

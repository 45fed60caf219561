"""Averaged weights as the result of a training: put in place, with batch-normalization statistics of their own."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from tfigkd.batches.stream import Batch
from tfigkd.models.graph import flatten_layers, float64_of
from tfigkd.training.devices import on_this_host, synchronize

STATISTICS_EXAMPLES = 4096
"""Training examples, at least, that the statistics of averaged weights are computed from."""


def recompute_statistics(model: keras.Model, batches: Iterable[Any]) -> None:
    """Set the moving averages of batch normalization to the statistics of these batches, under the current weights.

    Mean and variance are those over all batches together, the batches counting alike. Frozen layers keep theirs, and
    so does everything else that a forward pass in training moves, such as random generators.

    Args:
        model: A network with or without batch normalization.
        batches: Images [B,H,W,C], as the model takes them.
    """
    layers = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not layers:
        return
    averages = {id(variable) for layer in layers for variable in (layer.moving_mean, layer.moving_variance)}
    others = [variable for variable in model.variables if not variable.trainable and id(variable) not in averages]
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in others]
    momenta = [layer.momentum for layer in layers]
    sums: list[list[Any]] = [[0.0, 0.0] for _ in layers]
    count = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # the moving averages are then the statistics of the last batch
        for images in batches:
            model(images, training=True)
            count += 1
            for total, layer in zip(sums, layers, strict=True):
                mean, variance = float64_of(layer.moving_mean), float64_of(layer.moving_variance)
                total[0] += mean
                total[1] += variance + mean**2
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
    for (of_means, of_squares), layer in zip(sums, layers, strict=True):
        layer.moving_mean.assign(of_means / count)
        layer.moving_variance.assign(of_squares / count - (of_means / count) ** 2)


class Averaged(keras.callbacks.Callback):
    """Let validation see the averaged weights that the optimizer keeps, and nothing else of the training.

    Args:
        stream: From epoch to training batches; the statistics of the averaged weights come from them.
        batch_size: Of these batches, the last of an epoch apart.
        examples: Of an epoch.
    """

    def __init__(self, stream: Callable[[int], Iterator[Batch]], *, batch_size: int, examples: int):
        super().__init__()
        self.stream, self.epoch = stream, 0
        whole = max(1, examples // batch_size)
        self.batches = min(whole, -(-STATISTICS_EXAMPLES // batch_size))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note the epoch."""
        self.epoch = epoch

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Put the averages in place."""
        self._scope = contextlib.ExitStack()
        self._scope.enter_context(self.applied(self.model))

    def on_test_end(self, logs: dict | None = None) -> None:
        """Put the raw weights back."""
        self._scope.close()

    @contextlib.contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Put the averaged weights and their statistics in place for the time of the context."""
        synchronize(model)
        kept = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.variables]
        self.finish(model, self.epoch)
        try:
            yield
        finally:
            synchronize(model)
            measured = {id(variable) for variable in model.metrics_variables}
            for variable, value in kept:
                if id(variable) not in measured:
                    variable.assign(value)

    def finish(self, model: Any, epoch: int) -> None:
        """Make the averaged weights the model's own, with statistics from batches of an epoch."""
        with on_this_host(model, changes=True):
            model.optimizer.finalize_variable_values(model.trainable_variables)
            for variable in model.trainable_variables:
                # on JAX it shares its array with the average, and evaluation gives its arrays away
                variable.assign(keras.ops.convert_to_numpy(variable).copy())
            batches = itertools.islice(self.stream(epoch), self.batches)
            recompute_statistics(model.student, (batch[0] for batch in batches))

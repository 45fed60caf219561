"""Batches in the form in which Keras's `fit` takes them: on TensorFlow a `tf.data.Dataset`, else as they are made."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfigkd.batches.stream import Batch, BatchPart, part_of
from tfigkd.data import Examples, to_model_input

VALIDATION_BATCH = 256
"""Most validation examples that are measured at once."""
AHEAD = 2
"""Batches that TensorFlow holds ready."""


class ValidationBatches(keras.utils.PyDataset):
    """Examples in batches of at most 256, or of one for each of more devices, as Keras evaluates them; read lazily.

    Several devices share each batch evenly: fewer examples than there are devices are left out at the end. Each host
    reads its own part.
    """

    def __init__(self, examples: Examples, devices: int, part: BatchPart):
        super().__init__()
        self._part = part
        self._examples = examples.take(slice(len(examples) - len(examples) % devices))
        self._size = max(devices, VALIDATION_BATCH - VALIDATION_BATCH % devices)

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self._size
        mine = part_of(min(self._size, len(self._examples) - start), self._part)
        batch = self._examples.take(slice(start + mine.start, start + mine.stop))
        return to_model_input(batch.images[:]), batch.labels


def training_input(stream: Callable[..., Iterator[Batch]], epoch: int, **which: Any) -> Any:
    """Return the batches of a stream.

    Args:
        stream: From first epoch to endless batches.
        epoch: The first one.
        which: On several hosts `part`, and `skip` in the middle of an epoch, as for `TrainingBatches`.
    """
    if keras.backend.backend() != "tensorflow":
        return stream(epoch, **which)
    return _dataset(lambda: stream(epoch, **which), next(stream(epoch)))


def validation_input(examples: Examples, devices: int, part: BatchPart) -> Any:
    """Return examples to measure after each epoch, of which this host reads a part.

    Args:
        examples: All of them, at least as many as there are devices.
        devices: How many devices, of all hosts, share a batch.
        part: Which of how many parts this host reads.
    """
    batches = ValidationBatches(examples, devices, part)
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    found = _dataset(lambda: map(batches.__getitem__, range(len(batches))), batches[0])
    return found.apply(tf.data.experimental.assert_cardinality(len(batches)))


def _dataset(make: Callable[[], Iterator[Any]], first: Any) -> Any:
    """Return a `tf.data.Dataset` of batches of any size, which can be iterated again.

    It has no autotuning, for which Keras's own has: that runs in a thread that sleeps for longer and longer, and the
    end of an iterator waits for it to wake up, for up to as long again as the iterator was in use.

    Args:
        make: Returns the batches.
        first: One of them.
    """
    import tensorflow as tf

    specs = keras.tree.map_structure(lambda one: tf.TensorSpec((None, *one.shape[1:]), one.dtype), first)
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_generator(make, output_signature=specs).prefetch(AHEAD).with_options(options)

"""What `fit` and `compile` are given beside images: labels, their weights, and the loss of the hard label."""

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfigkd.losses.base import Tensor

NOT_WHOLE = "labels must be whole numbers"
OUT_OF_RANGE = "labels must be in"
HardLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Labels, what the student gives, and sample weights or None to the mean over the batch."""


def weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the sum of weighted values [B] divided by B, as Keras does; None stands for weights of one."""
    if sample_weight is not None:
        values = values * ops.cast(ops.reshape(sample_weight, (-1,)), values.dtype)
    return ops.mean(values)


def seen_by_loss(loss: Any, outputs: Tensor, logits: Tensor) -> tuple[Tensor, bool]:
    """Return what a loss of `compile` takes, and whether it has to be told that these are logits.

    A loss that is given as an object or function takes the student's own outputs, as in plain Keras, and so does one
    that is given by its name, but for cross-entropies: they take logits, from which they are computed more exactly.
    Binary ones take the logits of one output, and of several only where these are what the student gives.

    Args:
        loss: As for `compiled_loss`.
        outputs: The student's own [B,K]; K is 1 or the number of classes C.
        logits: Those of its classes [B,C]; the very `outputs` where it gives logits.
    """
    if not isinstance(loss, str) or "from_logits" not in inspect.signature(_by_name(loss)).parameters:
        return outputs, False
    if outputs.shape[-1] == 1:
        return logits[:, 1:] - logits[:, :1], True
    gives_probabilities = outputs is not logits
    if gives_probabilities and _by_name(loss).__name__.startswith("binary_"):
        return outputs, False
    return logits, True


def _by_name(name: str) -> Callable[..., Tensor]:
    """Return the function of a Keras loss, by its name or that of its class."""
    found = keras.losses.get(name)
    return getattr(found, "fn", found)


def compiled_loss(loss: Any, *, from_logits: bool = False) -> HardLoss:
    """Return the hard-label loss that `compile(loss=...)` asks for.

    Args:
        loss: A Keras loss, whose own reduction and masks apply; a function of (labels, outputs) to one value per
            example; or the name of a Keras loss.
        from_logits: Whether a cross-entropy that is given by its name gets logits.

    Raises:
        ValueError: There is no loss of that name.
    """
    if isinstance(loss, keras.losses.Loss):

        def whole(labels: Tensor, outputs: Tensor, sample_weight: Tensor | None) -> Tensor:
            labels = labels_like(labels, outputs)
            return ops.mean(loss(labels, outputs, sample_weight=sample_weight))  # a scalar, but for no reduction

        return whole
    function = loss
    if isinstance(loss, str):
        function = functools.partial(_by_name(loss), from_logits=True) if from_logits else _by_name(loss)

    def mean(labels: Tensor, outputs: Tensor, sample_weight: Tensor | None) -> Tensor:
        values = function(labels_like(labels, outputs), outputs)
        if len(values.shape) > 1:
            values = ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=1)
        return weighted_mean(values, sample_weight) if len(values.shape) else values

    return mean


def single_loss(loss: Any) -> Any:
    """Return the loss that `compile` was given, taken out of a list or dictionary of one.

    Raises:
        ValueError: They are several.
    """
    if not isinstance(loss, list | tuple | dict):
        return loss
    members = list(loss.values()) if isinstance(loss, dict) else list(loss)
    if len(members) != 1:
        raise ValueError(f"a student has one output and takes one loss, got {len(members)}; give a single loss")
    return members[0]


def labels_of(targets: Any) -> Tensor:
    """Return the labels of a batch: classes [B], or probabilities [B,C].

    Raises:
        ValueError: There are none.
    """
    labels = targets.get("label") if isinstance(targets, Mapping) else targets
    if labels is None:
        raise ValueError("the batches hold no labels; give y, or targets with 'label'")
    return ops.squeeze(labels, -1) if len(labels.shape) == 2 and labels.shape[-1] == 1 else labels


def labels_like(labels: Tensor, outputs: Tensor) -> Tensor:
    """Return labels of two classes as one output [B,1] is compared with: [B,1]; labels of more outputs as they are."""
    if len(outputs.shape) != 2 or outputs.shape[-1] != 1:
        return labels
    return labels[:, None] if len(labels.shape) == 1 else labels[:, -1:]


def label_array(targets: Any) -> Any:
    """Return the labels of targets that are arrays."""
    return targets.get("label") if isinstance(targets, Mapping) else targets


def whole_labels(student: Any, loss: Any) -> bool:
    """Return whether labels are numbers of classes, not shares that a loss of `compile` compares with one output."""
    return loss is None or getattr(student, "output_shape", (0,))[-1] != 1


def check_labels(labels: Any, classes: int | None, *, whole: bool = True) -> None:
    """Check labels before the training; a data set or generator, whose labels are not known yet, passes.

    Args:
        labels: Arrays or tensors: whole numbers [N] or [N,1], or probabilities [N,C].
        classes: Their number, or None where it is not known.
        whole: Whether they must be whole; a loss of the user's may compare one output with a share.

    Raises:
        ValueError: They are no classes.
    """
    if classes is None or not hasattr(labels, "__array__"):
        return
    values = np.asarray(labels)
    if not values.size:
        return
    if values.dtype.kind not in "iubf":
        raise ValueError(
            f"labels must be numbers from 0 to {classes - 1}, got {str(values.reshape(-1)[0])!r}; "
            "names, labels = numpy.unique(labels, return_inverse=True) turns texts into numbers"
        )
    if values.ndim == 2 and values.shape[1] != 1:
        if values.shape[1] != classes:
            raise ValueError(f"labels have {values.shape[1]} columns, expected one for each of {classes} classes")
        return
    floor = np.floor(values) if values.dtype.kind == "f" else values
    if whole and not np.array_equal(floor, values):
        raise ValueError(f"{NOT_WHOLE}, got {values[floor != values].reshape(-1)[0]}; round them")
    if not 0 <= values.min() <= values.max() < classes:
        raise ValueError(
            f"labels must be in 0..{classes - 1} for {classes} classes, got {values.min():g}..{values.max():g}"
        )


def _checked(batches: Generator, classes: int, whole: bool) -> Iterator[Any]:
    """Yield the batches of a generator, with `check_labels` of each."""
    with contextlib.closing(batches):
        for batch in batches:
            _check_batch(batch, classes, whole)
            yield batch


def _check_batch(batch: Any, classes: int, whole: bool) -> None:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        check_labels(label_array(batch[1]), classes, whole=whole)


class _CheckedBatches(keras.utils.PyDataset):
    """A `PyDataset` with `check_labels` of each batch."""

    def __init__(self, data: keras.utils.PyDataset, classes: int, whole: bool):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self._data, self._classes, self._whole = data, classes, whole

    @property
    def num_batches(self) -> int | None:
        count: int | None = self._data.num_batches
        return count

    def __getitem__(self, index: int) -> Any:
        batch = self._data[index]
        _check_batch(batch, self._classes, self._whole)
        return batch

    def on_epoch_begin(self) -> None:
        self._data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._data.on_epoch_end()


def with_checked_labels(data: Any, classes: int | None, *, whole: bool = True) -> Any:
    """Return batches that end with an error at labels that are no classes; arrays, checked before, stay as they are.

    Batches are a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Without the check the loss of
    labels out of range is NaN. Of probabilities [B,C] in a `tf.data.Dataset` nothing is looked at.

    Args:
        data: What `fit` or `evaluate` is given.
        classes: Number of classes, or None where it is not known.
        whole: As for `check_labels`.
    """
    if classes is not None and isinstance(data, Generator):
        return _checked(data, classes, whole)
    if classes is not None and isinstance(data, keras.utils.PyDataset):
        return _CheckedBatches(data, classes, whole)
    spec = getattr(data, "element_spec", None)
    if classes is None or not isinstance(spec, tuple) or len(spec) < 2 or not hasattr(data, "map"):
        return data  # one of a tf.distribute strategy has no `map`
    labels = label_array(spec[1])
    shape = getattr(labels, "shape", None)
    if shape is None or shape.rank not in (1, 2) or (shape.rank == 2 and shape[1] != 1):
        return data
    import tensorflow as tf

    def check(*batch: Any) -> tuple:
        given = tf.convert_to_tensor(label_array(batch[1]))
        labels = tf.cast(given, tf.int64)  # of truth values there is no minimum
        least, most = tf.reduce_min(labels), tf.reduce_max(labels)
        sound = tf.logical_and(least >= 0, most < classes)
        said = [f"{OUT_OF_RANGE} 0..{classes - 1} for {classes} classes, got", least, most]
        checks = [tf.debugging.Assert(tf.logical_or(tf.size(labels) == 0, sound), said)]
        if whole and given.dtype.is_floating:
            rest = tf.boolean_mask(given, tf.floor(given) != given)
            checks.append(tf.debugging.Assert(tf.size(rest) == 0, [f"{NOT_WHOLE}, got", rest[:1]]))
        with tf.control_dependencies(checks):
            return tf.nest.map_structure(tf.identity, batch)

    return data.map(check)


@contextlib.contextmanager
def labels_refused() -> Iterator[None]:
    """Turn the error of `with_checked_labels` into a ValueError in one line.

    Raises:
        ValueError: Labels are no classes.
    """
    try:
        yield
    except Exception as error:  # TensorFlow's own, which is not imported on a machine without it
        found = re.search(rf"\[({OUT_OF_RANGE} [^\]]*)\] \[(\S+)\] \[(\S+)\]", str(error))
        if rest := re.search(rf"\[({NOT_WHOLE}, got)\] \[\[?([^\]\s]+)", str(error)):
            raise ValueError(f"{rest[1]} {rest[2]}; round them") from None
        if said := re.search(r"ValueError: (labels (?:must|have) [^\n]*)", str(error)):  # of Python, inside a data set
            raise ValueError(said[1]) from None
        if found is None:
            raise
        raise ValueError(f"{found[1]} {found[2]}..{found[3]}") from None


def with_class_weight(x: Any, y: Any, weights: Mapping[int, float], options: dict) -> tuple[Any, dict]:
    """Return data and options of `fit` with sample weights in the place of class weights.

    Keras itself refuses class weights where the targets are a dictionary.

    Args:
        x: Arrays, or a `tf.data.Dataset` of batches.
        y: Labels or a dictionary, with arrays.
        weights: Class to weight; a class that is not named has weight 1.
        options: Further arguments of `fit`.

    Raises:
        ValueError: The weights are no dictionary of numbers, or the data are neither of both.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(one, int | np.integer) and one >= 0 for one in weights):
        raise ValueError(
            f"class_weight must be a dictionary of class number to weight, such as {{0: 1.0, 1: 5.0}}, got {weights!r}"
        )
    if not weights:
        return x, options
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise ValueError(f"the weights of class_weight must be finite and not negative, got {dict(weights)!r}")
    labels = label_array(y)
    size = 1 + max(weights)

    def table(classes: int) -> np.ndarray:
        return np.array([weights.get(index, 1.0) for index in range(max(size, classes))], np.float32)

    if labels is not None:
        labels = np.asarray(labels)
        classes = labels.argmax(-1) if labels.ndim == 2 and labels.shape[-1] > 1 else labels.reshape(-1)
        own = table(int(classes.max()) + 1)[classes.astype(int)]
        if (share := options.get("validation_split")) and options.get("validation_data") is None:
            own[math.floor(len(own) * (1 - share)) :] = 1.0  # the last ones, which Keras holds out and does not weight
        before = options.get("sample_weight")
        return x, options | {"sample_weight": own if before is None else own * np.asarray(before).reshape(-1)}
    if not hasattr(x, "element_spec") or not hasattr(x, "map"):
        raise ValueError(
            "class_weight needs arrays or a tf.data.Dataset; yield sample weights from a generator instead"
        )
    import tensorflow as tf

    def weigh(inputs: Any, targets: Any, sample_weight: Any = None) -> tuple:
        labels = tf.convert_to_tensor(label_array(targets))
        hot = labels.shape.rank == 2 and labels.shape[-1] != 1
        classes = tf.argmax(labels, -1) if hot else tf.cast(tf.reshape(labels, [-1]), tf.int64)
        own = tf.where(classes < size, tf.gather(table(size), tf.minimum(classes, size - 1)), 1.0)
        return (
            inputs,
            targets,
            own if sample_weight is None else own * tf.reshape(tf.cast(sample_weight, tf.float32), [-1]),
        )

    return x.map(weigh), options

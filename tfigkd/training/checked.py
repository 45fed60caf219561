"""Training and evaluation on data whose labels are checked, and whose classes may be weighted."""

import contextlib
import inspect
import math
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfigkd.training.tapped import number_of_classes
from tfigkd.training.targets import label_array

NOT_WHOLE = "labels must be whole numbers"
OUT_OF_RANGE = "labels must be in"


def _by_name(method: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Return by name what a method of `keras.Model` is given beside `x` and `y`, by position or by name."""
    given = inspect.signature(method).bind(None, None, None, *arguments, **options).arguments
    return {name: value for name, value in given.items() if name not in ("self", "x", "y")}


class CheckedData:
    """What `Distiller` does with its data before Keras takes them; comes before `keras.Model` among the bases."""

    def fit(self: Any, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Train, as `keras.Model.fit` does; `class_weight` works with cached knowledge of the teacher too.

        Raises:
            ValueError: labels are out of range, nothing of the student trains, or `class_weight` meets a generator
                (yield sample weights instead).
        """
        if self.student.built and not self.trainable_variables:
            raise ValueError(f"the student {self.student.name!r} has no weights that train; set its trainable to True")
        options = _by_name(keras.Model.fit, *arguments, **options)
        self._check(y)
        held_out = options.get("validation_data")
        if isinstance(held_out, tuple | list) and len(held_out) > 1:
            self._check(held_out[1])
        x = self._with_checks(x)
        if held_out is not None:
            options["validation_data"] = self._with_checks(held_out)
        weights = options.pop("class_weight", None)
        if weights is not None:
            x, options = _with_class_weight(x, y, weights, options)
        with _labels_refused():
            return super().fit(x, y, **options)  # type: ignore[misc]

    def evaluate(self: Any, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Return loss terms and metrics, as `keras.Model.evaluate` does.

        Raises:
            ValueError: labels are out of range.
        """
        self._check(y)
        with _labels_refused():
            return super().evaluate(self._with_checks(x), y, *arguments, **options)  # type: ignore[misc]

    def train_on_batch(self: Any, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Take one step on a batch, as `keras.Model.train_on_batch` does, with class weights as in `fit`.

        Raises:
            ValueError: labels are out of range, or `class_weight` is no dictionary of numbers.
        """
        options = _by_name(keras.Model.train_on_batch, *arguments, **options)
        self._check(y)
        weights = options.pop("class_weight", None)
        if weights is not None:
            _, options = _with_class_weight(x, y, weights, options)
        return super().train_on_batch(x, y, **options)  # type: ignore[misc]

    def test_on_batch(self: Any, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Return loss terms and metrics of a batch, as `keras.Model.test_on_batch` does.

        Raises:
            ValueError: labels are out of range.
        """
        self._check(y)
        return super().test_on_batch(x, y, *arguments, **options)  # type: ignore[misc]

    def _check(self: Any, targets: Any) -> None:
        whole = _whole_labels(self.student, self._compiled_loss)
        _check_labels(label_array(targets), number_of_classes(self.student), whole=whole)

    def _with_checks(self: Any, data: Any) -> Any:
        whole = _whole_labels(self.student, self._compiled_loss)
        return _with_checked_labels(data, number_of_classes(self.student), whole=whole)


def _whole_labels(student: Any, loss: Any) -> bool:
    """Return whether labels are numbers of classes, not shares that a loss of `compile` compares with one output."""
    return loss is None or getattr(student, "output_shape", (0,))[-1] != 1


def _check_labels(labels: Any, classes: int | None, *, whole: bool) -> None:
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
    """Yield the batches of a generator, with `_check_labels` of each."""
    with contextlib.closing(batches):
        for batch in batches:
            _check_batch(batch, classes, whole)
            yield batch


def _check_batch(batch: Any, classes: int, whole: bool) -> None:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        _check_labels(label_array(batch[1]), classes, whole=whole)


class _CheckedBatches(keras.utils.PyDataset):
    """A `PyDataset` with `_check_labels` of each batch."""

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


def _with_checked_labels(data: Any, classes: int | None, *, whole: bool) -> Any:
    """Return batches that end with an error at labels that are no classes; arrays, checked before, stay as they are.

    Batches are a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Without the check the loss of
    labels out of range is NaN. Of probabilities [B,C] in a `tf.data.Dataset` nothing is looked at.

    Args:
        data: What `fit` or `evaluate` is given.
        classes: Number of classes, or None where it is not known.
        whole: As for `_check_labels`.
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
def _labels_refused() -> Iterator[None]:
    """Turn the error of `_with_checked_labels` into a ValueError in one line.

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


def _with_class_weight(x: Any, y: Any, weights: Mapping[int, float], options: dict) -> tuple[Any, dict]:
    """Return data and options of `fit` or `train_on_batch` with sample weights in the place of class weights.

    Keras itself refuses class weights where the targets are a dictionary.

    Args:
        x: Arrays, or a `tf.data.Dataset` of batches.
        y: Labels or a dictionary, with arrays.
        weights: Class to weight; a class that is not named has weight 1.
        options: Further arguments of the method.

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

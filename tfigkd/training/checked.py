"""Training and evaluation on data whose labels are checked, and whose classes may be weighted."""

import inspect
from typing import Any

import keras

from tfigkd.training.tapped import number_of_classes
from tfigkd.training.targets import (
    check_labels,
    label_array,
    labels_refused,
    whole_labels,
    with_checked_labels,
    with_class_weight,
)


def fit_options(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Return by name what `keras.Model.fit` is given beside `x` and `y`, by position or by name.

    Raises:
        TypeError: It has no such argument.
    """
    given = inspect.signature(keras.Model.fit).bind(None, None, None, *arguments, **options).arguments
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
        options = fit_options(*arguments, **options)
        self._check(y)
        held_out = options.get("validation_data")
        if isinstance(held_out, tuple | list) and len(held_out) > 1:
            self._check(held_out[1])
        x = self._with_checks(x)
        if held_out is not None:
            options["validation_data"] = self._with_checks(held_out)
        weights = options.pop("class_weight", None)
        if weights is not None:
            x, options = with_class_weight(x, y, weights, options)
        with labels_refused():
            return super().fit(x, y, **options)  # type: ignore[misc]

    def evaluate(self: Any, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Return loss terms and metrics, as `keras.Model.evaluate` does.

        Raises:
            ValueError: labels are out of range.
        """
        self._check(y)
        with labels_refused():
            return super().evaluate(self._with_checks(x), y, *arguments, **options)  # type: ignore[misc]

    def train_on_batch(self: Any, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Take one step on a batch, as `keras.Model.train_on_batch` does.

        Raises:
            ValueError: labels are out of range.
        """
        self._check(y)
        return super().train_on_batch(x, y, *arguments, **options)  # type: ignore[misc]

    def test_on_batch(self: Any, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """Return loss terms and metrics of a batch, as `keras.Model.test_on_batch` does.

        Raises:
            ValueError: labels are out of range.
        """
        self._check(y)
        return super().test_on_batch(x, y, *arguments, **options)  # type: ignore[misc]

    def _check(self: Any, targets: Any) -> None:
        whole = whole_labels(self.student, self._compiled_loss)
        check_labels(label_array(targets), number_of_classes(self.student), whole=whole)

    def _with_checks(self: Any, data: Any) -> Any:
        whole = whole_labels(self.student, self._compiled_loss)
        return with_checked_labels(data, number_of_classes(self.student), whole=whole)

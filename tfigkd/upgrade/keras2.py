"""Build a model that Keras 2 saved again in Keras 3, and compare the outputs of every layer with those in tf_keras.

Keras 3 opens few such files: it refuses arguments that its layers no longer have, and operations on tensors. Here
tf_keras, the last Keras 2, builds the model, and each call in its graph becomes a call in Keras 3.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.models.equivalence import close, random_inputs, tolerance_of
from tfigkd.models.keras_file import (
    check_values,
    is_hdf5,
    is_of_keras2,
    keras_version,
    not_a_keras_file,
    values_of,
)
from tfigkd.runtime.errors import UserError, one_line, readable
from tfigkd.runtime.files import expanded
from tfigkd.upgrade.description import open_in_keras2, read_description, weight_bytes
from tfigkd.upgrade.rebuilt import Rebuilt

OPEN_SIZE = 96
"""Of images where the model leaves it open; Inception needs 75."""


@dataclass(frozen=True)
class Upgrade:
    """A model of Keras 2 as one of Keras 3.

    Attributes:
        model: Functional, not compiled. Layers keep their names, but for "/", which becomes "_".
        difference: Largest difference of an output of any layer, relative to the largest output of that layer. None for
            a model of Keras 3, which Keras has opened itself.
        notes: What differs in training, in words.
    """

    model: keras.Model
    difference: float | None
    notes: tuple[str, ...] = ()


def upgrade(path: str | Path) -> Upgrade:
    """Build a model that Keras 2 saved again in Keras 3.

    Only its description and its weights are read, and only layers of Keras are built, so that no code in the file can
    run. Regularizers and constraints stay, initializers do not. The outputs of each layer are compared with those in
    tf_keras, in inference mode, on random inputs in the ranges of images.

    Args:
        path: An HDF5 file (.h5), a .keras file or the folder of a SavedModel with its Keras layers.

    Raises:
        UserError: The file is missing, damaged, not of Keras 2, or has layers of other classes; a layer has no
            counterpart in Keras 3; the outputs are not the same.
    """
    path = expanded(str(path))
    if not (path.is_file() or path.is_dir()):  # a pipe would wait for a writer
        raise UserError(f"no model file {path}; give the path of a .h5 or .keras file, or the folder of a SavedModel")
    version = keras_version(path)
    if version is None:
        raise UserError(not_a_keras_file(path))
    by_keras3 = not is_of_keras2(version)
    if by_keras3 and not is_hdf5(path):
        raise UserError(f"{path} is a .keras file of Keras {version}, which needs no upgrade")
    with warnings.catch_warnings(), readable(str(path), "save the model anew where it was made"):
        warnings.simplefilter("ignore")
        description = read_description(path)
        if by_keras3:
            kind = keras.Sequential if description["class_name"] == "Sequential" else keras.Model
            check_values(path, values_of(lambda: kind.from_config(description["config"])), weight_bytes(path))
            return Upgrade(keras.saving.load_model(path, compile=False, safe_mode=True), None)
        old = open_in_keras2(path, description)
    with _naming(path):
        rebuilt = Rebuilt(old)
        return Upgrade(rebuilt.model, _difference(old, rebuilt), tuple(rebuilt.notes))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of building a model into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # layers raise errors of any type for arguments and shapes
        raise UserError(f"{path} cannot be built of Keras 3's layers: {one_line(error)}; report this model") from error


def _difference(old: Any, rebuilt: Rebuilt) -> float:
    """Compare each layer of a rebuilt model with tf_keras's; see `Upgrade.difference`.

    Raises:
        UserError: They differ by more than rounding, and the first layer that does is named; or all outputs are NaN or
            infinite.
    """
    import tf_keras

    model = rebuilt.model
    images, tolerance = random_inputs(model, OPEN_SIZE), tolerance_of(model)
    names, before, after = zip(*rebuilt.pairs, strict=True)
    expected = _outputs(tf_keras.Model(old.inputs, before), images)
    found = _outputs(keras.Model(model.inputs, after), images)
    if not np.isfinite(expected[-1]).any():
        raise UserError("its outputs on random images are all NaN or infinite; save a model that has learned")
    largest = 0.0
    for name, old_output, new_output in zip(names, expected, found, strict=True):
        if not close(new_output, old_output, tolerance):
            raise UserError(f"built of Keras 3's layers it has other outputs, first in layer {name!r}; replace it")
        with np.errstate(invalid="ignore"):
            off, size = (np.nan_to_num(np.abs(one)).max() for one in (new_output - old_output, old_output))
        largest = max(largest, float(off / size) if size else 0.0)
    return largest


def _outputs(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model of either Keras in inference mode, float64."""
    given = list(inputs) if len(inputs) > 1 else inputs[0]
    return [np.asarray(output, "float64") for output in keras.tree.flatten(model(given, training=False))]

"""The networks of a config: built for its data, where their files lie, and what fingerprints hold of them."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfigkd import models
from tfigkd.config.fields import NetworkConfig, StudentConfig
from tfigkd.data import Dataset, Examples, to_model_input
from tfigkd.data.disk import blocks
from tfigkd.data.spaces import UNIT
from tfigkd.measure.chance import probe_examples
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, expanded
from tfigkd.runtime.fingerprint import fingerprint_values

FILE_ARCHITECTURE = {"drop_blocks": 0, "width": 1.0, "dropout": None, "normalization": "none"}
"""What fingerprints hold of the architecture of a file, whatever the config says."""
WHITENED = 5000
"""Training images that the stem of a convnet is made from."""
WHITENED_PIXELS = 2**23
"""Pixels of these images that are in memory at once as numbers; all of those of 32x32 pixels."""


def build_network(config: NetworkConfig, data: Dataset) -> keras.Model:
    """Build a network of a config for the classes and image shape of a data set.

    A .keras file comes with its weights, but for a student whose `init` is random.
    """
    spaces: dict[str, Any] = {"input_range": config.input_range, "outputs": config.outputs}
    own = config.own_shape(data.image_shape)
    weights = getattr(config, "weights", None) if config.application else None
    shown = probe_examples(data).images[: models.PROBED_IMAGES] if config.own_file else None
    try:
        model = models.build(
            config.model,
            num_classes=data.num_classes,
            input_shape=own,
            weights=None if weights is None else weights_path(weights),
            images=None if shown is None else models.resize_pixels(shown, own),
            **{name: getattr(config, name) for name in models.ARCHITECTURE},
            **spaces,
        )
    except UserError as error:
        if config.model not in models.MODELS:
            raise
        raise UserError(f"{'student' if isinstance(config, StudentConfig) else 'teacher'}: {error}") from error
    if config.model == "convnet":
        whiten(model, data.train, own)
    if config.own_file and getattr(config, "init", "") == "random":
        try:
            model = models.with_fresh_weights(model)
        except ValueError as error:
            raise UserError(f"{config.model}: {error} (--student.init file)") from error
    return models.with_image_size(model, data.image_shape)


def whiten(model: keras.Model, examples: Examples, size: Sequence[int]) -> None:
    """Make the stem of a convnet from the first `WHITENED` images of a training, resized to (H,W,...)."""
    images, each = examples.images[:WHITENED], max(1, WHITENED_PIXELS // math.prod(size[:2]))
    parts = (to_model_input(models.resize_pixels(block, size)) for block in blocks(images, each))
    models.set_whitening(model, parts)


def require_trainable(model: keras.Model, what: str) -> None:
    """Raise a UserError for a model that is to be trained and has no weights that train."""
    if not model.trainable_variables:
        raise UserError(f"{what} has no weights that train, all its layers are frozen; save it with trainable = True")


def weights_path(name: str) -> Path:
    """Return where given weights lie: as given, or in the folder $TFIGKD_WEIGHTS_DIR.

    Raises:
        UserError: neither place has them.
    """
    given, folder = expanded(name), os.environ.get("TFIGKD_WEIGHTS_DIR")
    places = [given] if folder is None else [given, Path(folder) / name]
    for place in places:
        if place.is_file():
            return place
    where = " or ".join(map(str, places))
    raise UserError(f"weights: no file {where}; give the path of a local file or set TFIGKD_WEIGHTS_DIR")


def content_of(path: str | None) -> str | None:
    """Return the checksum of a .keras or .npz file, so that a fingerprint does not depend on its path.

    Any other name is returned as it is.
    """
    if path is None or not path.endswith((".keras", ".npz")):
        return path
    if not expanded(path).is_file():
        raise UserError(f"no file {path}; give the path of a .keras model or of .npz weights")
    return checksum(expanded(path))


def network_values(network: NetworkConfig, data: Dataset) -> dict[str, Any]:
    """Return what a fingerprint holds of a network: its architecture, or the content of its file."""
    values, ours = fingerprint_values(network), NetworkConfig.__dataclass_fields__
    values = {name: value for name, value in values.items() if name in ours}
    values["model"] = content_of(network.model)
    if network.own_file or network.application:  # settings of other architectures do not apply
        values = {name: value for name, value in values.items() if name not in models.ARCHITECTURE} | FILE_ARCHITECTURE
    if network.own_file and network.input_range is None:
        shown = models.input_range_of(network.model)
        if shown not in (None, UNIT):  # earlier versions took such a file for [0,1]
            values["input_range"] = list(shown)
    if max(data.image_shape[:2]) > models.LARGEST_SMALL and models.has_large_image_strides(network.model):
        values["strides"] = "imagenet"
    return values

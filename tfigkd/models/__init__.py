"""Networks: those of this package by name, the user's own by file."""

import difflib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from tfigkd.config.fields import is_application, is_file
from tfigkd.data.spaces import UNIT
from tfigkd.models.adapt import (
    PROBED_IMAGES,
    as_classifier,
    cached_classifier,
    resize_pixels,
    with_image_size,
    with_input_range,
    with_rgb,
)
from tfigkd.models.applications import application
from tfigkd.models.blocks import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD, LARGEST_SMALL, Normalization
from tfigkd.models.chain import with_chain
from tfigkd.models.coded_features import with_code, without_code
from tfigkd.models.convnet import convnet, set_whitening
from tfigkd.models.ensemble import ensemble, weighted_by_label
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.kernels import with_plain_kernels
from tfigkd.models.mobilenet_v2 import mobilenet_v2
from tfigkd.models.power import with_power
from tfigkd.models.precision import with_precision
from tfigkd.models.reinitialize import count_frozen_layers, with_fresh_weights
from tfigkd.models.resnet import resnet
from tfigkd.models.students import truncate
from tfigkd.models.user_model import (
    ReferenceClassifier,
    channels_of,
    image_size_of,
    input_range_of,
    load_classifier,
    load_own_classifier,
)
from tfigkd.models.weights import load_torch_weights
from tfigkd.runtime.errors import UserError, closest

__all__ = [
    "ARCHITECTURE",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LARGEST_SMALL",
    "MODELS",
    "NORMALIZATIONS",
    "PROBED_IMAGES",
    "Normalization",
    "ReferenceClassifier",
    "as_classifier",
    "build",
    "cached_classifier",
    "channels_of",
    "convnet",
    "count_frozen_layers",
    "ensemble",
    "fold_batch_norm",
    "has_large_image_strides",
    "image_size_of",
    "input_range_of",
    "is_application",
    "is_file",
    "load_classifier",
    "load_own_classifier",
    "load_torch_weights",
    "mobilenet_v2",
    "resize_pixels",
    "resnet",
    "set_whitening",
    "truncate",
    "weighted_by_label",
    "with_chain",
    "with_code",
    "with_fresh_weights",
    "with_image_size",
    "with_input_range",
    "with_plain_kernels",
    "with_power",
    "with_precision",
    "with_rgb",
    "without_code",
]

MODELS: dict[str, Callable[..., keras.Model]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet8": functools.partial(resnet, 8, projection=True),
    **{f"resnet{depth}": functools.partial(resnet, depth) for depth in (14, 20, 32, 44, 56)},
    "convnet": convnet,
}

NORMALIZATIONS: dict[str, Normalization | None] = {
    "none": None,
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}

NEUTRAL: dict[str, Any] = {
    "drop_blocks": 0,
    "width": 1.0,
    "dropout": None,
    "normalization": None,
    "widths": (64, 256, 256),
    "depth": 2,
    "stem_stride": None,
}
"""The options of all networks, with the values that a network without such an option accepts."""

ARCHITECTURE = tuple(NEUTRAL)
"""Names of the options that decide which layers a network of `MODELS` has; files and keras.applications have none."""

OPTIONS_OF = {
    "mobilenet_v2": ("drop_blocks", "width", "dropout", "stem_stride"),
    **{name: ("width", "stem_stride") for name in MODELS if name.startswith("resnet")},
    "convnet": ("widths", "depth", "width"),
}
"""Network to the options that it takes beside `normalization`, which all take."""

SPACES = ("input_range", "outputs", "images")
"""The options of a .keras file, see `load_classifier`."""


def build(
    name: str, *, num_classes: int, input_shape: Sequence[int], weights: str | Path | None = None, **options: Any
) -> keras.Model:
    """Return the network of that name, one of keras.applications, or the one in a .keras file.

    Args:
        name: A key of `MODELS`, `keras/` and the name of a classifier of keras.applications, or a path that ends in
            `.keras`.
        num_classes: Number of classes.
        input_shape: (H, W, C) of the images, float32 in [0,1].
        weights: A local file with weights of a network of keras.applications; see `applications.application`.
        options: `width` and `normalization` (mean and deviation, or a key of `NORMALIZATIONS`) of all in `MODELS`;
            `stem_stride` of all but convnet; `drop_blocks` and `dropout` of MobileNet-V2; `widths` and `depth` of
            convnet. A network without an option accepts its neutral value; to files and keras.applications these
            options do not apply, whatever their values. `input_range`, `outputs` and `images` of a file, see
            `load_classifier`.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes].

    Raises:
        UserError: The name is unknown, the file does not fit, or the network does not take such an option.
        TypeError: An option is of no network.
    """
    unknown = options.keys() - NEUTRAL.keys() - {*SPACES}
    if unknown:
        raise TypeError(
            f"build() takes the options {', '.join((*NEUTRAL, *SPACES))}, got {', '.join(sorted(unknown))}."
        )
    spaces = {option: options.pop(option) for option in SPACES if option in options}
    other = name not in MODELS and (name.endswith((".h5", ".hdf5")) or Path(name).is_dir())
    if is_file(name) or other:  # which is refused there, with what makes it a .keras file
        return load_classifier(name, num_classes=num_classes, input_shape=input_shape, **spaces)
    _refuse_spaces(name, spaces)
    if is_application(name):
        return application(name, num_classes=num_classes, input_shape=input_shape, weights=weights)
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"no model {name!r}; {hint}there are {', '.join(MODELS)}, keras/NAME for a network of keras.applications, "
            "and the path of a .keras file"
        )
    if isinstance(named := options.get("normalization"), str):
        if named not in NORMALIZATIONS:
            raise UserError(f"no normalization {named!r}; {closest(named, NORMALIZATIONS)}")
        options["normalization"] = NORMALIZATIONS[named]
    taken = {"normalization", *OPTIONS_OF.get(name, ())}
    for option in sorted(options.keys() - taken):
        if options.pop(option) != NEUTRAL[option]:
            neutral = "leave it out" if NEUTRAL[option] is None else f"set it to {NEUTRAL[option]}"
            raise UserError(f"{name} has no {option}; {neutral}")
    try:
        return MODELS[name](num_classes, input_shape=input_shape, **options)
    except ValueError as error:
        raise UserError(f"cannot build {name}: {str(error).partition(chr(10))[0]}") from error


def has_large_image_strides(name: str) -> bool:
    """Return whether a named network has larger strides for images of more than `LARGEST_SMALL` pixels a side."""
    return name in MODELS and name != "convnet"


def _refuse_spaces(name: str, spaces: dict[str, Any]) -> None:
    """Refuse a declared input range or kind of outputs for a network that takes [0,1] and gives logits."""
    if spaces.get("input_range") not in (None, UNIT) or spaces.get("outputs") not in (None, "logits"):
        raise UserError(f"{name} takes images in [0,1] and gives logits; leave out input_range and outputs")

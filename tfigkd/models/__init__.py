"""Networks: those of this package by name, the user's own by file."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfigkd.models.convnet import convnet, set_whitening
from tfigkd.models.ensemble import ensemble
from tfigkd.models.fold import fold_batch_norm
from tfigkd.models.mobilenet_v2 import mobilenet_v2
from tfigkd.models.own import load_own, with_input_range
from tfigkd.models.parts import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD, Normalization
from tfigkd.models.precision import with_precision
from tfigkd.models.resnet import resnet
from tfigkd.models.students import truncate
from tfigkd.models.weights import load_torch_weights
from tfigkd.runtime.errors import UserError

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MODELS",
    "NORMALIZATIONS",
    "Normalization",
    "build",
    "convnet",
    "ensemble",
    "fold_batch_norm",
    "load_own",
    "load_torch_weights",
    "mobilenet_v2",
    "resnet",
    "set_whitening",
    "truncate",
    "with_input_range",
    "with_precision",
]

MODELS: dict[str, Callable[..., keras.Model]] = {
    "mobilenet_v2": mobilenet_v2,
    **{f"resnet{depth}": functools.partial(resnet, depth) for depth in (20, 32, 44, 56)},
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
}
"""The options of all networks, with the values that a network without such an option accepts."""


OWN_OPTIONS = {"mobilenet_v2": ("drop_blocks", "width", "dropout"), "convnet": ("widths", "depth")}
"""The options that only one network has."""


def build(name: str, *, num_classes: int, input_shape: Sequence[int], **options: Any) -> keras.Model:
    """The network of that name, or the one in a .keras file.

    Args:
        name: A key of `MODELS`, or a path that ends in `.keras`.
        num_classes: Number of logits.
        input_shape: (H, W, C) of the images, float32 in [0,1].
        options: `drop_blocks`, `width` and `dropout` of MobileNet-V2; `widths` and `depth` of convnet; `normalization`
            (mean and deviation, or a key of `NORMALIZATIONS`) of all but a file. Where an option is unknown its neutral
            value is accepted.

    Returns:
        A Functional model from images [B,H,W,C] to logits [B,num_classes].

    Raises:
        UserError: The name is unknown, the file does not fit, or the network does not take such an option.
    """
    own = name.endswith(".keras")
    if not own and name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no model {name!r}; {hint}there are {', '.join(MODELS)} and the path of a .keras file")
    if isinstance(options.get("normalization"), str):
        options["normalization"] = NORMALIZATIONS[options["normalization"]]
    known = set() if own else {"normalization", *OWN_OPTIONS.get(name, ())}
    for option in options.keys() - known:
        if option not in NEUTRAL:
            raise TypeError(f"build() takes the options {', '.join(NEUTRAL)}, got {option}.")
        if options.pop(option) != NEUTRAL[option]:
            raise UserError(f"{name} has no {option}; set {option} back to its neutral value {NEUTRAL[option]}")
    if own:
        return load_own(name, num_classes=num_classes, input_shape=input_shape)
    try:
        return MODELS[name](num_classes, input_shape=input_shape, **options)
    except ValueError as error:
        raise UserError(f"cannot build {name}: {str(error).partition(chr(10))[0]}") from error

"""Published PyTorch weights, stored as NumPy arrays and loaded into the matching layers."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from tfigkd.runtime.errors import UserError, readable
from tfigkd.runtime.text import shortened

VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Keras's name of a variable to PyTorch's."""

MAX_BYTES = 2**32
"""Largest size in bytes of all arrays of a file."""

SHOWN = 5
"""How many of the arrays that do not fit an error message names."""


def load_torch_weights(model: keras.Model, npz_path: str | Path) -> None:
    """Load the arrays of a PyTorch state dict into `mobilenet_v2` (whole or truncated) or `resnet`.

    Every array must fit a variable of the model and every variable an array; otherwise no weight is changed. The
    normalization inside the model is not part of the file and stays.

    Args:
        model: A model of this package, of the file's architecture.
        npz_path: An .npz of float arrays under PyTorch's parameter names. MobileNet-V2: torchvision's names
            (`features.*`) or those of the attention transfer students of arXiv 2503.13008 (`front_layers.*`).
            ResNets: `layer1.*` to `layer3.*`.

    Raises:
        UserError: The file cannot be read, or does not fit the model.
    """
    arrays = _read(Path(npz_path))
    places = dict(torch_places(model))
    wrong = [f"{key} is missing" for key in places if key not in arrays]
    wrong += [f"{key} is left over" for key in arrays if key not in places]
    for key, (layer, variable) in places.items():
        if key not in arrays:
            continue
        expected = tuple(variable.shape[axis] for axis in torch_axes(layer, variable))
        if arrays[key].shape != expected:
            wrong.append(f"{key} has shape {arrays[key].shape}, expected {expected}")
        elif arrays[key].dtype.kind != "f" or not np.isfinite(arrays[key]).all():
            wrong.append(f"{key} has values that are not finite floats")
    if wrong:
        raise UserError(
            f"{npz_path} does not fit {model.name}: {shortened(wrong, SHOWN)}; "
            "choose the architecture, drop_blocks and classes that these weights were trained with"
        )
    for key, (layer, variable) in places.items():
        variable.assign(arrays[key].transpose(np.argsort(torch_axes(layer, variable))))


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays under their canonical names, counters of batches left out."""
    if not path.is_file():
        raise UserError(f"no weights file {path}; give the path of an .npz of PyTorch arrays")
    with readable(f"{path} as an .npz of PyTorch arrays", "fetch it anew"):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:  # a few bytes of a file can unpack to terabytes
            raise UserError(f"{path} unpacks to {size / 2**30:.1f} GiB; at most {MAX_BYTES >> 30} GiB are read")
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if not name.endswith("num_batches_tracked")]
            arrays = {name: np.asarray(file[name]) for name in names}  # what is no array in there comes as bytes
    arrays = {name.removeprefix("module."): value for name, value in arrays.items()}  # as DataParallel leaves it
    front = {int(found[1]) for name in arrays if (found := re.match(r"front_layers\.(\d+)\.", name))}
    return {_canonical(name, len(front)): value for name, value in arrays.items()}


def _canonical(name: str, middle: int) -> str:
    """Return PyTorch's name with one count of all feature blocks; `middle` is the number of the one of its own name."""
    name = re.sub(r"^front_layers\.", "features.", name)
    name = re.sub(r"^middle_layer\.", f"features.{middle}.", name)
    return re.sub(r"^end_layers\.(\d+)\.", lambda found: f"features.{middle + 1 + int(found[1])}.", name)


def torch_places(model: keras.Model) -> Iterator[tuple[str, tuple[keras.Layer, keras.Variable]]]:
    """Yield every PyTorch name that the model has a variable for, with the layer and the variable."""
    names = {layer.name for layer in model.layers}
    residual_blocks = sum(bool(re.fullmatch(r"block_\d+_conv1", name)) for name in names)
    for layer in model.layers:
        if layer.name == "normalization":
            continue
        if residual_blocks:
            module = _resnet_module(layer.name, residual_blocks // 3)
        else:
            module = _mobilenet_module(layer.name, names)
        for variable in layer.weights:
            yield f"{module}.{VARIABLES.get(variable.name, variable.name)}", (layer, variable)


def _mobilenet_module(name: str, names: set[str]) -> str:
    """Return PyTorch's module for one of our layers; an unknown name as it is, which the file will not have."""
    if name == "logits":
        return "classifier.1"
    found = re.fullmatch(r"block_(\d+)_(\w+)", name)
    if not found:
        return name
    block, part = int(found[1]), found[2]
    # An expansion is [convolution, normalization, activation], and so is a depthwise convolution.
    depthwise = int(f"block_{found[1]}_expand" in names)
    modules = {
        "conv": "0",
        "bn": "1",
        "expand": "conv.0.0",
        "expand_bn": "conv.0.1",
        "depthwise": f"conv.{depthwise}.0",
        "depthwise_bn": f"conv.{depthwise}.1",
        "project": f"conv.{depthwise + 1}",
        "project_bn": f"conv.{depthwise + 2}",
    }
    return f"features.{block}.{modules[part]}" if part in modules else name


def _resnet_module(name: str, blocks_a_stage: int) -> str:
    """Return PyTorch's module for one of our layers; an unknown name as it is, which the file will not have."""
    ends = {"block_00_conv": "conv1", "block_00_bn": "bn1", "logits": "linear"}
    found = re.fullmatch(r"block_(\d+)_((?:conv|bn)[12])", name)
    if not found:
        return ends.get(name, name)
    stage, block = divmod(int(found[1]) - 1, blocks_a_stage)
    return f"layer{stage + 1}.{block}.{found[2]}"


def torch_axes(layer: keras.Layer, variable: keras.Variable) -> tuple[int, ...]:
    """Return Keras's axes in PyTorch's order: OIHW for a convolution, [C,1,H,W] for a depthwise one, [out,in]."""
    rank = len(variable.shape)
    if rank == 4:
        return (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
    return tuple(reversed(range(rank)))

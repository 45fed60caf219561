"""Pruning by magnitude: which kernels, which of their weights, and a copy of a model in which these are zero."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from tfigkd.models.adapt import ADDED
from tfigkd.models.convnet import WHITENING
from tfigkd.models.copies import copy_layer, copy_state, with_new_layers
from tfigkd.models.graph import flatten_layers

FIXED = frozenset({*ADDED, WHITENING})
"""Names of layers whose kernels prepare the image and are not learned."""


def prunable_kernels(model: keras.Model, *, frozen: bool = False) -> Iterator[keras.Variable]:
    """Yield the kernels to prune: those of trainable convolutions and dense layers.

    Depthwise kernels, biases and normalization have few but important weights and are not pruned, as in tfmot. Of a
    layer with powerpropagation it is θ, which has the zeros and the order of the kernel.

    Args:
        model: Functional or Sequential, models inside it too.
        frozen: Whether layers that do not train count as well, such as all of a teacher's; never those of `FIXED`.
    """
    for layer in flatten_layers(model):
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        taken = layer.trainable or (frozen and layer.name not in FIXED)
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and not depthwise and taken:
            yield getattr(layer, "theta", layer.kernel)


def magnitude_mask(kernel: np.ndarray, sparsity: float) -> np.ndarray:
    """Return a mask: zeros for the smallest weights of a kernel, exactly the share `sparsity`, ones elsewhere."""
    zeros = round(sparsity * kernel.size)
    mask = np.ones(kernel.size, kernel.dtype)
    mask[np.argsort(np.abs(kernel), axis=None, kind="stable")[:zeros]] = 0
    return mask.reshape(kernel.shape)


def pruned_copy(model: keras.Model, share: float) -> keras.Model:
    """Return a copy of a model in which the smallest weights of each kernel are zero; nothing is retrained.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        share: Of the weights of each kernel, in (0, 1).

    Returns:
        A Functional model of the same layer names, not compiled.

    Raises:
        ValueError: The share is out of range, or the model is neither Functional nor Sequential.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    result = with_new_layers(model, copy_layer)
    copy_state(model, result)
    for kernel in prunable_kernels(result, frozen=True):
        values = ops.convert_to_numpy(kernel)
        kernel.assign(values * magnitude_mask(values, share))
    return result

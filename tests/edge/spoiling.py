"""A layer that int8 spoils, for the tests that look for it."""

import keras
import numpy as np


def spoil(before: keras.layers.Conv2D, layer: keras.layers.Conv2D) -> None:
    """Leave few int8 values to a layer's weights: those of a channel that is always zero become 9.

    Args:
        before: The convolution with ReLU whose channel 0 becomes zero.
        layer: The convolution behind it.
    """
    kernel, bias = before.get_weights()
    before.set_weights([kernel, bias - 100 * (np.arange(len(bias)) == 0)])
    kernel, bias = layer.get_weights()
    kernel[:, :, 0] = 9.0
    layer.set_weights([kernel, bias])

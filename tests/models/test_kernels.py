"""Kernels of layers of any kind, found by their variables."""

import keras
import numpy as np

from tfigkd.models import kernels


def test_l1_is_of_every_kernel_that_trains() -> None:
    """Also of layers that are no subclass of a convolution or a dense layer, and once where a wrapper shows it too."""
    kinds = keras.layers
    images = keras.Input((8, 8, 3))
    features = kinds.Conv2DTranspose(4, 3)(kinds.SeparableConv2D(4, 3)(images))
    features = kinds.SpectralNormalization(kinds.Conv2D(3, 1))(features)
    features = kinds.Conv2D(3, 1, trainable=False)(features)
    steps = kinds.Reshape((-1, 3))(features)
    features = kinds.GRU(3)(kinds.MultiHeadAttention(1, 4)(steps, steps))
    model = keras.Model(images, kinds.Dense(4)(features))
    found = [v.numpy() for v in model.trainable_variables if v.path.endswith("kernel")]
    assert len(found) == 2 + 1 + 1 + 4 + 2 + 1
    expected = sum(np.abs(kernel).sum() for kernel in found)
    np.testing.assert_allclose(kernels.l1_of_kernels(model), expected, rtol=1e-5)

"""A decoder that lifts features of few bits towards those of many (Wang et al. 2020, arXiv 2002.03627)."""

import keras
import numpy as np

HIDDEN = 4
"""Width of the hidden layer, as a multiple of the features' number."""


def enhancer(
    low: np.ndarray, high: np.ndarray, *, epochs: int = 50, batch_size: int = 256, seed: int = 0
) -> keras.Model:
    """Train a small network to give the features of a high rate from those of a low rate.

    It is a linear map plus two dense layers, trained by the mean squared difference with Adam; the low rate's code
    stays as it is, so only the decoder becomes more expensive.

    Args:
        low: Decoded features of the low rate, float32 [N,D].
        high: Features of the high rate of the same images, float32 [N,E].
        epochs: Passes over the N images.
        batch_size: Images a step.
        seed: Of weights and order.

    Returns:
        A model from [B,D] to [B,E].
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(low.shape[1:])
    scaled = keras.layers.Normalization(mean=low.mean(axis=0), variance=low.var(axis=0) + 1e-6)(inputs)
    hidden = keras.layers.Dense(HIDDEN * low.shape[1], activation="relu")(scaled)
    lifted = keras.layers.Dense(high.shape[1], kernel_initializer="zeros")(hidden)
    model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(high.shape[1])(scaled), lifted]))
    model.compile(keras.optimizers.Adam(3e-3), loss="mse", jit_compile=False)
    model.fit(low, high, batch_size=batch_size, epochs=epochs, verbose=0)
    return model

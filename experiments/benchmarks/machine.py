"""Limits of the machine, and the least time of the benchmarks' work at these limits, which bounds every ratio.

Two lower bounds apply to a training step or a gradient: its multiply-adds at the rate of a large matrix product, and
the values that it must read and write at the rate of a copy.
"""

import math

import keras
import numpy as np

from experiments.benchmarks.attribution_speed import NETWORKS, network
from experiments.benchmarks.harness import Options, record, timed
from experiments.benchmarks.training_step import DROP_BLOCKS
from tfigkd import models
from tfigkd.models.cost import multiply_adds

FLOAT, ROUNDS = 4, 9


def copy_bandwidth(megabytes: int) -> np.ndarray:
    """Measure the bytes per second, read and written, of a copy by TensorFlow on all cores, [ROUNDS]."""
    import tensorflow as tf

    values = tf.ones([megabytes * 2**20 // FLOAT])
    double = tf.function(lambda tensor: tensor * 2.0)
    double(values)
    return 2 * megabytes * 2**20 / np.array([timed(lambda: double(values))() for _ in range(ROUNDS)])


def matrix_rate(side: int) -> np.ndarray:
    """Measure the operations per second, two for each multiply-add, of a float32 matrix product, [ROUNDS]."""
    import tensorflow as tf

    left = tf.ones([side, side])
    multiply = tf.function(lambda matrix: tf.matmul(matrix, matrix))
    multiply(left)
    return 2 * side**3 / np.array([timed(lambda: multiply(left).numpy())() for _ in range(ROUNDS)])


def values_moved(model: keras.Model, *, training: bool) -> int:
    """Return the number of values read and written for one image, as often as the mathematics of each layer needs.

    A convolution: x and y forward; dy and dx backward, and x and dy again for its weights' gradient. A normalization:
    x twice and y; x and dy twice and dx. A ReLU: x and y; x, dy and dx.
    """
    total = 0
    for layer in model.layers:
        outputs = math.prod(size for size in layer.output.shape if size)
        if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D):
            total += (3 if training else 2) * (math.prod(size for size in layer.input.shape if size) + outputs)
        elif isinstance(layer, keras.layers.BatchNormalization):
            total += 8 * outputs
        elif isinstance(layer, keras.layers.ReLU):
            total += 5 * outputs
    return total


def run(options: Options) -> None:
    """Measure and append rows; there is no other side, so the ratio is the share of the best round."""
    scale = 8 if options.tiny else 1
    bandwidth, rate = copy_bandwidth(256 // scale), matrix_rate(2048 // scale)
    for subject, values, unit in (("copy bandwidth", bandwidth, "GB/s"), ("float32 matrix product", rate, "GFLOP/s")):
        middle, best = float(np.median(values)) / 1e9, float(values.max()) / 1e9
        record(options, subject, "its best", values / values.max(), ours=middle, theirs=best, unit=unit)
    # The backward pass of a layer costs twice its forward pass, or the same without weight gradients.
    works = [("a training step, 4.12x student", models.mobilenet_v2(10, DROP_BLOCKS), True)]
    if options.weights.is_dir():
        works += [
            (f"an input gradient, {title}", network(name, options.weights), False) for name, title in NETWORKS.items()
        ]
    for subject, model, training in works:
        operations = (6 if training else 4) * multiply_adds(model)
        moved = FLOAT * values_moved(model, training=training)
        compute, memory = operations / rate.max(), moved / bandwidth.max()
        record(
            options,
            f"least time of {subject}, one image: arithmetic",
            "memory traffic",
            np.array([compute / memory]),
            ours=1e3 * compute,
            theirs=1e3 * memory,
            unit="ms",
            note=f"{operations / 1e9:.3g} GFLOP at the rate of the product, {moved / 1e6:.3g} MB at that of the copy",
        )

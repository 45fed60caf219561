"""RandAugment of Cubuk et al. 2019 (arXiv 1909.13719) by Keras's own layer, with draws that can be repeated."""

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfigkd.batches.augment import Purpose, uniform
from tfigkd.config.training_fields import TrainingConfig

Change = Callable[..., np.ndarray]


def rand_augment(operations: int, strength: float) -> Change:
    """Return a function that changes pictures by Keras's `RandAugment`.

    Which operations a picture gets, one after the other, is a function of (seed, epoch, id). Their strengths are drawn
    by the layer for a whole batch, by whose histogram it also equalizes: they are a function of (seed, epoch) and of
    the examples of the batch. So a resumed run repeats them; TensorFlow and JAX draw other ones. XLA takes minutes to
    compile the layer on a CPU.

    Args:
        operations: How many a picture gets.
        strength: Largest strength of an operation, 0 to 1 (`factor` of the layer).

    Returns:
        A function of images float32 [B,H,W,3] in [0,1], and by name of keys uint64 [B], seed and epoch, to such images.
    """
    layer = keras.layers.RandAugment(value_range=(0, 1), num_ops=operations, factor=strength, seed=0)
    kinds = len(layer.get_random_transformation(np.zeros((1, 8, 8, 3), np.float32))["transforms"])
    transform, alone = _compiled(layer), threading.Lock()  # the state of its generator is set for each batch

    def change(images: np.ndarray, *, keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        draws = [
            uniform(keys, seed=seed, epoch=epoch, purpose=Purpose.OPERATION + place) for place in range(operations)
        ]
        chosen = (np.stack(draws) * kinds).astype(np.int32)[..., None, None, None]
        both = keys.sum() + np.arange(2, dtype=np.uint64)  # each example has a part in it
        words = uniform(both, seed=seed, epoch=epoch, purpose=Purpose.STRENGTH)
        with alone:
            changed = transform(images, chosen, (words * 2**31).astype(np.int64))
        return np.clip(keras.ops.convert_to_numpy(changed), 0, 1)

    return change


def rand_augment_of(recipe: TrainingConfig) -> Change | None:
    """Return what a recipe asks for, or None."""
    return rand_augment(recipe.randaugment, recipe.randaugment_strength) if recipe.randaugment else None


def _compiled(layer: Any) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Any]:
    """Return a compiled function of images [B,H,W,3], operations [n,B,1,1,1] and the state of the layer's generator."""

    def transform(images: Any, chosen: Any) -> Any:
        drawn = layer.get_random_transformation(images)
        return layer.transform_images(images, {**drawn, "layer_idxes": chosen})

    state = layer.generator.state
    if keras.backend.backend() == "jax":
        import jax

        @jax.jit
        def on_jax(images: Any, chosen: Any, words: Any) -> Any:
            with keras.StatelessScope(state_mapping=[(state, words.astype(state.dtype))]):
                return transform(images, chosen)

        return on_jax
    import tensorflow as tf

    graph = tf.function(transform, reduce_retracing=True)

    def on_tensorflow(images: np.ndarray, chosen: np.ndarray, words: np.ndarray) -> Any:
        state.assign(words)
        return graph(tf.constant(images), tf.constant(chosen))

    return on_tensorflow

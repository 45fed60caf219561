"""IG matching: the student's attribution of its decision to the pixels is matched to the teacher's."""

from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, cosine_distance
from tfigkd.losses.features import match_resolution, pool_to


def input_gradient_map(model: keras.Model, images: Tensor, labels: Tensor, *, times_input: bool = True) -> Tensor:
    """Return the effect of each pixel on the label's logit: Σ_channels |∂z_y/∂x|, or Σ_channels |x · ∂z_y/∂x|.

    Multiplied by the input it is Integrated Gradients from black with a single step, at the image. It can be
    differentiated with respect to the model's weights; that needs second derivatives, so a training step takes about
    three times as long. The model runs in inference mode: with statistics of the batch, the map of one image would
    depend on the other images.

    On JAX the weights are those of the surrounding `keras.StatelessScope`, if any; inside `jax.grad`, open a scope
    that maps the model's variables to the differentiated arguments.

    Args:
        model: A built model, from images to logits [B,C].
        images: float [B,H,W,C], in the input range of the model.
        labels: Index of the logit, integers [B].
        times_input: Whether to multiply the gradient by the image.

    Returns:
        float32 [B,H,W], non-negative.

    Raises:
        ValueError: The backend is neither TensorFlow nor JAX, or labels are not one integer per example.
    """
    if len(labels.shape) != 1:
        raise ValueError(f"IG matching needs one label per example, integers [B]; got shape {tuple(labels.shape)}")
    gradients = {"tensorflow": _gradients_tensorflow, "jax": _gradients_jax}
    backend = keras.config.backend()
    if backend not in gradients:
        raise ValueError(f"IG matching runs on the Keras backends {' and '.join(gradients)}, not on {backend!r}")
    images = ops.convert_to_tensor(images, dtype="float32")
    gradient = gradients[backend](model, images, labels)
    return ops.sum(ops.abs(gradient * images if times_input else gradient), axis=-1)


def map_distance(teacher_map: Tensor, student_map: Tensor) -> Tensor:
    """Return one minus the cosine of two maps, which ignores their scale (arXiv 2402.03119, with other maps).

    Args:
        teacher_map: [B,H,W].
        student_map: [B,H,W].

    Returns:
        Distance of each example, float32 [B]: in [0, 1] for non-negative maps; 0 if both maps are zero, 1 if only
        one is.
    """
    teacher_map, student_map = (ops.reshape(m, (-1, m.shape[1] * m.shape[2])) for m in (teacher_map, student_map))
    return cosine_distance(teacher_map, student_map)


@keras.saving.register_keras_serializable("tfigkd")
class IGMatching(PerExampleLoss):
    """`map_distance` of the student's input gradients and the teacher's stored IG map, for `tfigkd.Distiller` only.

    Both maps are first averaged over a coarse grid, because the gradient of a ReLU network varies strongly from pixel
    to pixel. `student_map` computes the student's map. The loss makes the explanations of both models similar, as the
    explanation-enhanced distillation of Parchami-Araghi et al. 2024 (arXiv 2402.03119) does; to match Integrated
    Gradients is the idea of AD-KD (Wu et al. 2023, arXiv 2305.10010), here for pixels instead of words. Suggested
    start for ten classes: weight in {0.2, 1, 5}.

    Args:
        times_input: Whether to multiply the gradient by the image, as for maps from the baseline "black". Defaults to
            `True`.
        grid: Rows and columns of the grid, or None to compare pixel by pixel. Defaults to `8`.
    """

    needs_inputs = True

    def __init__(self, times_input: bool = True, grid: int | None = 8):
        if grid is not None and not grid > 0:
            raise ValueError(f"grid must be positive or None, got {grid}")
        self.times_input = times_input
        self.grid = grid

    def student_map(self, student: keras.Model, images: Tensor, labels: Tensor) -> Tensor:
        """Return the student's map, see `input_gradient_map`, float32 [B,H,W]."""
        return input_gradient_map(student, images, labels, times_input=self.times_input)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; the outputs are maps [B,H,W], the teacher's from the store."""
        maps = match_resolution(*(ops.cast(m, "float32")[..., None] for m in (teacher_outputs, student_outputs)))
        if self.grid is not None:
            height, width = (min(self.grid, size) for size in maps[0].shape[1:3])
            maps = pool_to(maps[0], height, width), pool_to(maps[1], height, width)
        return map_distance(maps[0][..., 0], maps[1][..., 0])


def _label_score(logits: Tensor, labels: Tensor) -> Tensor:
    # a product, because not every backend has the second derivative of a look-up
    chosen = ops.one_hot(ops.cast(labels, "int32"), logits.shape[-1], dtype="float32")
    return ops.sum(ops.cast(logits, "float32") * chosen)


def _gradients_tensorflow(model: keras.Model, images: Any, labels: Any) -> Any:
    import tensorflow as tf

    # watching only the input avoids the gradients of the weights; an outer tape still records everything
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        score = _label_score(model(images, training=False), labels)
    return tape.gradient(score, images, unconnected_gradients="zero")


def _gradients_jax(model: keras.Model, images: Any, labels: Any) -> Any:
    import jax

    variables = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
    return jax.grad(lambda x: _label_score(model.stateless_call(*variables, x, training=False)[0], labels))(images)

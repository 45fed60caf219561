"""Explanations as losses: the student's attribution of a decision is matched to the teacher's.

`IGMatching` compares maps over the pixels for the label; `E2KD` maps over the positions of a layer for the teacher's
decision.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor, cosine_distance, flat_labels
from tfigkd.losses.features import map_size, match_resolution, pool_to


def _same(values: Tensor) -> Tensor:
    return values


def input_gradient_map(
    model: keras.Model,
    images: Tensor,
    labels: Tensor,
    *,
    times_input: bool = True,
    take: Callable[[Tensor], Tensor] = _same,
    to_logits: Callable[[Tensor], Tensor] = _same,
    black: float = 0.0,
) -> Tensor:
    """Return the effect of each pixel on the label's logit: Σ_channels |∂z_y/∂x|, or Σ_channels |(x - b) · ∂z_y/∂x|.

    Multiplied by the input, counted from black b, it is Integrated Gradients from black with a single step, at the
    image. It can be differentiated with respect to the model's weights; that needs second derivatives, so a training
    step takes about three times as long. The model runs in inference mode: with statistics of the batch, the map of one
    image would depend on the other images.

    On JAX the weights are those of the surrounding `keras.StatelessScope`, if any; inside `jax.grad`, open a scope
    that maps the model's variables to the differentiated arguments.

    Args:
        model: A built model.
        images: float [B,H,W,C].
        labels: Index of the logit, integers [B].
        times_input: Whether to multiply the gradient by the image.
        take: From images to those that the model takes. Defaults to images in the input range of the model.
        to_logits: From the model's outputs to logits [B,C]. Defaults to outputs that are logits.
        black: The value of a black pixel in the images, such as -1 where they are in [-1,1].

    Returns:
        float32 [B,H,W], non-negative.

    Raises:
        ValueError: The backend is neither TensorFlow nor JAX, or labels are not one integer per example.
    """
    labels = flat_labels(labels)
    if len(labels.shape) != 1:
        raise ValueError(f"IG matching needs one label per example, integers [B]; got shape {tuple(labels.shape)}")
    images = ops.convert_to_tensor(images, dtype="float32")
    if keras.config.backend() == "jax":
        variables = [[v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)]
        forward = lambda x: model.stateless_call(*variables, x, training=False)[0]  # noqa: E731 - one of two
    else:
        forward = lambda x: model(x, training=False)  # noqa: E731
    gradient = _gradients(lambda x: to_logits(forward(take(x))), images, labels)
    if times_input:
        gradient = gradient * (images - black if black else images)
    return ops.sum(ops.abs(gradient), axis=-1)


def grad_cam(head: Callable[[Tensor], Tensor], features: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM of given logits (Selvaraju et al. 2017, arXiv 1610.02391): ReLU(Σ_k mean_hw(∂z_c/∂F_k) · F_k).

    It can be differentiated with respect to the features and to the weights of the head.

    Args:
        head: Function from features to logits [B,C], in inference mode.
        features: [B,H,W,D].
        classes: Index of the logit, integers [B].

    Returns:
        float32 [B,H,W], non-negative.

    Raises:
        ValueError: The backend is neither TensorFlow nor JAX.
    """
    features = ops.cast(features, "float32")
    gradient = _gradients(head, features, classes)
    return ops.relu(ops.sum(ops.mean(gradient, axis=(1, 2), keepdims=True) * features, axis=-1))


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

    compares = "map"

    def __init__(self, times_input: bool = True, grid: int | None = 8):
        if grid is not None and not grid > 0:
            raise ValueError(f"grid must be positive or None, got {grid}")
        self.times_input = times_input
        self.grid = grid

    def student_map(self, student: keras.Model, images: Tensor, labels: Tensor, **spaces: Any) -> Tensor:
        """Return the student's map, float32 [B,H,W].

        Args:
            student: A built model.
            images: float [B,H,W,C].
            labels: Index of the logit, integers [B].
            spaces: `take`, `to_logits` and `black` of `input_gradient_map`.
        """
        return input_gradient_map(student, images, labels, times_input=self.times_input, **spaces)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; the outputs are maps [B,H,W], the teacher's from the store.

        An example whose teacher map is all zero, as one over the completeness gate, has the loss 0.
        """
        maps = match_resolution(*(ops.cast(m, "float32")[..., None] for m in (teacher_outputs, student_outputs)))
        if self.grid is not None:
            height, width = (min(self.grid, size) for size in maps[0].shape[1:3])
            maps = pool_to(maps[0], height, width), pool_to(maps[1], height, width)
        known = ops.cast(ops.any(maps[0] != 0, axis=(1, 2, 3)), "float32")
        return known * map_distance(maps[0][..., 0], maps[1][..., 0])


@keras.saving.register_keras_serializable("tfigkd")
class E2KD(PerExampleLoss):
    """Explanation-enhanced distillation (Parchami-Araghi et al. 2024, arXiv 2402.03119), for `tfigkd.Distiller` only.

    The loss is one minus the cosine of `grad_cam` of student and teacher, both for the class that the teacher predicts,
    at the last features of each network. `IGMatching` differs in the map (the stored Integrated Gradients of the
    pixels), and in the class (the label). The authors resize maps to the image; here the smaller is resized to the
    larger one. Of the paper's explanations, Grad-CAM is the one for ordinary networks (not B-cos). The layers behind
    the tap run once more, in inference mode, and are differentiated twice; a pooling and a dense layer cost next to
    nothing.

    Suggested start for ten classes: weight in {0.2, 1, 5}, beside `kd`; the authors use 0.2 to 10 on ImageNet.

    Args:
        student_layer: Name of the student's tap, features [B,H,W,D]; all of the output passes through it.
        teacher_layer: Name of the teacher's tap.
        shuffled: A control: the teacher's map is that of the image before it in the batch. Defaults to `False`.
    """

    compares = "explanations"

    def __init__(self, student_layer: str, teacher_layer: str, shuffled: bool = False):
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.shuffled = shuffled

    @property
    def needs_whole_batch(self) -> bool:
        """True for the control, which exchanges the maps of a batch."""
        return self.shuffled

    def explain(self, head: Callable[[Tensor], Tensor], features: Tensor, classes: Tensor) -> Tensor:
        """Return the map of one network, see `grad_cam`, float32 [B,H,W].

        Args:
            head: From the features of the tap to the logits [B,C].
            features: The outputs of the tap, [B,H,W,D].
            classes: Classes that are explained, integers [B].
        """
        return grad_cam(head, features, classes)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]; the outputs are maps [B,H,W].

        An example whose teacher map is all zero has the loss 0.
        """
        maps = [ops.cast(one, "float32")[..., None] for one in (teacher_outputs, student_outputs)]
        height, width = (max(sizes) for sizes in zip(*map(map_size, maps), strict=True))
        teacher, student = (pool_to(one, height, width)[..., 0] for one in maps)
        if self.shuffled:
            teacher = ops.roll(teacher, 1, axis=0)
        known = ops.cast(ops.any(teacher != 0, axis=(1, 2)), "float32")
        return known * map_distance(teacher, student)


def _label_score(logits: Tensor, labels: Tensor) -> Tensor:
    # a product, because not every backend has the second derivative of a look-up
    chosen = ops.one_hot(ops.cast(labels, "int32"), logits.shape[-1], dtype="float32")
    return ops.sum(ops.cast(logits, "float32") * chosen)


def _gradients(function: Callable[[Any], Any], inputs: Any, labels: Any) -> Any:
    """Return the gradient of the labels' logits with respect to a function's inputs, [B,...]."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.grad(lambda x: _label_score(function(x), labels))(inputs)
    if backend != "tensorflow":
        raise ValueError(f"explanations as losses run on the Keras backends tensorflow and jax, not on {backend!r}")
    import tensorflow as tf

    # watching only the input avoids the gradients of the weights; an outer tape still records everything
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        score = _label_score(function(inputs), labels)
    return tape.gradient(score, inputs, unconnected_gradients="zero")

"""Losses on feature maps: matching of resolutions, and the hint with a projector."""

from collections.abc import Sequence

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor


def pool_to(features: Tensor, height: int, width: int) -> Tensor:
    """Resize features: by averaging if the new size divides the old one, else bilinearly.

    Args:
        features: [B,H,W,D] with known H and W.
        height: Height of the result.
        width: Width of the result.

    Returns:
        [B,height,width,D].

    Raises:
        ValueError: The features are not maps, or their size is unknown.
    """
    (rows, columns), channels = map_size(features), features.shape[-1]
    if (rows, columns) == (height, width):
        return features
    if rows % height or columns % width:
        return ops.image.resize(features, (height, width), interpolation="bilinear", data_format="channels_last")
    blocks = ops.reshape(features, (-1, height, rows // height, width, columns // width, channels))
    return ops.mean(blocks, axis=(2, 4))


def match_resolution(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Resize both feature maps to the smaller height and the smaller width of the two; see `pool_to`."""
    height, width = (min(sizes) for sizes in zip(map_size(left), map_size(right), strict=True))
    return pool_to(left, height, width), pool_to(right, height, width)


def hint_distance(teacher_features: Tensor, projected: Tensor) -> Tensor:
    """Return the mean squared difference of features and projected features.

    This is equation 3 of Romero et al. 2015 (arXiv 1412.6550), with the mean instead of half the sum.

    Args:
        teacher_features: [B,...].
        projected: The student's features after the projector, of the same shape.

    Returns:
        Loss of each example, [B].
    """
    difference = ops.cast(teacher_features, "float32") - ops.cast(projected, "float32")
    return ops.mean(ops.square(difference), axis=tuple(range(1, len(difference.shape))))


@keras.saving.register_keras_serializable("tfigkd")
class Hint(PerExampleLoss):
    """`hint_distance` behind a linear projector from the student's channels to the teacher's.

    The projector is `extra_layer`, a 1x1 convolution for maps and a dense layer for vectors; it is None until `build`
    is called with the shapes. It belongs to the loss and not to the student: the training code must add
    `extra_layer.trainable_variables` to the student's variables, and a saved or exported student never contains it. In
    Keras's own Distiller, call `build` and then assign `distiller.extra_layer = loss.extra_layer`, so that the
    projector is tracked and trained.

    Maps of different resolution are resized to the smaller one. Suggested start: weight 100, the published value for
    100 classes; no value for ten classes is known. The loss grows with the square of the teacher's activations.

    Args:
        student_layer: Name of the student's tap, features [B,H,W,D] or [B,D].
        teacher_layer: Name of the teacher's tap, features of the same rank.
    """

    def __init__(self, student_layer: str, teacher_layer: str):
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create the projector; a second call with the same channels changes nothing.

        Args:
            teacher_shapes: The shape of the teacher's features with the batch axis: [(None, H, W, D)] or [(None, D)].
            student_shapes: That of the student's features, of the same rank.

        Raises:
            ValueError: They are not one shape each, not both of maps or both of vectors, or the channels differ from
                those of an earlier call.
        """
        if not len(teacher_shapes) == len(student_shapes) == 1:
            raise ValueError(
                "a hint has one tap of each network: build([teacher_shape], [student_shape]), got "
                f"{teacher_shapes} and {student_shapes}"
            )
        (teacher_shape,), (student_shape,) = teacher_shapes, student_shapes
        rank, channels, units = len(student_shape), student_shape[-1], teacher_shape[-1]
        if rank not in (2, 4) or len(teacher_shape) != rank or channels is None or units is None:
            raise ValueError(
                "a hint needs features [B,H,W,D] of both teacher and student, or [B,D] of both, with known D; "
                f"got {tuple(teacher_shape)} and {tuple(student_shape)}"
            )
        if self.extra_layer is None:
            # float32 under any precision policy, like all computations of a loss
            options = {"dtype": "float32", "name": f"{str(self.student_layer).replace('/', '_')}_projector"}
            self.extra_layer = (
                keras.layers.Conv2D(units, 1, data_format="channels_last", **options)
                if rank == 4
                else keras.layers.Dense(units, **options)
            )
            self.extra_layer.build((None,) * (rank - 1) + (channels,))
        kernel = self.extra_layer.kernel.shape
        if (len(kernel), *kernel[-2:]) != (rank, channels, units):
            raise ValueError(
                f"the projector was built for {kernel[-2]} to {kernel[-1]} channels, but {channels} to {units} are "
                "needed now; use a new Hint"
            )

    def validate_model_compatibility(self, teacher: keras.Model, student: keras.Model) -> None:
        """Check that Keras's own Distiller can use the loss; that Distiller calls this method.

        Raises:
            ValueError: A tap is unknown, or the projector is not built, so that it would never be trained.
        """
        super().validate_model_compatibility(teacher, student)
        if self.extra_layer is None:
            raise ValueError(
                "keras.distillation.Distiller does not train a Hint's projector by itself: call "
                "hint.build([teacher_shape], [student_shape]) first, and set distiller.extra_layer = hint.extra_layer "
                "after"
            )

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B].

        Raises:
            ValueError: The projector is not built.
        """
        if self.extra_layer is None:
            raise ValueError("the projector is not built; call Hint.build([teacher_shape], [student_shape]) first")
        if len(student_outputs.shape) == 4:
            teacher_outputs, student_outputs = match_resolution(teacher_outputs, student_outputs)
        return hint_distance(teacher_outputs, self.extra_layer(ops.cast(student_outputs, "float32")))


def map_size(features: Tensor) -> tuple[int, int]:
    """Return height and width of feature maps [B,H,W,D].

    Raises:
        ValueError: They are not maps, or their size is unknown.
    """
    if len(features.shape) != 4 or None in features.shape[1:3]:
        raise ValueError(f"expected feature maps [B,H,W,D] of known height and width, got {tuple(features.shape)}")
    return features.shape[1], features.shape[2]

"""The tensors of over-parameterized kernels, the student's against the teacher's."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import Loss, Tensor


def tensor_distance(teacher: Sequence[Sequence[Tensor]], student: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the mean over layers of the sum over tensors of their mean squared difference, a scalar.

    Args:
        teacher: For each layer its tensors, such as those of `models.chain.decompose`: [i·j, d], [d, d], …, [d, i'·j'].
        student: As many of the same shapes.
    """
    layers: list[Tensor] = [
        sum(ops.mean(ops.square(ops.convert_to_tensor(ours) - theirs)) for theirs, ours in zip(*pair, strict=True))
        for pair in zip(teacher, student, strict=True)
    ]
    return sum(layers) / len(layers)


@keras.saving.register_keras_serializable("tfigkd")
class OPDF(Loss):
    """The tensor loss of Zhan et al. 2024 (arXiv 2411.06448), for `tfigkd.Distiller` only.

    Student and teacher are compared by the tensors that their kernels consist of, all but the central one; see
    `tfigkd.models.chain`. The student is one of `models.with_chain`; of the teacher only the weights are looked at. The
    same kernel has other tensors too, T·G and G⁻¹·T', so that the loss is no function of the two networks: it holds the
    student's chain near the form in which the teacher's kernel is decomposed.

    Args:
        permuted: A control: each layer is compared with another of the teacher's. Defaults to `False`.
    """

    compares = "weights"

    def __init__(self, permuted: bool = False):
        self.permuted = permuted

    def compute_loss(
        self, teacher_outputs: Sequence[Sequence[Tensor]], student_outputs: Sequence[Sequence[Tensor]], **kwargs: Any
    ) -> Tensor:
        """Return the `tensor_distance`, a scalar; in the place of outputs are the tensors of each layer."""
        return tensor_distance(teacher_outputs, student_outputs)

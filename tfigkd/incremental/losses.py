"""Losses of class-incremental training: what the old network knows is kept, and a new front classifies by itself.

They are made by `foster.py` and are no terms of an experiment: their classes and taps change from step to
step.
"""

from collections.abc import Sequence

import keras
from keras import ops

from tfigkd.losses.base import PerExampleLoss, Tensor
from tfigkd.losses.logits import cross_entropy, kl_divergence

HEAD = "joint_logits"
"""Name of the layers that make logits beside the network's own; Muon leaves layers of this name to AdamW."""


@keras.saving.register_keras_serializable("tfigkd")
class KnownKL(PerExampleLoss):
    """KL divergence of the softened probabilities of the classes that the teacher knows, the first ones.

    As in FOSTER (Wang et al. 2022, arXiv 2204.04662) it is not multiplied by the square of the temperature.

    Args:
        known: Number of classes that count.
        student_layer: Name of the layer that makes the student's logits; "logits" are those that it gives.
        temperature: T > 0, for both.
    """

    teacher_layer = "logits"

    def __init__(self, known: int, student_layer: str = "logits", temperature: float = 2.0):
        self.known, self.student_layer, self.temperature = known, student_layer, temperature

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor) -> Tensor:
        """Return the loss of each example, [B]."""
        sides = teacher_outputs[:, : self.known], student_outputs[:, : self.known]
        return kl_divergence(*sides, temperature=self.temperature) / self.temperature**2


@keras.saving.register_keras_serializable("tfigkd")
class AuxiliaryClassifier(PerExampleLoss):
    """Cross-entropy of a classifier of its own on features of the student, so that these are of use by themselves.

    The classifier is `extra_layer`, a dense layer, which is trained with the student and is no part of it. The
    teacher's side is not used.

    Args:
        classes: Number of classes.
        student_layer: Name of the student's tap, features [B,D].
        teacher_layer: Name of any layer of the teacher.
    """

    takes_labels = True

    def __init__(self, classes: int, student_layer: str, teacher_layer: str):
        self.classes, self.student_layer, self.teacher_layer = classes, student_layer, teacher_layer

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create the classifier, unless it is there.

        Args:
            teacher_shapes: Not used.
            student_shapes: The shape of the features, [(None, D)].
        """
        if self.extra_layer is None:
            (student_shape,) = student_shapes
            self.extra_layer = keras.layers.Dense(self.classes, dtype="float32", name=HEAD)
            self.extra_layer.build(student_shape)

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of each example, [B].

        Args:
            teacher_outputs: Not used.
            student_outputs: Features [B,D].
            labels: Integers [B].

        Raises:
            ValueError: There are no labels, or the classifier is not built.
        """
        if labels is None:
            raise ValueError("AuxiliaryClassifier needs labels, integers [B], as its third argument; got none")
        if self.extra_layer is None:
            raise ValueError("the classifier is not built; call build([], [student_shape]) first")
        return cross_entropy(labels, self.extra_layer(ops.cast(student_outputs, "float32")))

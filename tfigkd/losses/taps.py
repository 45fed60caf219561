"""Losses of the features at several taps: checks of taps and shapes, and a layer that is trained with the student."""

from collections.abc import Sequence
from typing import Any

from tfigkd.losses.base import PerExampleLoss


def paired_taps(
    name: str, student_layer: Sequence[str], teacher_layer: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the taps of both networks.

    Args:
        name: Of the loss, for the error.
        student_layer: Names of the student's taps.
        teacher_layer: Names of the teacher's taps.

    Raises:
        ValueError: They are not two or more, or not as many of both.
    """
    if isinstance(student_layer, str) or isinstance(teacher_layer, str) or len(student_layer) < 2:
        raise ValueError(f"{name} needs two or more taps of each network, got {student_layer!r} and {teacher_layer!r}")
    if len(student_layer) != len(teacher_layer):
        raise ValueError(f"{name} needs as many taps of both networks, got {student_layer!r} and {teacher_layer!r}")
    return tuple(student_layer), tuple(teacher_layer)


def check_maps(name: str, *shapes: Sequence[tuple]) -> None:
    """Check that features are maps of known size and channels.

    Args:
        name: Of the loss, for the error.
        shapes: Shapes of a network's features, with the batch axis.

    Raises:
        ValueError: One of them is not (None, H, W, D).
    """
    for shape in (one for each in shapes for one in each):
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(f"{name} needs features [B,H,W,D] of known size at each tap, got {tuple(shape)}")


class TapsLoss(PerExampleLoss):
    """A loss of the features at several taps, with an `extra_layer` that is trained with the student."""

    def build(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> None:
        """Create `extra_layer` by `make_layer`; a second call with the same channels changes nothing.

        Args:
            teacher_shapes: Shapes (None, H, W, D) of the teacher's features.
            student_shapes: The same of the student's.

        Raises:
            ValueError: The features are not maps that the loss takes, or the channels differ from those of an earlier
                call.
        """
        name = type(self).__name__
        check_maps(name.lower(), teacher_shapes, student_shapes)
        channels = self.channels(teacher_shapes, student_shapes)
        if self.extra_layer is None:
            self.extra_layer = self.make_layer(channels)
        if self.extra_layer is not None and self.extra_layer.channels != channels:
            raise ValueError(f"this {name} was built for channels {self.extra_layer.channels}, got {channels}")

    def channels(self, teacher_shapes: Sequence[tuple], student_shapes: Sequence[tuple]) -> Any:
        """Return the channels that the layer is made for: of the student and of the teacher, a pair for each tap."""
        return [(student[-1], teacher[-1]) for student, teacher in zip(student_shapes, teacher_shapes, strict=True)]

    def make_layer(self, channels: Any) -> Any:
        """Return the layer, with these as its attribute `channels`; None for a loss without one."""
        return None

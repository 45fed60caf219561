"""A network with the outputs that its losses compare: logits, outputs and taps, in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.data.spaces import UNIT, Range
from tfigkd.losses import Loss
from tfigkd.losses.base import LOGITS, Tensor
from tfigkd.models.adapt import logits_of
from tfigkd.models.chain import taught_tensors
from tfigkd.models.input_range import infer_input_range
from tfigkd.models.taps import head_behind, tap_outputs

OUTPUTS = "/outputs"
"""What a network itself gives, logits or probabilities; no layer can have this name."""
TEACHER, STUDENT = 0, 1
"""The sides of a loss, in the order of what it compares."""


def check_model(role: str, model: Any) -> None:
    """Check that a teacher or student is a Keras model with one output [B,C].

    Args:
        role: "teacher" or "student", for the message.
        model: What was given for it.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(model, keras.Model):
        several = "several teachers become one with tfigkd.models.ensemble" if isinstance(model, list | tuple) else None
        remedy = several or "keras.saving.load_model opens a file"
        raise ValueError(f"the {role} must be a Keras model, got {type(model).__name__}; {remedy}")
    output = getattr(model, "output", None) if getattr(model, "outputs", None) else None
    if isinstance(output, dict) or (isinstance(output, list | tuple) and len(output) > 1):
        raise ValueError(
            f"the {role} {model.name!r} has {len(model.outputs)} outputs in a {type(output).__name__}, expected "
            "only the logits; make keras.Model(model.input, model.outputs[0])"
        )
    shapes = [tuple(one.shape) for one in getattr(model, "outputs", None) or ()]
    if shapes and len(shapes[0]) != 2:
        raise ValueError(
            f"the {role} {model.name!r} gives outputs {shapes[0]}, expected logits [B,C]; add a Flatten layer"
        )


def check_unshared(teacher: keras.Model, student: keras.Model) -> None:
    """Check that no weight that trains in the student is one of the teacher's.

    Raises:
        ValueError: One is.
    """
    theirs = {id(variable) for variable in teacher.variables}
    shared = [one.path for one in student.trainable_variables if id(one) in theirs]
    if shared:
        raise ValueError(
            f"teacher and student share the weights {shared[0]}, so training would change the teacher; give "
            "the student a copy: keras.models.clone_model and set_weights"
        )


def number_of_classes(model: keras.Model) -> int | None:
    """Return the number of a model's classes, two for one output; None where a subclassed model does not tell."""
    try:
        return max(int(model.output_shape[-1]), 2)
    except AttributeError:
        return None


def loss_taps(loss: Loss) -> tuple[Any, Any]:
    """Return where a loss looks at the teacher and at the student; the logits are a tap like any other."""
    return loss.teacher_layer or LOGITS, loss.student_layer or LOGITS


def flat(taps: Any) -> list[str]:
    """Return one tap or several as a list."""
    return [taps] if isinstance(taps, str) else list(taps)


def outputs_at(outputs: Mapping[str, Any], taps: Any) -> Any:
    """Return the output of one tap, or the outputs of several."""
    return outputs[taps] if isinstance(taps, str) else [outputs[tap] for tap in taps]


def all_taps(losses: Mapping[str, Loss], side: int) -> list[str]:
    """Return all layers that the losses look at, on the teacher's side or the student's."""
    return sorted({tap for loss in losses.values() for tap in flat(loss_taps(loss)[side])} - {LOGITS})


def shapes_at(model: keras.Model, taps: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """Return the shape at each tap, with the batch."""
    outputs = tap_outputs(model, taps).outputs[1:] if taps else []
    return {tap: tuple(output.shape) for tap, output in zip(taps, outputs, strict=True)}


def takes_integers(model: keras.Model) -> bool:
    """Return whether the input of a model is declared as integers, such as uint8."""
    inputs = getattr(model, "inputs", None) or []
    return any("int" in keras.backend.standardize_dtype(one.dtype) for one in inputs[:1])


def _as_it_is(images: Tensor) -> Tensor:
    return images


def input_converter(model: keras.Model, input_range: Range | None) -> Callable[[Tensor], Tensor]:
    """Return a function from the images of a batch to those that a model takes.

    Raises:
        ValueError: the model shows that it takes other values than [0,1], and what the batches hold is not said.
    """
    shown = infer_input_range(model)
    if input_range is None and shown not in (None, UNIT):
        raise ValueError(
            f"{model.name} takes pixels from {shown[0]:g} to {shown[1]:g}; say which values the batches hold, "
            f"input_range=(0, 1) or input_range=({shown[0]:g}, {shown[1]:g})"
        )
    if input_range is None or shown is None or shown == tuple(input_range):
        return _as_it_is
    scale = (shown[1] - shown[0]) / (input_range[1] - input_range[0])
    offset = shown[0] - scale * input_range[0]
    if not takes_integers(model):
        return lambda images: ops.cast(images, "float32") * scale + offset
    # Keras casts to the integers of the input, which rounds down
    return lambda images: ops.round(ops.cast(images, "float32") * scale + offset)


def built_extra_layers(
    losses: Mapping[str, Loss], student: keras.Model, teacher_shapes: Mapping[str, tuple[int | None, ...]]
) -> list[keras.Layer]:
    """Build the losses and return their extra layers, which a Distiller trains and which are no part of the student.

    Args:
        losses: Name to loss.
        student: The model that is trained.
        teacher_shapes: Tap to shape of the teacher's features, with the batch.

    Raises:
        ValueError: A shape of the teacher is not known, or a loss has the layers that another Distiller trains.
    """
    of_logits = {LOGITS: (None, number_of_classes(student))}
    known = of_logits | dict(teacher_shapes)
    for name, loss in losses.items():
        if loss.owned:
            raise ValueError(
                f"loss {name!r} has layers that an earlier Distiller made and trains; give each Distiller its own "
                f"loss: {type(loss).__name__}.from_config(loss.get_config())"
            )
        if type(loss).build is Loss.build:  # without such a layer a loss does not need to know shapes
            continue
        teacher_taps, student_taps = map(flat, loss_taps(loss))
        for tap in teacher_taps:
            if tap not in known:
                raise ValueError(f"loss {name!r} needs teacher=, or teacher_shapes={{{tap!r}: shape}}")
        shapes = of_logits | shapes_at(student, [tap for tap in student_taps if tap != LOGITS])
        loss.build([known[tap] for tap in teacher_taps], [shapes[tap] for tap in student_taps])
    built = [loss for loss in losses.values() if loss.extra_layer is not None]
    for loss in built:
        loss.owned = True
    return [loss.extra_layer for loss in built]


class TappedNetwork:
    """A network that returns, in one forward pass, every output its losses compare.

    It is a plain object: Keras tracks, saves and trains every model that is assigned to an attribute of a model.

    Args:
        model: Of any range of pixels and any outputs; see `Distiller`.
        losses: Name to loss.
        side: `TEACHER` or `STUDENT`.
        input_range: The values of a black and of a white pixel in the batches.

    Attributes:
        model: The network.
        take: From the images of a batch to those that it takes.
        to_logits: From its outputs to logits [B,C].
        black: The value of a black pixel in the batches.
        heads: Name of each loss that needs it to a function from its tap's features to the logits.
    """

    def __init__(self, model: keras.Model, losses: Mapping[str, Loss], side: int, input_range: Range | None):
        self.model = model
        self._refuses_integers = input_range is None and not takes_integers(model)
        self.take, self.to_logits = input_converter(model, input_range), logits_of(model)
        self.black = UNIT[0] if input_range is None else input_range[0]
        for name, loss in losses.items():
            if side == STUDENT and loss.compares == "map" and takes_integers(model):
                raise ValueError(
                    f"loss {name!r} needs the gradient with respect to the images, and the student {model.name} takes "
                    "integers; build it with a float input, or give tfigkd.models.as_classifier(student)"
                )
        self._taps = all_taps(losses, side)
        self._tapped = tap_outputs(model, self._taps) if self._taps else None
        needing = {name: loss_taps(loss)[side] for name, loss in losses.items() if loss.compares == "explanations"}
        self.heads = {name: self._behind(tap) for name, tap in needing.items()}

    def __call__(self, inputs: Tensor, *, training: bool) -> dict[str, Tensor]:
        """Return the logits, the outputs, and the features of each tap by its name, in one forward pass."""
        if self._refuses_integers and "int" in (dtype := keras.backend.standardize_dtype(inputs.dtype)):
            raise ValueError(
                f"{self.model.name} takes floats in [0,1], the batches hold images of {dtype}; divide them by 255, or "
                "say which values they hold, input_range=(0, 255)"
            )
        images, features = self.take(inputs), []
        if self._tapped is None:
            outputs = self.model(images, training=training)
        else:
            outputs, *features = self._tapped(images, training=training)
        return {LOGITS: self.to_logits(outputs), OUTPUTS: outputs, **dict(zip(self._taps, features, strict=True))}

    def standalone(self) -> keras.Model:
        """Return a model from the images of a batch to the network's outputs; its weights are shared."""
        if self.take is _as_it_is:
            return self.model
        shown = self.model.inputs[0]
        images = keras.Input(batch_shape=shown.shape, dtype="float32", name=shown.name)
        return keras.Model(images, self.model(self.take(images), training=False), name=self.model.name)

    def _behind(self, tap: str) -> Callable[[Tensor], Tensor]:
        head = head_behind(self.model, tap)
        return lambda features: self.to_logits(head(features, training=False))


class TappedTensors:
    """The tensors of decomposed kernels that a loss compares, of student and teacher.

    It is a plain object, as `TappedNetwork`.

    Args:
        student: From `models.with_chain`.
        teacher: The teacher.
        permuted: See `taught_tensors`.

    Raises:
        ValueError: There is nothing to compare.
    """

    def __init__(self, student: keras.Model, teacher: keras.Model, permuted: bool):
        pairs = taught_tensors(student, teacher, permuted=permuted)
        self._layers = [layer for layer, _ in pairs]
        self._taught = [[ops.convert_to_tensor(one) for one in taught] for _, taught in pairs]

    def __call__(self) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the tensors of each layer, the teacher's first."""
        return self._taught, [layer.auxiliary for layer in self._layers]

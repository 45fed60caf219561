"""Labels of a batch, and the hard-label loss that `compile(loss=...)` asks for."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import Tensor, flat_labels


def weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the sum of weighted values [B] divided by B, as Keras does; None stands for weights of one."""
    if sample_weight is not None:
        values = values * ops.cast(ops.reshape(sample_weight, (-1,)), values.dtype)
    return ops.mean(values)


def given_loss(loss: Any, labels: Tensor, outputs: Tensor, logits: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the hard-label loss that `compile(loss=...)` asks for, the mean over the batch.

    A loss that is given as an object or function takes the student's own outputs, as in plain Keras, and so does one
    that is given by its name, but for cross-entropies: they take logits, from which they are computed more exactly.
    Binary ones take the logits of one output, and of several only where these are what the student gives.

    Args:
        loss: A Keras loss, whose own reduction and masks apply; a function of (labels, outputs) to one value per
            example; or the name of a Keras loss.
        labels: Integers [B], or probabilities [B,C].
        outputs: The student's own [B,K]; K is 1 or the number of classes C.
        logits: Those of its classes [B,C]; the very `outputs` where it gives logits.
        sample_weight: [B], or None.

    Raises:
        ValueError: There is no loss of that name.
    """
    seen, from_logits = _seen_by_loss(loss, outputs, logits)
    labels = labels_like(labels, seen)
    if isinstance(loss, keras.losses.Loss):
        return ops.mean(loss(labels, seen, sample_weight=sample_weight))  # a scalar, but for no reduction
    function = _by_name(loss) if isinstance(loss, str) else loss
    values = function(labels, seen, **({"from_logits": True} if from_logits else {}))
    if len(values.shape) > 1:
        values = ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=1)
    return weighted_mean(values, sample_weight) if len(values.shape) else values


def _seen_by_loss(loss: Any, outputs: Tensor, logits: Tensor) -> tuple[Tensor, bool]:
    """Return what a loss of `compile` takes, and whether it has to be told that these are logits."""
    if not isinstance(loss, str) or "from_logits" not in inspect.signature(_by_name(loss)).parameters:
        return outputs, False
    if outputs.shape[-1] == 1:
        return logits[:, 1:] - logits[:, :1], True
    gives_probabilities = outputs is not logits
    if gives_probabilities and _by_name(loss).__name__.startswith("binary_"):
        return outputs, False
    return logits, True


def _by_name(name: str) -> Callable[..., Tensor]:
    """Return the function of a Keras loss, by its name or that of its class."""
    found = keras.losses.get(name)
    return getattr(found, "fn", found)


def single_loss(loss: Any) -> Any:
    """Return the loss that `compile` was given, taken out of a list or dictionary of one.

    Raises:
        ValueError: They are several.
    """
    if not isinstance(loss, list | tuple | dict):
        return loss
    members = list(loss.values()) if isinstance(loss, dict) else list(loss)
    if len(members) != 1:
        raise ValueError(f"a student has one output and takes one loss, got {len(members)}; give a single loss")
    return members[0]


def labels_of(targets: Any) -> Tensor:
    """Return the labels of a batch: classes [B], or probabilities [B,C].

    Raises:
        ValueError: There are none.
    """
    labels = targets.get("label") if isinstance(targets, Mapping) else targets
    if labels is None:
        raise ValueError("the batches hold no labels; give y, or targets with 'label'")
    return flat_labels(labels)


def labels_like(labels: Tensor, outputs: Tensor) -> Tensor:
    """Return labels of two classes as one output [B,1] is compared with: [B,1]; labels of more outputs as they are."""
    if len(outputs.shape) != 2 or outputs.shape[-1] != 1:
        return labels
    return labels[:, None] if len(labels.shape) == 1 else labels[:, -1:]


def label_array(targets: Any) -> Any:
    """Return the labels of targets that are arrays."""
    return targets.get("label") if isinstance(targets, Mapping) else targets

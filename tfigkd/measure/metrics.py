"""Metrics of one model on one split, as (name, value) pairs, the same for teacher, student and LiteRT files."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from tfigkd.data import Examples, to_model_input
from tfigkd.data.disk import Pictures, blocks
from tfigkd.data.spaces import require_finite_outputs
from tfigkd.losses.base import flat_labels
from tfigkd.models.cost import UNCOMPILED
from tfigkd.runtime.errors import UserError

Predict = Callable[[Pictures], np.ndarray]

MANY_CLASSES = 10
"""With more classes than these, being among the five most likely says something."""


def predict_logits(model: keras.Model, images: Pictures, *, batch_size: int = 256) -> np.ndarray:
    """Return the logits float32 [N,C] of images, in inference mode.

    Args:
        model: float32 [B,H,W,3] in [0,1] to logits [B,C].
        images: uint8 [N,H,W,3].
        batch_size: Images of a forward pass.
    """
    if len(images) <= batch_size and math.prod(images.shape[:3]) <= UNCOMPILED:  # not worth a compilation
        return keras.ops.convert_to_numpy(model(to_model_input(images[:]), training=False))
    batch_size = min(batch_size, len(images))
    logits = []
    for chunk in blocks(images, batch_size):  # the last one is filled up, so that one function is compiled
        padded = np.concatenate([chunk, np.repeat(images[:1], batch_size - len(chunk), axis=0)])
        logits.append(model.predict_on_batch(to_model_input(padded)))
    return np.concatenate(logits)[: len(images)]


def measure(
    predict: Predict, examples: Examples, reference: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Measure a function from uint8 images [N,H,W,3] to logits [N,C].

    Args:
        predict: A Keras model as `functools.partial(predict_logits, model)`, a LiteRT file as `litert_predictor(path)`.
        examples: The examples to predict.
        reference: Logits [N,C] of a model to compare with, such as the teacher; None for no comparison.

    Returns:
        The metrics by name, and the logits [N,C].

    Raises:
        UserError: A label is none of the C classes.
    """
    logits = predict(examples.images)
    check_labels(examples.labels, logits.shape[1])
    require_finite_outputs(logits, "the model")
    values = dict(metrics(logits, examples.labels))
    if reference is not None:
        values |= dict(comparison(logits, reference))
    return values, logits


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Check that each label [N] is the index of one of the logits.

    Raises:
        UserError: A label is negative or not below `classes`.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(
            f"label {wrong[0]} belongs to none of the model's {classes} classes; expected labels 0 to {classes - 1}; "
            "give the data that it was trained on"
        )


def _labels_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return labels [N] or [N,1] as [N], one for each row of logits [N,C].

    Raises:
        ValueError: They are not.
    """
    flat: np.ndarray = flat_labels(np.asarray(labels))
    if flat.shape != (len(logits),):
        raise ValueError(f"labels must be integers [N] or [N,1] for logits {logits.shape}, got shape {flat.shape}")
    return flat


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of examples whose largest logit is that of the label.

    Args:
        logits: [N,C].
        labels: int [N] or [N,1].

    Raises:
        ValueError: There is not one label for each example.
    """
    return float(np.mean(logits.argmax(axis=1) == _labels_of(logits, labels)))


def mirrored_accuracy(predict: Predict, images: Pictures, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of the mean of the logits of each image and of its mirror image.

    This averaging at test time costs a second forward pass. It is a figure of its own, beside the accuracy.

    Args:
        predict: From uint8 images [N,H,W,3] to logits [N,C].
        images: uint8 [N,H,W,3].
        logits: What `predict` gave for them.
        labels: int [N] or [N,1].
    """
    mirrored = [predict(np.ascontiguousarray(block[:, :, ::-1])) for block in blocks(images)]
    return accuracy(logits + np.concatenate(mirrored), labels)


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall of the classes that occur; a constant prediction has 1 / number of these classes.

    Args:
        logits: [N,C].
        labels: int [N].
    """
    from sklearn.metrics import recall_score

    # equals balanced_accuracy_score, without its warning about predicted classes that do not occur
    return float(recall_score(labels, logits.argmax(axis=1), labels=np.unique(labels), average="macro"))


def _kappa(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return Cohen's kappa of classes [N]; scikit-learn's needs several matrices of all pairs of classes."""
    right, counts = float(np.mean(labels == predicted)), [np.bincount(one) / len(labels) for one in (labels, predicted)]
    common = min(map(len, counts))
    expected = float(counts[0][:common] @ counts[1][:common])
    return 0.0 if expected == 1 else (right - expected) / (1 - expected)


def metrics(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yield the metrics of logits [N,C] for labels [N] or [N,1], by name.

    `accuracy`; with more than 10 classes `top5_accuracy`, the share of labels among the five largest logits;
    `balanced_accuracy`, the mean recall of the classes that occur; `kappa`, Cohen's kappa, 0 if labels and predictions
    are all of one class; `nll`, the negative log-likelihood in nats; `ece`, see `calibration_error`.

    Raises:
        ValueError: There is not one label for each example.
        UserError: A label is none of the C classes.
    """
    # imported here, because training does not need scikit-learn
    from sklearn.metrics import top_k_accuracy_score

    labels = _labels_of(logits, labels)
    check_labels(labels, logits.shape[1])
    predicted = logits.argmax(axis=1)
    yield "accuracy", accuracy(logits, labels)
    if logits.shape[1] > MANY_CLASSES:
        every = np.arange(logits.shape[1])
        yield "top5_accuracy", float(top_k_accuracy_score(labels, logits, k=5, labels=every))
    yield "balanced_accuracy", balanced_accuracy(logits, labels)
    yield "kappa", _kappa(labels, predicted)
    yield "nll", float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())
    yield "ece", calibration_error(logits, labels)


def calibration_error(logits: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Return the expected calibration error, the gap of confidence and accuracy (Guo et al. 2017, arXiv 1706.04599).

    Examples are grouped by the probability of their top class into bins of equal width, open below and closed above;
    the result is the mean over the bins of |accuracy - mean confidence|, weighted by the number of examples.

    Args:
        logits: [N,C].
        labels: int [N] or [N,1].
        bins: Number of bins.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: There is not one label for each example.
    """
    labels = _labels_of(logits, labels)
    confidence = np.exp(log_softmax(logits.astype(np.float64), axis=1).max(axis=1))
    correct = logits.argmax(axis=1) == labels
    chosen = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(chosen, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def per_class(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> list[dict[str, float | None]]:
    """Return the number of examples, recall and precision of each class, in the order of the labels.

    Args:
        logits: [N,C].
        labels: int [N] or [N,1].
        num_classes: C; classes that do not occur are listed as well.

    Returns:
        One mapping per class. Recall is None for a class without examples, precision for a class never predicted.

    Raises:
        ValueError: There is not one label for each example.
    """
    labels = _labels_of(logits, labels)
    predicted = logits.argmax(axis=1)
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    occurs = np.bincount(labels, minlength=num_classes)
    named = np.bincount(predicted, minlength=num_classes)
    return [
        {
            "examples": int(occurs[index]),
            "recall": float(hits[index] / occurs[index]) if occurs[index] else None,
            "precision": float(hits[index] / named[index]) if named[index] else None,
        }
        for index in range(num_classes)
    ]


def comparison(logits: np.ndarray, reference: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yield how far the logits [N,C] of a model are from those of a reference, by name.

    `agreement`, the share of equal top-1 classes; `kl`, KL(reference ‖ model) in nats; `max_difference` and
    `mean_difference` of the logits.
    """
    yield "agreement", float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)))
    expected, actual = (log_softmax(each.astype(np.float64), axis=1) for each in (reference, logits))
    yield "kl", float((np.exp(expected) * (expected - actual)).sum(axis=1).mean())
    difference = np.abs(logits.astype(np.float64) - reference)
    yield "max_difference", float(difference.max())
    yield "mean_difference", float(difference.mean())


def disagreement(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Count where a model and a reference predict different classes.

    Args:
        logits: Logits of the model, [N,C].
        reference: Logits of the reference, [N,C].
        labels: int [N] or [N,1].

    Returns:
        Numbers of examples: `both_right`; right only by `only_reference` or `only_model`; both wrong with the same
        class (`both_wrong_alike`) or with two classes (`both_wrong_apart`). And `pairs`, lists of the reference's
        class, the model's class and the number of such examples, most frequent first.

    Raises:
        ValueError: There is not one label for each example.
    """
    labels = _labels_of(logits, labels)
    own, other = logits.argmax(axis=1), reference.argmax(axis=1)
    right, known, same = own == labels, other == labels, own == other
    counts = {
        "both_right": right & known,
        "only_reference": known & ~right,
        "only_model": right & ~known,
        "both_wrong_alike": ~right & ~known & same,
        "both_wrong_apart": ~right & ~known & ~same,
    }
    apart, times = np.unique(np.stack([other, own], axis=1)[~same], axis=0, return_counts=True)
    pairs = [[int(first), int(second), int(n)] for (first, second), n in zip(apart, times, strict=True)]
    pairs.sort(key=lambda pair: (-pair[2], pair[:2]))
    return {name: int(value.sum()) for name, value in counts.items()} | {"pairs": pairs}

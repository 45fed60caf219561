"""Metrics of one model on one split, as (name, value) pairs; teacher, student and LiteRT files by the same code."""

from collections.abc import Callable, Iterator

import keras
import numpy as np

from tfigkd.data import to_model_input

Predict = Callable[[np.ndarray], np.ndarray]


def predict_logits(model: keras.Model, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Logits float32 [N,C] of uint8 images [N,H,W,3], in inference mode."""
    chunks = range(0, len(images), batch_size)
    if len(images) <= batch_size:  # one small batch is not worth a compilation
        return keras.ops.convert_to_numpy(model(to_model_input(images), training=False))
    padded = np.concatenate([images, np.repeat(images[:1], -len(images) % batch_size, axis=0)])
    logits = [model.predict_on_batch(to_model_input(padded[start : start + batch_size])) for start in chunks]
    return np.concatenate(logits)[: len(images)]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [N,C] in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def metrics(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, float]]:
    """Accuracy, and negative log-likelihood in nats."""
    yield "accuracy", accuracy(logits, labels)
    yield "nll", float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def comparison(logits: np.ndarray, reference: np.ndarray) -> Iterator[tuple[str, float]]:
    """How far a model is from a reference: share of equal top-1 classes, KL(reference ‖ model) in nats, differences."""
    yield "agreement", float(np.mean(logits.argmax(axis=1) == reference.argmax(axis=1)))
    expected, actual = log_softmax(reference), log_softmax(logits)
    yield "kl", float((np.exp(expected) * (expected - actual)).sum(axis=1).mean())
    difference = np.abs(logits.astype(np.float64) - reference)
    yield "max_difference", float(difference.max())
    yield "mean_difference", float(difference.mean())

"""Codes of features: rounded to a step, with their ideal length and their size after a real compressor."""

import zlib
from dataclasses import dataclass
from typing import Self

import keras
import numpy as np

BISECTIONS = 40
"""Halvings of the interval in which a step is looked for; a float64 has no more."""


@dataclass(frozen=True, eq=False)
class Coder:
    """A code of features [N,D], fitted to some of them.

    Attributes:
        step: Features are divided by it and rounded.
        low: Smallest number of each feature, int64 [D]; numbers beyond it, or beyond the largest, become the nearest.
        costs: Ideal length of each number of each feature from the smallest on, in bits: minus log2 of its frequency
            among the features that the code was fitted to, each number counted once more.
    """

    step: float
    low: np.ndarray
    costs: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, features: np.ndarray, step: float) -> Self:
        """Return the code of a step for features like these."""
        numbers = np.rint(features / step).astype(np.int64)
        low, costs = numbers.min(axis=0), []
        for column in (numbers - low).T:
            counts = np.bincount(column) + 1
            costs.append(-np.log2(counts / counts.sum()))
        return cls(step, low, tuple(costs))

    def encode(self, features: np.ndarray) -> np.ndarray:
        """Return the numbers of features, int64 [N,D], each from 0 on."""
        most = [len(cost) - 1 for cost in self.costs]
        return np.clip(np.rint(features / self.step).astype(np.int64) - self.low, 0, most)

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """Return the features that numbers stand for, float32 [N,D]."""
        return ((numbers + self.low) * self.step).astype(np.float32)

    def ideal_bits(self, numbers: np.ndarray) -> float:
        """Return the mean length of an ideal code of an image, in bits."""
        columns = zip(self.costs, numbers.T, strict=True)
        return float(sum(cost[column].mean() for cost, column in columns))


def packed_bits(numbers: np.ndarray) -> float:
    """Return the bits an image that zlib needs for the numbers of all images together, feature by feature."""
    kind = np.uint8 if numbers.max() < 256 else np.uint32
    return 8 * len(zlib.compress(numbers.T.astype(kind).tobytes(), 9)) / len(numbers)


def step_for(features: np.ndarray, bits: float) -> float:
    """Return the step at which features, coded by their own frequencies, take a number of bits an image.

    Larger steps take fewer bits. Found by bisection, between a thousandth of the features' deviation and thousand
    times their largest; a number of bits that no step between takes gives the nearer end.
    """
    low, high = np.log(features.std() / 1000), np.log(1000 * np.abs(features).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        coder = Coder.fit(features, float(np.exp(middle)))
        if coder.ideal_bits(coder.encode(features)) > bits:
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return the layers up to a network's dense classifier, images to features [B,D], and the classifier on them."""
    features = model.layers[-1].input
    return keras.Model(model.input, features), keras.Model(features, model.output)

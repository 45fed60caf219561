"""How long a training step, a gradient or a forward pass takes on this machine, by trying a few."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import keras
import numpy as np

from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.precision import with_precision
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import compile_for

ROUNDS = 3
GAIN = 1.1
"""How much faster mixed_bfloat16 must be for "auto" to take it: less is within the noise, and not worth a rounding."""


def trial_step(model: Distiller, config: TrainingConfig, known: Mapping[str, Any] | None = None) -> Callable[[], Any]:
    """Return a function that does one training step on a random batch; the first two have been done.

    The model is compiled and trained by it: measure with a copy.

    Args:
        model: Not compiled.
        config: The recipe.
        known: What is known of the teacher, beside the labels.
    """
    shape = model.student.input_shape[1:]
    rng = np.random.default_rng(0)
    images = rng.random((config.batch_size, *shape), np.float32)
    labels = np.arange(config.batch_size, dtype=np.int32) % model.student.output_shape[-1]
    compile_for(model, config, steps_per_epoch=100)

    def step() -> Any:
        return model.train_on_batch(images, {"label": labels, **(known or {})})

    step(), step()
    return step


def shortest_seconds(runs: Sequence[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Return the shortest time of each of several functions in seconds; they take turns, so that noise meets all."""
    best = [np.inf] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - start)
    return [float(seconds) for seconds in best]


def compare_precisions(network: keras.Model, config: TrainingConfig) -> dict[str, float]:
    """Return the seconds of a training step of a network in float32 and in mixed_bfloat16, by their names."""
    names = ("float32", "mixed_bfloat16")
    steps = []
    for name in names:
        copy = keras.models.clone_model(network) if name == "float32" else with_precision(network, name)
        steps.append(trial_step(Distiller(copy), replace(config, precision=cast(Any, name))))
    return dict(zip(names, shortest_seconds(steps), strict=True))


def choose_precision(seconds: dict[str, float]) -> str:
    """Return "mixed_bfloat16" where its step is faster by `GAIN`, else "float32"."""
    return "mixed_bfloat16" if seconds["float32"] >= GAIN * seconds["mixed_bfloat16"] else "float32"

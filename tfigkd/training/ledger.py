"""The loss ledger: what each term of the loss is worth to the student, in value and in gradient.

A term can be switched on and have no effect: attention transfer at the papers' weight has a share of the gradient far
below one percent. The ledger measures it on one fixed batch, every N steps, and says so.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.batches.stream import Batch
from tfigkd.runtime import console
from tfigkd.runtime.files import write_text
from tfigkd.training.devices import on_this_host, synchronize
from tfigkd.training.distiller import Distiller

HARD = "hard_loss"
"""Name of the hard-label loss in the logs."""
INERT = 0.01
"""Share of the gradient below which a term does nothing."""


def gradient_norms(
    model: Distiller, inputs: np.ndarray, targets: dict[str, Any], sample_weight: np.ndarray | None = None
) -> dict[str, tuple[float, float]]:
    """Return value of each term, and L2 norm of its weighted gradient on the student's weights; changes no variable.

    Args:
        model: A distiller with at least one distillation loss.
        inputs: float32 [B,H,W,3].
        targets: As in training.
        sample_weight: As in training, float32 [B], or None.

    Returns:
        Term to (value, norm), the terms named as they are logged.
    """
    synchronize(model)
    weights = {f"{name}_loss": weight for name, weight in model.term_weights.items()}
    measure = _jax_gradients if keras.backend.backend() == "jax" else _tensorflow_gradients
    scale = _scale(model)
    while True:
        factors = {name: scale * weight for name, weight in weights.items()}
        result = {}
        for name, (value, gradients) in measure(model, (inputs, targets, sample_weight), factors).items():
            squares = [float(np.square(keras.ops.convert_to_numpy(g).astype(np.float64)).sum()) for g in gradients]
            result[name] = float(value), math.sqrt(sum(squares)) / scale
        if scale <= 1 or all(math.isfinite(norm) for _, norm in result.values()):
            return result
        scale /= 16  # too large for float16; training lowers it as well


def _scale(model: Distiller) -> float:
    """Return the factor by which training multiplies the loss, without which gradients in float16 may be zero."""
    optimizer = getattr(model, "optimizer", None)  # none before `compile`
    return 1.0 if optimizer is None else float(keras.ops.convert_to_numpy(optimizer.scale_loss(1.0)))


def _tensorflow_gradients(model: Distiller, batch: tuple[Any, Any, Any], factors: dict[str, float]) -> dict[str, tuple]:
    import tensorflow as tf

    # training mode moves batch statistics and random generators: they are put back, so that looking changes nothing
    state = [(variable, keras.ops.convert_to_numpy(variable).copy()) for variable in model.non_trainable_variables]
    inputs, targets, sample_weight = batch
    inputs = tf.constant(inputs)
    targets = keras.tree.map_structure(tf.constant, targets)
    variables = model.student.trainable_variables
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # all devices have the same; the first one computes
        variables = [tf.distribute.get_strategy().experimental_local_results(v.value)[0] for v in variables]
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = model.compute_terms(inputs, targets, sample_weight, training=True)
        scaled = {name: factor * terms[name] for name, factor in factors.items()}
    result = {}
    for name in factors:
        gradients = tape.gradient(scaled[name], variables)
        result[name] = terms[name], [g for g in gradients if g is not None]
    for variable, value in state:
        variable.assign(value)
    return result


def _jax_gradients(model: Distiller, batch: tuple[Any, Any, Any], factors: dict[str, float]) -> dict[str, tuple]:
    import jax
    import jax.numpy as jnp

    fixed = [variable.value for variable in model.non_trainable_variables]

    def scaled(trainable: list) -> tuple:
        with model._scope(trainable, fixed):
            terms = model.compute_terms(*batch, training=True)[0]
        return {name: factor * terms[name] for name, factor in factors.items()}, {name: terms[name] for name in factors}

    start = [variable.value for variable in model.trainable_variables]
    ours = {id(variable) for variable in model.student.trainable_variables}  # and not what a loss trains of its own
    values: dict[str, Any]
    terms: dict[str, Any]
    values, backward, terms = jax.vjp(scaled, start, has_aux=True)
    result = {}
    for name in factors:
        (gradients,) = backward({other: jnp.full_like(value, other == name) for other, value in values.items()})
        pairs = zip(model.trainable_variables, gradients, strict=True)
        result[name] = terms[name], [gradient for variable, gradient in pairs if id(variable) in ours]
    return result


class Ledger(keras.callbacks.Callback):
    """Every N steps, writes value and share of the gradient norm of each term to `ledger.jsonl`.

    Args:
        probe: The batch that is measured, the same each time.
        path: The JSON-lines file; entries after the step that training goes on from are dropped.
        every: Steps between two measurements.
        done: Steps of the run that are done.
        until: Steps of the whole run.
        write: Called with (name, value, step), for TensorBoard.
    """

    def __init__(self, probe: Batch, path: Path, *, every: int, done: int, until: int, write: Any = None):
        super().__init__()
        self.probe, self.path, self.every, self.step, self.write = probe, path, every, done, write
        self.until = until

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Drop the entries of steps that are done again."""
        kept = [entry for entry in read_ledger(self.path) if entry["step"] <= self.step]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Measure after the first step and then every N steps."""
        self.step += 1
        if self.step % self.every and self.step > 1:
            return
        with on_this_host(self.model):
            measured = gradient_norms(self.model, *self.probe)
        total = sum(norm for _, norm in measured.values()) or 1.0
        terms = {name: {"value": value, "share": norm / total} for name, (value, norm) in measured.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "terms": terms}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, term in terms.items():
            if self.write is not None:
                self.write(f"ledger/{name}_share", term["share"], self.step)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Name the terms that do nothing, once the run is at its end."""
        if self.step < self.until:
            return
        for name in inert_terms(read_ledger(self.path)):
            console.say(f"  warning: {name} never had {INERT:.0%} of the gradient; it does nothing at this weight")


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a ledger; a line cut off by a crash, or damaged, is left out."""
    entries: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            sound = int(entry["step"]) > 0 and all(0 <= term["share"] <= 1 for term in entry["terms"].values())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if sound and (not entries or entry["terms"].keys() == entries[0]["terms"].keys()):
            entries.append(entry)
    return entries


def inert_terms(entries: list[dict[str, Any]]) -> list[str]:
    """Return the terms whose share of the gradient is below 1 % in every entry, except a hard label of weight 0."""
    found = []
    for name in entries[0]["terms"] if entries else {}:
        most = max(entry["terms"][name]["share"] for entry in entries)
        if most < INERT and (most > 0 or name != HARD):
            found.append(name)
    return found

"""Callback that checks for NaN, records the history and writes checkpoints and TensorBoard's points."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import keras

from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint
from tfigkd.training.averaging import Averaged
from tfigkd.training.checkpoint import Progress
from tfigkd.training.devices import on_this_host, synchronize
from tfigkd.training.tensorboard import Board

STEPS_BETWEEN_CHECKS = 1 if keras.backend.backend() == "tensorflow" else 50
"""Steps between two looks for NaN: a look waits for the device, which JAX otherwise keeps busy ahead of time."""


def broken_terms(logs: Mapping[str, float], before: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """Return which terms of the loss went wrong, in words.

    A term that is NaN by itself makes the loss NaN and leaves its neighbors as they are. Where all are, the logits are,
    and what drove the weights there is most likely the largest term of the step before. Where none is, one of them was
    too large for its weight.

    Args:
        logs: Values of all terms and metrics; some of them are not finite.
        before: The same of the step before; may be empty.
        weights: Term to its weight in the loss, without the ending `_loss`.
    """
    broken = [name for name, value in logs.items() if not math.isfinite(value)]
    terms = [name for name in logs if name.endswith("_loss") and not name.startswith("val_")]
    nonfinite = [name for name in terms if name in broken]

    def largest(values: Mapping[str, float]) -> str:
        shares = {name: abs(values.get(name, 0.0)) * weights.get(name.removesuffix("_loss"), 1.0) for name in terms}
        name = max(shares, key=lambda name: shares[name])
        return f"{name} = {values.get(name, 0.0):.3g} times its weight"

    if nonfinite == terms and len(terms) > 1 and before:
        return f"NaN or infinity in the weights and so in every term; the largest one before was {largest(before)}"
    if terms and "loss" in broken and not nonfinite:
        return f"loss = NaN or infinity; its largest term is {largest(logs)}"
    return f"{', '.join(nonfinite or broken)} = NaN or infinity"


class CheckpointCallback(keras.callbacks.Callback):
    """Refuse NaN in any step; keep the history, show it in TensorBoard, write the checkpoints.

    Args:
        folder: Of the checkpoints.
        fingerprint: Of the training.
        progress: Where the training goes on from; it is brought up to date.
        sizes: Examples of each step of an epoch.
        every: Steps between two checkpoints within an epoch, or None.
        board: Where epochs are shown.
        averaged: The averaged weights, or None.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        progress: Progress,
        *,
        sizes: Sequence[int],
        every: int | None,
        board: Board,
        averaged: Averaged | None,
    ):
        super().__init__()
        self.averaged = averaged
        self.folder, self.fingerprint, self.progress, self.board = folder, fingerprint, progress, board
        self.sizes, self.every = sizes, every
        self.pending: list[tuple[int, dict]] = []
        self.before: dict[str, float] = {}

    @property
    def history(self) -> list[dict[str, float]]:
        """The logs of the finished epochs."""
        return self.progress.history

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note where the training goes on from."""
        self.begun = replace(self.progress)
        self.started = time.monotonic() - self.begun.seconds

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look for NaN; write a checkpoint where one is due."""
        step = self.begun.steps + batch + 1
        self.pending.append((step, dict(logs or {})))
        due = self.every is not None and step % self.every == 0 and step < len(self.sizes)
        last = step == len(self.sizes)
        if due or last or len(self.pending) >= STEPS_BETWEEN_CHECKS:
            self._check_pending()
        if last:  # of the epoch, before validation and averages
            self.step_ms = 1e3 * (time.monotonic() - self.started) / step
        if due:
            self.progress.steps, self.progress.logs = step, self._whole(self.before, step)
            self.progress.seconds = time.monotonic() - self.started
            synchronize(self.model)
            checkpoint.save(self.folder, self.model, self.fingerprint, self.progress)

    def _whole(self, logs: Mapping[str, float], step: int) -> dict[str, float]:
        """Return the means over an epoch up to a step, of which Keras has seen the part since the training went on."""
        before, until = (sum(self.sizes[:count]) for count in (self.begun.steps, step))
        share = before / until
        return {
            name: share * self.begun.logs[name] + (1 - share) * value if name in self.begun.logs else value
            for name, value in logs.items()
        }

    def _check_pending(self) -> None:
        """Check the steps since the last look, in order: one step after the first NaN all terms are NaN."""
        pending, self.pending = self.pending, []
        for step, logs in pending:
            values = {name: float(value) for name, value in logs.items()}
            self._check(values, f"step {step} of epoch {len(self.history) + 1}")
            self.before = values

    def _check(self, values: Mapping[str, float], when: str) -> None:
        if all(map(math.isfinite, values.values())):
            return
        synchronize(self.model)
        weights = self.model.term_weights
        done = len(self.history)
        kept = f"the checkpoint of epoch {done} is kept in {self.folder}" if done else "no epoch was finished"
        if self.progress.steps:
            kept = f"the checkpoint of step {self.progress.steps} of epoch {done + 1} is kept in {self.folder}"
        raise UserError(
            f"training met {broken_terms(values, self.before, weights)}, in {when}; {kept}; lower the learning rate or "
            "that term's weight, and choose another --workdir"
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look for NaN, keep the logs of the epoch, and write a checkpoint."""
        self._check_pending()
        values = {name: float(value) for name, value in (logs or {}).items()}
        self._check(values, f"epoch {epoch + 1}")
        values = self._whole(values, len(self.sizes))
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        seconds = time.monotonic() - self.started
        self.history.append({**values, "learning_rate": rate, "seconds": seconds, "step_ms": self.step_ms})
        self.progress.steps, self.progress.logs, self.progress.seconds = 0, {}, 0.0
        # before the checkpoint: a run that is killed between the two does the epoch again and takes its points back
        averaged = self._averages_drawn(epoch)
        with averaged.applied(self.model) if averaged else contextlib.nullcontext(), on_this_host(self.model):
            self.board.write_epoch(epoch, self.history[-1])
        checkpoint.save(self.folder, self.model, self.fingerprint, self.progress)

    def _averages_drawn(self, epoch: int) -> Averaged | None:
        """Return the averaged weights, where pictures of them are due."""
        watched = self.board.watched
        return self.averaged if watched is not None and watched.due(epoch, self.board.epochs) else None

"""Training with exact resume: optimizer, schedule, progress, checkpoints."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.batches.stream import Batch, Part, batch_sizes, part_of
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data import Examples, to_model_input
from tfigkd.models.precision import head_layers
from tfigkd.runtime import console, hosts
from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint
from tfigkd.training.averaging import Averaged, synchronize
from tfigkd.training.checkpoint import Progress
from tfigkd.training.devices import (
    check_devices,
    check_losses,
    device_count,
    on_all_hosts,
    on_this_host,
    repeatable,
    whole_batch_statistics,
)
from tfigkd.training.distiller import Distiller
from tfigkd.training.ledger import Ledger
from tfigkd.training.optimizers import make_optimizer
from tfigkd.training.tensorboard import Board, Watched

LEDGER = "ledger.jsonl"
MEASURED = 256
"""Most validation examples that are measured at once."""
STEPS_UNSEEN = 1 if keras.backend.backend() == "tensorflow" else 50
"""Steps between two looks for NaN: a look waits for the device, which JAX otherwise keeps busy ahead of time."""


class _Bar(keras.callbacks.Callback):
    """A progress bar over all steps of the run, with the epoch's loss and accuracy."""

    def __init__(self, advance: Callable[..., None], epochs: int):
        super().__init__()
        self.advance, self.epochs = advance, epochs

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.advance(1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        shown = {k: v for k, v in (logs or {}).items() if k in ("loss", "accuracy", "val_accuracy")}
        text = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        self.advance(0, note=f"epoch {epoch + 1}/{self.epochs}  {text}")
        console.detail(f"  epoch {epoch + 1}/{self.epochs}  {text}")


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
    guilty = [name for name in terms if name in broken]

    def largest(values: Mapping[str, float]) -> str:
        shares = {name: abs(values.get(name, 0.0)) * weights.get(name.removesuffix("_loss"), 1.0) for name in terms}
        name = max(shares, key=lambda name: shares[name])
        return f"{name} = {values.get(name, 0.0):.3g} times its weight"

    if guilty == terms and len(terms) > 1 and before:
        return f"NaN or infinity in the weights and so in every term; the largest one before was {largest(before)}"
    if terms and "loss" in broken and not guilty:
        return f"loss = NaN or infinity; its largest term is {largest(logs)}"
    return f"{', '.join(guilty or broken)} = NaN or infinity"


class _Callbacks(keras.callbacks.CallbackList):
    """Callbacks that get the logs of a step as they are.

    Keras's own list makes floats of them, and so waits for the device at every step. TensorFlow's logs are on the host
    already; those of JAX stay on the device until a callback looks at them.
    """

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class _Keeper(keras.callbacks.Callback):
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
        self.unseen: list[tuple[int, dict]] = []
        self.before: dict[str, float] = {}

    @property
    def history(self) -> list[dict[str, float]]:
        """The logs of the finished epochs."""
        return self.progress.history

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.begun = replace(self.progress)
        self.started = time.monotonic() - self.begun.seconds

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = self.begun.steps + batch + 1
        self.unseen.append((step, dict(logs or {})))
        due = self.every is not None and step % self.every == 0 and step < len(self.sizes)
        if due or len(self.unseen) >= STEPS_UNSEEN:
            self._look()
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

    def _look(self) -> None:
        """Check the steps since the last look, in order: one step after the first NaN all terms are NaN."""
        unseen, self.unseen = self.unseen, []
        for step, logs in unseen:
            values = {name: float(value) for name, value in logs.items()}
            self._check(values, f"step {step} of epoch {len(self.history) + 1}")
            self.before = values

    def _check(self, values: Mapping[str, float], when: str) -> None:
        if all(map(math.isfinite, values.values())):
            return
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
        self._look()
        values = {name: float(value) for name, value in (logs or {}).items()}
        self._check(values, f"epoch {epoch + 1}")
        values = self._whole(values, len(self.sizes))
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        seconds = time.monotonic() - self.started
        self.history.append({**values, "learning_rate": rate, "seconds": seconds})
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


class _Measured(keras.utils.PyDataset):
    """Examples in batches of at most 256 as Keras measures them, read as they are needed.

    Several devices share each batch evenly: fewer examples than there are devices are left out at the end. Each host
    reads its own part.
    """

    def __init__(self, examples: Examples, devices: int, part: Part):
        super().__init__()
        self._part = part
        self._examples = examples.take(slice(len(examples) - len(examples) % devices))
        self._size = MEASURED - MEASURED % devices

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self._size
        mine = part_of(min(self._size, len(self._examples) - start), self._part)
        batch = self._examples.take(slice(start + mine.start, start + mine.stop))
        return to_model_input(batch.images[:]), batch.labels


@dataclass(frozen=True)
class _Training:
    """What `fit` is given, ready to be trained.

    Attributes:
        sizes: Examples of each step of an epoch.
        averaged: The averaged weights, or None.
    """

    model: Distiller
    stream: Callable[..., Iterator[Batch]]
    config: TrainingConfig
    sizes: Sequence[int]
    folder: Path
    fingerprint: str
    tensorboard: Path
    title: str
    validation: Examples | None
    watched: Watched | None
    ledger_steps: int
    callbacks: Sequence[keras.callbacks.Callback]
    averaged: Averaged | None

    def reached(self, progress: Progress) -> str:
        """Return how far the training is, in words."""
        within = f" and step {progress.steps} of {len(self.sizes)}" if progress.steps else ""
        return f"epoch {len(progress.history)} of {self.config.epochs}{within}"

    def go_on(self, progress: Progress) -> None:
        """Train to the last epoch, or to the end of an epoch that was interrupted: Keras's are all of one length."""
        config, model, steps = self.config, self.model, len(self.sizes)
        epoch, skipped = len(progress.history), progress.steps
        until, left, done = epoch + 1 if skipped else config.epochs, steps - skipped, epoch * steps + skipped
        devices, part = device_count(config.devices), (hosts.number(), hosts.host_count())
        own: dict[str, Any] = {"part": part} if hosts.host_count() > 1 else {}
        if skipped:
            own["skip"] = skipped
        with console.progress(self.title, config.epochs * steps, done) as advance:
            watchers = [*self.callbacks, *self._keepers(progress, done), _Bar(advance, config.epochs)]
            watchers += [self.averaged] if self.averaged else []
            failure: BaseException | None = None
            try:
                with whole_batch_statistics(model.student, config.devices), on_all_hosts(model):
                    model.fit(
                        self.stream(epoch, **own) if devices == 1 else repeatable(self.stream, epoch, **own),
                        steps_per_epoch=left,
                        initial_epoch=epoch,
                        epochs=until,
                        validation_data=None if self.validation is None else _Measured(self.validation, devices, part),
                        callbacks=_Callbacks(watchers, add_history=True, model=model, epochs=until, steps=left),
                        shuffle=False,
                        verbose=0,
                    )
            except (UserError, OSError, KeyboardInterrupt) as error:
                failure = error
            if failure is not None:  # its frames hold TensorFlow's iterator, which would speak at exit
                failure.__traceback__ = failure.__context__ = failure.__cause__ = None
                gc.collect()
                raise failure

    def _keepers(self, progress: Progress, done: int) -> Iterator[keras.callbacks.Callback]:
        """Yield what writes of the training: TensorBoard, the ledger of losses, and after them the checkpoints."""
        board = Board(
            self.tensorboard,
            examples=sum(self.sizes),
            steps=len(self.sizes),
            epochs=self.config.epochs,
            done=done,
            watched=self.watched,
            silent=not hosts.is_first(),
        )
        yield board
        if self.model.distillation_losses and self.ledger_steps and hosts.is_first():
            path, probe = self.folder / LEDGER, next(self.stream(0))
            yield Ledger(probe, path, every=self.ledger_steps, done=done, write=board.scalar)
        yield _Keeper(
            self.folder,
            self.fingerprint,
            progress,
            sizes=self.sizes,
            every=self.config.checkpoint_steps,
            board=board,
            averaged=self.averaged,
        )


def fit(
    model: Distiller,
    stream: Callable[..., Iterator[Batch]],
    *,
    examples: int,
    config: TrainingConfig,
    folder: Path,
    fingerprint: str,
    tensorboard: Path,
    title: str,
    validation: Examples | None = None,
    watched: Watched | None = None,
    ledger_steps: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Train to the last epoch, going on from a checkpoint where there is one.

    A run that was killed and started again ends with the weights of an uninterrupted one: batches are a function of
    the epoch, and the checkpoint holds every variable, those of random generators included. The logs of an epoch that
    was interrupted are those of an uninterrupted one but for rounding.

    Args:
        model: Not compiled; a teacher is trained as a Distiller without distillation losses. Where `config.devices`
            are several, it was built, and this is called, inside `on_devices`. On several hosts each builds it and
            calls this alike; the first one alone writes.
        stream: From first epoch to endless batches (`training_batches`); on several hosts also of a part of them, and
            with `config.checkpoint_steps` also without the first ones.
        examples: Examples an epoch.
        config: The recipe.
        folder: Where checkpoints go.
        fingerprint: Of everything the weights depend on; a checkpoint of another is refused.
        tensorboard: Folder of the event files.
        title: For the progress bar.
        validation: Examples that are measured after each epoch, those that several devices can share.
        watched: What TensorBoard's pictures are drawn of.
        ledger_steps: Steps between two entries of the loss ledger; 0 keeps none.
        callbacks: Further callbacks; what they change between two steps must follow from the model's variables.

    Returns:
        The logs of each epoch.

    Raises:
        UserError: a loss term became NaN or infinite, the checkpoint belongs to another run, the devices cannot
            share the batches or the losses, or hosts differ in them.
    """
    check_devices(config, examples)
    check_losses(model.distillation_losses, config.devices)
    devices = device_count(config.devices)
    if validation is not None and len(validation) < devices:
        validation = None
    sizes = batch_sizes(examples, config.batch_size, devices)
    # XLA on a CPU takes minutes to compile and then trains several times slower
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    optimizer = make_optimizer(config, len(sizes), head=head_layers(model.student))
    model.compile(optimizer, metrics=["accuracy"], jit_compile=jit)
    averaged = None
    if config.ema or config.lookahead:
        averaged = Averaged(stream, batch_size=config.batch_size, examples=examples)
    training = _Training(
        model=model,
        stream=stream,
        config=config,
        sizes=sizes,
        folder=folder,
        fingerprint=fingerprint,
        tensorboard=tensorboard,
        title=title,
        validation=validation,
        watched=watched,
        ledger_steps=ledger_steps,
        callbacks=callbacks,
        averaged=averaged,
    )
    progress = checkpoint.restore(folder, model, fingerprint)
    if progress.history or progress.steps:
        console.say(f"  {title}: going on after {training.reached(progress)}")
    hosts.meet(f"{title} after {training.reached(progress)}, fingerprint {fingerprint}")
    while len(progress.history) < config.epochs:
        training.go_on(progress)
        hosts.meet(f"{title} after {training.reached(progress)}")  # by now the first one has written the checkpoint
        progress = checkpoint.restore(folder, model, fingerprint)
    if averaged:
        averaged.finish(model, config.epochs - 1)
    return progress.history

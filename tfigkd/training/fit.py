"""Training with exact resume: optimizer, schedule, progress, checkpoints."""

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import keras

from tfigkd.batches.stream import Batch
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data import Examples
from tfigkd.models.precision import head_layers
from tfigkd.runtime import console, hosts
from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint
from tfigkd.training.averaging import Averaged
from tfigkd.training.checkpoint import Progress
from tfigkd.training.checkpoint_callback import CheckpointCallback
from tfigkd.training.devices import (
    check_devices,
    check_losses,
    device_count,
    epoch_sizes,
    on_all_hosts,
    whole_batch_statistics,
)
from tfigkd.training.distiller import Distiller
from tfigkd.training.inputs import training_input, validation_input
from tfigkd.training.ledger import Ledger
from tfigkd.training.optimizers import make_optimizer
from tfigkd.training.tensorboard import Board, Watched

LEDGER = "ledger.jsonl"
"""File of the ledger of losses, in the folder of a training."""


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


class _Callbacks(keras.callbacks.CallbackList):
    """Callbacks that get the logs of a step as they are.

    Keras's own list makes floats of them, and so waits for the device at every step. TensorFlow's logs are on the host
    already; those of JAX stay on the device until a callback looks at them.
    """

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


def compile_for(model: Distiller, config: TrainingConfig, steps_per_epoch: int) -> None:
    """Compile a Distiller with the optimizer of a recipe.

    Args:
        model: What trains.
        config: The recipe.
        steps_per_epoch: Steps of an epoch, which the schedule of the learning rate depends on.
    """
    # XLA on a CPU takes minutes to compile and then trains several times slower
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    optimizer = make_optimizer(config, steps_per_epoch, head=head_layers(model.student))
    model.compile(optimizer, metrics=["accuracy"], jit_compile=jit)


@dataclass(frozen=True, eq=False)
class Training:
    """A training to the last epoch that goes on from a checkpoint where there is one; `run` does it.

    A run that was killed and started again ends with the weights of an uninterrupted one: batches are a function of
    the epoch, and the checkpoint holds every variable, those of random generators included. The logs of an epoch that
    was interrupted are those of an uninterrupted one but for rounding.

    Attributes:
        model: Not compiled; a teacher is trained as a Distiller without distillation losses. Where `config.devices`
            are several, it was built, and `run` is called, inside `on_devices`. On several hosts each builds it and
            calls `run` alike; only the first one writes.
        stream: From first epoch to endless batches (`TrainingBatches`); on several hosts also of a part of them, and
            with `config.checkpoint_steps` also without the first ones.
        examples: Examples an epoch.
        config: The recipe.
        folder: Where checkpoints go.
        fingerprint: Of everything the weights depend on; a checkpoint of another is refused.
        tensorboard: Folder of the event files.
        title: For the progress bar.
        validation: Examples that are measured after each epoch, as many as the devices can share evenly.
        watched: What TensorBoard's pictures are drawn of.
        ledger_steps: Steps between two entries of the loss ledger; 0 keeps none.
        callbacks: Further callbacks; they must keep no state of their own, since a resumed run restores only variables.
    """

    model: Distiller
    stream: Callable[..., Iterator[Batch]]
    _: KW_ONLY
    examples: int
    config: TrainingConfig
    folder: Path
    fingerprint: str
    tensorboard: Path
    title: str
    validation: Examples | None = None
    watched: Watched | None = None
    ledger_steps: int = 0
    callbacks: Sequence[keras.callbacks.Callback] = ()

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Examples of each step of an epoch."""
        return epoch_sizes(self.examples, self.config)

    @functools.cached_property
    def averaged(self) -> Averaged | None:
        """The averaged weights, where the recipe averages."""
        if self.config.ema or self.config.lookahead:
            return Averaged(self.stream, batch_size=self.config.batch_size, examples=self.examples)
        return None

    def run(self) -> list[dict[str, float]]:
        """Train to the last epoch; return the logs of each epoch.

        Raises:
            UserError: a loss term became NaN or infinite, the checkpoint belongs to another run, the devices cannot
                share the batches or the losses, or hosts differ in them.
        """
        check_devices(self.config, self.examples)
        check_losses(self.model.distillation_losses, self.config.devices)
        compile_for(self.model, self.config, len(self.sizes))
        epochs, progress = self.config.epochs, self._restored()
        if progress.history or progress.steps:
            console.status(f"{self.title}: going on after {self._reached(progress)}")
        while len(progress.history) < epochs:
            self._go_on(progress)
            if len(progress.history) < epochs:
                hosts.meet(f"{self.title} written after {self._reached(progress)}")  # by the first one
                progress = self._restored()  # Keras ends each `fit` by putting averages in the place of the weights
        if self.averaged:
            self.averaged.finish(self.model, epochs - 1)
        return progress.history

    def _reached(self, progress: Progress) -> str:
        """Return how far the training is, in words."""
        within = f" and step {progress.steps} of {len(self.sizes)}" if progress.steps else ""
        return f"epoch {len(progress.history)} of {self.config.epochs}{within}"

    def _restored(self) -> Progress:
        """Bring the model to its newest checkpoint, which is the same one on every host; return how far that is."""
        progress = checkpoint.restore(self.folder, self.model, self.fingerprint)
        hosts.meet(f"{self.title} after {self._reached(progress)}, fingerprint {self.fingerprint}")
        return progress

    def _go_on(self, progress: Progress) -> None:
        """Train to the last epoch, or first to the end of an interrupted one, which has fewer steps left.

        Keras's `fit` takes one number of steps for all epochs of a call.
        """
        config, model, steps = self.config, self.model, len(self.sizes)
        epoch, skipped = len(progress.history), progress.steps
        until, left, done = epoch + 1 if skipped else config.epochs, steps - skipped, epoch * steps + skipped
        devices, part = device_count(config.devices), (hosts.process_index(), hosts.process_count())
        own: dict[str, Any] = {"part": part} if hosts.process_count() > 1 else {}
        if skipped:
            own["skip"] = skipped
        held_out = None
        if self.validation is not None and len(self.validation) >= devices:
            held_out = validation_input(self.validation, devices, part)
        with console.progress(self.title, config.epochs * steps, done) as advance:
            watchers = [*self.callbacks, *self._callbacks(progress, done), _Bar(advance, config.epochs)]
            watchers += [self.averaged] if self.averaged else []
            failure: BaseException | None = None
            try:
                with whole_batch_statistics(model, config.devices), on_all_hosts(model):
                    model.fit(
                        training_input(self.stream, epoch, **own),
                        steps_per_epoch=left,
                        initial_epoch=epoch,
                        epochs=until,
                        validation_data=held_out,
                        callbacks=_Callbacks(watchers, add_history=True, model=model, epochs=until, steps=left),
                        shuffle=False,
                        verbose=0,
                    )
            except (UserError, OSError, KeyboardInterrupt) as error:
                failure = error
            if failure is not None:  # its frames hold TensorFlow's iterator, which would print at exit
                failure.__traceback__ = failure.__context__ = failure.__cause__ = None
                gc.collect()
                raise failure

    def _callbacks(self, progress: Progress, done: int) -> Iterator[keras.callbacks.Callback]:
        """Yield what writes of the training: TensorBoard, the ledger of losses, and after them the checkpoints."""
        board = Board(
            self.tensorboard,
            examples=sum(self.sizes),
            steps=len(self.sizes),
            epochs=self.config.epochs,
            done=done,
            watched=self.watched,
            silent=not hosts.is_first_process(),
        )
        yield board
        if self.model.distillation_losses and self.ledger_steps and hosts.is_first_process():
            path, probe = self.folder / LEDGER, next(self.stream(0))
            steps = self.config.epochs * len(self.sizes)
            yield Ledger(probe, path, every=self.ledger_steps, done=done, until=steps, write=board.scalar)
        yield CheckpointCallback(
            self.folder,
            self.fingerprint,
            progress,
            sizes=self.sizes,
            every=self.config.checkpoint_steps,
            board=board,
            averaged=self.averaged,
        )

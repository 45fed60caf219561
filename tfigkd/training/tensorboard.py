"""What TensorBoard shows of a training: curves, examples with their maps, confusion matrix, graph, profile.

The events are put together by TensorBoard's own package, which needs no TensorFlow, so they come from JAX as well. The
horizontal axis is the optimizer's step. A run that continues after a kill removes the points that were written after
its last checkpoint, so that no step has two.
"""

import itertools
import os
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from tfigkd.attribution import attribute, saliency_map
from tfigkd.config.measure_fields import TensorBoardConfig
from tfigkd.data import Examples, to_model_input
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.graph import calls_of, maker_of
from tfigkd.models.precision import with_precision
from tfigkd.runtime import console
from tfigkd.runtime.files import make_folder
from tfigkd.runtime.tfrecord import framed
from tfigkd.training import panels

MAP_STEPS = 16
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Watched:
    """What a training is looked at with, the same every time.

    Attributes:
        examples: All of validation; the first of them are shown with their maps.
        held_out: Whether nothing of it is trained on; only then is there a confusion matrix.
        class_names: A name for each class.
        config: How many examples, and how often.
        baseline: Where the paths of Integrated Gradients start: a name, or [N,H,W,3] for the examples shown.
        teacher_maps: The teacher's maps of the examples shown, [N,H,W]; None where none are stored.
    """

    examples: Examples
    held_out: bool
    class_names: tuple[str, ...]
    config: TensorBoardConfig
    baseline: str | np.ndarray = "black"
    teacher_maps: np.ndarray | None = None

    @property
    def shown(self) -> Examples:
        """The examples whose maps are shown."""
        return self.examples.take(slice(self.config.examples))

    def due(self, epoch: int, epochs: int) -> bool:
        """Return whether pictures are drawn after an epoch, from 0: evenly over the epochs, the last one included."""
        times = self.config.pictures
        return (epoch + 1) * times // epochs > epoch * times // epochs


def _protocol() -> SimpleNamespace | None:
    """Return TensorBoard's event classes; None where the package is not installed."""
    with warnings.catch_warnings():
        # tensorboard's import of pkg_resources warns on every recent setuptools
        warnings.simplefilter("ignore")
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.graph_pb2 import GraphDef
            from tensorboard.compat.proto.summary_pb2 import Summary
        except ImportError:  # an accelerator machine that has only JAX
            return None
    return SimpleNamespace(Event=Event, SessionLog=SessionLog, GraphDef=GraphDef, Summary=Summary)


class EventFile:
    """An event file that the training thread itself writes, so that a full disk raises an error there.

    Args:
        folder: Where it lies; made where missing.
    """

    def __init__(self, folder: Path):
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self.path = make_folder(folder) / name
        self.waiting: list[bytes] = []

    def write(self, event: bytes) -> None:
        """Add an event; it is in the file after the next `flush`."""
        self.waiting.append(framed(event))

    def flush(self) -> None:
        """Let readers see all events.

        Raises:
            OSError: there is no room for them; it names the file.
        """
        try:
            with open(self.path, "ab") as file:
                file.writelines(self.waiting)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.waiting.clear()


class Board(keras.callbacks.Callback):
    """Writes the events of one training; without the tensorboard package it writes nothing.

    Args:
        folder: Of the event files.
        examples: Examples an epoch.
        steps: Steps an epoch.
        epochs: Of the whole training.
        done: Steps of the training that an earlier call has done.
        watched: What pictures are drawn of; None draws none.
        silent: Whether nothing is written here, as another process writes the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        examples: int,
        steps: int,
        epochs: int,
        done: int,
        watched: Watched | None = None,
        silent: bool = False,
    ):
        super().__init__()
        self.folder, self.examples, self.steps, self.epochs, self.done = folder, examples, steps, epochs, done
        self.watched = watched
        self.step = done
        self.protocol = None if silent else _protocol()
        self.writer: EventFile | None = None
        self.profiling = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Open the file; take back what was written after the step that training goes on from."""
        if self.protocol is None:
            return
        self.writer = EventFile(self.folder)
        self._write(file_version="brain.Event:2")
        if self.done:
            start = self.protocol.SessionLog(status=self.protocol.SessionLog.START)
            self._write(step=self.step + 1, session_log=start)
        else:
            self._write(graph_def=model_graph(self.model.student, self.protocol.GraphDef()).SerializeToString())

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock of the epoch."""
        self.began = self.ended = time.monotonic()
        self.first = self.step

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Start the profiler before its first step."""
        wanted = self.watched.config.profile_steps if self.watched else ()
        if wanted and self.step + 1 == wanted[0]:
            self._start_profiler()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count the step; stop the profiler after its last one."""
        self.step += 1
        self.ended = time.monotonic()
        if self.profiling and self.watched and self.step >= self.watched.config.profile_steps[1]:
            self._stop_profiler()

    def write_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the scalars of an epoch and, where they are due, its pictures.

        Raises:
            OSError: they cannot be written.
        """
        if self.writer is None:
            return
        # validation is left out of it, and so are steps from before an interruption
        step = max(self.ended - self.began, 1e-9) / (self.step - self.first)
        speed = {"images_per_second": self.examples / self.steps / step, "step_milliseconds": 1e3 * step}
        for name, value in {**values, **speed, "epoch": epoch + 1}.items():
            split = "validation" if name.startswith("val_") else "train"
            self.scalar(f"{split}/{name.removeprefix('val_')}", value, self.step)
        if self.watched is not None and self.watched.due(epoch, self.epochs):
            self.draw(self.watched)
        self.writer.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one scalar, where there is a TensorBoard.

        Args:
            name: Its tag.
            value: Its value.
            step: Step of the training, from 0.
        """
        if self.protocol is not None:
            self._write(step=step, summary=self._summary(tag=name, simple_value=value))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Close the file."""
        if self.profiling:
            self._stop_profiler()
        if self.writer is not None:
            self.writer.flush()
            self.writer = None

    def _write(self, **content: Any) -> None:
        if self.protocol is not None and self.writer is not None:
            self.writer.write(self.protocol.Event(wall_time=time.time(), **content).SerializeToString())

    def _summary(self, **value: Any) -> Any:
        assert self.protocol is not None
        return self.protocol.Summary(value=[self.protocol.Summary.Value(**value)])

    def _image(self, name: str, png: bytes) -> None:
        assert self.protocol is not None
        height, width = (int.from_bytes(png[start : start + 4], "big") for start in (20, 16))
        image = self.protocol.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(step=self.step, summary=self._summary(tag=name, image=image))

    def draw(self, watched: Watched) -> None:
        """Draw the examples with their maps, and the confusion matrix, at the step that has been reached."""
        model, shown = with_precision(self.model.student, "float32"), watched.shown
        result = attribute(
            model,
            to_model_input(shown.images[:]),
            shown.labels,
            baseline=watched.baseline,
            n_steps=MAP_STEPS,
            batch_size=MAP_STEPS * len(shown),
        )
        names = [panels.drawable_name(name, index) for index, name in enumerate(watched.class_names)]
        predicted_names = [names[index] for index in result.logits.argmax(axis=1)]
        pairs = zip(shown.labels, predicted_names, strict=True)
        captions = [f"{names[label]}, predicted {name}" for label, name in pairs]
        maps = saliency_map(result.attributions)
        self._image("examples", panels.gallery(shown.images[:], maps, captions, watched.teacher_maps))
        if watched.held_out:
            predicted = predict_logits(model, watched.examples.images).argmax(axis=1)
            matrix = np.zeros((len(names), len(names)), np.int64)
            np.add.at(matrix, (watched.examples.labels, predicted), 1)
            self._image("confusion", panels.confusion(matrix, names))

    def _start_profiler(self) -> None:
        if keras.backend.backend() != "tensorflow":
            console.say("  note: tensorboard.profile_steps is for the TensorFlow backend; nothing is recorded")
            return
        import tensorflow as tf

        tf.profiler.experimental.start(str(self.folder))
        self.profiling = True

    def _stop_profiler(self) -> None:
        import tensorflow as tf

        self.profiling = False
        tf.profiler.experimental.stop()
        where = self.folder / "plugins" / "profile"
        console.status(f"profile: {where}; TensorBoard shows it after pip install tensorboard-plugin-profile")


def model_graph(model: keras.Model, graph: Any) -> Any:
    """Return the layers of a model as nodes of a TensorBoard graph, those of one block folded into one box.

    Args:
        model: A Functional model.
        graph: An empty GraphDef.
    """
    operations = getattr(model, "operations", model.layers)
    names = {operation.name: _boxed(operation.name) for operation in operations}
    for operation in operations:
        node = graph.node.add(name=names[operation.name], op=type(operation).__name__)
        sources = [maker_of(tensor).name for each in calls_of(operation) for tensor in each.input_tensors]
        node.input.extend(dict.fromkeys(names[source] for source in sources if source in names))
        if isinstance(operation, keras.Layer):
            node.attr["parameters"].i = operation.count_params()
        shape = getattr(operation.output, "shape", None)
        if shape is not None:
            sizes = node.attr["_output_shapes"].list.shape.add()
            for size in shape:
                sizes.dim.add(size=-1 if size is None else size)
    return graph


def _boxed(name: str) -> str:
    """Return `block_03_expand_bn` as `block_03/expand_bn`; the box opens in TensorBoard."""
    head, _, rest = name.partition("_")
    number, _, part = rest.partition("_")
    return f"{head}_{number}/{part or 'output'}" if number.isdigit() else name

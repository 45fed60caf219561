"""Cost of TensorBoard's pictures: maps of eight images and a confusion matrix, five times in a training."""

import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.harness import Options, record, take_turns, timed
from tfigkd import models
from tfigkd.config.experiment import Config
from tfigkd.config.measure_fields import TensorBoardConfig
from tfigkd.data import identify
from tfigkd.training.distiller import Distiller
from tfigkd.training.tensorboard import Board, Watched


def run(options: Options) -> None:
    """Measure and append a row: the 4.12x student in the papers' setting, 100 epochs of 45,000 images."""
    config = Config()
    batch, steps, held, total = (4, 2, 8, 8) if options.tiny else (config.training.batch_size, 10, 5000, 45000)
    size, dropped = (8, 16) if options.tiny else (32, config.student.drop_blocks)
    generator = np.random.default_rng(0)
    images = generator.random((batch * steps, size, size, 3), np.float32)
    labels = generator.integers(0, 10, batch * steps)
    examples = identify(generator.integers(0, 256, (held, size, size, 3), np.uint8), generator.integers(0, 10, held))
    watched = Watched(
        examples, True, tuple("0123456789"), TensorBoardConfig(), teacher_maps=examples.images[:8, ..., 0]
    )
    model = Distiller(models.mobilenet_v2(10, dropped, input_shape=(size, size, 3)))
    model.compile("adam", metrics=["accuracy"], jit_compile=False)
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder), examples=total, steps=1, epochs=1, done=0, watched=watched)
        board.set_model(model)
        board.on_train_begin()
        began = time.perf_counter()
        board.draw(watched)  # compiles
        first = time.perf_counter() - began
        train = timed(lambda: model.fit(images, labels, batch_size=batch, shuffle=False, verbose=0))
        seconds = take_turns({"draw": timed(lambda: board.draw(watched)), "train": train}, options.pairs)
        board.on_train_end()
    times, epochs = watched.config.pictures, config.training.epochs
    drawing = first + (times - 1) * seconds["draw"]
    training = seconds["train"] / (batch * steps) * total * epochs
    one = float(np.median(seconds["draw"]))
    record(
        options,
        f"TensorBoard's pictures, {times} times in {epochs} epochs",
        f"training of {total:,} images with the 4.12x student (their share of time)",
        drawing / training,
        ours=float(np.median(drawing)),
        theirs=float(np.median(training)),
        unit="s",
        at_most=0.01,
        note=f"a drawing {one:.2f} s, the first {first:.1f} s, as it compiles; training timed on {len(images)} images",
    )

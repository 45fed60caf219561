"""Speed of a training step of the papers' student: ours, stock Keras batch normalization, and PyTorch."""

import keras
import numpy as np

from experiments.benchmarks.harness import Block, Options, Peer, faster, peer, record, take_turns, timed
from tfigkd import models
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.copies import copy_layer, with_new_layers
from tfigkd.training.distiller import Distiller

DROP_BLOCKS = 5  # 4.12 times fewer parameters than the teacher
STOCK = "stock Keras BatchNormalization"
NONE = "the same without any normalization"


def random_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 [B,S,S,3] in [0,1] and labels [B]; the cost of a step does not depend on them."""
    generator = np.random.default_rng(0)
    return generator.random((batch, size, size, 3), np.float32), generator.integers(0, 10, batch)


def step_block(model: keras.Model, images: np.ndarray, targets: object, steps: int) -> Block:
    """Return a block of training steps on one batch; `fit` does the same steps but needs extra time for each epoch."""

    def steps_of_it() -> None:
        for _ in range(steps):
            model.train_on_batch(images, targets)

    return timed(steps_of_it)


def without_normalization(model: keras.Model) -> keras.Model:
    """Return the same graph with an identity layer instead of every batch normalization."""

    def replace(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.Activation("linear", name=layer.name)
        return copy_layer(layer)

    return with_new_layers(model, replace)


def ours(student: keras.Model) -> Distiller:
    """Return a student compiled as this package trains it, with hard labels."""
    model = Distiller(student)
    model.compile("adam", metrics=["accuracy"], jit_compile=False)
    return model


def stock(student: keras.Model) -> keras.Model:
    """Return the same network with stock Keras layers, compiled for the same training, but without XLA.

    Keras uses XLA by default on a CPU, which needs minutes to compile and is several times slower.
    """
    model = with_stock_batch_norm(student)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=False)
    return model


def torch_block(process: Peer, layout: str, batch: int, steps: int, size: int) -> Block:
    """Return a block of the same training steps in PyTorch."""
    options = {"network": "student", "layout": layout, "batch": batch, "steps": steps, "size": size}
    return lambda: process.ask("train", **options)["seconds"]


def run(options: Options) -> None:
    """Measure and append rows."""
    batch, steps, size = (4, 1, 8) if options.tiny else (128, 3, 32)
    images, labels = random_batch(batch, size)
    student = models.mobilenet_v2(10, DROP_BLOCKS, input_shape=(size, size, 3))
    sides = {
        "ours": step_block(ours(student), images, labels, steps),
        STOCK: step_block(stock(student), images, labels, steps),
        NONE: step_block(ours(without_normalization(student)), images, labels, steps),
    }
    targets: dict[str, float | None] = {STOCK: 3.0, NONE: None}
    with peer(options) as process:
        if process is not None:
            sides["PyTorch, channels-last"] = torch_block(process, "channels_last", batch, steps, size)
            sides["PyTorch, default"] = torch_block(process, "default", batch, steps, size)
            targets |= {"PyTorch, channels-last": 1.1, "PyTorch, default": 2.0}
        seconds = take_turns(sides, options.pairs)
        versions = process.versions if process is not None else ""
    subject = f"training step, 4.12x student, batch {batch}"
    common = {"work": batch * steps, "unit": "images/s"}
    for against, at_least in targets.items():
        torch = versions if "PyTorch" in against else ""
        faster(options, subject, against, seconds, at_least=at_least, peer_versions=torch, **common)
    record(
        options,
        f"{subject}, with a normalization that takes no time",
        STOCK,
        seconds[STOCK] / seconds[NONE],
        ours=common["work"] / float(np.median(seconds[NONE])),
        theirs=common["work"] / float(np.median(seconds[STOCK])),
        unit="images/s",
        note="the most that any normalization layer could reach here",
    )

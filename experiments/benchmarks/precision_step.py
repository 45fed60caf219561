"""Speed of a training step in bfloat16: ResNet-20 and the fast teacher, against our float32 and against PyTorch."""

import dataclasses
from typing import Any

import keras

from experiments.benchmarks.harness import Block, Options, Peer, faster, peer, take_turns
from experiments.benchmarks.training_step import random_batch, step_block
from tfigkd import models
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import make_optimizer

SGD = TrainingConfig(optimizer="sgd", learning_rate=0.1, schedule="constant")
NETWORKS = {"resnet20": ("ResNet-20", 128, 1.4), "convnet": ("fast teacher", 256, 1.2)}
"""Name to title, batch size, and the ratio to PyTorch that is wanted."""
OURS = 1.4
"""The ratio to our float32 that is wanted."""


def ours(network: keras.Model, precision: str) -> Distiller:
    """Return a network compiled as this package trains it, in a precision."""
    model = Distiller(models.with_precision(with_fused_batch_norm(network), precision))
    optimizer = make_optimizer(dataclasses.replace(SGD, precision=precision), 100)
    model.compile(optimizer, metrics=["accuracy"], jit_compile=False)
    return model


def torch_sides(process: Peer, name: str, **options: Any) -> dict[str, Block]:
    """Return blocks of the same steps in PyTorch: in bfloat16, eager and compiled."""

    def block(compiled: bool) -> Block:
        return lambda: process.ask("train", network=name, precision="bfloat16", compiled=compiled, **options)["seconds"]

    return {"PyTorch, bfloat16, eager": block(False), "PyTorch, bfloat16, compiled": block(True)}


def run(options: Options) -> None:
    """Measure and append rows."""
    for name, (title, batch, wanted) in NETWORKS.items():
        batch, steps, size = (4, 1, 8) if options.tiny else (batch, 5, 32)
        images, labels = random_batch(batch, size)
        network = models.build(name, num_classes=10, input_shape=(size, size, 3))
        sides = {
            "ours": step_block(ours(network, "mixed_bfloat16"), images, labels, steps),
            "our float32": step_block(ours(keras.models.clone_model(network), "float32"), images, labels, steps),
        }
        targets: dict[str, float] = {"our float32": OURS}
        versions = ""
        with peer(options) as process:
            if process is not None:
                theirs = torch_sides(process, name, layout="channels_last", batch=batch, steps=steps, size=size)
                sides |= theirs
                targets |= dict.fromkeys(theirs, wanted)
                versions = process.versions
            seconds = take_turns(sides, options.pairs)
        for against, at_least in targets.items():
            faster(
                options,
                f"training step in bfloat16, {title}, batch {batch}",
                against,
                seconds,
                work=batch * steps,
                unit="images/s",
                at_least=at_least,
                peer_versions=versions if "PyTorch" in against else "",
            )

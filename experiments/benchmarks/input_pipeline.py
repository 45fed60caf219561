"""Speed of the input pipeline against the training step, and the time that overlays add to a training."""

import itertools
import time
from collections.abc import Iterator

import numpy as np

from experiments.benchmarks.distillation_step import distiller
from experiments.benchmarks.harness import Options, record, take_turns, timed
from experiments.benchmarks.training_step import step_block
from tfigkd.batches.stream import Batch, TrainingBatches
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.knowledge import Knowledge, TeacherTargets

PROBABILITY = 0.1  # as in the papers


def random_examples(count: int, size: int) -> tuple[Examples, Knowledge]:
    """Return random examples and their stored knowledge; the cost does not depend on the pixels."""
    generator = np.random.default_rng(0)
    ids = np.array(sorted(f"{value:016x}" for value in generator.integers(0, 2**62, count)))
    images = generator.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    labels = generator.integers(0, 10, count)
    maps = generator.integers(0, 256, (count, size, size)).astype(np.uint8)
    logits = generator.normal(size=(count, 10)).astype(np.float32)
    ones = np.ones(count, np.float32)
    return Examples(ids, images, labels, ids), Knowledge(logits, maps, ones, 0 * ones, ones.astype(bool))


def run(options: Options) -> None:
    """Measure and append rows."""
    count, batch, size = (16, 8, 8) if options.tiny else (5000, 128, 32)
    examples, knowledge = random_examples(count, size)
    steps = -(-count // batch)
    steps_a_block = 1 if options.tiny else 8

    def stream(probability: float) -> Iterator[Batch]:
        overlay = OverlayConfig(probability=probability)
        recipe, targets = TrainingConfig(batch_size=batch, batch_threads=1), TeacherTargets(knowledge)
        return TrainingBatches(examples, recipe, AugmentConfig(), seed=0, targets=targets, overlay=overlay)(0)

    student, (images, targets, *_) = distiller(size), next(stream(PROBABILITY))

    spent: dict[float, list[float]] = {PROBABILITY: [], 0.0: []}

    def train(probability: float) -> None:
        begin = time.process_time()
        student.fit(stream(probability), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        spent[probability].append(time.process_time() - begin)

    def feed() -> None:
        for _ in itertools.islice(stream(PROBABILITY), steps):
            pass

    sides = {
        "pipeline": timed(feed),
        "step": step_block(student, images, targets, steps_a_block),
        "overlays": timed(lambda: train(PROBABILITY)),
        "none": timed(lambda: train(0.0)),
    }
    seconds = take_turns(sides, options.pairs)
    fed, trained = count / seconds["pipeline"], batch * steps_a_block / seconds["step"]
    record(
        options,
        f"input pipeline with overlays, batch {batch}",
        "our distillation step, 4.12x student",
        fed / trained,
        ours=float(np.median(fed)),
        theirs=float(np.median(trained)),
        unit="images/s",
        at_least=20,
        note="one thread; fit runs it beside the step",
    )
    overlaid, plain = (np.array(spent[probability][1:]) for probability in (PROBABILITY, 0.0))
    pairs = {"": (seconds["overlays"], seconds["none"]), ", processor time": (overlaid, plain)}
    for kind, (with_overlays, without) in pairs.items():
        record(
            options,
            f"training of {count:,} images with overlays{kind}",
            "without overlays (its share)",
            with_overlays / without,
            ours=float(np.median(with_overlays)),
            theirs=float(np.median(without)),
            unit="s",
            at_most=1.05,
            note="the 4.12x student, batch 128, a whole epoch a turn",
        )

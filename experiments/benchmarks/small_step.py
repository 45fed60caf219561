"""Speed of several steps in one call of TensorFlow (`steps_per_execution`), on a network small enough to profit."""

import numpy as np

from experiments.benchmarks.harness import Options, faster, take_turns, timed
from tfigkd import models
from tfigkd.training.distiller import Distiller

SINGLE = "one step an execution"


def run(options: Options) -> None:
    """Measure and append rows: the quickstart's student on digits."""
    batch, steps, together = (4, 2, 2) if options.tiny else (64, 40, 8)
    generator = np.random.default_rng(0)
    images = generator.random((batch * steps, 8, 8, 3), np.float32)
    labels = generator.integers(0, 10, batch * steps)
    sides = {}
    for name, count in (("ours", together), (SINGLE, 1)):
        model = Distiller(models.mobilenet_v2(10, 5, input_shape=(8, 8, 3), width=0.5))
        model.compile("adam", metrics=["accuracy"], jit_compile=False, steps_per_execution=count)
        sides[name] = timed(lambda model=model: model.fit(images, labels, batch_size=batch, shuffle=False, verbose=0))
    faster(
        options,
        f"training step, quickstart's student, batch {batch}, {together} steps an execution",
        SINGLE,
        take_turns(sides, options.pairs),
        work=batch * steps,
        unit="images/s",
        note="no target; why training keeps one step an execution, which progress, ledger and interruption rely on",
    )

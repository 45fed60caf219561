"""Training steps of two processes of one thread each, against one process of two threads: why a study divides cores.

Run as a module with arguments, this is one of the processes: it reads a line from its input, trains for some seconds,
and prints the images that it has trained on.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from experiments.benchmarks.harness import Options, record
from tfigkd.runtime.machine import THREADS

NETWORKS = {
    "ResNet-20 in bfloat16": ("resnet20", 0, "mixed_bfloat16"),
    "4.12x student in float32": ("mobilenet_v2", 5, "float32"),
}
TWO, ONE = "two processes of one thread", "one process of two threads"


@contextlib.contextmanager
def _workers(count: int, arguments: list[str]) -> Iterator[list[subprocess.Popen]]:
    """Start processes that share two threads, and wait until they are ready; end them afterwards."""
    environment = os.environ | dict.fromkeys(THREADS, str(2 // count))
    command = [sys.executable, "-m", "experiments.benchmarks.processes_step", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]
    try:
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        yield workers
    finally:
        for worker in workers:
            worker.communicate()


def _rate(workers: list[subprocess.Popen], seconds: float) -> float:
    """Return the images a second of all processes together."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return sum(float(worker.stdout.readline()) for worker in workers if worker.stdout is not None) / seconds


def run(options: Options) -> None:
    """Measure and append rows."""
    seconds, batch, size = (0.1, 4, 8) if options.tiny else (8.0, 128, 32)
    for title, (network, drop_blocks, precision) in NETWORKS.items():
        arguments = [network, str(drop_blocks), precision, str(batch), str(size), str(seconds)]
        with _workers(2, arguments) as pair, _workers(1, arguments) as single:
            rates = np.array([(_rate(pair, seconds), _rate(single, seconds)) for _ in range(options.pairs)])
        ours, theirs = np.median(rates, axis=0)
        subject = f"training steps, {title}, batch {batch}: {TWO}"
        record(options, subject, ONE, rates[:, 0] / rates[:, 1], ours=ours, theirs=theirs, unit="images/s")


def main(network: str, drop_blocks: str, precision: str, batch: str, size: str, seconds: str) -> None:
    """Be one of the processes."""
    from experiments.benchmarks.precision_step import ours
    from experiments.benchmarks.training_step import random_batch
    from tfigkd import models

    images, labels = random_batch(int(batch), int(size))
    built = models.build(network, num_classes=10, input_shape=images.shape[1:], drop_blocks=int(drop_blocks))
    model = ours(built, precision)
    for _ in range(2):
        model.train_on_batch(images, labels)
    print("ready", flush=True)
    for _ in sys.stdin:
        end, trained = time.perf_counter() + float(seconds), 0
        while time.perf_counter() < end:
            model.train_on_batch(images, labels)
            trained += len(images)
        print(trained, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

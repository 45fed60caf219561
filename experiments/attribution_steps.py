"""Completeness error of Integrated Gradients against its cost: rules x steps, and the adaptive mode, on CIFAR-10.

    python experiments/attribution_steps.py --data-dir DIR --weights DIR

Appends one row per setting to experiments/results/attribution.csv; the defaults of `tfigkd.attribution` rest on it.
The published networks have seen all of train, validation included, which is no matter for an error of quadrature.
"""

import argparse
import csv
import functools
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd import data, models, provenance
from tfigkd.attribution import attribute, completeness_error, make_baseline
from tfigkd.attribution.integrated_gradients import FIRST_STEPS

RESULTS = Path(__file__).parent / "results" / "attribution.csv"
RULES = ("gauss_legendre", "midpoint", "trapezoid", "right")
STEPS = (4, 8, 16, 32, 64, 128)
TOLERANCE = 0.05


def networks(weights: Path) -> Iterator[tuple[str, Any]]:
    """The two published networks, batch normalization folded."""
    resnet = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    student = models.truncate(models.mobilenet_v2(10), 5, 10)
    for name, model in (("resnet56", resnet), ("student_drop5_student", student)):
        models.load_torch_weights(model, weights / f"{name}.npz")
        yield name, models.fold_batch_norm(model)


def summary(errors: np.ndarray, evaluations: float, seconds: float | None) -> dict[str, Any]:
    """Errors and cost of one setting, as columns."""
    return {
        "images": len(errors),
        "error_mean": f"{errors.mean():.4f}",
        "error_median": f"{np.median(errors):.4f}",
        "error_p90": f"{np.quantile(errors, 0.9):.4f}",
        "error_p99": f"{np.quantile(errors, 0.99):.4f}",
        "share_within_tolerance": f"{(errors <= TOLERANCE).mean():.4f}",
        "gradients_per_image": f"{evaluations:.1f}",
        "images_per_second": f"{len(errors) / seconds:.2f}" if seconds else "",
    }


def settings(model: Any, labeled: data.Examples, more: data.Examples, start: Any) -> Iterator[dict[str, Any]]:
    """Rows of one model and baseline; `start` makes the baseline of some images."""
    images = data.to_model_input(labeled.images)
    for rule in RULES:
        errors = np.empty((len(STEPS), len(images)), np.float32)
        for index, n_steps in enumerate(STEPS):
            begin = time.perf_counter()
            result = attribute(model, images, labeled.labels, baseline=start(images), rule=rule, n_steps=n_steps)
            seconds = time.perf_counter() - begin
            errors[index] = completeness_error(result.attributions, result.convergence_delta)
            yield {"rule": rule, "n_steps": n_steps} | summary(errors[index], n_steps, seconds)
        # No result depends on the other images of a call, so what doubling from any start would do is known now.
        for first in range(3):
            within = errors[first:] <= TOLERANCE
            last = np.where(within.any(axis=0), within.argmax(axis=0), len(within) - 1)
            spent = np.cumsum(STEPS[first:])[last].mean()
            chosen = errors[first + last, np.arange(len(images))]
            yield {"rule": rule, "n_steps": f"doubled from {STEPS[first]}"} | summary(chosen, spent, None)
    images = data.to_model_input(more.images)
    begin = time.perf_counter()
    result = attribute(model, images, more.labels, baseline=start(images), tolerance=TOLERANCE)
    seconds = time.perf_counter() - begin
    errors = completeness_error(result.attributions, result.convergence_delta)
    spent = np.mean([sum(steps for steps in STEPS if FIRST_STEPS <= steps <= used) for used in result.n_steps])
    yield {"rule": "default", "n_steps": "adaptive"} | summary(errors, spent, seconds)


def main() -> None:
    """Measure, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--images", type=int, default=256, help="validation images for the grid of fixed steps")
    parser.add_argument("--adaptive-images", type=int, default=1000, help="validation images for the adaptive mode")
    arguments = parser.parse_args()

    cifar10 = data.load("cifar10", directory=arguments.data_dir, download=False)
    mean_color = cifar10.train.images.mean(axis=(0, 1, 2)) / 255
    # Sorted by id, which is a hash: the first are a random sample.
    few, more = (cifar10.validation.take(slice(n)) for n in (arguments.images, arguments.adaptive_images))
    origin = {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "command": shlex.join(["python", "experiments/attribution_steps.py", *sys.argv[1:]]),
    }
    for name, model in networks(arguments.weights):
        attribute(model, data.to_model_input(few.images[:1]), few.labels[:1], n_steps=2)  # compiles, outside the clock
        for baseline in ("black", "mean"):
            start = functools.partial(make_baseline, baseline, mean_color=mean_color)
            for row in settings(model, few, more, start):
                append({"model": name, "baseline": baseline, "tolerance": TOLERANCE} | row | origin)


def append(row: dict[str, Any]) -> None:
    """Add a row to the results, under a header where the file is new."""
    print(*list(row.values())[:-3], sep="  ", flush=True)
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()

"""Completeness error and cost of Integrated Gradients by rule and steps, and in adaptive mode, on CIFAR-10.

    python experiments/benchmarks/attribution_steps.py --data-dir DIR --weights DIR
    python experiments/benchmarks/attribution_steps.py --data-dir DIR --model FILE.keras --tolerance 0.1

Appends one row per setting to experiments/results/attribution.csv, the basis of the defaults of `tfigkd.attribution`.
The published networks were trained on all of train, validation included; this does not affect a quadrature error.
"""

import argparse
import csv
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd import data, models
from tfigkd.attribution import attribute, completeness_error, make_baseline, saliency_map
from tfigkd.attribution.integrated_gradients import FIRST_STEPS
from tfigkd.runtime import provenance

RESULTS = Path(__file__).parents[1] / "results" / "attribution.csv"
RULES = ("midpoint", "gauss_legendre", "trapezoid", "right", "nested")  # the default first
STEPS = (4, 8, 16, 32, 64, 128)
REFERENCE_STEPS = 256  # Gauss-Legendre; `map_distance` is the relative L1 distance from its saliency maps


def networks(weights: Path | None, own: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield name and model of a .keras file, or of the two published networks, batch normalization folded."""
    if own is not None:
        yield own.parent.name, models.fold_batch_norm(models.load_classifier(own, num_classes=10))
    if weights is None:
        return
    resnet = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    student = models.truncate(models.mobilenet_v2(10), 5, 10)
    for name, model in (("resnet56", resnet), ("student_drop5_student", student)):
        models.load_torch_weights(model, weights / f"{name}.npz")
        yield name, models.fold_batch_norm(model)


def summary(
    errors: np.ndarray, distances: np.ndarray, evaluations: float, seconds: float = np.nan, *, tolerance: float
) -> dict[str, Any]:
    """Return errors and cost of one setting as columns."""
    columns = {"error_mean": errors.mean(), "error_median": np.median(errors)}
    columns |= {f"error_p{percent}": np.percentile(errors, percent) for percent in (90, 99)}
    columns |= {"share_within_tolerance": (errors <= tolerance).mean(), "map_distance": distances.mean()}
    columns |= {"gradients_per_image": evaluations, "images_per_second": len(errors) / seconds}
    return {"images": len(errors)} | {name: f"{value:.4g}" for name, value in columns.items()}


def run(model: Any, examples: data.Examples, color: np.ndarray | None, **options: Any) -> tuple[Any, ...]:
    """Return completeness errors [N], saliency maps [N,H,W], steps [N], seconds; the default baseline is black."""
    images, begin = data.to_model_input(examples.images), time.perf_counter()
    baseline = make_baseline("black" if color is None else "mean", images, mean_color=color)
    result = attribute(model, images, examples.labels, baseline=baseline, **options)
    errors = completeness_error(result.attributions, result.convergence_delta)
    return errors, saliency_map(result.attributions), result.n_steps, time.perf_counter() - begin


def fixed_steps(
    model: Any, examples: data.Examples, color: np.ndarray | None, rules: list[str], tolerance: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rule and number of steps, and for doubling the steps until the tolerance is met."""
    reference = run(model, examples, color, rule="gauss_legendre", n_steps=REFERENCE_STEPS)[1]
    for rule in rules:
        errors, distances = np.empty((2, len(STEPS), len(examples)))
        for index, n_steps in enumerate(STEPS):
            errors[index], maps, _, seconds = run(model, examples, color, rule=rule, n_steps=n_steps)
            distances[index] = np.abs(maps - reference).sum(axis=(1, 2)) / reference.sum(axis=(1, 2))
            yield {"rule": rule, "n_steps": n_steps} | summary(
                errors[index], distances[index], n_steps, seconds, tolerance=tolerance
            )
        # No result depends on the other images in a call, so the results of doubling follow from the runs above.
        for first in range(4):
            within = errors[first:] <= tolerance
            last = np.where(within.any(axis=0), within.argmax(axis=0), len(within) - 1)
            chosen = (first + last, np.arange(len(examples)))
            spent = _spent(rule, first)[last].mean()
            columns = summary(errors[chosen], distances[chosen], spent, tolerance=tolerance)
            yield {"rule": rule, "n_steps": f"doubled from {STEPS[first]}"} | columns


def _spent(rule: str, first: int) -> np.ndarray:
    """Return the gradients computed for an image if doubling from STEPS[first] stops at each later number of steps."""
    return np.array(STEPS[first:]) if rule == "nested" else np.cumsum(STEPS[first:])


def adaptive(
    model: Any, examples: data.Examples, color: np.ndarray | None, rule: str, tolerance: float
) -> dict[str, Any]:
    """Return the row of the adaptive mode with its defaults."""
    errors, _, used, seconds = run(model, examples, color, rule=rule, tolerance=tolerance)
    first = STEPS.index(FIRST_STEPS)
    spent = _spent(rule, first)[np.searchsorted(STEPS[first:], used)].mean()
    columns = summary(errors, np.array(np.nan), float(spent), seconds, tolerance=tolerance)
    return {"rule": rule, "n_steps": f"adaptive from {FIRST_STEPS}"} | columns


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, help="folder with the published .npz files")
    parser.add_argument(
        "--model", type=Path, help="another classifier of CIFAR-10, a .keras file in a folder of its name"
    )
    parser.add_argument("--tolerance", type=float, default=0.05, help="completeness error to stay within")
    parser.add_argument("--images", type=int, default=256, help="validation images for fixed steps; 0: skip them")
    parser.add_argument(
        "--adaptive-images", type=int, default=1000, help="validation images for the adaptive mode; 0: skip it"
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="rules to measure")
    arguments = parser.parse_args()

    cifar10 = data.load("cifar10", directory=arguments.data_dir, download=False)
    mean_color = cifar10.train.images.mean(axis=(0, 1, 2)) / 255
    # Examples are sorted by id, which is a hash, so the first ones are a random sample.
    few, more = (cifar10.validation.take(slice(n)) for n in (arguments.images, arguments.adaptive_images))
    origin = {"versions": provenance.versions(), "hardware": provenance.hardware()}
    origin["command"] = shlex.join(["python", "experiments/benchmarks/attribution_steps.py", *sys.argv[1:]])
    for name, model in networks(arguments.weights, arguments.model):
        run(model, cifar10.validation.take(slice(1)), None, n_steps=2)  # compiles before the timing
        for baseline, color in (("black", None), ("mean", mean_color)):
            setting = {"model": name, "baseline": baseline, "tolerance": arguments.tolerance}
            for row in fixed_steps(model, few, color, arguments.rules, arguments.tolerance) if len(few) else ():
                append(setting | row | origin)
            for rule in {RULES[0], "nested"} & {*arguments.rules} if len(more) else ():
                append(setting | adaptive(model, more, color, rule, arguments.tolerance) | origin)


def append(row: dict[str, Any]) -> None:
    """Append a row to the results, with a header if the file is new."""
    print(*list(row.values())[:-3], sep="  ", flush=True)
    with open(RESULTS, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()

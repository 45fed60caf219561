"""Speed of Integrated Gradients on real pictures: ours with its defaults against captum's and saliency's."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Options, Peer, faster, peer, take_turns
from tfigkd import data, models
from tfigkd.attribution import Attribution, attribute, completeness_error, saliency_map

NETWORKS = {"student_drop5_student": "published drop-5 student", "resnet56": "published ResNet-56"}
AT_ONCE = {"student_drop5_student": 1, "resnet56": 4}  # images in each call of captum; the fastest of 1, 4 and 16
REFERENCE_STEPS = 256  # midpoint rule; the distance of both sides' maps to it is reported and is not part of the target
CAPTUM = "captum, channels-last"
SETTINGS = {"rule": "nested", "batch_size": 64}
TOLERANCES = {"student_drop5_student": 0.028, "resnet56": 0.024}
"""Tolerances at which median and 90th percentile of our errors are not larger than those of captum's 50 steps."""


def network(name: str, weights: Path) -> Any:
    """Return a published network with batch normalization folded."""
    if name == "resnet56":
        model = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    else:
        model = models.truncate(models.mobilenet_v2(10), 5, 10)
    models.load_torch_weights(model, weights / f"{name}.npz")
    return models.fold_batch_norm(model)


def errors_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return completeness errors [N] and saliency maps [N,H,W] from the file that a peer wrote."""
    with np.load(path) as arrays:
        attributions = arrays["attributions"]
        return completeness_error(attributions, arrays["deltas"]), saliency_map(attributions)


def distance(maps: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean relative L1 distance of saliency maps [B,H,W]."""
    return float((np.abs(maps - reference).sum(axis=(1, 2)) / reference.sum(axis=(1, 2))).mean())


def summary(errors: np.ndarray, maps: np.ndarray, reference: np.ndarray) -> str:
    """Return the quality of a side's maps as text."""
    median, high = np.percentile(errors, [50, 90])
    return f"error {median:.4f} median, {high:.4f} p90, map distance {distance(maps, reference):.4f}"


def compare(options: Options, process: Peer, name: str, pictures: Any, folder: Path) -> None:
    """Measure one network and append its rows."""
    model, images = network(name, options.weights), data.to_model_input(pictures.images)
    np.savez(folder / "images.npz", images=images, labels=pictures.labels)
    common = {"network": name, "weights": str((options.weights / f"{name}.npz").resolve())}
    common |= {"images": str(folder / "images.npz"), "layout": "channels_last"}
    ours: list[Attribution] = []

    def our_block() -> float:
        begin = time.perf_counter()
        ours[:] = [attribute(model, images, pictures.labels, tolerance=TOLERANCES[name], **SETTINGS)]
        return time.perf_counter() - begin

    def captum_block() -> float:
        output = str(folder / "captum.npz")
        return process.ask("captum", at_once=AT_ONCE[name], output=output, **common)["seconds"]

    def saliency_block() -> float:
        output = str(folder / "saliency.npz")
        return process.ask("saliency", steps=50, output=output, **common)["seconds"]

    sides = {"ours": our_block, CAPTUM: captum_block}
    if name == "student_drop5_student":  # it explains one image at a time, so more networks would double the total time
        sides["saliency"] = saliency_block
    seconds = take_turns(sides, options.pairs)
    steps = 8 if options.tiny else REFERENCE_STEPS
    reference = saliency_map(attribute(model, images, pictures.labels, n_steps=steps).attributions)
    result = ours[0]
    our_errors = completeness_error(result.attributions, result.convergence_delta)
    our_summary = f"tolerance {TOLERANCES[name]}, {result.n_steps.mean():.1f} gradients an image, "
    our_summary += summary(our_errors, saliency_map(result.attributions), reference)
    for against in sides.keys() - {"ours"}:
        at_least = 4.0 if against == CAPTUM else None
        errors, maps = errors_of(folder / f"{against.split(',')[0]}.npz")
        no_larger = all(np.percentile(our_errors, q) <= np.percentile(errors, q) for q in (50, 90))
        faster(
            options,
            f"IG maps, {NETWORKS[name]}",
            against,
            seconds,
            work=len(images),
            unit="maps/s",
            at_least=at_least,
            holds=no_larger if at_least else True,
            peer_versions=process.versions,
            note=f"{len(images)} images; ours: {our_summary}; theirs: {summary(errors, maps, reference)}",
        )


def run(options: Options) -> None:
    """Measure and append rows; without the peers' environment, print a line and do nothing."""
    with peer(options) as process, tempfile.TemporaryDirectory() as folder:
        if process is None:
            print("IG maps: no peers' environment, left out")
            return
        cifar10 = data.load("cifar10", directory=str(options.data_dir), download=False)
        # Examples are sorted by id, which is a hash, so the first ones are a random sample.
        pictures = cifar10.validation.take(slice(2 if options.tiny else 64))
        for name in options.networks:
            compare(options, process, name, pictures, Path(folder))

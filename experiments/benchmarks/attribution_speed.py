"""Integrated Gradients over a data set: ours with its defaults against captum's and saliency's, on real pictures."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Options, Peer, faster, peer, take_turns
from tfigkd import data, models
from tfigkd.attribution import Attribution, attribute, completeness_error, saliency_map

NETWORKS = {"student_drop5_student": "published drop-5 student", "resnet56": "published ResNet-56"}
AT_ONCE = {"student_drop5_student": 1, "resnet56": 4}  # images a call of captum's; of 1, 4 and 16 its fastest
REFERENCE_STEPS = 256  # midpoint; how far the maps of both sides are from it is stated, it is no part of the target
CAPTUM = "captum, channels-last"
SETTINGS = {"rule": "nested", "batch_size": 64}
TOLERANCES = {"student_drop5_student": 0.028, "resnet56": 0.024}
"""Where median and 90th percentile of the errors are no larger than those of captum's 50 steps."""


def network(name: str, weights: Path) -> Any:
    """A published network, batch normalization folded."""
    if name == "resnet56":
        model = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    else:
        model = models.truncate(models.mobilenet_v2(10), 5, 10)
    models.load_torch_weights(model, weights / f"{name}.npz")
    return models.fold_batch_norm(model)


def errors_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Completeness errors and saliency maps of what a peer wrote."""
    with np.load(path) as arrays:
        attributions = arrays["attributions"]
        return completeness_error(attributions, arrays["deltas"]), saliency_map(attributions)


def distance(maps: np.ndarray, reference: np.ndarray) -> float:
    """Mean relative L1 distance of saliency maps [B,H,W]."""
    return float((np.abs(maps - reference).sum(axis=(1, 2)) / reference.sum(axis=(1, 2))).mean())


def summary(errors: np.ndarray, maps: np.ndarray, reference: np.ndarray) -> str:
    """The quality of a side's maps, in words."""
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
    if name == "student_drop5_student":  # one image at a time, it would double the time of the whole
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
    """Measure and append rows; without the peers there is nothing to compare."""
    with peer(options) as process, tempfile.TemporaryDirectory() as folder:
        if process is None:
            print("IG maps: no peers' environment, left out")
            return
        cifar10 = data.load("cifar10", directory=str(options.data_dir), download=False)
        # Sorted by id, which is a hash: the first are a random sample.
        pictures = cifar10.validation.take(slice(2 if options.tiny else 64))
        for name in options.networks:
            compare(options, process, name, pictures, Path(folder))

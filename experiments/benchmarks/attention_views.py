"""Distance between a teacher's stored attention maps and those of the view that the student sees, on CIFAR-10.

    python experiments/benchmarks/attention_views.py --data-dir DIR --weights DIR

Appends a row for each network, tap and kind of map to experiments/results/attention.csv. The distance is Euclidean, of
maps normalized to length one: 0 for equal maps, 1.41 for maps without overlap.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

from tfigkd import data, models
from tfigkd.batches.augment import crop_and_flip, example_keys, move_coarse
from tfigkd.config.fields import ViewConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.runtime import provenance
from tfigkd.runtime.rows import append_row
from tfigkd.store.views import view_outputs, with_attention

RESULTS = Path(__file__).parents[1] / "results" / "attention.csv"
TAPS = {"resnet56": ("block_18", "block_27"), "student_drop5_student": ("block_05", "block_09")}


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", required=True, help="where tfds finds the prepared CIFAR-10")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the published .npz files")
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    arguments = parser.parse_args()

    examples = data.load("cifar10", directory=arguments.data_dir, download=False).validation
    examples = examples.take(slice(arguments.images))
    augment, keys, side = AugmentConfig(), example_keys(examples.ids), examples.images.shape[1:3]
    moved_images = data.Examples(
        examples.ids, crop_and_flip(examples.images, keys, augment, seed=0, epoch=0), examples.labels, examples.ids
    )
    origin = provenance.origin(shlex.join(["python", "experiments/benchmarks/attention_views.py", *sys.argv[1:]]))
    networks = {
        "resnet56": models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD)),
        "student_drop5_student": models.truncate(models.mobilenet_v2(10), 5, 10),
    }
    still, one = AugmentConfig(crop_padding=0, flip=False), ViewConfig(views=1)
    for name, network in networks.items():
        models.load_torch_weights(network, arguments.weights / f"{name}.npz")
        for tap in TAPS[name]:
            model = with_attention(models.fold_batch_norm(network), tap)
            live = view_outputs(model, moved_images, still, one)[:, 0]
            plain = view_outputs(model, examples, still, one)[:, 0].astype(np.float16)
            kinds = {
                "views (float16)": view_outputs(model, examples, augment, one)[:, 0].astype(np.float16),
                "moved with the crop and flip": move_coarse(plain, side, keys, augment, seed=0, epoch=0),
                "of the unaugmented image": plain,
                "of another image": np.roll(live, 1, axis=0),
            }
            for kind, maps in kinds.items():
                distance = distances(maps.astype(np.float32), live)
                row = {"model": name, "tap": tap, "resolution": f"{live.shape[1]}x{live.shape[2]}", "maps": kind}
                row |= {"images": len(examples), "distance_mean": f"{distance.mean():.4g}"}
                row |= {"distance_sd": f"{distance.std(ddof=1):.4g}"}
                print(*row.values(), sep="  ", flush=True)
                append_row(RESULTS, row | origin)


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances [B] of maps [B,h,w], each normalized to length one."""
    flat = [maps.reshape(len(maps), -1) for maps in (left, right)]
    unit = [maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-12) for maps in flat]
    return np.linalg.norm(unit[0] - unit[1], axis=1)


if __name__ == "__main__":
    main()

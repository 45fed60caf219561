"""Stored views: the teacher's logits, or attention maps, of K fixed random crops and flips of every training image.

Augmentation then draws one of the K views, so the stored output belongs to exactly the image that the student gets,
and no teacher has to run. A view is a function of (view seed, id, k); the store has the values as float16. Logits and
the attention of each tap are separate stores, so that arms can share them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from tfigkd.batches.augment import crop_and_flip, example_keys
from tfigkd.batches.threads import done_in_order, spare_threads
from tfigkd.config.fields import ViewConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data import Examples
from tfigkd.data.top_logits import chosen_classes, pack, spread_rest, unpack
from tfigkd.losses.attention import unit_attention
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.taps import tap_outputs
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint_values
from tfigkd.store.shards import REBUILD, Record

FORMAT = 2
SHARD_SIZE = 512
FLAT = 1e-2
"""Lower bound of the largest value of an image, by which its deviation is divided."""
TOLERANCE = 5e-3
"""Largest deviation of a stored view from a recomputed one; the rounding of float16 by itself is 5e-4."""


def views_identity(
    teacher_weights: str, data: str, augment: AugmentConfig, view: ViewConfig, tap: str | None = None
) -> dict[str, Any]:
    """Return everything that the stored values depend on.

    Args:
        teacher_weights: Fingerprint of the teacher.
        data: Fingerprint of the data.
        augment: The crops and flips of the views.
        view: How many views there are, and their seed.
        tap: Layer of the teacher whose attention is stored; None stores logits.
    """
    drawn = {"augment": fingerprint_values(augment), "views": view.views, "seed": view.seed}
    if tap:
        drawn["tap"] = tap
    elif view.top_logits:
        drawn["top_logits"] = view.top_logits
    return {"format": FORMAT, "teacher": teacher_weights, "data": data, **drawn}


def with_attention(model: keras.Model, tap: str) -> keras.Model:
    """Return a model from images to the attention map [B,h,w] of a layer, with L2 norm 1 so that it fits into float16.

    Raises:
        UserError: The model has no such layer, or the layer's output is not a feature map.
    """
    try:
        features = tap_outputs(model, [tap])
    except ValueError as error:
        raise UserError(f"losses.at.teacher_layer: the teacher {error}") from error
    maps = features.outputs[1]
    if len(maps.shape) != 4:
        raise UserError(f"losses.at.teacher_layer: {tap!r} gives {tuple(maps.shape)}, expected maps [B,h,w,D]")
    return keras.Model(features.inputs[0], unit_attention(maps))


def view_outputs(model: keras.Model, examples: Examples, augment: AugmentConfig, view: ViewConfig) -> np.ndarray:
    """Return a model's outputs of the K views of each example, float32 [N,K,...].

    Args:
        model: Images to logits [B,C], or to attention maps [B,h,w], see `with_attention`.
        examples: N examples.
        augment: The crops and flips of the views.
        view: How many views there are, and their seed.
    """
    keys, images = example_keys(examples.ids), examples.images[:]
    moved = partial(crop_and_flip, images, keys, augment, seed=view.seed)
    crops = done_in_order((partial(moved, epoch=number) for number in range(view.views)), spare_threads())
    return np.stack([predict_logits(model, each) for each in crops], axis=1)


def views_deviation(stored: np.ndarray, outputs: np.ndarray) -> float:
    """Return the largest deviation of stored views from recomputed ones, relative to the largest value of each image.

    Args:
        stored: float16 [N,K,...], or uint16 of `pack`.
        outputs: float32 [N,K,...], from `view_outputs`.

    Raises:
        UserError: It is larger than the rounding of float16, so the records are not those of the images.
    """
    if stored.dtype == np.uint16:
        stored, outputs = unpack(stored), spread_rest(outputs, chosen_classes(stored))
    axes = tuple(range(1, outputs.ndim))
    largest = np.maximum(FLAT, np.abs(outputs).max(axis=axes))
    worst = float((np.abs(stored.astype(np.float32) - outputs).max(axis=axes) / largest).max())
    if not worst <= TOLERANCE:
        raise UserError(
            f"views: recomputed records deviate by {worst:.2g} of the largest value: they do not belong to their "
            f"images or teacher; {REBUILD}"
        )
    return worst


def view_record(outputs: np.ndarray, top_logits: int | None = None) -> dict[str, Any]:
    """Return the features of the record of an image's views: float32 [K,...], or of logits only the largest."""
    if top_logits is None:
        return {"view_values": outputs.astype("<f2").tobytes(), "view_shape": list(outputs.shape)}
    packed = pack(outputs, top_logits)
    return {"view_top": packed.tobytes(), "view_shape": list(packed.shape)}


def parse_view(features: Mapping[str, Any]) -> Record:
    """Return the views of a record: float16 [K,...], or uint16 of `pack`."""
    shape = tuple(int(side) for side in features["view_shape"])
    if "view_top" in features:
        return {"views": np.frombuffer(features["view_top"][0], "<u2").reshape(shape)}
    return {"views": np.frombuffer(features["view_values"][0], "<f2").reshape(shape)}

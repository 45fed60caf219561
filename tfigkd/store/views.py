"""Stored views: the teacher's logits, or attention maps, of K fixed random crops and flips of every training image.

Augmentation then draws one of the K, so the teacher has seen exactly what the student sees, at the price of a look-up.
A view is a function of (view seed, id, k); the store keeps the values as float16. Logits and the attention of each tap
are stores of their own, so that arms share what they have in common.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import models
from tfigkd.batches.augment import crop_and_flip, example_keys
from tfigkd.config.fields import AugmentConfig, Config, ViewConfig
from tfigkd.config.reading import fingerprint
from tfigkd.data import Examples
from tfigkd.losses.attention import unit_attention
from tfigkd.measure.metrics import predict_logits
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import Workdir, finished, locked, write_manifest
from tfigkd.stages.data import stored_examples, stored_fingerprint
from tfigkd.stages.teacher import load_teacher, require_teacher, teacher_folder
from tfigkd.store.shards import REBUILD, Record, join_arrays, open_store, write_shards

FORMAT = 2
SHARD_SIZE = 512


def views_identity(
    teacher_weights: str, data: str, augment: AugmentConfig, view: ViewConfig, tap: str | None = None
) -> dict[str, Any]:
    """Everything the stored values depend on; `tap` is the layer whose attention is stored, None for the logits."""
    drawn = {"augment": asdict(augment), "views": view.views, "seed": view.seed}
    return {"format": FORMAT, "teacher": teacher_weights, "data": data, **drawn, **({"tap": tap} if tap else {})}


def with_attention(model: keras.Model, tap: str) -> keras.Model:
    """A model from images to the attention map [B,h,w] of a layer, each of length one so that float16 holds it.

    Raises:
        UserError: the model has no such layer, or its output is no feature map.
    """
    try:
        features = model.get_layer(tap).output
    except ValueError as error:
        raise UserError(f"losses.at.teacher_layer: the teacher {model.name!r} has no layer {tap!r}") from error
    if len(features.shape) != 4:
        raise UserError(f"losses.at.teacher_layer: {tap!r} gives {tuple(features.shape)}, expected maps [B,h,w,D]")
    return keras.Model(model.input, unit_attention(features))


def view_outputs(model: keras.Model, examples: Examples, augment: AugmentConfig, view: ViewConfig) -> np.ndarray:
    """A model's outputs, logits or attention, of the K views of each example, float32 [N,K,...]."""
    keys = example_keys(examples.ids)
    views = [
        predict_logits(model, crop_and_flip(examples.images, keys, augment, seed=view.seed, epoch=number))
        for number in range(view.views)
    ]
    return np.stack(views, axis=1)


def _parse(features: Mapping[str, Any]) -> Record:
    shape = tuple(int(side) for side in features["view_shape"])
    return {"views": np.frombuffer(features["view_values"][0], "<f2").reshape(shape)}


def _drawn(config: Config, tap: str | None) -> tuple[AugmentConfig, ViewConfig]:
    """The views that are stored; maps that will be moved with their image are of the unaugmented image alone."""
    if tap is not None and config.view.attention == "moved":
        return AugmentConfig(crop_padding=0, flip=False), replace(config.view, views=1, seed=0)
    return config.augment, config.view


def _identity(config: Config, workdir: Workdir, tap: str | None) -> dict[str, Any]:
    weights = require_teacher(config, workdir)["weights"]
    return views_identity(weights, stored_fingerprint(config.data), *_drawn(config, tap), tap)


def views_folder(config: Config, workdir: Workdir, tap: str | None = None) -> Path:
    """Where this config's stored logits lie, or will lie, or the attention of a tap; its teacher must be there."""
    return teacher_folder(config, workdir) / "views" / fingerprint(_identity(config, workdir, tap))


def load_views(config: Config, workdir: Workdir, examples: Examples, tap: str | None = None) -> np.ndarray:
    """The stored logits of examples, float16 [N,K,C], or the attention of a tap, [N,K,h,w]; joined by id."""
    folder = views_folder(config, workdir, tap)
    views = join_arrays(folder, open_store(folder, _identity(config, workdir, tap)), examples, _parse)["views"]
    broken = ~np.isfinite(views).all(axis=tuple(range(1, views.ndim)))
    if broken.any():
        first = examples.ids[int(broken.argmax())]
        raise UserError(f"store {folder}: {broken.sum()} records hold NaN or infinity, the first {first}; {REBUILD}")
    return views


def build_views(config: Config, workdir: Workdir, tap: str | None = None) -> None:
    """Compute and store the logits of the views, or the attention of a tap, going on after the shards there are."""
    folder, identity = views_folder(config, workdir, tap), _identity(config, workdir, tap)
    augment, view = _drawn(config, tap)
    with locked(folder, wait=True):
        if finished(folder, folder.name) is None:
            model = models.fold_batch_norm(load_teacher(config, workdir))
            model = model if tap is None else with_attention(model, tap)

            def make(chosen: Examples) -> Iterator[dict[str, Any]]:
                for views in view_outputs(model, chosen, augment, view):
                    yield {"view_values": views.astype("<f2").tobytes(), "view_shape": list(views.shape)}

            examples = stored_examples(config.data)
            files = write_shards(folder, examples, SHARD_SIZE, store=folder.name, parse=_parse, make=make)
            write_manifest(folder, folder.name, files=files, identity=identity, examples=len(examples))
    what = "logits" if tap is None else f"attention of {tap}"
    console.say(f"  {what}: {view.views} view{'s' * (view.views > 1)} of each image  ({folder})")

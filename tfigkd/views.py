"""Stored views: the teacher's logits of K fixed random crops and flips of every training image.

Augmentation then draws one of the K, so the teacher has seen exactly what the student sees, at the price of a look-up.
A view is a function of (view seed, id, k); the store keeps the logits as float16.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import console, models
from tfigkd.augment import crop_and_flip, example_keys
from tfigkd.config import fingerprint
from tfigkd.data import Examples
from tfigkd.data.stage import dataset
from tfigkd.fields import AugmentConfig, Config, ViewConfig
from tfigkd.metrics import predict_logits
from tfigkd.store import Record, covered, join_arrays, open_store, write_shards
from tfigkd.teacher import load_teacher, require_teacher, teacher_folder
from tfigkd.workdir import Workdir, finished, locked, write_manifest

FORMAT = 1
SHARD_SIZE = 512


def views_identity(teacher_weights: str, data: str, augment: AugmentConfig, view: ViewConfig) -> dict[str, Any]:
    """Everything the stored logits depend on."""
    drawn = {"augment": asdict(augment), "views": view.views, "seed": view.seed}
    return {"format": FORMAT, "teacher": teacher_weights, "data": data, **drawn}


def view_logits(model: keras.Model, examples: Examples, augment: AugmentConfig, view: ViewConfig) -> np.ndarray:
    """The teacher's logits of the K views of each example, float32 [N,K,C]."""
    keys = example_keys(examples.ids)
    views = [
        predict_logits(model, crop_and_flip(examples.images, keys, augment, seed=view.seed, epoch=number))
        for number in range(view.views)
    ]
    return np.stack(views, axis=1)


def _parse(features: Mapping[str, Any]) -> Record:
    shape = tuple(int(side) for side in features["view_shape"])
    return {"views": np.frombuffer(features["view_logits"][0], "<f2").reshape(shape)}


def _identity(config: Config, workdir: Workdir) -> dict[str, Any]:
    weights = require_teacher(config, workdir)["weights"]
    return views_identity(weights, dataset(config.data).fingerprint, config.augment, config.view)


def views_folder(config: Config, workdir: Workdir) -> Path:
    """Where this config's views lie, or will lie; its teacher must be there."""
    return teacher_folder(config, workdir) / "views" / fingerprint(_identity(config, workdir))


def load_views(config: Config, workdir: Workdir, examples: Examples) -> np.ndarray:
    """The stored logits of examples, float16 [N,K,C], joined by id."""
    folder = views_folder(config, workdir)
    return join_arrays(folder, open_store(folder, _identity(config, workdir)), examples, _parse)["views"]


def build_views(config: Config, workdir: Workdir) -> None:
    """Compute and store the views, going on after the shards that are there."""
    data, folder, identity = dataset(config.data), views_folder(config, workdir), _identity(config, workdir)
    with locked(folder, wait=True):
        if finished(folder, folder.name) is None:
            model = models.fold_batch_norm(load_teacher(config, workdir))

            def make(chosen: Examples) -> Iterator[dict[str, Any]]:
                for views in view_logits(model, chosen, config.augment, config.view):
                    yield {"view_logits": views.astype("<f2").tobytes(), "view_shape": list(views.shape)}

            examples = covered(data)
            files = write_shards(folder, examples, SHARD_SIZE, store=folder.name, parse=_parse, make=make)
            write_manifest(folder, folder.name, files=files, identity=identity, examples=len(examples))
    console.say(f"  {config.view.views} views of each image  ({folder})")

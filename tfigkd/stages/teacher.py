"""The teacher: trained once, or taken from weights, a .keras file or saved_models; shared by every arm and seed."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from tfigkd import models
from tfigkd.attribution import make_baseline
from tfigkd.batches.stream import training_batches
from tfigkd.config.experiment import Config, experiments_folder
from tfigkd.config.fields import NetworkConfig
from tfigkd.data import Dataset, mean_color, to_model_input
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.layers import with_fused_layers, with_stock_layers
from tfigkd.models.weights import weights_fingerprint
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    MANIFEST,
    atomic,
    checksum,
    fingerprint,
    fingerprint_values,
    finished,
    locked,
    write_manifest,
    write_text,
)
from tfigkd.stages.data import class_weights, data_fingerprints, dataset, holds_out_validation, teacher_examples
from tfigkd.stages.workdir import Workdir
from tfigkd.training import checkpoint
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import fit
from tfigkd.training.tensorboard import Watched

FILE = "teacher.keras"
WHITENED = 5000  # training images that the stem of a convnet is made from
SEEDS = 2**32  # of students: from 0 to here


def build_network(config: NetworkConfig, data: Dataset) -> keras.Model:
    """A network of a config for the classes and image shape of a data set; a .keras file comes with its weights."""
    model = models.build(
        config.model,
        num_classes=data.num_classes,
        input_shape=data.image_shape,
        drop_blocks=config.drop_blocks,
        width=config.width,
        dropout=config.dropout,
        normalization=config.normalization,
        widths=config.widths,
        depth=config.depth,
    )
    if config.model == "convnet":
        models.set_whitening(model, to_model_input(data.train.images[:WHITENED]))
    return model


def build_teacher(config: Config, data: Dataset) -> keras.Model:
    """The teacher of a config before its training; several are one model."""
    networks = [build_network(config.teacher, data) for _ in range(config.teacher.count)]
    return networks[0] if len(networks) == 1 else models.ensemble(networks, weighting=config.teacher.weighting)


def members(config: Config) -> list[Config]:
    """A config for each of several teachers; each is a teacher in its own right, that other runs may share."""
    teacher = config.teacher
    seeds = range(teacher.seed, teacher.seed + teacher.count)
    return [replace(config, teacher=replace(teacher, count=1, seed=seed)) for seed in seeds]


def weights_path(name: str) -> Path:
    """Where published weights lie: as given, or in the folder $TFIGKD_WEIGHTS_DIR.

    Raises:
        UserError: neither place has them.
    """
    given, folder = Path(name), os.environ.get("TFIGKD_WEIGHTS_DIR")
    places = [given] if folder is None else [given, Path(folder) / name]
    for place in places:
        if place.is_file():
            return place
    where = " or ".join(map(str, places))
    raise UserError(f"teacher.weights: no file {where}; give --teacher.weights PATH or set TFIGKD_WEIGHTS_DIR")


def content_of(path: str | None) -> str | None:
    """A file stands for its content, so that a teacher's identity does not depend on where the file lies."""
    if path is None or not path.endswith((".keras", ".npz")):
        return path
    if not Path(path).is_file():
        raise UserError(f"teacher: no file {path}; give the path of a .keras model or .npz weights")
    return checksum(Path(path))


def teacher_fingerprint(config: Config, data: str | None = None) -> str:
    """Hash of everything the teacher's weights depend on; `data` is one of `data_fingerprints`, else the first."""
    teacher, data = config.teacher, data or data_fingerprints(config.data)[0]
    if teacher.count > 1:
        each = [teacher_fingerprint(member, data) for member in members(config)]
        return fingerprint("teachers", teacher.weighting, each)
    values, ours = fingerprint_values(teacher), NetworkConfig.__dataclass_fields__
    network = {name: value for name, value in values.items() if name in ours}
    network["model"] = content_of(teacher.model)
    trained = teacher.train and teacher.weights is None
    published = checksum(weights_path(teacher.weights)) if teacher.weights else None
    recipe = [teacher.training, _draws(config), config.augment, config.data.train_split] if trained else []
    return fingerprint("teacher", data, network, published, *recipe)


def _draws(config: Config) -> int:
    """The seed of the order and crops that a teacher trains on: never that of a student or of stored views."""
    return config.teacher.seed + SEEDS


def teacher_folder(config: Config, workdir: Workdir) -> Path:
    """Where this config's teacher lies, or will lie."""
    folders = [workdir.teachers / teacher_fingerprint(config, data) for data in data_fingerprints(config.data)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def require_teacher(config: Config, workdir: Workdir) -> dict[str, Any]:
    """The manifest of a finished teacher stage.

    Raises:
        UserError: the stage has not run, or its file is damaged.
    """
    folder = teacher_folder(config, workdir)
    manifest = finished(folder, folder.name)
    if manifest is None:
        raise UserError(f"stage 'teacher' has not run for this config (no {folder / MANIFEST}); add it to --stages")
    return manifest


def load_teacher(config: Config, workdir: Workdir) -> keras.Model:
    """The teacher of a finished teacher stage, with stock layers and frozen.

    Raises:
        UserError: the stage has not run, or its file is damaged.
    """
    require_teacher(config, workdir)
    data = dataset(config.data)
    model = models.build(
        str(teacher_folder(config, workdir) / FILE), num_classes=data.num_classes, input_shape=data.image_shape
    )
    model.trainable = False
    return model


def _train_members(config: Config, workdir: Workdir) -> keras.Model:
    """Several teachers, those that are there already taken over, as one model."""
    networks = []
    for member in members(config):
        console.say(f"  teacher of seed {member.teacher.seed}")
        train_teacher(member, workdir)
        networks.append(load_teacher(member, workdir))
    return with_stock_layers(models.ensemble(networks, weighting=config.teacher.weighting))


def watched(config: Config) -> Watched:
    """What TensorBoard shows of a training with this config: validation, and maps from its baseline."""
    data = dataset(config.data)
    plain = Watched(data.validation, holds_out_validation(config.data), data.class_names, config.tensorboard)
    images = to_model_input(plain.shown.images)
    color = mean_color(data.train)
    return replace(plain, baseline=make_baseline(config.attribution.baseline, images, mean_color=color))


def _train(config: Config, data: Dataset, folder: Path) -> tuple[keras.Model, list]:
    keras.utils.set_random_seed(config.teacher.seed)
    model = with_fused_layers(build_network(config.teacher, data))
    model = models.with_precision(model, config.teacher.training.precision)
    examples = teacher_examples(config.data)
    stream = training_batches(
        examples,
        augment=config.augment,
        batch_size=config.teacher.training.batch_size,
        seed=_draws(config),
        mixup=config.teacher.training.mixup,
        num_classes=data.num_classes,
        class_weights=class_weights(config.teacher.training, examples, data.class_names),
    )
    validation = None
    if holds_out_validation(config.data):
        validation = (to_model_input(data.validation.images), data.validation.labels)
    history = fit(
        Distiller(model, label_smoothing=config.teacher.training.label_smoothing),
        stream,
        examples=len(examples),
        config=config.teacher.training,
        folder=folder,
        fingerprint=folder.name,
        tensorboard=folder / "tensorboard",
        title="teacher",
        validation=validation,
        watched=watched(config),
    )
    return with_stock_layers(models.with_precision(model, "float32")), history


def _saved(config: Config) -> Path | None:
    """The teacher in the checkout's saved_models, when it is this one."""
    folder = experiments_folder().parent / "saved_models" / "teacher"
    names = [teacher_fingerprint(config, data) for data in data_fingerprints(config.data)]
    return folder / FILE if any(finished(folder, name) for name in names) else None


def train_teacher(config: Config, workdir: Workdir) -> None:
    """Stage `teacher`: train, load or take over the teacher, once for all runs that share it."""
    data, folder = dataset(config.data), teacher_folder(config, workdir)
    with locked(folder, wait=True):
        if finished(folder, folder.name):
            checkpoint.remove(folder)  # a kill right after the manifest leaves them
            console.say(f"  done before: {folder}")
            return
        history: list = []
        trained = config.teacher.train and config.teacher.weights is None
        saved = _saved(config)
        if saved is not None:
            console.say(f"  taken from {saved}")
            model = models.build(str(saved), num_classes=data.num_classes, input_shape=data.image_shape)
        elif config.teacher.count > 1:
            model = _train_members(config, workdir)
        elif trained:
            model, history = _train(config, data, folder)
        else:
            model = build_network(config.teacher, data)
            if config.teacher.weights:
                models.load_torch_weights(model, weights_path(config.teacher.weights))
            model = with_stock_layers(model)
        held_out = data.validation
        score = accuracy(predict_logits(model, held_out.images), held_out.labels)
        with atomic(folder / FILE) as temporary:
            model.save(temporary)
        files = {FILE: checksum(folder / FILE)}
        if history:
            write_text(folder / "history.json", json.dumps(history, indent=0) + "\n")
            files["history.json"] = checksum(folder / "history.json")
        write_manifest(
            folder,
            folder.name,
            files=files,
            weights=weights_fingerprint(model),
            data=data.fingerprint,
            trained_here=trained and saved is None,
            saw_validation=not (trained and holds_out_validation(config.data)),
            n_train=len(teacher_examples(config.data)) if trained else None,
            validation_accuracy=score,
        )
        checkpoint.remove(folder)
        console.say(f"  validation accuracy {100 * score:.2f} %  ({folder})")

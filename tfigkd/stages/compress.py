"""Stage `compress`: the finished student made smaller by one method, fine-tuned, and left beside the original."""

import shutil
from typing import Any

import keras

from tfigkd import models
from tfigkd.compress.finetune import FineTuning
from tfigkd.compress.methods import compress_student
from tfigkd.compress.pruning import sparsity
from tfigkd.config.experiment import Config, fine_tuning
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.cost import count_parameters
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic, checksum, finished, make_folder, read_manifest, require_stage, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.text import percent
from tfigkd.stages.compatibility import data_fingerprints, first_known
from tfigkd.stages.data import dataset, holds_out_validation, training_examples
from tfigkd.stages.distill import load_student, student_fingerprint
from tfigkd.stages.training_setup import distiller_with, make_distiller, training_stream
from tfigkd.stages.workdir import COMPRESSED_FILE, Workdir
from tfigkd.training.distiller import Distiller


def compress_fingerprint(config: Config, workdir: Workdir) -> str:
    """Return the hash of everything the compressed student's weights depend on."""
    weights = require_stage(workdir.stage("distill"), "distill")["weights"]
    folder, tuned = workdir.stage("compress"), fine_tuning(config)
    before = (read_manifest(folder) or {}).get("fingerprint")
    trained = [student_fingerprint(tuned, workdir, data) for data in data_fingerprints(config.data)]
    identities = [fingerprint("compress", weights, one, config.compress) for one in trained]
    return first_known(identities, lambda identity: identity == before or (folder / identity).is_dir())


def require_compressed(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Return the manifest of a finished compress stage.

    Raises:
        UserError: the stage has not run, or with other settings or another student, or its file is damaged.
    """
    folder = workdir.stage("compress")
    manifest = require_stage(folder, "compress")
    if manifest["fingerprint"] != compress_fingerprint(config, workdir):
        raise UserError(
            f"{workdir.compressed} was made with other settings, or of another student; add compress to --stages"
        )
    return manifest


def load_compressed(config: Config, workdir: Workdir) -> keras.Model:
    """Return the student of a finished compress stage.

    Raises:
        UserError: as `require_compressed`.
    """
    data = dataset(config.data)
    require_compressed(config, workdir)
    return models.load_own_classifier(workdir.compressed, num_classes=data.num_classes, input_shape=data.image_shape)


def students(config: Config, workdir: Workdir) -> dict[str, keras.Model]:
    """Return the student and, where the experiment compresses it, the compressed one, by role."""
    roles = {"student": load_student(config, workdir)}
    if config.compress.method != "none":
        roles["compressed"] = load_compressed(config, workdir)
    return roles


def _fine_tuning(config: Config, workdir: Workdir, student: keras.Model, identity: str) -> FineTuning:
    """Return what fine-tuning teaches: the losses of `[compress.losses]`, from the teacher that it names."""
    tuned = fine_tuning(config)

    def distiller(model: keras.Model) -> Distiller:
        if config.compress.teacher == "student":
            return distiller_with(tuned, model, models.fold_batch_norm(student))
        return make_distiller(tuned, workdir, model)

    # what is interrupted is found again by its identity; other settings begin anew
    folder = make_folder(workdir.stage("compress") / identity)
    return FineTuning(
        distiller, training_stream(tuned, workdir), folder, identity, workdir.run / "tensorboard_compress"
    )


def compress(config: Config, workdir: Workdir) -> None:
    """Stage `compress`: nothing without a method, otherwise going on from a checkpoint where there is one."""
    if config.compress.method == "none":
        return
    folder, data = make_folder(workdir.stage("compress")), dataset(config.data)
    identity = compress_fingerprint(config, workdir)
    if finished(folder, identity):
        shutil.rmtree(folder / identity, ignore_errors=True)  # a kill right after the manifest leaves it
        console.status(f"already done: {folder}")
        return
    student = load_student(config, workdir)
    tuning = _fine_tuning(config, workdir, student, identity)
    keras.utils.set_random_seed(workdir.seed)
    result = compress_student(student, config.compress, tuning)
    with atomic(workdir.compressed) as temporary:
        result.save(temporary)
    held_out = data.validation
    scores = [accuracy(predict_logits(model, held_out.images), held_out.labels) for model in (student, result)]
    counts = sparsity(result)
    write_manifest(
        folder,
        identity,
        files={COMPRESSED_FILE: checksum(workdir.compressed)},
        weights=weights_fingerprint(result),
        method=config.compress.method,
        parameters=count_parameters(result),
        n_train=len(training_examples(config.data)),
        saw_validation=not holds_out_validation(config.data),
        validation_accuracy=scores[1],
        validation_accuracy_before=scores[0],
        **counts,
    )
    shutil.rmtree(tuning.folder)
    before, after = map(percent, scores)
    console.status(
        f"{config.compress.method}: validation accuracy {before} before, {after} after; "
        f"{count_parameters(result):,} parameters, {100 * counts['sparsity']:.1f} % of them zero "
        f"({100 * counts['prunable_sparsity']:.1f} % of the prunable ones)"
    )

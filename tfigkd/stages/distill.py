"""Stage `distill`: build the student, join the teacher's stored outputs to its examples, and train it."""

import json
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from statistics import median

import keras

from tfigkd import models
from tfigkd.config.experiment import Config, early_phases
from tfigkd.data import Dataset
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import trained_parameters
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console, hosts
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    atomic,
    checksum,
    copy_file,
    finished,
    make_folder,
    read_manifest,
    require_stage,
    write_manifest,
    write_text,
)
from tfigkd.runtime.fingerprint import fingerprint, fingerprint_values
from tfigkd.runtime.provenance import surroundings
from tfigkd.runtime.text import percent
from tfigkd.stages.compatibility import corrections, data_fingerprints, first_known, student_marks
from tfigkd.stages.data import (
    dataset,
    holds_out_validation,
    training_choice,
    training_examples,
)
from tfigkd.stages.networks import build_network, network_values, weights_path
from tfigkd.stages.overlays import store_folder, stored_maps, views_folder, views_name
from tfigkd.stages.teacher import (
    load_teacher,
    members,
    teacher_fingerprint,
    teacher_folder,
    watched,
)
from tfigkd.stages.training_setup import (
    cut_from,
    make_distiller,
    trainable_student,
    trained_part,
    training_stream,
)
from tfigkd.stages.workdir import HISTORY, STUDENT_FILE, Workdir
from tfigkd.training import checkpoint
from tfigkd.training.devices import on_devices
from tfigkd.training.fit import LEDGER, Training
from tfigkd.training.tensorboard import Watched


def student_fingerprint(config: Config, workdir: Workdir, data: str | None = None) -> str:
    """Return the hash of everything the student's weights depend on.

    Args:
        config: The run's.
        workdir: Where its teacher and stores lie.
        data: One of `data_fingerprints`; None is the first, today's.
    """
    store = store_folder(config, workdir).name if config.needs_store else None
    views = views_name(config, workdir) if config.needs_views else None
    tap = config.losses.at.teacher_layer
    attention = views_folder(config, workdir, tap).name if config.needs_attention else None
    teacher = teacher_folder(config, workdir).name if config.needs_teacher else None
    trained_on = [data or data_fingerprints(config.data)[0], *training_choice(config.data)]
    identity = [*trained_on, workdir.seed, teacher, store, views]
    identity += [attention] if attention else []
    untaught = config.view.kind == "views" and not (views or attention)
    identity += student_marks(config, crops_of_views=untaught)
    network = fingerprint_values(config.student) | network_values(config.student, dataset(config.data))
    if config.student.own_file or config.student.application:
        network = {name: value for name, value in network.items() if name not in ("widths", "depth", "stem_stride")}
    if config.student.own_file:  # in earlier fingerprints "random" meant the weights of the file
        network["init"] = {"file": "random", "random": "fresh"}.get(config.student.init, config.student.init)
    if config.student.weights is not None:
        network["weights"] = checksum(weights_path(config.student.weights))
    parts = [network, config.training, config.augment, config.overlay, config.control, config.view]
    parts.append({name: fingerprint_values(term) for name, term in config.losses.active().items()})
    parts += [config.features] if config.features.epochs else []
    parts += [config.code] if config.code.weight else []
    return fingerprint("student", *identity, *parts)


def _identity(config: Config, workdir: Workdir) -> str:
    """Return the fingerprint of the student that this config trains, or has begun to train."""
    there = _begun(workdir)
    identities = [student_fingerprint(config, workdir, data) for data in data_fingerprints(config.data)]
    return first_known(identities, lambda identity: identity in there)


def _begun(workdir: Workdir) -> tuple[str | None, str | None]:
    """Return the fingerprints of the finished student and of the checkpoints in a folder."""
    folder = workdir.stage("distill")
    return (read_manifest(folder) or {}).get("fingerprint"), checkpoint.owner(folder)


def is_begun(config: Config, workdir: Workdir) -> bool:
    """Return whether the very student that this config trains is in the folder, finished or begun."""
    return _identity(config, workdir) in _begun(workdir)


def refuse_changed_inputs(config: Config, workdir: Workdir, stages: Collection[str]) -> None:
    """Refuse to go on with a finished student whose data, or whose teacher, have changed under the same config.

    Args:
        config: The run's.
        workdir: Where the student lies.
        stages: Those that will run. A student of an earlier version recorded one fingerprint of train, validation and
            test: unless it would be trained again, another one may be due only to the test pictures and is only noted.

    Raises:
        UserError: The student was trained on other data or by another teacher.
    """
    trained = read_manifest(workdir.stage("distill"))
    if trained is None:
        return
    now, whole = data_fingerprints(config.data)
    before, now = (trained["trained_on"], now) if "trained_on" in trained else (trained.get("data"), whole)
    advice = "choose another --workdir, so that no finished student is overwritten"
    if before not in (None, now):
        said = (
            f"{workdir.run} holds a student that was trained on other data (fingerprint {before}, now {now}; "
            f"{trained.get('n_train', '?')} examples, now {len(training_examples(config.data))})"
        )
        if "trained_on" in trained or "distill" in stages:
            raise UserError(f"{said}; {advice}, or give the data as they were")
        console.say(f"note: {said}")
    taught = trained.get("teacher")
    if "distill" in stages and config.needs_teacher and taught is not None:
        names = [teacher_fingerprint(config, data) for data in data_fingerprints(config.data)]
        if taught not in names:
            raise UserError(
                f"{workdir.run} holds a student of another teacher ({taught}, now {names[0]}): the teacher's file or "
                f"data have changed; {advice}"
            )


def _initial(config: Config, workdir: Workdir, data: Dataset) -> keras.Model:
    """Return the student before its first step."""
    if config.student.init == "teacher":
        student = cut_from(load_teacher(config, workdir), config, data)
    else:
        student = build_network(config.student, data)
        if config.student.own_file:
            console.status(f"student: {_start(config, student, workdir.seed)}")
    return trainable_student(student, config)


def _start(config: Config, student: keras.Model, seed: int) -> str:
    """Say which weights a student from a file starts from."""
    if config.student.init == "file":
        return f"the weights of {config.student.model}, for every seed"
    count = models.count_frozen_layers(student)
    kept = f", its {count} frozen layers with the weights of the file" if count else ""
    return f"{config.student.model} with fresh weights of seed {seed}{kept} (--student.init file starts from its own)"


def load_student(config: Config, workdir: Workdir) -> keras.Model:
    """Return the student of a finished distill stage.

    Raises:
        UserError: the stage has not run, or its file is damaged.
    """
    folder, data = workdir.stage("distill"), dataset(config.data)
    require_stage(folder, "distill")
    return models.load_own_classifier(workdir.student, num_classes=data.num_classes, input_shape=data.image_shape)


def _watched(config: Config, workdir: Workdir) -> Watched:
    """Return what TensorBoard shows of a training: validation, with stored maps of its first examples."""
    plain = watched(config)
    return replace(plain, teacher_maps=stored_maps(config, workdir, plain.shown)) if config.needs_store else plain


def show_teachers_curves(config: Config, workdir: Workdir) -> None:
    """Put the event files of the teacher's training beside the student's, so that one logdir shows both."""
    for member in members(config):
        source = teacher_folder(member, workdir) / "tensorboard"
        name = "teacher" if config.teacher.count == 1 else f"teacher-{member.teacher.seed}"
        for path in sorted(source.glob("events.*")):
            target = make_folder(workdir.run / "tensorboard" / name) / path.name
            if target.exists():
                continue
            try:
                os.link(path, target)
            except OSError:  # the teachers are on another disk
                copy_file(path, target)


def _early_training(config: Config, workdir: Workdir, student: keras.Model, identity: str) -> float:
    """Train the student through the phases of `[features]`, going on from their checkpoints; return the seconds."""
    seconds = 0.0
    for name, phase in early_phases(config).items():
        with trained_part(config, student, name):
            training = Training(
                make_distiller(phase, workdir, student),
                training_stream(phase, workdir),
                examples=len(training_examples(phase.data)),
                config=phase.training,
                folder=make_folder(workdir.stage("distill") / name),
                fingerprint=identity,
                tensorboard=workdir.run / "tensorboard" / name,
                title=f"student, {name}",
            )
            history = training.run()
        seconds += sum(entry["seconds"] for entry in history)
    return seconds


def _remove_checkpoints(folder: Path, config: Config) -> None:
    """Delete the checkpoints of a finished student, those of its early phases too."""
    for phase in early_phases(config):
        checkpoint.remove(folder / phase)
    checkpoint.remove(folder)


def distill(config: Config, workdir: Workdir) -> None:
    """Stage `distill`: train the student to the last epoch, going on from a checkpoint where there is one.

    Several hosts train it together; the first one writes it.
    """
    folder, data = make_folder(workdir.stage("distill")), dataset(config.data)
    identity = _identity(config, workdir)
    if hosts.from_first(finished(folder, identity) is not None):
        if hosts.is_first_process():
            _remove_checkpoints(folder, config)  # a kill right after the manifest leaves them
        console.status(f"already done: {folder}")
        return
    if read_manifest(folder) is not None:
        refuse_changed_inputs(config, workdir, ("distill",))
        raise UserError(
            f"{workdir.run} holds a student of other inputs; choose another --workdir, so that no finished student is "
            "overwritten"
        )
    if config.needs_teacher and hosts.is_first_process():
        show_teachers_curves(config, workdir)
    examples = training_examples(config.data)
    stream = training_stream(config, workdir)
    keras.utils.set_random_seed(workdir.seed)
    held_out, recipe = data.validation, config.training
    with on_devices(config.training.devices):
        student = _initial(config, workdir, data)
        early = _early_training(config, workdir, student, identity)
        model = make_distiller(config, workdir, student)
        training = Training(
            model,
            stream,
            examples=len(examples),
            config=recipe,
            folder=folder,
            fingerprint=identity,
            tensorboard=workdir.run / "tensorboard",
            title="student",
            validation=held_out if holds_out_validation(config.data) else None,
            watched=_watched(config, workdir),
            ledger_steps=config.ledger.every,
        )
        history = training.run()
    if not hosts.is_first_process():
        return
    steps = len(training.sizes)
    student = models.with_precision(models.without_code(model.student), "float32")
    student = with_stock_batch_norm(models.with_plain_kernels(student))
    with atomic(workdir.student) as temporary:
        student.save(temporary)
    write_text(folder / HISTORY, json.dumps(history, indent=0) + "\n")
    score = accuracy(predict_logits(student, held_out.images), held_out.labels)
    write_manifest(
        folder,
        identity,
        files={name: checksum(folder / name) for name in (STUDENT_FILE, HISTORY, LEDGER) if (folder / name).is_file()},
        weights=weights_fingerprint(student),
        # where the data and the teacher lie may change until the student is looked at again
        data=data.fingerprint,
        trained_on=data.training_fingerprint,
        teacher=teacher_folder(config, workdir).name if config.needs_teacher else None,
        n_train=len(examples),
        seconds=early + sum(entry["seconds"] for entry in history),
        extra_parameters=trained_parameters(model) - trained_parameters(student),
        # epochs of earlier versions have no time of their steps alone
        step_ms=median(entry.get("step_ms", 1e3 * entry["seconds"] / steps) for entry in history),
        saw_validation=not holds_out_validation(config.data),
        validation_accuracy=score,
        corrections=corrections(config),
        origin=surroundings(),
    )
    _remove_checkpoints(folder, config)
    console.status(f"validation accuracy {percent(score)}")

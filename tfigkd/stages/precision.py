"""What `precision = "auto"` stands for in a run: measured once, written down, and the same at every start."""

from dataclasses import replace
from typing import Any

from tfigkd.config.experiment import Config
from tfigkd.config.fields import NetworkConfig
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.layers import with_fused_layers
from tfigkd.runtime import console
from tfigkd.runtime.files import fingerprint, locked, read_signed, write_signed
from tfigkd.runtime.provenance import hardware
from tfigkd.stages.data import dataset
from tfigkd.stages.networks import build_network
from tfigkd.stages.workdir import PRECISION, Workdir
from tfigkd.training.speed import choose_precision, compare_precisions

UNTRAINED = {"precision": "float32"}
REMEDY = "delete it, and the run measures anew"


def undecided(config: Config) -> Config:
    """Return the config with float32 in the place of each "auto": for an estimate, before anything is measured."""
    teacher, student = (
        replace(one, precision="float32") if one.precision == "auto" else one
        for one in (config.teacher.training, config.training)
    )
    return replace(config, teacher=replace(config.teacher, training=teacher), training=student)


def resolve(config: Config, workdir: Workdir) -> Config:
    """Return the config with a precision in the place of each "auto".

    What a run has once chosen stands in its `precision.json` and holds. A new run takes over what another run measured
    for the same network, batch size and machine, so that the arms and seeds of a study agree.
    """
    teacher, student = config.teacher.training, config.training
    if "auto" not in (teacher.precision, student.precision):
        return config
    path = workdir.run / PRECISION
    with locked(workdir.run, wait=True, name=".precision.lock"):  # parts of a store start at the same time
        chosen: dict[str, Any] = read_signed(path, REMEDY) if path.is_file() else {}
        if teacher.precision == "auto" and "teacher" not in chosen:
            trained = config.needs_teacher and config.teacher.trained
            chosen["teacher"] = _measured(config, config.teacher, teacher, workdir) if trained else UNTRAINED
        if student.precision == "auto" and "student" not in chosen:
            chosen["student"] = _measured(config, config.student, student, workdir)
        write_signed(path, chosen)
    if "teacher" in chosen:
        precision = chosen["teacher"]["precision"]
        config = replace(config, teacher=replace(config.teacher, training=replace(teacher, precision=precision)))
    if "student" in chosen:
        config = replace(config, training=replace(student, precision=chosen["student"]["precision"]))
    return config


def _measured(config: Config, network: NetworkConfig, recipe: TrainingConfig, workdir: Workdir) -> dict[str, Any]:
    """Return the choice for a network, measured here or by another run that shares the teachers' folder."""
    data = dataset(config.data)
    values = {name: getattr(network, name) for name in NetworkConfig.__dataclass_fields__}
    key = fingerprint("precision", values, data.image_shape, data.num_classes, recipe.batch_size, hardware())
    folder = workdir.teachers / "precision"
    path = folder / f"{key}.json"
    with locked(folder, wait=True):
        if not path.is_file():
            seconds = compare_precisions(with_fused_layers(build_network(network, data)), recipe)
            write_signed(path, {"precision": choose_precision(seconds), "seconds": seconds, "hardware": hardware()})
    choice = read_signed(path, REMEDY)
    times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in choice["seconds"].items())
    console.status(f"{network.model}: precision {choice['precision']} (a training step: {times})")
    return {name: choice[name] for name in ("precision", "seconds", "hardware")}

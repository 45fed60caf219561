"""What `precision = "auto"` stands for in a run: measured once, written down, and the same at every start."""

from typing import Any

from tfigkd.config.experiment import Config, override
from tfigkd.config.fields import NetworkConfig
from tfigkd.config.precisions import FIELDS, auto_roles, with_precisions
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.batch_norm import with_fused_batch_norm
from tfigkd.models.precision import PRECISIONS
from tfigkd.runtime import console
from tfigkd.runtime.files import locked, read_signed, write_signed
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.provenance import hardware
from tfigkd.stages.data import dataset
from tfigkd.stages.networks import build_network
from tfigkd.stages.teacher import saved_teacher
from tfigkd.stages.workdir import PRECISION, Workdir
from tfigkd.training.speed import choose_precision, compare_precisions

UNTRAINED = {"precision": "float32"}
REMEDY = "delete it, and the run measures anew"


def with_assumed_precisions(config: Config) -> Config:
    """Return the config for an estimate, before anything is measured: with float32 in the place of each "auto".

    The teacher's is that of a saved teacher, if there is one.
    """
    teacher = _saved_precision(config) if "teacher" in auto_roles(config) and _trains_teacher(config) else None
    return with_precisions(config, {"teacher": teacher or "float32", "student": "float32"})


def _trains_teacher(config: Config) -> bool:
    return config.needs_teacher and config.teacher.trained


def _saved_precision(config: Config) -> str | None:
    """Return the precision in which the config's teacher in saved_models was trained; None if it is not there."""
    field = FIELDS["teacher"]
    return next((one for one in PRECISIONS if saved_teacher(override(config, {field: one})) is not None), None)


def resolve(config: Config, workdir: Workdir) -> Config:
    """Return the config with a precision in the place of each "auto".

    What a run has once chosen stands in its `precision.json` and holds. A new run takes over what another run measured
    for the same network, batch size and machine, so that the arms and seeds of a study agree. A teacher that is in
    saved_models is not trained, so its precision is that of its training.
    """
    roles = auto_roles(config)
    if not roles:
        return config
    path = workdir.run / PRECISION
    with locked(workdir.run, wait=True, name=".precision.lock"):  # parts of a store start at the same time
        chosen: dict[str, Any] = read_signed(path, REMEDY) if path.is_file() else {}
        if "teacher" in roles and "teacher" not in chosen:
            chosen["teacher"] = _choice_of_teacher(config, workdir)
        if "student" in roles and "student" not in chosen:
            chosen["student"] = _measured(config, config.student, config.training, workdir)
        write_signed(path, chosen)
    return with_precisions(config, {role: one["precision"] for role, one in chosen.items()})


def _choice_of_teacher(config: Config, workdir: Workdir) -> dict[str, Any]:
    if not _trains_teacher(config):
        return UNTRAINED
    saved = _saved_precision(config)
    return {"precision": saved} if saved else _measured(config, config.teacher, config.teacher.training, workdir)


def _measured(config: Config, network: NetworkConfig, recipe: TrainingConfig, workdir: Workdir) -> dict[str, Any]:
    """Return the choice for a network, measured here or by another run that shares the teachers' folder."""
    data = dataset(config.data)
    values = {name: getattr(network, name) for name in NetworkConfig.__dataclass_fields__}
    key = fingerprint("precision", values, data.image_shape, data.num_classes, recipe.batch_size, hardware())
    folder = workdir.teachers / "precision"
    path = folder / f"{key}.json"
    with locked(folder, wait=True):
        if not path.is_file():
            seconds = compare_precisions(with_fused_batch_norm(build_network(network, data)), recipe)
            write_signed(path, {"precision": choose_precision(seconds), "seconds": seconds, "hardware": hardware()})
    choice = read_signed(path, REMEDY)
    times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in choice["seconds"].items())
    console.status(f"{network.model}: precision {choice['precision']} (a training step: {times})")
    return {name: choice[name] for name in ("precision", "seconds", "hardware")}

"""Stage `export`: LiteRT files of the models, a check that they predict what the models predict, and contracts."""

from pathlib import Path

import keras

from tfigkd.config.experiment import Config
from tfigkd.config.export_fields import Format, file_name, role_of
from tfigkd.edge.contract import contract_path
from tfigkd.edge.parity import export_file
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.fake_quant import is_fake_quantized
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, finished, make_folder, read_manifest, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.text import counted, percent
from tfigkd.stages.compatibility import data_fingerprints, first_known
from tfigkd.stages.compress import students
from tfigkd.stages.data import dataset
from tfigkd.stages.teacher import load_teacher, teacher_folder
from tfigkd.stages.workdir import TEACHER_FILE, Workdir


def export_identity(config: Config, workdir: Workdir, weights: dict[str, str]) -> str:
    """Return the hash of everything the files depend on.

    Args:
        config: The run's.
        workdir: Where the files lie.
        weights: Fingerprints of the models, by role.
    """
    earlier = [("export", data, weights, config.export) for data in data_fingerprints(config.data)]
    identities = [fingerprint(*parts) for parts in earlier]
    if "teacher" in weights:  # its name holds the teacher's architecture: other layers may have the same weights
        teacher = teacher_folder(config, workdir).name
        identities = [*(fingerprint(*parts, teacher) for parts in earlier), *identities]
    before = (read_manifest(workdir.stage("export")) or {}).get("fingerprint")
    return first_known(identities, lambda identity: identity == before)


def _saved(role: str, config: Config, workdir: Workdir) -> Path:
    """Return the .keras file of a role."""
    if role == "teacher":
        return teacher_folder(config, workdir) / TEACHER_FILE
    return workdir.student if role == "student" else workdir.compressed


def export(config: Config, workdir: Workdir) -> None:
    """Stage `export`: files of all students and the teacher, with contract and parity report on validation.

    A file of the teacher that cannot be made, or is not equal enough, is left out and named; only students must export.
    """
    data, folder = dataset(config.data), make_folder(workdir.stage("export"))
    roles = students(config, workdir)
    if config.needs_teacher:
        roles["teacher"] = load_teacher(config, workdir)
    weights = {role: weights_fingerprint(model) for role, model in roles.items()}
    identity = export_identity(config, workdir, weights)
    names = list(data.class_names)
    manifest = finished(folder, identity)
    if manifest and manifest.get("class_names", names) == names:  # files of before have no names in the manifest
        console.status(f"already done: {folder}")
        return
    earlier = (read_manifest(folder) or {}).get("files", {})
    reports: dict[str, dict[str, float]] = {}
    files: dict[str, str] = {}
    # ranges that training has learned are for int8 and for nothing else
    wanted: dict[str, tuple[Format, ...]] = {
        role: ("int8",) if is_fake_quantized(model) else config.export.formats for role, model in roles.items()
    }
    left_out: dict[str, str] = {}
    with console.progress("export", sum(map(len, wanted.values()))) as advance:
        for role, model in roles.items():
            original = keras.saving.load_model(_saved(role, config, workdir), compile=False, safe_mode=True)
            reference = predict_logits(original, data.validation.images)
            for format in wanted[role]:
                path = folder / file_name(role, format)
                advance()
                try:
                    report = export_file(path, model, format, data, config.export, reference=reference)
                except UserError as error:
                    if role != "teacher":
                        raise
                    left_out[path.name] = str(error)
                    continue
                reports[path.name] = report
                files |= {part.name: checksum(part) for part in (path, contract_path(path))}
    for name in {*earlier, *left_out} - files.keys():  # of other settings
        for part in (folder / name, contract_path(folder / name)):
            part.unlink(missing_ok=True)
    write_manifest(folder, identity, files=files, parity=reports, left_out=left_out, class_names=names)
    for name, reason in left_out.items():
        console.say(f"  {name}: not written, the run goes on without it: {reason}", last=True)
    for name, report in reports.items():
        same = f"{percent(report['agreement'])} of {counted(report['examples'], 'validation image')}"
        console.status(
            f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB, agreement with Keras {same}, "
            f"largest difference {report['max_difference']:.2g}",
            note=role_of(name) != "teacher",
        )

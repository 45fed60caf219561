"""Collection of finished runs: rows are copied to one table a study, models to saved_models.

python -m tfigkd.study collect
python -m tfigkd.study collect --experiment lowdata --models lowdata_kd,lowdata_ig_kd

Smoke runs and unfinished runs are ignored. Collecting twice adds nothing. Rows of one arm must be of one config, apart
from the seed. Runs copied from another machine may lack their students: their rows are collected, and `--models` skips
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from tfigkd.config.experiment import experiments_folder
from tfigkd.edge.contract import contract_path
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    copy_file,
    locked,
    make_folder,
    outputs_of,
    read_manifest,
    read_signed,
    require_stage,
    verify_files,
    write_manifest,
    write_text,
)
from tfigkd.runtime.quiet import quiet_stderr
from tfigkd.runtime.rows import as_csv, read_rows, unsealed
from tfigkd.runtime.text import counted
from tfigkd.stages.workdir import (
    JOB_FILE,
    PRECISION,
    ROWS,
    SETTINGS,
    STUDENT_FILE,
    TEACHER_FILE,
    TEACHERS,
    Workdir,
    read_settings,
)
from tfigkd.study.plan import folder_of, read_study
from tfigkd.study.protocol import COLUMN, mixed_arms, protocol_of, refuse_mixed

KEY = ("study", "arm", "size", "seed")
JOB = ("study", "arm", "size", "command")
FILES = {"distill": STUDENT_FILE, "export": "student.int8.tflite"}


@dataclass(frozen=True)
class Options:
    """Copy finished rows of studies to one table each, and chosen models to saved_models.

    Rows of shipped studies go to experiments/results/STUDY.csv of the checkout that contains this package; rows of
    other studies, or without a checkout, to WORKDIR/STUDY/results.csv.
    """

    workdir: Path = Path("runs/studies")
    """Folder of the studies' runs."""
    teachers: Path = TEACHERS
    """Folder of their teachers."""
    into: Path | None = None
    """Folder to write experiments/results/STUDY.csv and saved_models to, instead."""
    experiment: str | None = None
    """Only this study: its name, or its .toml file."""
    models: str = ""
    """Experiments, separated by commas: their students go to saved_models/EXPERIMENT/SEED, and their teacher too."""
    replace: bool = False
    """Drop rows of the same arms that are of another config, instead of refusing to mix them."""


def checkout() -> Path | None:
    """Return the checkout that contains this package; None for an installed package."""
    folder = experiments_folder().parent
    return folder if (folder / "setup.cfg").is_file() else None


def table_of(study: str, workdir: Path, into: Path | None = None) -> Path:
    """Return the table that the rows of a study are collected in.

    Args:
        study: Its name.
        workdir: Folder of the studies' runs.
        into: The folder to write to instead of the checkout.
    """
    shipped = (experiments_folder() / "studies" / f"{study}.toml").is_file()
    root = into or (checkout() if shipped else None)
    return workdir / study / "results.csv" if root is None else root / "experiments" / "results" / f"{study}.csv"


def finished_runs(workdir: Path, study: str | None = None) -> list[tuple[Path, dict[str, str]]]:
    """Return folder and row of each finished run that is not a smoke run; print how many rows lack their label.

    Raises:
        UserError: a row or its label is damaged, or belongs to another folder.
    """
    found, unlabeled = [], []
    for path in sorted(workdir.glob(f"{escape(study) if study else '*'}/*/*/{ROWS}")):
        label, rows = path.parent / JOB_FILE, read_rows(path)
        if not label.is_file():
            unlabeled.append(path)
            continue
        if len(rows) != 1:
            raise UserError(f"{path} has {len(rows)} rows, expected 1; delete it and run the study again")
        row = unsealed(path, rows[0])
        if row.get("smoke") != "False":
            continue
        job = read_signed(label, "delete it and the rows beside it and run the study again", names=JOB, unsigned=True)
        folder = Path(job["study"]) / folder_of(job["arm"], job["size"]) / row["seed"]
        if path.parent != workdir / folder:
            raise UserError(f"{label} belongs to {folder} but is in {path.parent}; move the run's folder back")
        leading = {"study": job["study"], "experiment": row["experiment"], "arm": job["arm"], "size": job["size"]}
        leading |= {COLUMN: protocol_of(path.parent, _seed_fields(job)), "command": job["command"]}
        found.append((path.parent, {**row, **leading}))
    if unlabeled:
        rows_without = counted(len(unlabeled), "row")
        console.say(f"{rows_without} skipped, without a {JOB_FILE} that names the study: {unlabeled[0]}")
    return found


def _seed_fields(job: Mapping[str, Any]) -> Sequence[str]:
    """Return the fields that a run's study sets to the seed; a label of an earlier version does not name them."""
    if "seed_fields" in job:
        return job["seed_fields"]
    try:
        return read_study(job["study"]).seed_fields
    except UserError:
        return ()


def _key(row: dict[str, str]) -> tuple[Any, ...]:
    return (row["study"], row["size"], int(row["seed"]), row["arm"])


def merge_rows(path: Path, rows: Sequence[dict[str, str]], *, replace: bool = False) -> int:
    """Merge rows into a table, replacing older rows of the same runs; return how many are new or changed.

    Args:
        path: The table.
        rows: The rows to add.
        replace: Whether older rows of an arm that are of another config are dropped.

    Raises:
        UserError: an arm would have rows of several configs, a row of another config would be replaced, or the table
            is damaged.
    """
    refuse_mixed(rows, path.stem, "run the study again in another --workdir, and collect from there")
    with locked(path.parent, wait=True):
        try:
            before = {_key(row): row for row in read_rows(path)}
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} has a row without {', '.join(KEY)} ({error}); restore the file") from error
        if replace:
            mixed = mixed_arms([*before.values(), *rows])
            before = {key: row for key, row in before.items() if (row["size"], row["arm"]) not in mixed}
        keep = "collect with --into another folder, or --replace to drop the older rows of these arms"
        refuse_mixed([*before.values(), *rows], str(path), keep)
        after = before | {_key(row): {name: str(value) for name, value in row.items()} for row in rows}
        columns = list(
            dict.fromkeys([*KEY[:1], "experiment", *KEY[1:], *(name for row in after.values() for name in row)])
        )
        lines = [{name: after[key].get(name, "") for name in columns} for key in sorted(after)]
        padded = {key: {name: row.get(name, "") for name in columns} for key, row in before.items()}
        changed = sum(padded.get(_key(row)) != row for row in lines)
        if changed:
            write_text(path, as_csv(lines))
    return changed


def save_student(run: Path, row: dict[str, str], into: Path) -> Path:
    """Copy a run's student, its int8 file and contract if it has them, and its manifest to a folder of saved_models.

    Files that were made of the same student in that folder, such as an int8 file, stay.
    """
    folder = make_folder(into / row["experiment"] / row["seed"])
    before = read_manifest(folder) or {}
    there, known = before.get("files", {}), before.get("row", {})
    for name in ("study", "arm"):
        if known.get(name, row[name]) != row[name]:
            raise UserError(
                f"{folder} has the student of {name} {known[name]}, not of {row[name]}; give another --into"
            )
    # checks the file, so that a damaged one does not get a new checksum
    trained = require_stage(run / "distill", "distill")
    files = {}
    for stage, name in FILES.items():
        if (run / stage / name).is_file():
            require_stage(run / stage, stage)
            files[name] = copy_file(run / stage / name, folder / name)
            contract = contract_path(run / stage / name)
            if contract.is_file():
                files[contract.name] = copy_file(contract, folder / contract.name)
    if there.get(STUDENT_FILE) == files[STUDENT_FILE]:
        files = {name: checked for name, checked in there.items() if (folder / name).is_file()} | files
    for name in {*there} - {*files}:  # made of another student
        (folder / name).unlink(missing_ok=True)
    copy_file(run / SETTINGS, folder / SETTINGS)
    if (run / PRECISION).is_file():  # the precision that "auto" chose in the run
        copy_file(run / PRECISION, folder / PRECISION)
    else:
        (folder / PRECISION).unlink(missing_ok=True)
    write_manifest(folder, trained["fingerprint"], files=files, **outputs_of(trained), row=row)
    return folder


def _same_teacher(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in ("fingerprint", "weights"))


def save_teacher(run: Path, teachers: Path, into: Path) -> Path | None:
    """Copy the teacher of a run, if it was trained here and exists, to saved_models/teachers; otherwise return None.

    Its folder has the name of its architecture; a second teacher of the same architecture has its fingerprint too.
    """
    try:
        _, config = read_settings(run)
    except ValueError as error:
        raise UserError(f"{run / SETTINGS} is damaged ({error}); run the study again in another --workdir") from error
    if not config.needs_teacher or config.teacher.weights is not None:
        return None
    with quiet_stderr():  # TensorFlow prints lines on import
        from tfigkd.stages.teacher import teacher_folder
    # earlier versions did not record the teacher of a student; its fingerprint is then computed from the config
    trained = read_manifest(run / "distill") or {}
    named = trained.get("teacher")
    source = teachers / named if named else teacher_folder(config, Workdir(run, teachers))
    manifest = read_manifest(source)
    if manifest is None:
        return None
    verify_files(source, manifest)
    name = Path(config.teacher.model).stem
    there = read_manifest(into / "teachers" / name)
    if there is not None and _same_teacher(there, manifest):
        return into / "teachers" / name  # the runs took theirs from there
    if there is not None and there["fingerprint"] != manifest["fingerprint"]:
        name = f"{name}-{manifest['fingerprint'][:8]}"
    folder = make_folder(into / "teachers" / name)
    copied = copy_file(source / TEACHER_FILE, folder / TEACHER_FILE)
    write_manifest(folder, manifest["fingerprint"], files={TEACHER_FILE: copied}, **outputs_of(manifest))
    return folder


def collect(options: Options) -> None:
    """Copy the rows of finished runs, and the requested models.

    Raises:
        UserError: no run is finished, a requested model has no finished run, or a file is damaged.
    """
    only = options.experiment and Path(options.experiment).name.removesuffix(".toml")
    runs = finished_runs(options.workdir, only)
    if not runs:
        if options.experiment and only and not (options.workdir / only).is_dir():
            read_study(options.experiment)  # which says so if there is none of this name
        raise UserError(f"no finished run of a study in {options.workdir}; run one first, or give --workdir")
    for name in sorted({row["study"] for _, row in runs}):
        rows = [row for _, row in runs if row["study"] == name]
        path = table_of(name, options.workdir, options.into)
        new = merge_rows(path, rows, replace=options.replace)
        console.say(f"{name}: {len(rows)} finished runs, {new} new in {path}")
    wanted = {name.strip() for name in options.models.split(",") if name.strip()}
    known = {row["experiment"] for _, row in runs}
    if wanted - known:
        raise UserError(f"no finished run of {', '.join(sorted(wanted - known))}; finished: {', '.join(sorted(known))}")
    named = [(run, row) for run, row in runs if row["experiment"] in wanted]
    for name in sorted({row["experiment"] for _, row in named if row["size"]}):
        console.say(f"  {name}: its runs of a size are skipped; a place in saved_models is of an experiment and a seed")
    named = [(run, row) for run, row in named if not row["size"]]
    for name in sorted(wanted):
        studies = sorted({row["study"] for _, row in named if row["experiment"] == name})
        if len(studies) > 1:
            raise UserError(f"{name} is an arm of {' and '.join(studies)}; name one of them with --experiment")
        arms = sorted({row["arm"] for _, row in named if row["experiment"] == name})
        if len(arms) > 1:
            raise UserError(
                f"{name} is the experiment of the arms {' and '.join(arms)}, and saved_models has room for one; run "
                "them again with experiments of different names"
            )
    for run, row in named:
        if (run / "distill" / FILES["distill"]).is_file():
            saved = (options.into or checkout() or Path()) / "saved_models"
            console.say(f"  {save_student(run, row, saved)}")
            save_teacher(run, options.teachers, saved)
        else:
            console.say(f"  {row['experiment']}, seed {row['seed']}: skipped, its student is not in {run}")

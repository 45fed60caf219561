"""The content of a package, from the files of a finished run: models, contracts, class names, report, model card."""

from pathlib import Path

from tfigkd.config.experiment import to_mapping
from tfigkd.data.catalog import about
from tfigkd.edge.contract import contract_path
from tfigkd.pack.model_card import model_card
from tfigkd.report.facts import Facts
from tfigkd.report.verdict import read_remarks
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import require_stage
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.rows import read_rows, unsealed
from tfigkd.stages import repeat
from tfigkd.stages.evaluate import check_measured
from tfigkd.stages.report import figures, read_timed
from tfigkd.stages.workdir import ROWS, SETTINGS, VERDICT, Workdir, config_as_run, read_settings

REPORT, CARD = "report.html", "README.md"


def read_facts(run: Path) -> Facts:
    """Return what the model card says of a finished run.

    Args:
        run: Its folder.

    Raises:
        UserError: There is no run, it is not finished, or one of its files is damaged.
    """
    if not (run / SETTINGS).is_file():
        raise UserError(f"no run in {run}: it has no {SETTINGS}; give the folder of a run, such as runs/quickstart/0")
    workdir = Workdir(run, run)  # teachers are not read
    data, _, exported, evaluated = (
        require_stage(run / stage, stage) for stage in ("data", "distill", "export", "evaluate")
    )
    litert = {name: content for name, content in exported["files"].items() if name.endswith(".tflite")}
    if evaluated.get("exported", litert) != litert:  # earlier versions did not write it
        raise UserError(f"the files of {run}/export are not those that were measured; run evaluate and report again")
    check_measured(workdir, evaluated)
    if not ((run / VERDICT).is_file() and (run / ROWS).is_file()):
        raise UserError(f"stage 'report' has not run in {run}; add it to --stages")
    try:
        settings, config = read_settings(run)
        remarks = read_remarks(run / VERDICT)
        (cells,) = read_rows(run / ROWS)
        row = {
            **unsealed(run / ROWS, cells),
            "experiment": settings["experiment"],
            "smoke": settings["smoke"],
            "n_train": int(cells["n_train"]),
            "train_seconds": float(cells["train_seconds"]),
            "saw_validation": cells["saw_validation"] == "True",
            "teacher_saw_validation": {"True": True, "unknown": "unknown"}.get(cells["teacher_saw_validation"], False),
        }
        as_run = config_as_run(run, config)
        command, toml = repeat.repeat_command(config, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"a file of {run} is damaged ({error}); run its stage report again") from error
    if config.compress.method != "none":
        require_stage(run / "compress", "compress")
    if as_run is not None and fingerprint(as_run) != row["config"]:
        raise UserError(
            f"{run / SETTINGS} is of a later call than {ROWS}, with other settings; run stage report again, or all "
            "stages that these settings concern"
        )
    return Facts(
        config=to_mapping(config),
        row=row,
        roles=figures(workdir, evaluated["results"]),
        evaluated=evaluated,
        command=command,
        toml=toml,
        taught=config.needs_teacher,
        data=data,
        exported=exported,
        timed=read_timed(workdir),
        verdict=[remark.sentence for remark in remarks],
    )


def contents(run: Path, facts: Facts, package: str, *, license: str | None, report: bool) -> dict[str, bytes]:
    """Return the files of a package: names to contents.

    Args:
        run: Folder of the run.
        facts: From `read_facts`.
        package: File name of the package.
        license: Of the weights, an SPDX identifier; None where nobody stated it.
        report: Whether the report, which shows pictures of the data set, is one of them.

    Raises:
        UserError: A file is missing.
    """
    exported = [run / "export" / name for name in (facts.exported or {})["files"] if not name.startswith("teacher.")]
    litert = [path for path in exported if path.suffix == ".tflite"]
    if not litert:
        raise UserError(f"{run} has no exported file of its student; run its stage export again")
    workdir = Workdir(run, run)
    models = [*litert, workdir.student]
    if facts.config["compress"]["method"] != "none" and workdir.compressed.is_file():
        models.append(workdir.compressed)
    beside = [contract_path(path) for path in litert] + [run / SETTINGS, run / ROWS]
    beside += [run / REPORT] if report and (run / REPORT).is_file() else []
    config, names = facts.config["data"], (facts.data or {})["class_names"]
    source = about(config["name"], config["dir"])
    sizes = {path.name: path.stat().st_size for path in models}
    files = {CARD: model_card(facts, package, sizes, license=license, source=source).encode()}
    files |= {path.name: path.read_bytes() for path in [*models, *beside]}
    files["labels.txt"] = "".join(f"{name}\n" for name in names).encode()
    if facts.toml:
        files[repeat.own_file(facts.row["experiment"], None).name] = facts.toml.encode()
    return files

"""Where one run writes, and where teachers and their stores are shared."""

import contextlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfigkd.config.data_fields import Reading
from tfigkd.config.experiment import Config
from tfigkd.config.fields import DataConfig
from tfigkd.config.precisions import auto_roles, with_precisions
from tfigkd.config.reading import from_mapping
from tfigkd.config.training_splits import with_splits_of_training
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, expanded, read_manifest, read_signed

if TYPE_CHECKING:
    from tfigkd.config.flags import DataOptions

TEACHERS = Path("runs/teachers")
"""Folder of teachers and their stores where no other is given."""

TEACHER_FILE = "teacher.keras"
"""In a teacher's folder."""

STUDENT_FILE = "student.keras"
"""In the folder of stage `distill`."""

COMPRESSED_FILE = "compressed.keras"
"""In the folder of stage `compress`."""

HISTORY = "history.json"
"""Beside a teacher or student that was trained here: losses, metrics and seconds of each epoch."""

PRECISION = "precision.json"
"""In a run's folder: what `precision = "auto"` stands for in the run."""

SETTINGS = "config.json"
"""In a run's folder: experiment, seed, smoke and the config, as plain values."""

ROWS = "rows.csv"
"""In a run's folder: every figure of the run, one row."""

VERDICT = "verdict.json"
"""In a run's folder: what is wrong with the run, as stage `report` found it; an empty list where nothing is."""

JOB_FILE = "job.json"
"""In the folder of a run of a study: the study, arm and size, and the command of the run."""


@dataclass(frozen=True)
class Workdir:
    """Where one run writes, and where teachers and their overlay stores are shared."""

    run: Path
    teachers: Path
    seed: int = 0

    def stage(self, name: str) -> Path:
        """Return the folder of one stage of this run; a run in saved_models keeps its student beside its manifest."""
        return self.run if self.saved and name == "distill" else self.run / name

    @property
    def student(self) -> Path:
        """The file that stage `distill` writes."""
        return self.stage("distill") / STUDENT_FILE

    @property
    def compressed(self) -> Path:
        """The file that stage `compress` writes."""
        return self.stage("compress") / COMPRESSED_FILE

    @property
    def saved(self) -> bool:
        """Whether this is a run of saved_models, reduced to its student."""
        return (self.run / MANIFEST).is_file()


def read_settings(run: Path) -> tuple[dict[str, Any], Config]:
    """Return what the settings file in a run's folder says, and the config in it.

    Raises:
        ValueError: the file is missing or damaged; the message says what is wrong with it.
    """
    try:
        settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        return settings, from_mapping(Config, settings["config"])
    except (UserError, OSError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def config_as_run(run: Path, config: Config) -> Config | None:
    """Return the config of a run with what the run has measured in the place of each precision "auto".

    Args:
        run: Its folder.
        config: As its settings file has it.

    Returns:
        The config; None where the run has not measured yet.

    Raises:
        UserError: The record of the measurement is damaged.
    """
    roles, path = auto_roles(config), run / PRECISION
    chosen = read_signed(path, "run its stage report again") if roles and path.is_file() else {}
    if roles - chosen.keys():
        return None
    return with_precisions(config, {role: one["precision"] for role, one in chosen.items()})


def reading_of_model(model: str, options: "DataOptions") -> Reading:
    """Return how a data set is read for a .keras file: as the options say, else as the run that wrote it did.

    Args:
        model: The file, such as `distill/student.keras` in the folder of a run, or a teacher in its own folder.
        options: Those of the command.

    Raises:
        UserError: An option is out of range.
    """
    given, folder = options.reading, Path(os.path.abspath(expanded(model))).parent
    written = _reading_in(folder)
    reading = replace(
        given,
        image_size=options.image_size or written.get("image_size"),
        background=options.background or written.get("background", given.background),
        fit=options.fit or written.get("fit", given.fit),
    )
    return with_splits_of_training(reading, options.data, written)


def written_reading(data: DataConfig) -> dict[str, Any]:
    """Return how a run reads its data set, as plain values: the fields of `Reading` that change pictures or splits."""
    named = {name: getattr(data, name) for name in ("name", "image_size", "fit", "background")}
    return named | data.reading.split_choice()


def _reading_in(folder: Path) -> dict[str, Any]:
    """Return the `written_reading` of the run or teacher whose model lies in a folder; nothing where neither does."""
    for run in (folder, folder.parent):
        with contextlib.suppress(ValueError):  # no run's folder
            return written_reading(read_settings(run)[1].data)
    with contextlib.suppress(UserError):  # a damaged manifest is reported where it is needed
        return (read_manifest(folder) or {}).get("reading", {})
    return {}


def default_folder(experiment: str, seed: int, *, smoke: bool) -> Path:
    """Return where a run writes when no other folder is given."""
    return Path("runs") / (f"{experiment}-smoke" if smoke else experiment) / str(seed)

"""Where one run writes, and where teachers and their stores are shared."""

from dataclasses import dataclass
from pathlib import Path

from tfigkd.runtime.files import MANIFEST

PRECISION = "precision.json"
"""In a run's folder: what `precision = "auto"` stands for in the run."""

SETTINGS = "config.json"
"""In a run's folder: experiment, seed, smoke and the config, as plain values."""

ROWS = "rows.csv"
"""In a run's folder: every figure of the run, one row."""

VERDICT = "verdict.json"
"""In a run's folder: what is wrong with the run, as stage `report` found it; an empty list where nothing is."""


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
    def saved(self) -> bool:
        """Whether this is a run of saved_models, reduced to its student."""
        return (self.run / MANIFEST).is_file()

"""The options of `python -m tfigkd.search`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tfigkd.config.export_fields import Format
from tfigkd.stages.workdir import TEACHERS

PROG = "python -m tfigkd.search"
OBJECTIVE = "validation_accuracy"


@dataclass(frozen=True)
class Options:
    """Search an experiment's fields for the best validation accuracy."""

    experiment: str = "cifar10"
    """Name of a shipped experiment or path of a .toml file."""
    tuner: Literal["hyperband", "bayesian", "random"] = "bayesian"
    """Method by which KerasTuner chooses the next trial."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C; may be repeated. Default: the usual fields."""
    student: bool = False
    """Search the student's architecture: kind of block, width, depth and stride of the stem. --vary adds fields, or
    sets other values for one of these."""
    budget: str | None = None
    """Train only students within limits, such as latency=0.2ms,size=300kB. Quantities: latency, speedup (over
    MobileNet-V2 in float32), size, multiply_adds, parameters. Latency and size are those of a LiteRT file on this
    machine, one thread, measured before training."""
    format: Format = "int8"
    """Format of the files that are held to the budget."""
    trials: int = 20
    """Number of trials, including those of earlier calls; hyperband chooses its own number. Students refused for their
    budget do not count."""
    seeds: int = 1
    """Number of students in each trial, with the seeds from 0; the objective is the mean of their accuracies."""
    workdir: Path | None = None
    """Folder of the search. Default: runs/search/EXPERIMENT-TUNER, with a budget EXPERIMENT-TUNER-budget."""
    teachers: Path = TEACHERS
    """Folder of teachers and their stores, shared with all runs."""
    seed: int = 0
    """Seed of the choice of trials."""
    smoke: bool = False
    """Shrink every trial to a few steps of a small slice."""
    minutes: float | None = None
    """Stop after this time, as at Ctrl-C; the same command continues the search."""
    dry_run: bool = False
    """Show the search space and the number of trials, and stop; nothing is written."""

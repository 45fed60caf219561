"""The results of one run's stages, which its page shows; what is missing is None or empty."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfigkd.measure.gallery import Gallery

History = list[dict[str, float]]
Roles = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Facts:
    """The results of one run's stages.

    Attributes:
        config: The resolved config as nested plain values.
        row: The run's row of results.
        roles: Figures by role.
        command: The command that repeats the run.
        toml: The text of the experiment's file; empty for a shipped experiment.
        study: The command of the study that the run is part of; empty for a single run.
        taught: Whether the student learned from a teacher; its folder may have been deleted since.
        data: The manifest of stage `data`; None where it has not run.
        evaluated: The manifest of stage `evaluate`.
        exported: The manifest of stage `export`, as `data`.
        timed: The manifest of stage `benchmark`, as `data`.
        store: The manifest of the overlay store, as `data`.
        errors: Completeness errors of the store's maps, float32 [N].
        histories: The logs of each epoch, by role.
        ledger: Entries of the loss ledger.
        gallery: Examples with their maps.
        verdict: Sentences on what is wrong with the run, from `verdict.verdict`.
    """

    config: dict[str, Any]
    row: dict[str, Any]
    roles: Roles
    evaluated: dict[str, Any]
    command: str = ""
    toml: str = ""
    study: str = ""
    taught: bool = False
    data: dict[str, Any] | None = None
    exported: dict[str, Any] | None = None
    timed: dict[str, Any] | None = None
    store: dict[str, Any] | None = None
    errors: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    histories: dict[str, History] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    gallery: Gallery | None = None
    verdict: list[str] = field(default_factory=list)

"""All that the stages of one run have left for its page, read and verified; what is missing is None or empty."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tfigkd.measure.gallery import Gallery
from tfigkd.report.table import Roles

History = list[dict[str, float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What a page is made of.

    Attributes:
        config: The resolved config as nested plain values.
        row: The run's row of results.
        roles: Figures by role.
        command: What repeats the run.
        toml: The experiment's file, where it is not a shipped one.
        study: The command of the study that the run is part of; empty for a run of its own.
        taught: Whether the student learned from a teacher, which may have gone since.
        data: Manifests of the stages, None where a stage has not run.
        evaluated: As `data`.
        exported: As `data`.
        timed: As `data`.
        store: As `data`, of the overlay store.
        errors: Completeness errors of the store's maps, float32 [N].
        histories: Role to the logs of each epoch.
        ledger: Entries of the loss ledger.
        gallery: Examples with their maps.
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

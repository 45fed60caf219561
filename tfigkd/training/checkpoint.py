"""Checkpoints of a training run: everything that a bit-exact continuation needs, and nothing executable.

Keras's BackupAndRestore leaves out the state of random generators (dropout); here every variable of the model, seed
generators included, and of its optimizer is kept, with the history so far. The last two checkpoints are kept, so that
a damaged one costs an epoch and not the run. A file is an .npz followed by its SHA-256: the checksums inside a zip do
not cover all of it.
"""

import hashlib
import io
import json
import re
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.runtime import console, hosts
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import write_bytes

KEPT = 2
"""Checkpoints of a training that are kept: should the newest be damaged, it goes on from the other."""
NAME = re.compile(r"checkpoint-\d+(-\d+)?\.ckpt")
DIGEST_SIZE = 32
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
"""What reading a damaged checkpoint raises."""


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        history: The logs of each finished epoch.
        steps: Steps of the epoch after these that are done.
        logs: Means of that epoch's logs over the examples of these steps.
        seconds: What these steps took.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    logs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def _variables(model: keras.Model) -> list:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def _paths(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    found = [path for path in folder.glob("checkpoint-*.ckpt") if NAME.fullmatch(path.name)]
    return sorted(found, key=_reached, reverse=True)


def _name(variable: Any) -> str:
    return getattr(variable, "path", variable.name)  # TensorFlow's own variables have no path


def _reached(path: Path) -> tuple[int, int]:
    """Return the finished epochs of a checkpoint, and the steps of the next one."""
    _, epochs, *steps = path.stem.split("-")
    return int(epochs), int(steps[0]) if steps else 0


def save(folder: Path, model: keras.Model, fingerprint: str, progress: Progress) -> None:
    """Write the state of a training, atomically, and drop all but the last two.

    Of several hosts only the first one writes.

    Args:
        folder: Where the checkpoints go.
        model: Compiled; all its variables and those of its optimizer are saved.
        fingerprint: Of everything the weights depend on.
        progress: How far the training has come.

    Raises:
        UserError: a variable holds NaN or infinity; the checkpoints before it stay.
    """
    epochs, steps = len(progress.history), progress.steps
    arrays = {f"v{index}": keras.ops.convert_to_numpy(v) for index, v in enumerate(_variables(model))}
    for array, variable in zip(arrays.values(), _variables(model), strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(
                f"training met NaN or infinity in the weights {_name(variable)!r} in epoch {epochs + bool(steps)}; "
                f"checkpoints before it are kept in {folder}; lower the learning rate and choose another --workdir"
            )
    if not hosts.is_first_process():
        return
    state = asdict(progress) if steps else {"history": progress.history}  # the latter as in earlier versions
    note = json.dumps({"fingerprint": fingerprint, **state}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, note=np.frombuffer(note, np.uint8), **arrays)
    content = buffer.getvalue()
    within = f"-{steps:07d}" if steps else ""
    write_bytes(folder / f"checkpoint-{epochs:05d}{within}.ckpt", content + hashlib.sha256(content).digest())
    done = [path for path in _paths(folder) if _reached(path) <= (epochs, steps)]
    for old in {*_paths(folder)} - {*done[:KEPT]}:  # what is newer was damaged: training went on from before it
        old.unlink()


def _read(path: Path, variables: list) -> tuple[str, Progress, list[np.ndarray]]:
    """Return the fingerprint of a checkpoint, how far it has come, and the values of the variables."""
    stored = path.read_bytes()
    content, digest = stored[:-DIGEST_SIZE], stored[-DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum does not fit")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        note = json.loads(archive["note"].tobytes())
        arrays = [archive[f"v{index}"] for index in range(len(variables))]
    if [array.shape for array in arrays] != [tuple(v.shape) for v in variables]:
        raise ValueError("its variables have other shapes")
    return note.pop("fingerprint"), Progress(note.pop("history"), **note), arrays


def restore(folder: Path, model: keras.Model, fingerprint: str) -> Progress:
    """Bring the model to its newest readable checkpoint.

    Args:
        folder: Where the checkpoints are.
        model: Compiled; its variables and those of its optimizer are set.
        fingerprint: What the checkpoint must have been saved with.

    Returns:
        How far that is; nothing is done where there is no checkpoint.

    Raises:
        UserError: the checkpoint belongs to a run with other settings.
    """
    variables = _variables(model)
    for path in _paths(folder):
        try:
            written_by, progress, arrays = _read(path, variables)
        except UNREADABLE as error:
            console.status(f"{path} is damaged ({error}); going back to the checkpoint before it, or to the start")
            continue
        if written_by != fingerprint:
            raise UserError(f"{path} belongs to a run with other settings; choose another --workdir")
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        return progress
    return Progress()


def owner(folder: Path) -> str | None:
    """Return the fingerprint in the newest readable checkpoint, or None if there is none."""
    for path in _paths(folder):
        try:
            fingerprint, *_ = _read(path, [])
        except UNREADABLE:
            continue  # `restore` says so
        return fingerprint
    return None


def epochs_done(folder: Path) -> int:
    """Return the number of epochs that the newest checkpoint of a folder has done; 0 without one."""
    return max((_reached(path)[0] for path in _paths(folder)), default=0)


def remove(folder: Path) -> None:
    """Delete all checkpoints of a finished run."""
    for path in _paths(folder):
        path.unlink()

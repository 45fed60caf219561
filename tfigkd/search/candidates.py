"""The candidates of a search with a budget: measured before they are trained, and refused where they exceed it.

A candidate is built with random weights, converted to LiteRT and timed. The latency of a file does not depend on the
values of its weights, and its size hardly does, so no training is needed for either; the file of the trained winner is
measured again. An int8 file is calibrated on noise, because its ranges are values as well.

The machine may be busy with other work, so a candidate takes turns with a reference file, MobileNet-V2 in float32 for
images of the experiment's size, and its latency is stated as its share of the reference's, times the reference's
latency at the start of the search. Both are the fastest inference, not the median: other work interrupts a long
inference more often than a short one, so that on a busy machine the ratio of medians flatters fast files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import models
from tfigkd.config.experiment import Config
from tfigkd.config.export_fields import Format
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.data.spaces import UNIT, noise_images
from tfigkd.edge.convert import convert
from tfigkd.edge.latency import latencies
from tfigkd.edge.parity import export_file
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.cost import count_parameters, multiply_adds
from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import make_folder, read_signed, write_bytes, write_signed
from tfigkd.search.budget import QUANTITIES, Budget, excess, largest_share
from tfigkd.search.space import format_values
from tfigkd.stages.data import dataset
from tfigkd.stages.training_setup import untrained_student

REFERENCE = "mobilenet_v2"
"""The network of the reference file, whole and in float32: the teacher of the papers."""
TIMING = BenchmarkConfig(runs=50, warmup=5, threads=(1,))
REPEATS = 3
"""Measurements of a latency, of which the fastest inference counts."""
NOISE = 2
"""Images of noise that calibrate a candidate."""


@dataclass(frozen=True)
class Candidate:
    """A student that was measured.

    Attributes:
        student: Its fields that are searched or fixed, as plain values.
        beside: What else its file depends on, from `_beside`.
        values: What the search has chosen, by dotted name.
        measured: The quantities of `budget.QUANTITIES`; those that need a file are missing where none was made.
        refused: Why it is not trained; empty where it is.
    """

    student: dict[str, Any]
    beside: dict[str, Any]
    values: dict[str, Any]
    measured: dict[str, float]
    refused: str


class Candidates:
    """Measures students, each of them once, and keeps what it measured in a file.

    Args:
        folder: Of the search.
        config: Its experiment.
        budget: Limits.
        format: Of the files that are measured.

    Raises:
        UserError: What an earlier call has measured is damaged.
    """

    def __init__(self, folder: Path, config: Config, budget: Budget, format: Format):
        self.budget, self.format = budget, format
        self._folder, self._data = make_folder(folder / "candidates"), dataset(config.data)
        self._reference, self._state = self._folder / f"{REFERENCE}.float32.tflite", self._folder / "candidates.json"
        if not self._reference.is_file():
            network = models.build(REFERENCE, num_classes=self._data.num_classes, input_shape=self._data.image_shape)
            write_bytes(self._reference, convert(with_stock_batch_norm(network), "float32"))
        try:
            before = read_signed(self._state, f"delete {folder} to search anew", names=("reference_ms", "candidates"))
        except FileNotFoundError:
            self.reference_ms = _shortest_milliseconds([self._reference])[self._reference]
            self.all: list[Candidate] = []
        else:
            self.reference_ms = before["reference_ms"]
            own = {"beside": _beside(config)}  # an earlier version measured all with these
            self.all = [Candidate(**own | one) for one in before["candidates"]]

    @property
    def n_validation(self) -> int:
        """Number of validation images, on which trained students are compared."""
        return len(self._data.validation)

    def measure(self, config: Config, values: Mapping[str, Any]) -> Candidate:
        """Return the student of a config, measured now or by an earlier call.

        Args:
            config: Of a trial.
            values: What the search has chosen for it.
        """
        student = json.loads(json.dumps(asdict(config.student)))  # as it reads back
        beside = _beside(config)
        known = next((one for one in self.all if (one.student, one.beside) == (student, beside)), None)
        if known is None:
            known = Candidate(student, beside, dict(values), *self._measured(config))
            self.all.append(known)
            kept = {"reference_ms": self.reference_ms, "candidates": [asdict(one) for one in self.all]}
            write_signed(self._state, kept)
            taken = ", ".join(f"{name} {QUANTITIES[name].format(value)}" for name, value in known.measured.items())
            console.say(
                f"  {f'refused: {known.refused}' if known.refused else f'measured: {taken}'}:  {format_values(values)}"
            )
        return replace(known, values=dict(values))  # of this trial: others may differ in what its file does not have

    def _measured(self, config: Config) -> tuple[dict[str, float], str]:
        """Return what a student takes, and why it is refused; no file is made where the network exceeds the budget."""
        measured: dict[str, float] = {}
        data = dataset(config.data)
        try:
            keras.utils.set_random_seed(0)
            student = with_stock_batch_norm(untrained_student(config, data))
            measured |= {"multiply_adds": multiply_adds(student), "parameters": count_parameters(student)}
            if not excess(measured, self.budget):
                _set_distinct(student)
                noise = noise_images((NOISE, *data.image_shape))
                path = self._folder / f"candidate.{self.format}.tflite"
                write_bytes(path, convert(student, self.format, noise, io=config.export.io, input_range=UNIT))
                measured |= self.measure_file(path)
        except UserError as error:
            return measured, str(error)
        return measured, excess(measured, self.budget)

    def measure_file(self, path: Path) -> dict[str, float]:
        """Return latency in milliseconds, speedup over the reference, and size in bytes of a file."""
        fastest = _shortest_milliseconds([self._reference, path])
        taken = fastest[path] / fastest[self._reference]
        size = float(path.stat().st_size)
        return {"latency": taken * self.reference_ms, "speedup": 1 / taken, "size": size}

    def measure_trained(self, student: Path, config: Config, path: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Write the file of a trained student, calibrated on validation images, and measure it.

        Args:
            student: Its .keras file.
            config: Of its trial.
            path: Where to write the .tflite file.

        Returns:
            What `measure_file` returns, and the comparison of the file with Keras on validation images that have not
            calibrated it.

        Raises:
            UserError: The student cannot be converted.
        """
        data = dataset(config.data)
        model = models.load_own_classifier(student, num_classes=data.num_classes, input_shape=data.image_shape)
        bounds = replace(config.export, min_int8_agreement=0.0)  # after a short training it is reported, not required
        report = export_file(path, with_stock_batch_norm(model), self.format, data, bounds)
        return self.measure_file(path), report

    def nearest(self) -> Candidate | None:
        """Return the candidate that comes nearest to the budget."""
        return min(self.all, key=lambda one: largest_share(one.measured, self.budget), default=None)


def _beside(config: Config) -> dict[str, Any]:
    """Return what the file of an untrained student depends on beside its own fields, as plain values."""
    fields = {"image_size": config.data.image_size, "io": config.export.io}
    taught = {"teacher": asdict(config.teacher)} if config.student.init == "teacher" else {}
    return json.loads(json.dumps(fields | taught))  # as it reads back


def _shortest_milliseconds(paths: Sequence[Path]) -> dict[Path, float]:
    """Return the milliseconds of the fastest inference of each file, in turns."""
    timed = [latencies(paths, TIMING) for _ in range(REPEATS)]
    return {path: min(one[path][1]["min"] for one in timed) for path in paths}


def _set_distinct(model: keras.Model) -> None:
    """Give all weights distinct values, as after training; a file stores equal ones once and is smaller.

    The biases and normalizations of a new network are equal, and so are the partial identities of a `convnet`.

    Args:
        model: With initial values; it is altered.
    """
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        else:
            variable.assign(variable + generator.uniform(-0.05, 0.05, variable.shape))

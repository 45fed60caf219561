"""How long a run will take, before it starts: multiply-adds over what this machine achieves."""

import time
from datetime import timedelta

import numpy as np

from tfigkd.config.experiment import Config
from tfigkd.models.cost import multiply_adds
from tfigkd.runtime.files import read_manifest
from tfigkd.stages.data import dataset, stored_examples, teacher_examples, training_examples
from tfigkd.stages.teacher import build_network, build_teacher, teacher_folder
from tfigkd.stages.workdir import Workdir

# Share of the matrix-product rate that small convolutional networks reach, measured on a 2-core AVX-512 machine with
# MobileNet-V2 and fused batch normalization: training is bound by memory traffic, not by arithmetic.
TRAINING_EFFICIENCY = 0.19
GRADIENT_EFFICIENCY = 0.35
BACKWARD = 3  # forward, gradient of the input, gradient of the weights
TYPICAL_STEPS = 40  # gradient evaluations an image until the completeness error is met
STAGE_SECONDS = 6  # graph compilation, conversion, writing


def matrix_rate() -> float:
    """Multiply-adds a second of a float32 matrix product on this machine, best of three."""
    side = 1024
    left = np.ones((side, side), np.float32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    return side**3 / best


def estimate(config: Config, workdir: Workdir, stages: list[str]) -> timedelta:
    """A rough time for the stages that have yet to run; right to a factor of two on a CPU."""
    data, rate = dataset(config.data), matrix_rate()
    examples = len(training_examples(config.data))
    seconds = float(STAGE_SECONDS * len(stages))
    if config.needs_teacher and {"teacher", "overlays"} & {*stages}:
        folder, macs = teacher_folder(config, workdir), multiply_adds(build_teacher(config, data))
        trained = config.teacher.trained
        if "teacher" in stages and trained and read_manifest(folder) is None:
            work = macs * BACKWARD * len(teacher_examples(config.data)) * config.teacher.training.epochs
            seconds += work / (rate * TRAINING_EFFICIENCY)
        if "overlays" in stages and not list(folder.glob("overlays/*/manifest.json")):
            steps = config.attribution.n_steps or min(TYPICAL_STEPS, config.attribution.max_steps)
            seconds += macs * 2 * steps * len(stored_examples(config.data)) / (rate * GRADIENT_EFFICIENCY)
    if "distill" in stages and read_manifest(workdir.stage("distill")) is None:
        work = multiply_adds(build_network(config.student, data)) * BACKWARD * examples * config.training.epochs
        seconds += work / (rate * TRAINING_EFFICIENCY)
    if "compress" in stages and read_manifest(workdir.stage("compress")) is None:
        # the teacher runs forward alone
        work = multiply_adds(build_network(config.student, data)) * (BACKWARD + 1)
        seconds += work * config.compress.batch_size * config.compress.steps / (rate * TRAINING_EFFICIENCY)
    return timedelta(seconds=round(seconds))

"""Every arm and control at full length, on digits with the networks and recipe of quickstart."""

import csv
from dataclasses import replace

import pytest

from tfigkd.config.experiment import experiments_folder, override, read_experiment
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir

ARMS = sorted(
    path.stem
    for path in experiments_folder().glob("*.toml")
    if path.stem == "ig_kd" or 'base = "ig_kd"' in path.read_text(encoding="utf-8")
    if read_experiment(path.stem)[1].compress.method == "none"
)
STAGES = ("data", "teacher", "overlays", "distill", "evaluate", "report")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return tmp_path_factory.mktemp("teachers")


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_learns_the_digits(name, teachers, tmp_path):
    arm, quick = read_experiment(name)[1], read_experiment("quickstart")[1]
    config = replace(quick, overlay=arm.overlay, losses=arm.losses, control=arm.control, view=arm.view)
    changes = {"training.label_smoothing": arm.training.label_smoothing, "student.init": arm.student.init}
    config = override(config, changes)
    run(Run(name, config, Workdir(tmp_path / name, teachers), STAGES))
    with open(tmp_path / name / "rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["student_accuracy"]) > 0.9
    if config.needs_teacher:
        assert float(row["teacher_accuracy"]) > 0.9
        assert float(row["student_agreement"]) > 0.9

"""Runs and studies that commit 1978d7e wrote are opened, resumed and skipped.

`files_of_1978d7e.tar.gz` has a run of all stages, and a study of two seeds, the second of which was killed after the
first epoch of its student. Reports and event files are left out.
"""

import csv
import re
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.children import run
from tfigkd import OverlayStore

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(HERE / "files_of_1978d7e.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def call(folder, *arguments):
    done = run(folder, *arguments, environment={"HOME": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_finished_run_is_skipped(before):
    weights = (before / "runs/arm/0/distill/student.keras").read_bytes()
    output = call(before, "tfigkd.run", "--experiment", "arm.toml")
    skipped = {Path(path).name for path in re.findall(r"already done: (runs/\S+)", output)}
    assert skipped >= {"b53bf14a0502c485", "distill", "export", "evaluate"}  # latency is that of another machine
    assert (before / "runs/arm/0/distill/student.keras").read_bytes() == weights


def test_a_study_goes_on_after_the_checkpoint_of_its_killed_run(before):
    output = call(before, "tfigkd.study", "--experiment", "pair.toml")
    assert "1 of 2 runs were finished before" in output and "1 done" in output
    log = (before / "runs/studies/pair/kd/1/run.log").read_text()
    assert "student: going on after epoch 1 of 3" in log
    output = call(before, "tfigkd.study", "collect", "--into", "checkout")
    assert "pair: 2 finished runs, 2 new" in output
    with open(before / "checkout/experiments/results/pair.csv", newline="") as file:
        assert [(row["arm"], row["seed"]) for row in csv.DictReader(file)] == [("kd", "0"), ("kd", "1")]


def test_a_store_opens_and_is_verified(before):
    (folder,) = before.glob("runs/teachers/*/overlays/*/")
    store = OverlayStore(folder)
    assert (len(store), store.knowledge.maps.shape[1:]) == (96, (8, 8))
    assert "every record belongs to its image" in call(before, "tfigkd.verify", str(folder))


def test_saved_models_open_and_repeat_their_figures(before):
    student = keras.saving.load_model(before / "runs/arm/0/distill/student.keras", compile=False)
    assert np.isfinite(student(np.zeros((1, 8, 8, 3), np.float32))).all()
    output = call(before, "tfigkd.evaluate", "runs/arm/0/distill/student.keras", "--data", "digits")
    with open(before / "runs/arm/0/rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["experiment"] == "arm" and "accuracy" in output

"""On a machine with JAX and no TensorFlow: the same experiments, and files that TensorFlow takes over."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HOME = Path(__file__).resolve().parents[1]
TRAIN = "data,teacher,overlays,distill,evaluate,report"
BLOCKED = ("tensorflow", "tensorflow_datasets", "tf_keras", "tensorboard", "ai_edge_litert")
WITHOUT_TENSORFLOW = f"""
import runpy, sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # an import of it now fails
runpy.run_module("tfigkd.run", run_name="__main__", alter_sys=True)
"""


def call(folder, code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(HOME)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="NEEDS JAX: pip install tfigkd[jax]")
def test_jax_trains_where_there_is_no_tensorflow_and_tensorflow_exports_it(tmp_path):
    rng = np.random.default_rng(0)
    splits = {f"x_{split}": rng.integers(0, 256, (60, 8, 8, 3), np.uint8) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(60) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "pictures.npz", **splits, **labels)
    experiment = ["--experiment", "ig_kd", "--smoke", "--data.name", "pictures.npz"]
    experiment += ["--data.train_split", "train", "--augment.crop_padding", "1", "--view.kind", "views"]
    experiment += ["--teacher.drop_blocks", "15", "--teacher.width", "0.25", "--view.views", "2"]
    experiment += ["--student.drop_blocks", "16", "--student.width", "0.25", "--losses.kd.weight", "0.5"]
    call(tmp_path, ["-c", WITHOUT_TENSORFLOW], *experiment, "--stages", TRAIN, KERAS_BACKEND="jax")
    rows = tmp_path / "runs/ig_kd-smoke/0/rows.csv"
    by_jax = next(csv.DictReader(rows.read_text(encoding="utf-8").splitlines()))

    call(tmp_path, ["-m", "tfigkd.run"], *experiment, KERAS_BACKEND="tensorflow")
    by_tensorflow = next(csv.DictReader(rows.read_text(encoding="utf-8").splitlines()))
    assert by_jax.keys() <= by_tensorflow.keys()
    for column in ("config", "student_nll", "teacher_nll", "student_parameters", "n_train"):
        if column.endswith("nll"):
            assert float(by_jax[column]) == pytest.approx(float(by_tensorflow[column]), abs=1e-4)
        else:
            assert by_jax[column] == by_tensorflow[column]
    assert (tmp_path / "runs/ig_kd-smoke/0/export/student.int8.tflite").stat().st_size > 1000

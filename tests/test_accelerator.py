"""The way to an accelerator machine and back: what is packed, what is carried, and that nothing has to be repeated."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from experiments.accelerator.pack import WHEELS, packed, unpacked
from tfigkd.data import load
from tfigkd.runtime.files import checksum, write_manifest

HOME = Path(__file__).resolve().parents[1]
SCRIPT = HOME / "experiments/accelerator/run.sh"
FOUND_THERE = {"jax", "numpy", "scipy", "scikit-learn", "rich", "pillow", "h5py", "absl-py", "ml-dtypes"}
ABSENT = (
    "tensorflow", "tensorflow_datasets", "tensorflow_model_optimization", "tf_keras", "tensorboard", "ai_edge_litert",
    "keras_tuner", "matplotlib", "plotly", "importlib_resources",
)  # fmt: skip
IDLE = """#!/bin/sh
# stands for Python: the study has nothing to do
[ "$1" = -m ] || exit 0
echo a study
exec sleep "${SECONDS_OF_STUDY:-1}"
"""
TINY = """
description = "a tiny student of a tiny teacher"

[data]
name = "digits"
train_split = "train+validation"
limit = 300

[augment]
crop_padding = 1
flip = false

[teacher]
drop_blocks = 14
width = 0.25

[teacher.training]
epochs = 2

[student]
drop_blocks = 16
width = 0.25

[attribution]
n_steps = 4

[losses.kd]
weight = 0.5

[evaluation]
attribution_examples = 0
gallery_examples = 0

[training]
epochs = 8
batch_size = 64
"""


def absent(folder, names):
    """A folder for PYTHONPATH in which imports of packages fail, in every process."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({names!r})\n")
    return folder


def start(folder, *arguments, path=None, python=None, **environment):
    """Call run.sh with the Python of these tests, or another, as a group of processes that one signal ends."""
    programs = f"{path or Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": programs, "PYTHONPATH": str(python or ""), "PROCESSES": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder, *arguments, **options):
    process = start(folder, *arguments, **options)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def unpack(out, folder):
    """What the header of run.sh says of home."""
    command = f"cat {out}/students.tar.gz.? | sha256sum --check {out}/students.sha256"
    command += f" && cat {out}/students.tar.gz.? | tar xz && tar xzf {out}/rows.tar.gz && tar xzf {out}/teacher.tar.gz"
    subprocess.run(command, shell=True, cwd=folder, check=True)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def pack(folder, *flags):
    command = [sys.executable, HOME / "experiments/accelerator/pack.py", "digits", "--output", "parts", *flags]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(HOME)}, check=True)
    return folder / "parts"


def test_what_is_packed_is_the_same_data(tmp_path):
    data = load("digits")
    np.savez(tmp_path / "digits.npz", **unpacked(packed(data)))
    again = load(str(tmp_path / "digits.npz"))
    assert (again.fingerprint, again.class_names) == (data.fingerprint, data.class_names)


def test_the_wheels_need_nothing_that_the_machine_lacks():
    there = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
    for name in WHEELS:
        needs = map(Requirement, metadata.requires(name) or [])
        names = {need.name.replace("_", "-") for need in needs if need.marker is None or need.marker.evaluate(there)}
        assert names <= {*WHEELS, *FOUND_THERE}, name


def test_a_missing_package_is_one_line(tmp_path):
    parts = pack(tmp_path)
    python = absent(tmp_path / "python", ("tyro", "google_crc32c"))
    process = start(tmp_path, parts, "out", "1", python=python, WORK=str(tmp_path / "work"))
    output = process.communicate()[0]
    assert process.returncode == 1
    assert output.startswith("error: missing here: tyro (")
    assert "google_crc32c" in output and output.endswith("; pack with --wheels, or install them\n")


@pytest.fixture
def idle(tmp_path):
    """A folder with a Python that has nothing to do, and parts of a data set for it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(IDLE)
    (tmp_path / "bin/python3").chmod(0o755)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/digits.packed.000").write_bytes(b"pictures")
    (tmp_path / "parts/SHA256SUMS").write_text(f"{checksum(tmp_path / 'parts/digits.packed.000')}  digits.packed\n")
    return {"path": tmp_path / "bin", "EVERY": "1", "PIECE": "30000"}


def write_runs(work):
    """What two arms of two seeds leave, one run of them unfinished, with a teacher and its store."""
    rng = np.random.default_rng(0)
    for arm, seed, size in (("kd", 0, 50_000), ("kd", 1, 50_000), ("ig_kd", 0, 40_000), ("ig_kd", 1, None)):
        run = work / "runs/studies/ablation" / arm / str(seed)
        (run / "distill").mkdir(parents=True)
        for name in ("run.log", "config.json", "job.json", "distill/history.json"):
            (run / name).write_text("{}")
        if size is None:
            for epoch in (9, 10):
                (run / f"distill/checkpoint-{epoch:05d}.ckpt").write_text(f"after {epoch} epochs")
        else:
            (run / "distill/student.keras").write_bytes(rng.bytes(size))
            named = {name: checksum(run / "distill" / name) for name in ("student.keras", "history.json")}
            write_manifest(run / "distill", "1", files=named)
            (run / "rows.csv").write_text("smoke\nFalse\n")
    for name in ("teacher.keras", "history.json", "manifest.json", "overlays/1/manifest.json", "views/1/manifest.json"):
        path = work / "runs/teachers/1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (work / "runs/teachers/2").mkdir()
    (work / "runs/teachers/2/teacher.keras").write_text("not finished")


def test_what_comes_home_is_whole_and_goes_on_elsewhere(tmp_path, idle):
    write_runs(tmp_path / "work")
    finish(tmp_path, "parts", "out", "1", WORK="work", **idle)
    out = tmp_path / "out"
    pieces = {f"students.tar.gz.{number}" for number in range(4)}
    assert files(out) == {"log", "rows.tar.gz", "teacher.tar.gz", "students.sha256"} | pieces
    assert all((out / name).stat().st_size <= 30_000 for name in pieces)

    (tmp_path / "home").mkdir()
    unpack(out, tmp_path / "home")
    brought = files(tmp_path / "home/runs")
    # of an unfinished run its log alone: a manifest without its files would stop the run
    own = {f"studies/ablation/{arm}/{seed}/run.log" for arm in ("kd", "ig_kd") for seed in (0, 1)}
    for run in ("kd/0", "kd/1", "ig_kd/0"):
        names = ("rows.csv", "job.json", "config.json", "distill/history.json", "distill/manifest.json")
        own |= {f"studies/ablation/{run}/{name}" for name in names}
    own |= {f"studies/ablation/{run}/distill/student.keras" for run in ("kd/0", "ig_kd/0")}
    own.add("studies/ablation/ig_kd/1/distill/checkpoint-00010.ckpt")
    assert brought == own | {f"teachers/1/{name}" for name in ("teacher.keras", "history.json", "manifest.json")}

    assert "continuing with" in finish(tmp_path, "parts", "out", "1", WORK="elsewhere", **idle)
    assert files(tmp_path / "elsewhere/runs") == brought
    for path in out.iterdir():
        shutil.copy(path, tmp_path / "parts")
    assert "continuing with" in finish(tmp_path, "parts", "empty", "1", WORK="third", **idle)
    assert files(tmp_path / "empty") >= pieces
    assert files(tmp_path / "third/runs") == brought


def test_students_that_are_not_whole_are_left(tmp_path, idle):
    write_runs(tmp_path / "work")
    finish(tmp_path, "parts", "out", "1", WORK="work", **idle)
    (tmp_path / "out/students.tar.gz.2").write_bytes(b"half")
    with pytest.raises(subprocess.CalledProcessError):
        unpack(tmp_path / "out", tmp_path)
    assert "incomplete; continuing without them" in finish(tmp_path, "parts", "out", "1", WORK="elsewhere", **idle)
    there = files(tmp_path / "elsewhere/runs")
    assert "studies/ablation/kd/0/rows.csv" in there
    assert not any(name.endswith("student.keras") for name in there)


def test_students_beyond_the_room_stay_there(tmp_path, idle):
    write_runs(tmp_path / "work")
    finish(tmp_path, "parts", "out", "1", WORK="work", **idle | {"PIECE": "22000"})
    assert len(list((tmp_path / "out").glob("students.tar.gz.?"))) <= 4
    (tmp_path / "home").mkdir()
    unpack(tmp_path / "out", tmp_path / "home")
    assert len(list(tmp_path.glob("home/runs/studies/*/*/*/distill/student.keras"))) == 1


def test_a_terminated_call_ends_its_study_and_carries_home(tmp_path, idle):
    write_runs(tmp_path / "work")
    process = start(tmp_path, "parts", "out", "1", WORK="work", SECONDS_OF_STUDY="300", **idle | {"EVERY": "300"})
    assert process.stdout.readline() == "a study\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert {"log", "rows.tar.gz", "students.sha256"} <= files(tmp_path / "out")


def rows(folder):
    return {path.parent: path.read_text() for path in sorted(folder.glob("runs/studies/*/*/*/rows.csv"))}


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lease_cut_off_goes_on_elsewhere_and_is_collected_and_measured_at_home(tmp_path):
    there, checkout = tmp_path / "there", tmp_path / "checkout"
    there.mkdir()
    parts = pack(there)
    for arm, text in {"slow": TINY, "fast": TINY + "learning_rate = 5e-3\n"}.items():
        (tmp_path / f"{arm}.toml").write_text(text)
    arms = f'slow = "{tmp_path / "slow.toml"}"\nfast = "{tmp_path / "fast.toml"}"\n'
    (there / "pair.toml").write_text(f'description = "two arms"\nseeds = 2\n\n[arms]\n{arms}')
    options = {"python": absent(tmp_path / "python", ABSENT), "EVERY": "1"}

    first = start(there, parts, "out", "10", "pair.toml", WORK="one", **options)
    cut = there / "one/runs/studies/pair/slow/1/distill"
    deadline = time.monotonic() + 900
    while not list(cut.glob("checkpoint-*.ckpt")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    kill(first)
    assert list(rows(there / "one")) and len(rows(there / "one")) < 4

    output = finish(there, parts, "out", "10", "pair.toml", WORK="two", **options)
    before = {path.relative_to(there / "one"): text for path, text in rows(there / "one").items()}
    after = {path.relative_to(there / "two"): text for path, text in rows(there / "two").items()}
    assert f"{len(before)} of 4 runs were finished before" in output
    assert len(after) == 4 and before.items() <= after.items()  # the time of writing included
    (teacher,) = there.glob("two/runs/teachers/*/manifest.json")
    assert teacher.read_text() == (there / "one" / teacher.relative_to(there / "two")).read_text()
    assert len(list((there / "out").iterdir())) <= 8

    shutil.copytree(HOME / "tfigkd", checkout / "tfigkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HOME / "experiments", checkout / "experiments", ignore=shutil.ignore_patterns("*.csv", "pictures"))
    unpack(there / "out", checkout)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "KERAS_BACKEND": "tensorflow"}

    def call(*arguments):
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shutil.rmtree(there)  # at home there is none of it
    output = call("tfigkd.study", "collect", "--models", "slow,fast")
    assert "pair: 4 finished runs, 4 new" in output
    assert "slow, seed 1: skipped, its student is not in" in output
    assert {str(path.parent) for path in (checkout / "saved_models").rglob("*.keras")} == {
        str(checkout / "saved_models" / name) for name in ("teachers/mobilenet_v2", "slow/0", "fast/0")
    }
    saved = checkout / "saved_models/slow/0"
    call("tfigkd.run", "--experiment", tmp_path / "slow.toml", "--workdir", saved, "--stages", "teacher,evaluate")
    measured = json.loads((saved / "evaluate/manifest.json").read_text())["results"]
    (row,) = csv.DictReader(after[Path("runs/studies/pair/slow/0")].splitlines())
    for name in ("accuracy", "agreement"):
        assert measured["student"][name] == pytest.approx(float(row[f"student_{name}"]), abs=0.005)
    assert measured["teacher"]["nll"] == pytest.approx(float(row["teacher_nll"]), abs=1e-4)
    # the student that was trained there is known here: to distill it again is to find it done
    again = ("--experiment", tmp_path / "slow.toml", "--workdir", saved, "--stages", "data,distill")
    assert "already done" in call("tfigkd.run", *again)

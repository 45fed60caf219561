"""Runs that are killed, interrupted, repeated or started twice give the result of an undisturbed run.

All tests use the real command line in child processes; the undisturbed run has a new interpreter.
"""

import csv
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.children import fork, once

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
description = "A few steps on two hundred digits; dropout in teacher and student"
[data]
name = "digits"
limit = 200
[augment]
crop_padding = 1
flip = false
[teacher]
drop_blocks = 14
width = 0.25
dropout = 0.3
normalization = "none"
[teacher.training]
epochs = 4
batch_size = 32
optimizer = "adam"
learning_rate = 5e-3
weight_decay = 0.0
warmup_epochs = 0
[student]
drop_blocks = 16
width = 0.25
dropout = 0.2
[attribution]
shard_size = 32
max_steps = 16
[overlay]
probability = 0.5
[losses.kd]
weight = 0.5
[training]
epochs = 4
batch_size = 32
[export]
min_int8_agreement = 0.0
calibration_examples = 8
[benchmark]
runs = 3
warmup = 1
"""
RUN = "runs/tiny/0"
TEACHERS = "runs/teachers/*"
SHARD = f"{TEACHERS}/overlays/*/overlays-{{:05d}}-of-*.tfrecord"
STARTED: list[subprocess.Popen] = []
PASSING = re.compile(r"time|commit|checksum|train_seconds|.*_ms")  # columns of a row that differ between runs


def start(folder, *arguments, file_size=None, module="tfigkd.run", fresh=False, **environment):
    """Start the command line in a folder; `file_size` is the largest file that it can write, in bytes.

    `fresh` starts a new interpreter, which imports everything and has hash seeds of its own; otherwise one is forked.
    """

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores SIGINT in background jobs

    if module == "tfigkd.run" and "--experiment" not in arguments:
        arguments = ("--experiment", "tiny.toml", *arguments)
    if not fresh:
        process = fork(folder, module, *arguments, environment=environment, file_size=file_size)
        STARTED.append(process)
        return process
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def no_process_left_behind():
    """End processes that a failed test has started and not waited for."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()


def succeed(folder, *arguments, **options):
    """Run a command that must succeed with empty standard error; return its standard output."""
    process = start(folder, *arguments, **options)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    return output


def new_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(EXPERIMENT)
    return folder


def finished_run(tmp_path_factory):
    """Return a folder with an undisturbed run, made once per session; tests must not change it."""

    def make(folder):
        (folder / "output").write_text(succeed(new_folder(folder), fresh=True))

    return once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return finished_run(tmp_path_factory)


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def hashes(folder, pattern="**/*"):
    """Return path to content hash of every file, without locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file() and path.name != ".lock"
    }


def row(folder):
    (values,) = csv.DictReader((folder / RUN / "rows.csv").read_text().splitlines())
    return {name: value for name, value in values.items() if not PASSING.fullmatch(name)}


def assert_same_run(folder, reference):
    """Check for bit-identical weights of teacher and student, identical shards, and no temporary files."""
    for pattern in (f"{TEACHERS}/teacher.keras", f"{RUN}/distill/student.keras"):
        files = only(folder, pattern), only(reference, pattern)
        manifests = [json.loads(file.with_name("manifest.json").read_text()) for file in files]
        assert manifests[0]["weights"] == manifests[1]["weights"]
        ours, theirs = (keras.saving.load_model(file, compile=False).get_weights() for file in files)
        assert len(ours) == len(theirs) > 10
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right)
    shards = hashes(folder, f"{TEACHERS}/overlays/*/*.tfrecord")
    assert len(shards) == 11
    assert shards == hashes(reference, f"{TEACHERS}/overlays/*/*.tfrecord")
    assert not [path for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".ckpt"]


def stop_when(folder, *patterns, how=signal.SIGKILL, arguments=(), fresh=False):
    """Start a run and send it a signal as soon as one of these files exists; return the ended process."""
    process = start(folder, *arguments, fresh=fresh)
    while not any(True for pattern in patterns for _ in folder.glob(pattern)):
        assert process.poll() is None, f"the run ended before {patterns}: {process.communicate()}"
        time.sleep(0.0005)
    process.send_signal(how)
    process.output, process.errors = process.communicate()
    return process


def stamps(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def assert_kept(before):
    """Check that none of these files was written again."""
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_kills_in_teacher_training_overlays_and_distillation_change_nothing(reference, tmp_path, tally):
    one = tally("kill -9 after a checkpoint, in a shard, in the student")
    folder = new_folder(tmp_path)
    assert stop_when(folder, f"{TEACHERS}/checkpoint-00002.ckpt").returncode == -signal.SIGKILL
    assert not list(folder.glob(f"{TEACHERS}/teacher.keras"))

    second = stop_when(folder, SHARD.format(0))
    assert second.returncode == -signal.SIGKILL
    assert re.search(r"teacher: going on after epoch [23] of 4", second.output)
    teacher, shards = stamps(folder, f"{TEACHERS}/teacher.keras"), stamps(folder, SHARD.format(0))

    # stop at the first partially written shard after the third, or at the eighth shard
    halves = [f"{TEACHERS}/overlays/*/.overlays-{number:05d}-of-*.partial*" for number in range(3, 11)]
    assert stop_when(folder, *halves, SHARD.format(8)).returncode == -signal.SIGKILL
    assert_kept(teacher | shards)
    shards = stamps(folder, SHARD.format(0)) | stamps(folder, SHARD.format(2))
    assert not list(folder.glob(f"{TEACHERS}/overlays/*/manifest.json"))
    store = only(folder, f"{TEACHERS}/overlays/*")
    (store / ".overlays-00010-of-00011.partial.tfrecord").write_bytes(b"half a shard")

    assert stop_when(folder, f"{RUN}/distill/checkpoint-00001.ckpt").returncode == -signal.SIGKILL
    assert_kept(teacher | shards)
    shards = stamps(folder, f"{TEACHERS}/overlays/*/*.tfrecord")

    assert re.search(r"student: going on after epoch [12] of 4", succeed(folder))
    assert_kept(teacher | shards)
    assert_same_run(folder, reference)
    for kill in ("teacher", "first shard", "half a shard", "student"):
        one.check(kill, row(folder) == row(reference))
    one.end()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_change_nothing(reference, tmp_path, seed, tally):
    one = tally(f"kill -9 at random moments of a run, imports included (seed {seed})")
    folder, draw = new_folder(tmp_path), random.Random(seed)
    mean, kills = float((reference / "seconds").read_text()) / 2, 0
    for _ in range(8):
        process = start(folder)
        try:
            process.communicate(timeout=draw.uniform(0.3, 2) * mean)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
    succeed(folder)
    assert_same_run(folder, reference)
    for number in range(kills):
        one.check(number, row(folder) == row(reference))
    one.end()


def test_ctrl_c_in_distillation_says_how_to_go_on(reference, tmp_path):
    folder = new_folder(tmp_path)
    shutil.copytree(reference / "runs/teachers", folder / "runs/teachers")
    stages = ("--stages", "data,teacher,overlays,distill")
    stopped = stop_when(folder, f"{RUN}/distill/checkpoint-00002.ckpt", how=signal.SIGINT, arguments=stages)
    assert stopped.returncode == 130
    assert "student: going on after epoch" in succeed(folder, *advised(stopped.errors))
    assert_same_run(folder, reference)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_leaves_no_traceback(tmp_path, how, tally):
    one = tally(f"{how.name} while TensorFlow is imported")
    stopped = stop_when(new_folder(tmp_path), f"{RUN}/config.json", how=how, fresh=True)
    assert stopped.returncode == 130
    one.check(stopped.errors, advised(stopped.errors) == ["--experiment", "tiny.toml"], said=True)
    one.end()


def advised(errors):
    """Return the arguments of the command that the line on standard error, after the terminal's ^C, recommends."""
    blank, line, end = errors.split("\n")
    assert (blank, end) == ("", "")
    words = shlex.split(line.partition("Go on with: ")[2])
    assert words[:3] == ["python", "-m", "tfigkd.run"]
    return words[3:]


def test_a_finished_run_is_not_run_again(reference, tmp_path):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    files = stamps(tmp_path, "runs/**/*.*")
    before = row(tmp_path)
    output = succeed(tmp_path)
    assert output.count("already done") >= 5
    assert row(tmp_path) == before
    of_report = ("rows.csv", "report.md", "report.html", "verdict.json", "tiny_as_run.toml")
    again = {f"{RUN}/{name}" for name in ("config.json", "data/manifest.json", *of_report)}
    assert_kept({path: stamp for path, stamp in files.items() if str(path.relative_to(tmp_path)) not in again})
    assert set(stamps(tmp_path, "runs/**/*.*")) == set(files)


def test_a_second_process_in_a_workdir_is_refused(reference, tmp_path, tally):
    one = tally("a second process in the same workdir")
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    first = start(tmp_path, "--workdir", "new", "--stages", "data,teacher,overlays,distill")
    while not (tmp_path / "new/config.json").exists():
        time.sleep(0.01)
    before = hashes(tmp_path / "new")
    second = start(tmp_path, "--workdir", "new", "--stages", "data")
    _, errors = second.communicate()
    assert second.returncode == 1
    assert errors == "error: new is in use by another process; wait for it or choose another --workdir\n"
    assert first.poll() is None
    one.check("the second", hashes(tmp_path / "new").items() >= before.items(), said=True)
    _, errors = first.communicate()
    one.check(f"the first: {errors}", (first.returncode, errors) == (0, ""))
    one.end()


def test_runs_at_the_same_time_share_one_teacher(reference, tmp_path, tally):
    one = tally("two runs at once that need the same teacher and store")
    new_folder(tmp_path)
    together = [start(tmp_path, "--stages", "data,teacher,overlays", "--seed", seed) for seed in (0, 1)]
    outputs = []
    for process in together:
        output, errors = process.communicate()
        one.check(errors, (process.returncode, errors) == (0, ""))
        outputs.append(output)
    one.end()
    assert sum("already done" in output for output in outputs) == 1
    shards = f"{TEACHERS}/overlays/*/*.tfrecord"
    assert len(hashes(tmp_path, shards)) == 11
    assert hashes(tmp_path, shards) == hashes(reference, shards)

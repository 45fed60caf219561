"""The small run of the fault tests: started, stopped at a file, compared with an undisturbed one."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import keras
import numpy as np

from tests.children import ROOT, fork, once, wait_for

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


def end_all():
    """End processes that a failed test has started and not waited for."""
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


def stop_when(folder, *patterns, how=signal.SIGKILL, arguments=(), fresh=False, pause=0.005):
    """Start a run and send it a signal as soon as one of these files exists; return the ended process."""
    process = start(folder, *arguments, fresh=fresh)
    wait_for(process, lambda: [path for pattern in patterns for path in folder.glob(pattern)], pause)
    process.send_signal(how)
    process.output, process.errors = process.communicate()
    return process


def stamps(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def assert_kept(before):
    """Check that none of these files was written again."""
    assert before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def one_line(process):
    """Return the error line of a failed process, the only line on standard error."""
    _, errors = process.communicate()
    assert process.returncode in (1, 2), (process.returncode, errors)
    assert errors.endswith("\n") and errors.count("\n") == 1, errors
    assert errors.startswith("error: ")
    return errors.removeprefix("error: ").strip()

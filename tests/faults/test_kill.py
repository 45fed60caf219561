"""Runs that are killed, interrupted, repeated or started twice give the result of an undisturbed run.

All tests use the real command line in child processes; the undisturbed run has a new interpreter.
"""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess

import pytest

from tests.children import wait_for
from tests.faults.runs import (
    RUN,
    SHARD,
    TEACHERS,
    assert_kept,
    assert_same_run,
    finished_run,
    hashes,
    new_folder,
    only,
    row,
    stamps,
    start,
    stop_when,
    succeed,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return finished_run(tmp_path_factory)


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
    assert stop_when(folder, *halves, SHARD.format(8), pause=0.0005).returncode == -signal.SIGKILL
    assert_kept(teacher | shards)
    shards = stamps(folder, SHARD.format(0)) | stamps(folder, SHARD.format(2))
    assert not list(folder.glob(f"{TEACHERS}/overlays/*/manifest.json"))
    store = only(folder, f"{TEACHERS}/overlays/*")
    process = subprocess.Popen(["true"])
    process.wait()
    scrap = f".overlays-00010-of-00011.{os.uname().nodename[:20]}.{process.pid}-00000000.partial.tfrecord"
    (store / scrap).write_bytes(b"half a shard")

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
    wait_for(first, (tmp_path / "new/config.json").exists)
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

"""More than fifty runs, studies and searches, killed at random moments of every stage, give the same result."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import tfigkd.models.fake_quant  # noqa: F401 - registers the layers of a quantized student
from tests.faults.runs import EXPERIMENT, PASSING, ROOT, STARTED, hashes

DRIVER = Path(__file__).with_name("driver.py")
STAGES = ("data", "teacher", "overlays", "distill", "compress", "export", "evaluate", "benchmark", "report")
RUN = "runs/full/0"
FULL = (
    EXPERIMENT
    + """
[view]
kind = "views"
views = 2
[compress]
method = "qat"
steps = 200
batch_size = 16
[ledger]
every = 5
"""
)
KILLS = 4  # for each stage


def new_full_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "full.toml").write_text(FULL)
    return folder


def spawn(folder, command, **options):
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a study is killed with the processes of its runs
        **options,
    )
    STARTED.append(process)
    return process


def drive(folder, *fill):
    """Start a run that prints when each stage begins and ends."""
    return spawn(folder, [DRIVER, *fill, "--experiment", "full.toml"])


def whole_run(tmp_path_factory):
    """Return a folder with an undisturbed run of all stages and their durations; made once per session."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    if not folder.exists():
        output, errors = drive(new_full_folder(folder)).communicate()
        assert "<end report" in output, errors
        lines = [line.strip("<>").split() for line in output.splitlines() if line.startswith("<end ")]
        (folder / "seconds.json").write_text(json.dumps({name: float(seconds) for _, name, seconds in lines}))
    return folder


def written(folder):
    """Return the results of a run: weights bit by bit, shards and files byte by byte, and the row without times."""
    found = {}
    for path in sorted(folder.glob("runs/**/*.keras")):
        weights = keras.saving.load_model(path, compile=False).get_weights()
        assert all(np.isfinite(value).all() for value in weights)
        found[str(path.relative_to(folder))] = [value.tobytes() for value in weights]
    found |= hashes(folder, "runs/**/*.tfrecord") | hashes(folder, "runs/**/*.tflite")
    for path in folder.glob("runs/**/manifest.json"):
        content = json.loads(path.read_text())
        passing = ("checksum", "files", "seconds", "results", "hardware")
        found[str(path.relative_to(folder))] = {k: v for k, v in content.items() if k not in passing}
    for path in sorted(folder.glob("runs/**/rows.csv")):
        (row,) = csv.DictReader(path.read_text().splitlines())
        found[str(path.relative_to(folder))] = {k: v for k, v in row.items() if not PASSING.fullmatch(k)}
    scraps = [path for path in folder.glob("runs/**/*") if ".partial" in path.name or path.suffix == ".ckpt"]
    return found | {"scraps": scraps}


def watch(lines, wanted, seen):
    """Read all lines, and set an event when the wanted line comes."""
    for line in lines:
        if line.startswith(wanted):
            seen.set()


def kill(process):
    """Kill a process and all its child processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_of_every_stage_change_nothing(tmp_path, tmp_path_factory, tally):
    reference, folder, draw = whole_run(tmp_path_factory), new_full_folder(tmp_path / "work"), random.Random(0)
    seconds = json.loads((reference / "seconds.json").read_text())
    kills = {}
    for stage in STAGES:
        kills[stage] = one = tally(f"kill -9 at random moments of stage {stage}")
        for number in range(KILLS):
            process = drive(folder)
            # the duration of the stage; after each kill, less of it remains
            pause = draw.uniform(0, seconds[stage]) * (1 - number / KILLS)
            for line in process.stdout:
                if line.startswith(f"<begin {stage}>"):
                    break
            # at the latest at the end of the stage; later stages have their own kills
            over = threading.Event()
            reader = threading.Thread(target=watch, args=(process.stdout, f"<end {stage} ", over))
            reader.start()
            over.wait(pause)
            assert process.poll() is None, f"{stage} after {pause:.2f} s: {process.stderr.read()}"
            os.killpg(process.pid, signal.SIGKILL)
            reader.join()
            process.communicate()
        one.seconds = time.monotonic() - one.started
    output, errors = drive(folder).communicate()
    assert "<end report" in output, errors
    assert errors == ""
    one = tally("the run after all those kills: weights, shards, files and row as of a run left in peace")
    ours, theirs = written(folder), written(reference)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        one.check(name, ours[name] == theirs[name])
    for stage, counted in kills.items():  # a kill is survived if the final result equals that of an undisturbed run
        for number in range(KILLS):
            counted.check(f"{stage} {number}", not one.lost)
    one.end()


STUDY = 'description = "x"\nseeds = 1\nstages = "data,distill,evaluate,report"\n[arms]\na = "a.toml"\nb = "b.toml"\n'
SMALL = """
[data]
name = "digits"
limit = 60
[augment]
crop_padding = 1
flip = false
[student]
drop_blocks = 16
width = 0.25
[evaluation]
attribution_examples = 0
[training]
epochs = 6
batch_size = 16
"""


def write_small(folder):
    folder.mkdir()
    (folder / "a.toml").write_text(SMALL)
    (folder / "b.toml").write_text(SMALL + "learning_rate = 5e-3\n")
    (folder / "pair.toml").write_text(STUDY)
    return folder


def interrupted(folder, command, one, draw, kills, longest):
    """Start a command several times and kill it with all its processes; then let it finish."""
    for number in range(kills):
        process = spawn(folder, command)
        pause = draw.uniform(1, longest)
        try:
            process.communicate(timeout=pause)
        except subprocess.TimeoutExpired:
            kill(process)
            one.check(f"{number} after {pause:.1f} s", True)
        else:
            one.check(f"{number}: ended with {process.returncode}", process.returncode == 0)
    process = spawn(folder, command)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return output


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_studies_end_as_one_left_in_peace(tmp_path, tally):
    command = ("-m", "tfigkd.study", "--experiment", "pair.toml")
    peace, folder = write_small(tmp_path / "peace"), write_small(tmp_path / "work")
    started = time.monotonic()
    assert spawn(peace, command).wait() == 0
    whole = time.monotonic() - started
    one = tally("kill -9 of a study and its processes at random moments")
    interrupted(folder, command, one, random.Random(1), 6, 0.7 * whole)
    ours, theirs = written(folder), written(peace)
    one.check("the same rows and weights", ours == theirs)
    (folder / "checkout").mkdir()
    collect = ("-m", "tfigkd.study", "collect", "--into", "checkout", "--models", "a")
    interrupted(folder, collect, one, random.Random(2), 3, 3)
    table = list(csv.DictReader((folder / "checkout/experiments/results/pair.csv").read_text().splitlines()))
    one.check("collected once each", [line["arm"] for line in table] == ["a", "b"])
    one.check("its label is its own", [line["study"] for line in table] == ["pair", "pair"])
    one.end()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_searches_end_as_one_left_in_peace(tmp_path, tally):
    varied = ("--vary", "training.learning_rate=1e-3:1e-2:log", "--vary", "training.batch_size=16,32")
    command = ("-m", "tfigkd.search", "--experiment", "a.toml", "--tuner", "random", "--trials", "4", *varied)
    peace, folder = write_small(tmp_path / "peace"), write_small(tmp_path / "work")
    started = time.monotonic()
    process = spawn(peace, command)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    whole = time.monotonic() - started
    one = tally("kill -9 of a search at random moments")
    interrupted(folder, command, one, random.Random(3), 6, 0.7 * whole)
    for name in ("a_best.toml",):
        left, right = ((at / "runs/search/a-random" / name).read_text() for at in (folder, peace))
        one.check(f"{name}: {left} {right}", left == right)
    ours, theirs = written(folder), written(peace)
    differ = [name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
    one.check(f"other students: {differ}", not differ)
    one.end()

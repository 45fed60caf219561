"""Clocks that jump and files with wrong dates: no decision depends on the time of day."""

import ast
import json
import os
import shutil

import pytest

from tests.faults.runs import ROOT, RUN, assert_same_run, finished_run, new_folder, row, start, succeed

JUMPING = """
import random, time
_draw, _real = random.Random(0), time.time
def _jumping():
    return _real() + _draw.choice((-1, 1)) * _draw.uniform(0, 4e8)
time.time = _jumping
"""
CALLS = {"time", "time_ns", "getmtime", "getctime", "st_mtime", "st_ctime", "st_mtime_ns", "utime", "now", "today"}


def test_no_code_asks_what_time_it_is_but_to_write_it_down():
    """Durations use the monotonic clock, and no decision uses the times of files."""
    asked = []
    for path in sorted((ROOT / "tfigkd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in CALLS:
                asked.append((path.stem, ast.unparse(node)))
    # the time column of a row, and the times of TensorBoard's points
    rows = {("report", "datetime.now"), ("steps", "datetime.now")}
    assert {*asked} == rows | {("tensorboard", "time.time")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("year", [1970, 2100])
def test_files_of_another_century_are_done_all_the_same(finished, tmp_path, year, tally):
    one = tally("all files of a run dated 1970 or 2100")
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    stamp = (year - 1970) * 31_557_600 + 1
    for path in [*tmp_path.rglob("*"), tmp_path]:
        os.utime(path, (stamp, stamp))
    output = succeed(tmp_path)
    one.check(output, output.count("already done") >= 5)
    one.check("row", row(tmp_path) == row(finished))
    assert_same_run(tmp_path, finished)
    one.end()


@pytest.mark.slow
def test_a_clock_that_jumps_by_years_changes_nothing(finished, tmp_path, tally):
    """Every reading of the clock is wrong by up to twelve years, forward or back."""
    one = tally("clock jumping by years at every reading, run killed in between")
    folder = new_folder(tmp_path)
    (folder / "clock").mkdir()
    (folder / "clock/sitecustomize.py").write_text(JUMPING)
    path = os.pathsep.join(map(str, (folder / "clock", ROOT)))
    first = start(folder, "--stages", "data,teacher,overlays", fresh=True, PYTHONPATH=path)
    output, errors = first.communicate()
    one.check(errors, first.returncode == 0 and not errors)
    process = start(folder, fresh=True, PYTHONPATH=path)
    output, errors = process.communicate()
    one.check(output + errors, process.returncode == 0 and not errors)
    assert_same_run(folder, finished)
    one.check("row", row(folder) == row(finished))
    history = json.loads((folder / RUN / "distill/history.json").read_text())
    one.check(history, all(0 < entry["seconds"] < 600 for entry in history))
    again = succeed(folder, fresh=True, PYTHONPATH=path)
    one.check(again, again.count("already done") >= 5)
    one.end()

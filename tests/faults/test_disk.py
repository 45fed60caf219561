"""A disk that fills up during every stage, and folders that cannot be written: one error line, nothing lost.

Root ignores permissions, so folders are made unwritable by a mount, by the immutable flag, or by a path below a file.
"""

import contextlib
import errno
import json
import re
import shutil
import subprocess

import pytest
from test_stages import STAGES, drive, new_full_folder, whole_run, written

from tests.faults.runs import (
    RUN,
    assert_same_run,
    finished_run,
    hashes,
    new_folder,
    one_line,
    row,
    start,
    succeed,
)
from tfigkd.runtime.rows import append_row


@contextlib.contextmanager
def mounted(target, *options):
    """Mount a file system; skip the test if this machine does not allow it."""
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NEEDS ROOT THAT MAY MOUNT: mount {' '.join(options)}: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@contextlib.contextmanager
def read_only(folder):
    """Make a folder's file system read-only in the context."""
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


@pytest.fixture
def empty(tmp_path):
    return new_folder(tmp_path)


def module(name, *arguments):
    return lambda folder: start(folder, *arguments, module=f"tfigkd.{name}")


def run_in(*arguments):
    return lambda folder: start(folder, "--stages", "data", *arguments)


def commands(place):
    """Return every command that writes files, with `place` as its output."""
    search = ("--trials", "1", "--tuner", "random", "--vary", "training.epochs=1,2", "--workdir")
    return {
        "run": run_in("--workdir", f"{place}/run"),
        "run, the folder itself": run_in("--workdir", place),
        "run, teachers": lambda folder: start(folder, "--teachers", f"{place}/teachers", "--workdir", "elsewhere"),
        "search": module("search", "--experiment", "tiny.toml", *search, f"{place}/search"),
        "study": module("study", "--experiment", "pair.toml", "--workdir", f"{place}/studies"),
        "collect": module("study", "collect", "--workdir", "studies", "--into", place),
        "evaluate, rows": module("evaluate", "student.int8.tflite", "--data", "digits", "--rows", f"{place}/rows.csv"),
        "benchmark, rows": module("benchmark", "student.int8.tflite", "--runs", "2", "--rows", f"{place}/rows.csv"),
        "export": module("export", "student.keras", "--format", "float32", "--output", f"{place}/a.tflite"),
    }


def with_inputs(folder, finished):
    """Write the inputs of the commands to a folder, besides the experiment."""
    shutil.copy(finished / RUN / "distill/student.keras", folder)
    for name in ("student.int8.tflite", "student.int8.json"):
        shutil.copy(finished / RUN / "export" / name, folder)
    (folder / "pair.toml").write_text('description = "x"\nseeds = 1\nstages = "data"\n[arms]\ntiny = "tiny.toml"\n')
    shutil.copytree(finished / RUN, folder / "studies/pair/tiny/0")
    label = {"study": "pair", "arm": "tiny", "size": "", "command": "none"}
    (folder / "studies/pair/tiny/0/job.json").write_text(json.dumps(label))


def tell(tally, fault, folder, place, chosen=None):
    """Check that each command ends with one error line and leaves all files unchanged."""
    one = tally(fault)
    before = hashes(folder)
    for name, begin in commands(place).items():
        if chosen is not None and name not in chosen:
            continue
        process = begin(folder)
        output, errors = process.communicate()
        # a study reports each run on standard output and in its log
        said = errors.startswith("error: ") and errors.count("\n") == 1
        said = said or (name == "study" and errors.count("\n") <= 1 and "Traceback" not in output + errors)
        one.check(
            f"{name}: {process.returncode} {output[-500:]} {errors[-1500:]}",
            said and process.returncode == 1 and hashes(folder).items() >= before.items(),
            said=True,
        )
    one.end()


FAST = ("run", "run, the folder itself", "collect")


def test_a_folder_that_cannot_be_written_is_one_line(empty, finished, tally):
    with_inputs(empty, finished)
    place = empty / "locked"
    place.mkdir()
    with read_only(place):
        tell(tally, "workdir on a read-only file system", empty, "locked", FAST)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_no_command_writes_where_it_cannot(empty, finished, tally):
    with_inputs(empty, finished)
    place = empty / "locked"
    place.mkdir()
    with read_only(place):
        tell(tally, "any command, its output on a read-only file system", empty, "locked")
    tell(tally, "any command, its output below a regular file", empty, "tiny.toml")
    if subprocess.run(["chattr", "+i", str(place)], check=False, capture_output=True).returncode:
        pytest.skip("NEEDS ROOT THAT MAY MAKE FILES IMMUTABLE: chattr +i")
    try:
        tell(tally, "any command, its output in an immutable folder", empty, "locked")
    finally:
        subprocess.run(["chattr", "-i", str(place)], check=True)


@pytest.mark.slow
def test_a_workdir_that_becomes_read_only_goes_on_when_it_is_writable(empty, finished, tally):
    """The disk becomes read-only between two calls; the finished run is unchanged."""
    one = tally("finished run turned read-only, then writable again")
    shutil.copytree(finished / "runs", empty / "runs")
    with read_only(empty / "runs"):
        line = one_line(start(empty))
        one.check(line, "Read-only file system" in line, said=True)
    succeed(empty)
    assert_same_run(empty, finished)
    one.check("afterwards", row(empty) == row(finished))
    one.end()


@pytest.mark.slow
def test_a_full_disk_costs_a_search_no_trial(empty, tally):
    """A trial that cannot write its checkpoint is not marked as failed; the same command repeats it."""
    one = tally("search without room for a checkpoint, then with (RLIMIT_FSIZE)")
    varied = ("--vary", "training.learning_rate=1e-3:1e-2:log", "--losses.kd.weight", "0", "--overlay.probability", "0")
    given = ("--experiment", "tiny.toml", "--tuner", "random", "--trials", "2", *varied)
    line = one_line(start(empty, *given, module="tfigkd.search", file_size=20_000))
    one.check(line, re.match("(File too large|No space left)", line), said=True)
    output = succeed(empty, *given, module="tfigkd.search")
    one.check(output, "2 trials, best first" in output and "failed" not in output)
    one.end()


def test_half_a_row_is_taken_back(tmp_path, tally):
    one = tally("a table of results that grows on a full disk (tmpfs)")
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        path, row = tmp_path / "rows.csv", {"name": "a", "value": "x" * 3000}
        for _ in range(3):
            append_row(path, row)
        before = path.read_bytes()
        try:
            while True:
                append_row(path, row)
                before = path.read_bytes()
        except OSError as error:
            one.check(error, error.errno == errno.ENOSPC, said=True)
        one.check("the rows before", path.read_bytes() == before)
    one.end()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_disk_fills_up_in_every_stage(tmp_path, tmp_path_factory, tally):
    """A tmpfs is full or nearly full when a stage begins; after space is freed, the same command continues."""
    one = tally("disk full at the beginning and in the middle of every stage (tmpfs)")
    reference = whole_run(tmp_path_factory)
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=48m", "tmpfs"):
        folder = new_full_folder(tmp_path / "work")
        filler = tmp_path / "filler"
        for stage in STAGES:
            for left in (0, 12_000):
                process = drive(folder, "--fill", stage, str(left), str(filler))
                output, errors = process.communicate()
                full = process.returncode == 1 and errors.startswith("error: ") and errors.count("\n") == 1
                spared = process.returncode == 0 and left > 0  # this stage's files fit into the remaining space
                case = f"{stage}, {left} bytes left: {process.returncode} {output[-300:]} {errors[-2000:]}"
                one.check(case, full or spared, said=full)
                one.check(f"{case}: scraps", not [path for path in folder.rglob("*") if ".partial" in path.name])
                filler.unlink(missing_ok=True)
        process = drive(folder)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        one.check("the same result at the end", written(folder) == written(reference))
    one.end()

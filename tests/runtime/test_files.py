"""Atomic files, manifests that verify their files, and locks that end with the process."""

import json
import subprocess
import sys

import pytest

from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    MANIFEST,
    atomic,
    checksum,
    finished,
    locked,
    make_folder,
    require_stage,
    write_manifest,
    write_text,
)


@pytest.fixture
def stage(tmp_path):
    folder = make_folder(tmp_path / "run" / "stage")
    (folder / "data.bin").write_bytes(b"precious")
    write_manifest(folder, "f1", files={"data.bin": checksum(folder / "data.bin")}, answer=42)
    return folder


def test_a_finished_stage_is_found_by_its_fingerprint(stage):
    assert finished(stage, "f1")["answer"] == 42
    assert finished(stage, "f2") is None
    assert finished(stage.parent / "other", "f1") is None


@pytest.mark.parametrize("position", range(8))
def test_a_flipped_byte_of_a_file_is_detected(stage, position):
    content = bytearray((stage / "data.bin").read_bytes())
    content[position] ^= 1
    (stage / "data.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.bin is corrupt"):
        finished(stage, "f1")


def test_a_missing_file_is_detected(stage):
    (stage / "data.bin").unlink()
    with pytest.raises(UserError, match=r"data\.bin is missing"):
        require_stage(stage, "stage")


def test_every_flipped_or_cut_byte_of_a_manifest_is_detected_or_harmless(stage):
    path = stage / MANIFEST
    good = path.read_bytes()
    before = finished(stage, "f1")
    for position in range(len(good)):
        for bad in (good[:position], good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]):
            path.write_bytes(bad)
            try:
                assert finished(stage, "f1") == before  # white space at the end may be missing
            except UserError as error:
                assert "damaged" in str(error)
                assert "\n" not in str(error)


def test_a_stage_that_has_not_run_says_how_to_run_it(tmp_path):
    with pytest.raises(UserError, match="add it to --stages"):
        require_stage(tmp_path, "distill")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file.txt"
    with atomic(path) as first:
        first.write_text("first")
        with atomic(path) as second:
            second.write_text("second, longer")
        assert path.read_text() == "second, longer"
    assert path.read_text() == "first"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_what_a_killed_writer_has_left_is_removed_by_the_next_one(tmp_path):
    code = "import os, sys; from pathlib import Path; from tfigkd.runtime.files import atomic\n" + (
        "with atomic(Path(sys.argv[1])) as path:\n    path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.txt")]).returncode == -9
    assert len([*tmp_path.iterdir()]) == 1
    with atomic(tmp_path / "file.txt") as mine:
        mine.write_text("whole")
        write_text(tmp_path / "file.txt", "beside it")  # which leaves those of living processes
        assert mine.is_file()
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_stays_and_the_mode_too(tmp_path):
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / f"{'x' * 250}.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o600


def test_a_file_in_place_of_a_folder_gives_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / "run" / "stage")


HOLD = "import sys, time; from pathlib import Path; from tfigkd.runtime.files import locked\n" + (
    "with locked(Path(sys.argv[1]), wait=False):\n    print('held', flush=True)\n    time.sleep(60)"
)


def test_a_second_process_is_refused_and_kill_9_frees_the_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, wait=False):
            pass
        other.kill()
    with locked(tmp_path, wait=False):
        pass


def test_manifests_are_plain_json(stage):
    assert json.loads((stage / MANIFEST).read_text())["answer"] == 42

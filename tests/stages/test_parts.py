"""Stores that several processes write together: each shard once, and the bytes of a single process."""

import shutil
import threading
import time

import numpy as np
import pytest

from tests.children import fork, once, run, wait_for
from tfigkd.data import identify
from tfigkd.run import parse
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, locked
from tfigkd.stages.parts import StorePart, read_part
from tfigkd.store.shards import Shards, write_part, write_shards
from tfigkd.store.views import parse_view

EXPERIMENT = """
[data]
name = "digits"
limit = 120
[augment]
crop_padding = 1
[teacher]
drop_blocks = 14
width = 0.25
normalization = "none"
training = {epochs = 1, batch_size = 32, warmup_epochs = 0}
[student]
drop_blocks = 16
[attribution]
shard_size = 16
max_steps = 16
[overlay]
probability = 0.5
[losses.kd]
weight = 0.5
[losses.at]
weight = 1.0
teacher_layer = "block_04"
student_layer = "block_02"
[view]
attention = "moved"
"""
OPTIONS = ("--experiment", "tiny.toml", "--workdir", "run", "--teachers", "teachers")


def taught(tmp_path_factory):
    """Return a folder with a trained teacher and no store, which tests copy."""

    def make(folder):
        (folder / "tiny.toml").write_text(EXPERIMENT)
        done = run(folder, "tfigkd.run", *OPTIONS, "--stages", "data,teacher")
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "taught", make)


def alone(tmp_path_factory):
    """Return the same folder with the stores of a single process; tests must not change it."""

    def make(folder):
        shutil.copytree(taught(tmp_path_factory), folder, dirs_exist_ok=True)
        done = run(folder, "tfigkd.run", *OPTIONS, "--stages", "overlays")
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "alone", make)


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
    """Return a copy of the folder without stores."""
    return shutil.copytree(taught(tmp_path_factory), tmp_path / "here")


def stored(folder):
    """Return name to content of all files of the stores, the locks of whole stores left out."""
    files = [path for kind in ("overlays", "views") for path in folder.glob(f"teachers/*/{kind}/*/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}


def start(folder, part):
    return fork(folder, "tfigkd.run", *OPTIONS, "--stages", "overlays", "--part", part)


def test_parts_at_the_same_time_give_the_bytes_of_one_process(folder, tmp_path_factory):
    expected = stored(alone(tmp_path_factory))
    assert sum(name.endswith(MANIFEST) for name in expected) == 2
    assert len(expected) == 2 + 15 + 1  # manifests, shards of 16 of 240 maps, and of 512 of 240 attention maps
    processes = [start(folder, part) for part in ("1/3", "2/3", "3/3", "3/3")]
    for process in processes:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, ""), output
    assert stored(folder) == expected


def test_a_part_leaves_the_store_unfinished_and_the_last_one_finishes_it(folder, tmp_path_factory):
    output = start(folder, "2/2").communicate()[0]
    assert "overlays: 7 of 15 shards are there; the last part finishes the store" in output
    assert not [name for name in stored(folder) if name.endswith(MANIFEST)]
    done = run(folder, "tfigkd.run", *OPTIONS, "--stages", "distill")
    assert "no finished store" in done.stderr
    cut = max(folder.glob("teachers/*/overlays/*/overlays-*.tfrecord"))
    cut.write_bytes(cut.read_bytes()[:-9])  # as by a disk that lost the end; the last part computes it again
    assert "is cut off" in start(folder, "1/2").communicate()[0]
    assert stored(folder) == stored(alone(tmp_path_factory))


def test_a_part_that_is_killed_is_given_again(folder, tmp_path_factory):
    first, second = start(folder, "1/2"), start(folder, "2/2")
    wait_for(first, lambda: list(folder.glob("teachers/*/overlays/*/overlays-*.tfrecord")))
    first.kill()
    second.communicate()
    first.communicate()
    assert first.returncode == -9
    assert start(folder, "1/2").communicate()[1] == ""
    assert stored(folder) == stored(alone(tmp_path_factory))


class Work:
    """The shards of a store of random numbers, which counts how often each example was computed."""

    def __init__(self, folder, seconds=0.0):
        images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3), np.uint8)
        self.computed, self.seconds = [], seconds
        self.shards = Shards(folder / "numbers" / "fingerprint", identify(images, np.arange(40)), 4, parse_view, self)

    def __call__(self, examples):
        time.sleep(self.seconds)
        self.computed += list(examples.ids)
        for image in examples.images[:]:
            yield {"view_values": image.astype("<f2").tobytes(), "view_shape": list(image.shape)}


def test_processes_of_one_part_share_its_shards(tmp_path):
    work = Work(tmp_path, seconds=0.02)
    threads = [threading.Thread(target=write_part, args=(work.shards, range(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(work.computed) == sorted(work.shards.examples.ids)  # each once
    whole = Work(tmp_path / "whole")
    whole.shards.folder.mkdir(parents=True)
    write_shards(whole.shards)
    for number in range(10):
        assert work.shards.path(number).read_bytes() == whole.shards.path(number).read_bytes()
    with locked(work.shards.folder, wait=False):
        write_shards(work.shards)
    assert [path.name for path in work.shards.folder.glob(".*")] == [".lock"]  # none is left of the shards


def test_who_writes_the_whole_store_waits_for_parts(tmp_path):
    work = Work(tmp_path, seconds=0.05)
    part = threading.Thread(target=write_part, args=(work.shards, range(10)))
    part.start()
    while not work.computed:
        time.sleep(0.01)
    with locked(work.shards.folder, wait=True):
        assert len(work.computed) == 40
    part.join()


@pytest.mark.parametrize("count", [1, 3, 7, 30])
def test_parts_are_all_shards_once(count):
    parts = [StorePart(number, count).of(20) for number in range(1, count + 1)]
    assert sorted(shard for part in parts for shard in part) == [*range(20)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3", "²/3"])
def test_what_is_no_part_is_one_line(text):
    with pytest.raises(UserError, match="--part must be NUMBER/COUNT"):
        read_part(text)


@pytest.mark.parametrize("given", [("--part", "1/2"), ("--cluster", "auto")])
def test_a_part_is_of_the_stores_alone(given):
    arguments = ["--experiment", "ig_kd", "--stages"]
    with pytest.raises(UserError, match=f"{given[0]} needs exactly --stages overlays, got --stages teacher,overlays"):
        parse([*arguments, "teacher,overlays", *given])
    with pytest.raises(UserError, match="--part and --cluster exclude each other"):
        parse([*arguments, "overlays", "--part", "1/2", "--cluster", "auto"])


def test_a_part_of_an_experiment_without_a_store_is_one_line(tmp_path):
    done = run(tmp_path, "tfigkd.run", "--experiment", "student", "--stages", "overlays", "--part", "1/2")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: student stores nothing of its teacher; leave the stage overlays out"]

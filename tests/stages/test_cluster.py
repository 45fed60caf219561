"""Stores and studies on a Ray cluster of two nodes: the bytes and rows of one process, also when a node is lost."""

import csv
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import tfigkd
from tests.children import ROOT, fork, run, wait_for
from tests.faults.runs import PASSING
from tests.stages.test_parts import OPTIONS, alone, stored, taught
from tfigkd.runtime.cluster import connected
from tfigkd.runtime.errors import UserError

NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="NEEDS RAY: pip install tfigkd[cluster]")
SHARDS = "teachers/*/overlays/*/overlays-*.tfrecord"
STUDY = """
description = "two arms, four seeds"
seeds = 4
stages = "data,teacher,overlays,distill,evaluate,report"
comparisons = [["plain", "ig"]]
[arms]
plain = "plain.toml"
ig = "tiny.toml"
"""


class Nodes:
    """A process with a cluster of one node or several, each of one core."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/ray_nodes.py"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()
        self.added = 0

    def add(self, **variables):
        self._tell(f"add {json.dumps(variables)}")
        self.added += 1

    def remove(self):
        self._tell("remove")
        self.added -= 1

    def _tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def close(self):
        self.process.communicate()


@pytest.fixture(scope="module")
def cluster():
    made = Nodes()
    yield made
    made.close()


@pytest.fixture
def nodes(cluster):
    """Return a cluster of one node, to which a test adds others."""
    yield cluster
    while cluster.added:
        cluster.remove()


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
    """Return a folder with a trained teacher and no store."""
    return shutil.copytree(taught(tmp_path_factory), tmp_path / "here")


def start(folder, address):
    return fork(folder, "tfigkd.run", *OPTIONS, "--stages", "overlays", "--cluster", address)


def at_least(count, folder, pattern):
    """Return the files of a pattern, or an empty list if there are fewer."""
    found = list(folder.glob(pattern))
    return found if len(found) >= count else []


def states(paths):
    """Return path to number and time of each file."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def listening():
    """Return the local addresses at which processes of this machine listen, as in /proc."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {fields[1].rpartition(":")[0] for fields in lines if fields[3] == "0A"}


@NEEDS_RAY
def test_a_store_is_that_of_one_process_though_a_node_is_lost(nodes, folder, tmp_path_factory):
    expected, before = stored(alone(tmp_path_factory)), listening()
    nodes.add()
    process = start(folder, nodes.address)
    done = states(wait_for(process, lambda: at_least(4, folder, SHARDS)))
    opened = listening() - before
    assert {address.partition(":")[0] for address in opened} <= {"0100007F"}, opened  # 127.0.0.1
    nodes.remove()
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, ""), output
    assert "shards of the stores on 2 nodes, 2 cores" in output
    # a process may outlive its node by a moment, and leave the file that it was writing
    written = {name: content for name, content in stored(folder).items() if ".partial" not in name}
    assert written == expected
    assert states(done) == done  # no finished shard was written again
    assert "  overlays: 15 shards (127.0.0.1: 15)\n" in output


@NEEDS_RAY
@pytest.mark.slow
def test_a_killed_driver_continues_with_the_shards_that_are_missing(nodes, folder, tmp_path_factory):
    nodes.add()
    process = start(folder, nodes.address)
    done = states(wait_for(process, lambda: at_least(4, folder, SHARDS)))
    process.kill()
    process.communicate()
    again = start(folder, nodes.address)
    output, errors = again.communicate()
    assert (again.returncode, errors) == (0, ""), output
    assert stored(folder) == stored(alone(tmp_path_factory))
    assert states(done) == done


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_with_another_version_is_named(nodes, folder, tmp_path):
    other = shutil.copytree(Path(tfigkd.__file__).parent, tmp_path / "other/tfigkd")
    initial = other / "__init__.py"
    initial.write_text(initial.read_text().replace(tfigkd.__version__, "0.0.7"))
    nodes.add(PYTHONPATH=str(other.parent))
    output, errors = start(folder, nodes.address).communicate()
    assert errors.startswith("error: node 127.0.0.1: it has tfigkd 0.0.7"), (output, errors)
    assert "install the same on every machine" in errors and errors.count("\n") == 1


WITHOUT_DATA = """
import os, sys
from tfigkd.run import parse
from tfigkd.runtime.cluster import connected
from tfigkd.runtime.errors import UserError
from tfigkd.stages import overlays
_, chosen = parse(sys.argv[2:])
overlays.stores(chosen.config, chosen.workdir)
os.rename("digits.npz", "elsewhere.npz")  # this process has read the data, and the machines of the cluster find none
try:
    with connected(sys.argv[1]) as cluster:
        overlays.store_on_cluster(chosen.config, chosen.workdir, cluster)
except UserError as error:
    print(error)
"""


@NEEDS_RAY
@pytest.mark.slow
def test_a_machine_without_the_data_is_named(nodes, folder):
    x, y = load_digits().images.astype(np.uint8), load_digits().target
    np.savez(folder / "digits.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:200], y_test=y[120:200])
    options = (*OPTIONS, "--data.name", "digits.npz")
    assert run(folder, "tfigkd.run", *options, "--stages", "teacher").returncode == 0
    command = [sys.executable, "-c", WITHOUT_DATA, nodes.address, *options, "--stages", "overlays"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.match(r"node 127\.0\.0\.1: .*digits\.npz", said.splitlines()[-1]), said


def rows(folder):
    """Return arm and seed to the row of each run, without what differs between runs."""
    found = {}
    for path in sorted(folder.glob("runs/studies/eight/*/*/rows.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        found[path.parts[-3:-1]] = {name: value for name, value in row.items() if not PASSING.fullmatch(name)}
    return found


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_has_the_rows_of_one_machine_though_a_node_is_lost(nodes, folder, tmp_path):
    experiment = (folder / "tiny.toml").read_text() + "[training]\nepochs = 2\nbatch_size = 32\n"
    experiment += "[evaluation]\nattribution_examples = 0\ngallery_examples = 0\n"
    (folder / "tiny.toml").write_text(experiment)
    (folder / "plain.toml").write_text('base = "tiny"\n[overlay]\nprobability = 0.0\n')
    (folder / "eight.toml").write_text(STUDY)
    local = shutil.copytree(folder, tmp_path / "local")
    options = ("--experiment", "eight.toml", "--teachers", "teachers")
    nodes.add()
    process = fork(folder, "tfigkd.study", *options, "--cluster", nodes.address, merged=True)
    done = wait_for(process, lambda: at_least(2, folder, "runs/studies/eight/*/*/rows.csv"))
    before = states(done)
    nodes.remove()
    nodes.add()  # a machine that joins later works as well
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "8 runs" in output and "8 done" in output and "; on 127.0.0.1" in output
    assert states(done) == before
    assert run(local, "tfigkd.study", *options, "--processes", "2").returncode == 0
    assert len(rows(folder)) == 8
    assert rows(folder) == rows(local)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "--cluster must be auto or HOST:PORT"),
        ("ray://127.0.0.1:10001", "--cluster must be auto or HOST:PORT"),
        ("127.0.0.1:9", "--cluster 127.0.0.1:9 does not answer (Connection refused); start the cluster: ray start"),
    ],
)
@NEEDS_RAY
def test_an_address_without_a_cluster_is_one_line(folder, address, message):
    done = run(folder, "tfigkd.run", *OPTIONS, "--stages", "overlays", "--cluster", address)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1, done.stderr


@NEEDS_RAY
@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_of_something_else_is_one_line_within_seconds(says, monkeypatch):
    monkeypatch.setattr("tfigkd.runtime.cluster.ANSWERS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection = server.accept()[0]
            with connection:
                connection.sendall(says)
                connection.recv(64)
                done.wait(10)  # a service that says no more keeps the line open

        done, address = threading.Event(), f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=answer)
        thread.start()
        began = time.monotonic()
        with pytest.raises(UserError, match=f"--cluster {address} answers, but not as a Ray cluster; give the address"):
            connected(address).__enter__()
        assert time.monotonic() - began < 5
        done.set()
        thread.join()


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--cluster needs Ray; install it: pip install 'tfigkd\[cluster\]'"):
        connected("auto").__enter__()

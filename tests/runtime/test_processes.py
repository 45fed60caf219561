"""Child processes: how many fit a machine, and their share of its cores."""

import os
import subprocess
import sys

import pytest

from tfigkd.runtime import machine, processes
from tfigkd.runtime.processes import processes_that_fit

CHILD = """
import sys
from pathlib import Path
from tfigkd.runtime.processes import settle
settle(Path(sys.argv[1]), int(sys.argv[2]))
import threading
import tensorflow as tf
before = len(list(Path("/proc/self/task").iterdir()))
left = tf.random.normal((2000, 2000))
(left @ left).numpy()
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.parametrize(("cores", "gigabytes", "expected"), [(2, 24, 2), (16, 16, 4), (8, 2, 1), (1, 64, 1)], ids=str)
def test_a_process_for_each_core_as_far_as_memory_allows(monkeypatch, cores, gigabytes, expected):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setattr(processes, "memory", lambda: gigabytes * 2**30)
    monkeypatch.setattr(processes, "ACCELERATOR", processes.Path("/nowhere"))
    assert processes_that_fit() == expected


def test_an_accelerator_gets_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "ACCELERATOR", tmp_path)
    assert processes_that_fit() == 1


def test_a_child_computes_with_its_share_of_the_threads(tmp_path):
    added = []
    for threads in (1, 7):
        log = tmp_path / f"{threads}.log"
        environment = {name: value for name, value in os.environ.items() if name not in machine.THREADS}
        subprocess.run([sys.executable, "-c", CHILD, str(log), str(threads)], env=environment, check=True)
        added.append(int(log.read_text().split()[-1]))
    assert added[1] - added[0] >= 6, added

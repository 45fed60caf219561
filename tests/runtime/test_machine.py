"""Cores and memory: those of the machine, or what a container leaves of them."""

import os

import pytest

from tfigkd.runtime import machine, processes
from tfigkd.runtime.command import command

GB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups of a machine of eight cores and 16 GB, of which 12 are free; this process is in `job/step`."""
    inner = tmp_path / "groups/job/step"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/job/step\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {12 * GB // 1024} kB\n")
    for name, place in (("GROUPS", "groups"), ("OWN_GROUP", "own"), ("MEMINFO", "meminfo")):
        monkeypatch.setattr(machine, name, tmp_path / place)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 4 * 2**20, "SC_PAGE_SIZE": 2**12}.get)
    monkeypatch.setattr(processes, "ACCELERATOR", tmp_path / "none")
    return inner


def test_without_limits_it_is_the_machine(groups):
    (groups / "cpu.max").write_text("max 100000\n")
    (groups / "memory.max").write_text("max\n")
    assert (machine.cores(), machine.memory(), machine.free_memory()) == (8, 16 * GB, 12 * GB)
    machine.OWN_GROUP.unlink()
    assert (machine.cores(), machine.memory(), machine.free_memory()) == (8, 16 * GB, 12 * GB)


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1)])
def test_cores_are_the_quota_of_the_container(groups, quota, expected, monkeypatch):
    for name in machine.THREADS:
        monkeypatch.delenv(name, raising=False)
    (groups / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores() == processes.threads() == expected


def test_a_command_starts_a_thread_for_each_core_of_its_container(groups, monkeypatch):
    """TensorFlow would start one for each core of the machine; a number that is set stays, a child's share is less."""
    (groups / "cpu.max").write_text("200000 100000\n")

    def threads_in(main, **given):
        for name in machine.THREADS:
            monkeypatch.setenv(name, given.get(name, ""))  # so that what it was comes back at the end
            if name not in given:
                monkeypatch.delenv(name)
        main()
        return [os.environ.get(name) for name in machine.THREADS]

    main = command()(lambda arguments: None)
    assert threads_in(lambda: main([])) == ["2", "2"]
    assert threads_in(lambda: main([]), TF_NUM_INTRAOP_THREADS="5") == ["5", "2"]
    assert threads_in(lambda: [main([]), machine.limit_threads(1)]) == ["1", "1"]
    assert threads_in(lambda: machine.limit_threads(3), TF_NUM_INTRAOP_THREADS="2", OMP_NUM_THREADS="x") == ["2", "3"]
    (groups / "cpu.max").write_text("max 100000\n")
    assert threads_in(lambda: main([])) == [None, None]


def test_memory_is_what_the_container_leaves(groups):
    """The group above has the lower limit; of the 5 GB that it uses, 1 GB are files that can be dropped."""
    (groups / "memory.max").write_text(f"{9 * GB}\n")
    (groups / "memory.current").write_text(f"{2 * GB}\n")
    above = groups.parent
    (above / "memory.max").write_text(f"{8 * GB}\n")
    (above / "memory.current").write_text(f"{5 * GB}\n")
    (above / "memory.stat").write_text(f"anon {4 * GB}\ninactive_file {GB}\n")
    assert (machine.memory(), machine.free_memory()) == (8 * GB, 4 * GB)
    assert processes.processes_that_fit() == 2

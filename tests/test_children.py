"""A forked child ends, prints, and is limited as a new interpreter is."""

import os
import py_compile
import signal
import subprocess
import sys

import pytest

from tests.children import ROOT, fork, once, run, wait_for

PROGRAM = """
import atexit, os, signal, sys, threading, time
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sorted(name for name in os.environ if name.startswith("ONLY_")))
atexit.register(print, "at exit")
threading.Thread(target=lambda: time.sleep(0.1) or print("thread")).start()
how = sys.argv[1]
if how == "text":
    sys.exit("a line")
elif how == "raise":
    raise ValueError("a fault")
elif how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif how == "large":
    open("large", "wb").write(bytes(2000))
sys.exit(None if how == "none" else 3)
"""


@pytest.mark.parametrize("how", ["none", "3", "text", "raise", "killed", "large"])
def test_a_forked_child_ends_as_a_new_interpreter(how, tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text(PROGRAM)
    py_compile.compile(str(tmp_path / "ends.py"))  # under the limit of a file's size Python would write a part of it
    monkeypatch.setenv("ONLY_THEN", "1")
    forked = run(tmp_path, "ends", how, "ü", environment={"WORD": "a b"}, file_size=1000)
    command = ["bash", "-c", 'ulimit -f 1; exec "$@"', "-", sys.executable, "-m", "ends", how, "ü"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORD": "a b"}
    new = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]
    assert new.stdout.count("at exit") == (how != "killed")


def test_a_child_can_be_watched_and_stopped(tmp_path):
    (tmp_path / "waits.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    child = fork(tmp_path, "waits")
    assert child.stdout.readline() == "begun\n"
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.communicate(timeout=0.01)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate()
    assert (output, errors.splitlines()[-1], child.returncode) == ("", "KeyboardInterrupt", -signal.SIGINT)


def test_a_child_that_ends_is_not_waited_for(tmp_path):
    (tmp_path / "makes.py").write_text("import sys\nopen(sys.argv[1], 'x').close()\nsys.exit('a line')\n")
    child = fork(tmp_path, "makes", "made")
    assert wait_for(child, (tmp_path / "made").exists)
    child.communicate()
    with pytest.raises(AssertionError, match=r"ended with 1 before: .*a line"):
        wait_for(fork(tmp_path, "makes", "other"), (tmp_path / "absent").exists)


def test_a_shared_folder_is_made_once(tmp_path_factory):
    made = []
    for _ in range(2):
        folder = once(tmp_path_factory, "shared_folder_of_a_test", lambda folder: made.append(folder))
    assert made == [folder]

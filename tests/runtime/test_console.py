"""Console output of a run: a live table on a terminal of any width, plain lines elsewhere, `quiet` and `verbose`."""

import fcntl
import io
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from tfigkd.runtime import console
from tfigkd.runtime.quiet import quiet_stderr

ROOT = Path(__file__).resolve().parents[2]


class Written(io.StringIO):
    """A stream that records what is written to it, as a terminal or as a file."""

    terminal = True

    def isatty(self):
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    """Return a function that replaces standard output by a terminal or a file and returns the recording stream."""

    def make(width=80, terminal=True, forced=False):
        written = Written()
        written.terminal = terminal
        made = Console(
            file=written,
            width=width,
            height=30,
            force_terminal=forced or terminal,
            color_system=None,
            highlight=False,
            soft_wrap=not terminal,
            _environ={"TERM": "xterm"},
        )
        monkeypatch.setattr(console, "_console", made)
        return written

    yield make
    console.configure()


def on_screen(text):
    """Return the final lines of a terminal: moving up and erasing are applied, other control sequences are ignored."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[^\x1b]", text):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b"):
            row = max(0, row - int(token[2:-1] or 1)) if token.endswith("A") else row
            lines[row] = "" if token.endswith("K") else lines[row]
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def work():
    """Run three stages, of which one is not needed."""
    with console.stages(["data", "teacher", "distill"], skipped=["teacher"]) as stage:
        with stage("data"):
            console.status("12 pictures of a data set whose name is long, very long, and longer than many a terminal")
        with stage("distill"):
            console.say("  warning: a term does nothing")
            with console.progress("student", 20) as advance:
                advance(20, note="epoch 1/1  loss 0.1")
            console.detail("  epoch 1/1")
            console.status("validation accuracy 98 %")
            console.status("teacher.int8.tflite: 98 %", note=False)
    console.say("model: here", last=True)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_terminal_shows_one_line_a_stage(screen, width):
    written = screen(width)
    work()
    data, teacher, distill, model = on_screen(written.getvalue())[-4:]
    assert max(map(len, (data, teacher, distill))) <= width
    assert data.startswith("✓ data ") and "12 pictures" in data and ("…" in data) == (width < 120)
    assert teacher.split() == ["–", "teacher", "not", "needed"]
    assert distill.startswith("✓ distill ") and " s validation" in distill
    assert model == "model: here"
    assert written.getvalue().count("warning: a term does nothing") == 1


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_running_stage_shows_its_progress(screen, width):
    screen(width)
    with console.stages(["distill"]) as stage, stage("distill"), console.progress("student", 200) as advance:
        advance(50, note="epoch 1/4  loss 0.123")
        (line,) = rendered(console._table([console._shown.stage]))
    assert line.startswith("▶ distill") and len(line.rstrip()) <= width
    assert "25%" in line if width < console.MEDIUM else " 50/200" in line
    assert ("loss 0.123" in line) == (width >= console.WIDE)


def rendered(table):
    paper = Console(file=io.StringIO(), width=console._console.width, color_system=None, _environ={})
    paper.print(table)
    return paper.file.getvalue().splitlines()


@pytest.mark.parametrize("forced", [False, True])  # FORCE_COLOR, as in a notebook, does not turn a file into a terminal
def test_a_file_gets_plain_lines(screen, forced):
    written = screen(terminal=False, forced=forced)
    work()
    assert written.getvalue().splitlines() == [
        "[1/2] data",
        "  12 pictures of a data set whose name is long, very long, and longer than many a terminal",
        "[2/2] distill",
        "  warning: a term does nothing",
        "  validation accuracy 98 %",
        "  teacher.int8.tflite: 98 %",
        "model: here",
    ]


def test_a_command_to_type_next_is_one_line_to_copy(screen):
    written = screen(40)
    console.say(f"next: python -m tfigkd.predict {'long/' * 20}student.int8.tflite", last=True)
    assert written.getvalue().count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_prints_only_the_last_lines(screen, terminal):
    written = screen(terminal=terminal)
    console.configure(quiet=True)
    work()
    console.show("a table")
    assert written.getvalue() == "model: here\n"


def test_verbose_shows_every_epoch_and_messages_of_libraries(screen, capfd):
    written = screen(terminal=False)
    console.configure(verbose=True)
    work()
    assert "  epoch 1/1\n" in written.getvalue()
    with quiet_stderr():
        os.write(2, b"a library")
    console.configure()
    with quiet_stderr():
        os.write(2, b"another")
    assert capfd.readouterr().err == "a library"


def test_warnings_of_tensorflow_are_shown_by_verbose_alone():
    logger = logging.getLogger("tensorflow")
    for verbose in (False, True):
        console.configure(verbose=verbose)
        assert logger.isEnabledFor(logging.WARNING) == verbose
        assert logger.isEnabledFor(logging.ERROR)
    console.configure()


def test_a_stage_that_fails_is_marked(screen):
    written = screen()
    with pytest.raises(KeyboardInterrupt), console.stages(["data", "distill"]) as stage, stage("data"):
        raise KeyboardInterrupt
    data, distill = on_screen(written.getvalue())[-2:]
    assert data.startswith("✗ data") and distill.startswith("· distill")


def test_a_terminal_without_utf8_gets_ascii_marks(screen, monkeypatch):
    screen()
    monkeypatch.setattr(Console, "encoding", "ascii")
    states = [console._Stage("data", state) for state in console.MARKS]
    assert "".join(rendered(console._table(states))).isascii()


WITH_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may have set it to be ignored
from tfigkd.run import main
sys.exit(main())
"""


def in_terminal(folder, width, *arguments, stop_at=None):
    """Run `tfigkd.run` in a terminal of `width` columns; press Ctrl-C once `stop_at` is on the screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_CTRL_C, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if stop_at is not None and re.search(stop_at, seen.decode(errors="ignore")):
            process.send_signal(signal.SIGINT)
            stop_at = None
    os.close(ours)
    return process.wait(timeout=60), on_screen(seen.decode())


def test_ctrl_c_in_a_narrow_terminal_leaves_the_table_and_the_command_to_resume(tmp_path):
    command = ["--experiment", "quickstart", "--smoke", "--teacher.drop_blocks", "14", "--student.drop_blocks", "16"]
    status, lines = in_terminal(tmp_path, 40, *command, "--stages", "data,teacher", stop_at="▶[^▶]{0,20}teacher")
    assert status == 130
    assert len([line for line in lines if re.match(r"✗ teacher +\d+ s", line)]) == 1
    assert "stopped; nothing finished is lost. Go on with: python -m tfigkd.run" in "\n".join(lines)
    assert "Traceback" not in "".join(lines)

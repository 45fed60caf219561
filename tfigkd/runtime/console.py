"""Console output of a run: on a terminal a live table of its stages, elsewhere plain lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tfigkd.runtime.quiet import show_native

_console = Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "–", "stopped": "✗"}
ASCII = {"waiting": ".", "running": ">", "done": "+", "skipped": "-", "stopped": "x"}
STYLES = {"waiting": "dim", "running": "bold", "done": "green", "skipped": "dim", "stopped": "red"}
WIDE, MEDIUM = 100, 60  # terminal widths in columns from which a bar shows all, or most, of its fields


@dataclass
class _Settings:
    quiet: bool = False
    verbose: bool = False


@dataclass
class _Stage:
    """One line of the table: a stage, its state and its note."""

    name: str
    state: str = "waiting"
    note: str = ""
    seconds: float | None = None
    began: float = 0.0


@dataclass
class _Shown:
    """What the live table currently shows: the running stage and its progress bar."""

    stage: _Stage | None = None
    bars: Progress | None = None


_settings, _shown = _Settings(), _Shown()


def configure(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set how much is printed from now on.

    Args:
        quiet: Print only errors and last lines.
        verbose: Print also every epoch and the messages of libraries.
    """
    _settings.quiet, _settings.verbose = quiet, verbose
    show_native(verbose)


def is_verbose() -> bool:
    """Return whether everything is printed, as `--verbose` asks."""
    return _settings.verbose


class _Rate(ProgressColumn):
    """A column of a progress bar: units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def say(message: str, *, last: bool = False) -> None:
    """Print one line.

    Args:
        message: The line.
        last: Whether it is a last line of the command, which is printed under `--quiet` as well.
    """
    if not _settings.quiet or last:
        # a command to copy must not be broken into lines
        _console.print(message, markup=False, soft_wrap=last or _console.soft_wrap)


def status(message: str, *, note: bool = True) -> None:
    """Print one indented line of the running stage; in the live table it is the note beside the stage instead.

    A warning is given to `say`, so that it stays.

    Args:
        message: The line, without indentation.
        note: Whether it may become the note, which at the end of a stage should be about the student.
    """
    if _shown.stage is not None and note:
        _shown.stage.note = message
    if _shown.stage is None or _settings.verbose:
        say(f"  {message}")


def detail(message: str) -> None:
    """Print one line if `--verbose` is set."""
    if _settings.verbose:
        _console.print(message, markup=False)


def show(renderable: object) -> None:
    """Print a table or any other rich renderable, unless `--quiet` is set."""
    if not _settings.quiet:
        _console.print(renderable)


def show_columns(header: Sequence[str], lines: Sequence[Sequence[str]], right: int, *, last: bool = False) -> None:
    """Print a table as plain lines, which a pipe gets whole; a terminal cuts its last column.

    Args:
        header: Names of the columns.
        lines: A text for each column.
        right: Number of columns, from the first on, that are flush right.
        last: As in `say`: whether they are the result that the command was given for.
    """
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in (header, *lines):
        cells = [
            text.rjust(width) if place < right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = "  ".join(cells).rstrip()
        say(text[: _console.width] if _console.is_terminal else text, last=last)


def _animated() -> bool:
    """Return whether to animate: on a terminal that can overwrite lines, and without `--quiet`."""
    # FORCE_COLOR, which notebooks and CI set, makes rich treat a pipe as a terminal
    return _console.file.isatty() and not _console.is_dumb_terminal and not _settings.quiet


@contextlib.contextmanager
def stages(
    names: Sequence[str], skipped: Sequence[str] = ()
) -> Iterator[Callable[[str], contextlib.AbstractContextManager]]:
    """Show the stages of a run and yield `stage(name)`, the context manager in which one stage runs.

    Args:
        names: Names of the stages, in order.
        skipped: Names of the stages that this run does not need.
    """
    needed = [name for name in names if name not in skipped]
    rows = [_Stage(name, "skipped", "not needed") if name in skipped else _Stage(name) for name in names]

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        row = next(row for row in rows if row.name == name)
        if not animated:
            say(f"[{needed.index(name) + 1}/{len(needed)}] {name}")
        row.state, row.began = "running", time.monotonic()
        _shown.stage = row if animated else None
        try:
            yield
            row.state = "done"
        except BaseException:
            row.state = "stopped"
            raise
        finally:
            row.seconds = time.monotonic() - row.began
            _shown.stage = None

    animated = _animated()
    if not animated:
        yield stage
        return
    with Live(get_renderable=lambda: _table(rows), console=_console, refresh_per_second=4):
        yield stage


def _table(rows: Sequence[_Stage]) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=5)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    marks = MARKS if _console.encoding.startswith("utf") else ASCII
    for row in rows:
        seconds = time.monotonic() - row.began if row.state == "running" else row.seconds
        spent = "" if seconds is None else f"{seconds:.0f} s"
        running = row.state == "running" and _shown.bars is not None
        what = _shown.bars if running else Text(row.note, style="" if row.state != "skipped" else "dim")
        table.add_row(Text(marks[row.state], STYLES[row.state]), Text(row.name, STYLES[row.state]), spent, what)
    return table


def _columns() -> list[ProgressColumn]:
    """Return the columns of a progress bar that fit the width of the terminal."""
    width, left = _console.width, TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    title = TextColumn("{task.description}")
    if width >= WIDE:
        return [title, BarColumn(bar_width=20), MofNCompleteColumn(), _Rate(), left, note]
    if width >= MEDIUM:
        return [BarColumn(bar_width=12), MofNCompleteColumn(), _Rate(), left]
    return [BarColumn(bar_width=8), TextColumn("{task.percentage:3.0f}%"), left]


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show a progress bar and yield `advance(count, note)`, which moves it forward.

    Under the live table the bar appears in the line of the running stage, otherwise on a line by itself.

    Args:
        description: Title of the bar.
        total: Number of units.
        done: Number of units that were finished before.
    """
    bars = Progress(*_columns(), console=_console, disable=not _animated(), expand=_console.width >= WIDE)
    task = bars.add_task(description, total=total, completed=done, note="")

    def advance(count: int = 1, note: str | None = None) -> None:
        bars.advance(task, count)
        if note is not None:
            bars.update(task, note=note)

    if _shown.stage is None:
        with bars:
            yield advance
        return
    before, _shown.bars = _shown.bars, bars
    try:
        yield advance
    finally:
        _shown.bars = before

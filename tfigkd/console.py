"""What the user sees while a run works: stages, progress with rate and time left; quiet when not a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tfigkd.quiet import quiet_stderr as quiet_stderr

_console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def say(message: str) -> None:
    """Print one line."""
    _console.print(message, markup=False)


def show(renderable: object) -> None:
    """Print a table or any other rich renderable."""
    _console.print(renderable)


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar over `total` units of which `done` were there before; yields `advance(n, note="")`."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str | None = None) -> None:
            bar.advance(task, count)
            if note is not None:
                bar.update(task, note=note)

        yield advance

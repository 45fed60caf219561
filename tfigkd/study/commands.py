"""The commands of studies, and the fields of experiments that the commands of their runs have set."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tfigkd.config.flags import SHORT
from tfigkd.study.plan import PROG, Options, Study, words_of
from tfigkd.study.protocol import Row


def command_of(
    study: Study, workdir: Path = Options.workdir, rows: Sequence[Row] = (), teachers: Path = Options.teachers
) -> str:
    """Return the command that runs a study in its folders, or its remaining runs with the flags that `rows` all had."""
    return " ".join(filter(None, (PROG, words_of(study, workdir, teachers), _common_flags(rows))))


def flags_of(command: str) -> dict[str, str]:
    """Return the fields of experiments in the command of a run: dotted name to the words that set it, one spelling."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in shlex.split(command):
        if not word.startswith("--"):
            found.setdefault(name, []).append(word)
            continue
        option, equals, value = word.partition("=")
        field = SHORT.get(option.replace("_", "-"), option if "." in option else "")
        name = field.removeprefix("--").replace("-", "_")
        found[name] = [f"--{name}", value] if equals else [f"--{name}"]  # of two, the last one counts
    return {name: shlex.join(words) for name, words in found.items() if name}


def _common_flags(rows: Sequence[Row]) -> str:
    """Return the fields of the command line with which all runs were made; nothing where they differ."""
    found = {tuple(flags_of(row["command"]).values()) for row in rows if row.get("command")}
    alike = len({frozenset(flags) for flags in found}) == 1
    return " ".join(min(found)) if alike else ""

"""`python -m tfigkd`: list the commands.

It imports nothing but the standard library, so it also works where TensorFlow is not installed.
"""

import ast
import sys
from pathlib import Path

from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError

COMMANDS = (
    "run",
    "study",
    "search",
    "incremental",
    "evaluate",
    "upgrade",
    "export",
    "predict",
    "pack",
    "web",
    "benchmark",
    "profile",
    "verify",
    "pareto",
    "reference",
)
"""Commands, in the order in which most users need them."""


def summary(name: str) -> str:
    """Return the first line of a command's docstring, without the command's own name."""
    package = Path(__file__).parent
    path = next(path for path in (package / f"{name}.py", package / name / "__main__.py") if path.is_file())
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    said = first.partition(": ")[2] or first
    return said.strip()[:1].upper() + said.strip()[1:]


@command()
def main(arguments: list[str]) -> int:
    """List the commands; an argument that is no option is taken for a mistyped command.

    Raises:
        UserError: there is such an argument.
    """
    names = [argument for argument in arguments if not argument.startswith("-")]
    if names:
        hint = f"python -m tfigkd.{names[0]}" if names[0] in COMMANDS else "python -m tfigkd lists the commands"
        raise UserError(f"a command is started by its module, got {names[0]!r}; {hint}")
    print("Compress a Keras image classifier: python -m tfigkd.COMMAND, each with --help.\n")
    width = max(map(len, COMMANDS))
    for name in COMMANDS:
        print(f"  {name:<{width}} {summary(name)}")
    print("\nFirst: python -m tfigkd.run --experiment quickstart")
    return 0


if __name__ == "__main__":
    sys.exit(main())

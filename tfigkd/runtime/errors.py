"""The exceptions that the command line prints as a single line."""

import difflib
import errno
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may write to"),
    **dict.fromkeys((errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "give another path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs or raise ulimit -n"),
}
"""What to do next, by the number of an error of the operating system."""


def plain(text: str) -> str:
    """Return the text with every non-printable character escaped, as in a Python string."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class UserError(Exception):
    """An error that the user can correct: a wrong name, a missing file, a corrupt record.

    The message is one line that says what was expected, what was found and what to do next. The command line prints
    it without a traceback and exits with status 1; in a library, catch it like any exception. Characters that would
    break the line or control the terminal are escaped, because a file name may contain them.
    """

    def __init__(self, message: str):
        super().__init__(plain(message))


class InUseError(UserError):
    """Another process already works in the same folder, so the same work must not be started again."""


def system_line(error: OSError) -> str:
    """Return one line for an error of the operating system, such as a full disk or a folder that is not writable."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "free space or choose another place for the output")
    return f"{plain(reason + where)}; {remedy}, then repeat the command"


def closest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint for a mistyped name, with `prefix` before it, or all known names; of dotted ones the tables."""
    known = sorted(known)
    longer = [one for one in known if name and one.startswith(name)]
    near = longer if len(longer) == 1 else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {prefix + near[0]!r}?"
    tables = dict.fromkeys(re.sub(r"\..*", ".*", one) for one in known)
    return f"known: {', '.join(tables)}"


def misspelled(arguments: Sequence[str], options: Collection[str], *, short: bool = False) -> str:
    """Return what to say of the first argument that is written like an option and is none, or nothing.

    Args:
        arguments: Of the command line. Names with a dot, which are fields of an experiment, are passed over.
        options: Known ones, with their dashes, of which either kind is understood.
        short: Whether the beginning of an option is understood too.
    """
    known = {option.replace("_", "-").removeprefix("--") for option in options if option.startswith("--")}
    for argument in arguments:
        if argument == "--":
            break
        name = argument.partition("=")[0].replace("_", "-")
        word = name.lstrip("-")
        if not re.match("--?[A-Za-z]", name) or "." in name or argument in options:
            continue
        if not any(option.startswith(word) if short else option == word for option in known):
            near = closest(word, known, "--")
            return f"unknown argument {argument!r}; {near if near.startswith('did') else '--help shows all options'}"
    return ""


@contextmanager
def readable(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of a reader on damaged input into a UserError.

    Args:
        what: The input, such as "picture cat.png".
        remedy: What to do about it, in a few words.

    Raises:
        UserError: The reader raised an error, except for a missing package.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:  # damaged files raise many kinds of errors: zlib, struct, syntax, memory
        raise UserError(f"cannot read {what}: {one_line(error)}; {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return the type and the first line of the message of an exception."""
    # TensorFlow adds the names of graph nodes to its messages.
    message = re.sub(r"\{\{function_node .*?\}\}|\[Op:.*", "", str(error), flags=re.DOTALL).strip()
    return f"{type(error).__name__}: {message.splitlines()[0][:200]}" if message else type(error).__name__

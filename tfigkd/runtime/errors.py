"""The exceptions that the command line prints as a single line."""


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
    return f"{plain(reason + where)}; free space or choose another --workdir, then repeat the command"

"""The exceptions that the command line turns into a single line."""


def plain(text: str) -> str:
    """The text with everything that is no printable character written out, as in a Python string."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class UserError(Exception):
    """A mistake that the user can mend: a wrong name, a missing file, a corrupt record.

    The message is one line that says what was expected, what came and what to do next. The command
    line prints it without a traceback and exits with status 1; as a library, catch it like any exception. Characters
    that would break the line or steer a terminal, as a file's name may hold them, are written out.
    """

    def __init__(self, message: str):
        super().__init__(plain(message))


class InUseError(UserError):
    """Another process works on the same folder; what it does need not be done twice."""


def system_line(error: OSError) -> str:
    """One line for what the system refuses: a full disk, a folder that cannot be written, a file too large."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return f"{plain(reason + where)}; free space or choose another --workdir, then repeat the command"

"""The exceptions that the command line turns into a single line."""


class UserError(Exception):
    """A mistake that the user can mend: a wrong name, a missing file, a corrupt record.

    The message is one line that says what was expected, what came and what to do next. The command
    line prints it without a traceback and exits with status 1; as a library, catch it like any exception.
    """


class InUseError(UserError):
    """Another process works on the same folder; what it does need not be done twice."""


def system_line(error: OSError) -> str:
    """One line for what the system refuses: a full disk, a folder that cannot be written, a file too large."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return f"{reason}{where}; free space or choose another --workdir, then repeat the command"

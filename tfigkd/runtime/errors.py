"""The exceptions that the command line prints as a single line."""

import errno

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

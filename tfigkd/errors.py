"""The one exception that the command line turns into a single line."""


class UserError(Exception):
    """A mistake that the user can mend: a wrong name, a missing file, a corrupt record.

    The message is one line that says what was expected, what came and what to do next. The command
    line prints it without a traceback and exits with status 1; as a library, catch it like any exception.
    """


class InUseError(UserError):
    """Another process works on the same folder; what it does need not be done twice."""

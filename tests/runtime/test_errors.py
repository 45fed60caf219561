"""The one line of an error of the operating system says what helps against this error."""

import errno
import os

import pytest

from tfigkd.runtime.errors import system_line


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EROFS, "a place that you may write to"),
        (errno.EACCES, "a place that you may write to"),
        (errno.ENOENT, "give another path"),
        (errno.EISDIR, "give another path"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "free space or choose another place"),
    ],
)
def test_the_remedy_is_that_of_the_error(number, remedy):
    line = system_line(OSError(number, os.strerror(number), "some\nfile"))
    assert line.startswith(os.strerror(number)) and remedy in line and "\n" not in line
    assert "--workdir" not in line  # which not every command has

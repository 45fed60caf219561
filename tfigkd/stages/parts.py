"""One of several processes that share the shards of a store, as those of an array job."""

import re
from dataclasses import dataclass

from tfigkd.runtime.errors import UserError


@dataclass(frozen=True)
class StorePart:
    """One of several processes that share the shards of a store.

    Attributes:
        number: From 1 to `count`.
        count: Number of processes.
    """

    number: int
    count: int

    def of(self, shards: int) -> range:
        """Return which of so many shards are those of this part, numbered from 0."""
        return range(self.number - 1, shards, self.count)


def read_part(text: str) -> StorePart:
    """Read a part as the command line gives it: "2/8" is the second of eight.

    Raises:
        UserError: the text is no such part.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    part = StorePart(*map(int, found.groups())) if found else None
    if part is None or not 1 <= part.number <= part.count:
        raise UserError(f"--part must be NUMBER/COUNT with 1 <= NUMBER <= COUNT, such as 2/8, got {text!r}")
    return part

"""Counts of the fault tests, written as rows with `--fault-rows FILE`; `table.py` makes the table from them.

python -m pytest tests/faults -m "slow or not slow" --fault-rows experiments/results/faults.csv
python tests/faults/table.py
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.runs import end_all
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.provenance import origin
from tfigkd.runtime.rows import append_row


@dataclass
class Tally:
    """Cases of one kind of fault, and their results.

    Attributes:
        fault: Name of the fault in the table.
        said: Cases that ended with one clear error line and without damage.
        same: Cases without effect: the run gave the same result, or a file was read as it was written.
        lost: One description for each case with any other result; expected to be empty.
    """

    fault: str
    said: int = 0
    same: int = 0
    lost: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def read(self, case, read, expected, names=()):
        """Call a reader, which must return an expected value or raise an error of one line that names the file.

        Args:
            case: Description of the case, for the message of a failed test.
            read: The reader, a function without arguments.
            expected: The values that it may return.
            names: The line must contain one of these; if empty, any line is accepted.
        """
        try:
            value = read()
        except UserError as error:
            line = str(error)
            clear = "\n" not in line and (not names or any(name in line for name in names))
            if clear:
                self.said += 1
            else:
                self.lost.append(f"{case}: no clear line: {line!r}")
        except Exception as error:
            self.lost.append(f"{case}: {type(error).__name__}: {error}")
        else:
            if value in expected:
                self.same += 1
            else:
                self.lost.append(f"{case}: returned {str(value)[:200]} without an error")

    def check(self, case, sound, *, said=False):
        """Count a case: lost unless `sound`, else ended with an error line if `said`, else without effect."""
        if not sound:
            self.lost.append(str(case))
        elif said:
            self.said += 1
        else:
            self.same += 1

    def end(self):
        """Stop the timer, and fail if any case was lost."""
        self.seconds = time.monotonic() - self.started
        assert not self.lost, f"{len(self.lost)} of {self.tried}:\n" + "\n".join(self.lost[:20])

    @property
    def tried(self):
        """The number of cases."""
        return self.said + self.same + len(self.lost)


def pytest_addoption(parser):
    parser.addoption("--fault-rows", type=Path, help="append what was tried and survived to this .csv")


@pytest.fixture
def tally(request):
    """Yield a function that starts the count of one kind of fault; at the end of the test, append its row."""
    made = []

    def start(fault):
        made.append(Tally(fault))
        return made[-1]

    yield start
    path = request.config.getoption("--fault-rows", default=None)
    command = f"python -m pytest {request.node.nodeid.partition('[')[0]}"
    for one in made if path is not None else ():
        counts = {"tried": one.tried, "said": one.said, "same": one.same, "lost": len(one.lost)}
        seconds = round(one.seconds or time.monotonic() - one.started, 1)
        append_row(path, {"fault": one.fault, **counts, "seconds": seconds, **origin(command)})


@pytest.fixture(autouse=True)
def _no_process_left_behind():
    yield
    end_all()

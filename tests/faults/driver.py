"""The command `tfigkd.run`, which also prints when each stage begins and ends, for tests that interrupt it.

python driver.py [--fill STAGE BYTES_LEFT FILE] ARGUMENTS OF tfigkd.run
"""

import contextlib
import os
import sys
import time

from tfigkd import run
from tfigkd.runtime.quiet import quiet_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet_stderr():  # TensorFlow prints lines on import
    from tfigkd.stages import pipeline


def fill(path, left):
    """Fill the disk of a file, except for some bytes."""
    with open(path, "wb", buffering=0) as file:
        for size in (2**20, 2**16, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    os.truncate(path, max(0, os.path.getsize(path) - left))


def announced(name, stage, full):
    """Return a stage that prints when it begins and ends, and starts on a full disk if `full` names it."""

    def call(*arguments):
        if full and full[0] == name:
            fill(full[2], int(full[1]))
        print(f"\n<begin {name}>", flush=True)
        started = time.monotonic()
        stage(*arguments)
        print(f"\n<end {name} {time.monotonic() - started:.3f}>", flush=True)

    return call


if __name__ == "__main__":
    given = sys.argv[1:]
    full = given[1:4] if given[0] == "--fill" else None
    pipeline.STAGES.update({name: announced(name, stage, full) for name, stage in pipeline.STAGES.items()})
    sys.exit(run.main(given[4:] if full else given))

"""`python -m tfigkd.verify STORE`: recompute a random sample of an overlay store and print the largest deviation."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tfigkd.runtime import console
from tfigkd.runtime.errors import UserError, system_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a store; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tfigkd.verify", description="Verify an overlay store.")
    parser.add_argument("store", type=Path, help="folder of the store: runs/teachers/<teacher>/overlays/<store>")
    parser.add_argument("--sample", type=int, default=64, help="records to recompute")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    options = parser.parse_args(arguments)
    try:
        with console.quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
            from tfigkd.stages.overlays import verify

            deviation = verify(options.store, sample=options.sample, seed=options.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {system_line(error)}", file=sys.stderr)
        return 1
    flat = f"; {deviation['flat']} maps are flat and hold nothing to compare" if deviation["flat"] else ""
    console.say(
        f"{options.store}: every record belongs to its image; largest deviation of {options.sample} recomputed: "
        f"logits {deviation['logits']:.1e}, maps {deviation['maps']:.1e} of their maximum{flat}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

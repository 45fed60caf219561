"""`python -m tfigkd.verify STORE`: recompute a random sample of a store and print the largest deviation."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tfigkd.config.flags import read_all_options
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.quiet import quiet_stderr


@dataclass(frozen=True)
class Options:
    """Verify a store of maps, views or attention: recompute a sample of its records from the images and the teacher."""

    store: Annotated[Path, Positional, arg(metavar="STORE")]
    """Folder of the store: runs/teachers/<teacher>/overlays/<store>, or views/<store> beside it."""
    sample: int = 64
    """How many records to recompute."""
    seed: int = 0
    """Seed of the sample."""


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.verify`."""
    options = read_all_options(Options, arguments, prog="python -m tfigkd.verify")
    with quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
        from tfigkd.stages.overlays import verify

        deviation = verify(options.store, sample=options.sample, seed=options.seed)
    flat = f"; {deviation['flat']} maps are flat and hold nothing to compare" if deviation["flat"] else ""
    units = {"logits": "", "maps": " of their maximum", "attention": " of its maximum"}
    parts = [f"{name} {deviation[name]:.1e}{unit}" for name, unit in units.items() if name in deviation]
    console.say(
        f"{options.store}: every record belongs to its image; largest deviation of {deviation['recomputed']} "
        f"recomputed: {', '.join(parts)}{flat}"
    )


if __name__ == "__main__":
    sys.exit(main())

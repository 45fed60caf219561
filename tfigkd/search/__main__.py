"""`python -m tfigkd.search`: search for a better setting of any field, judged on validation.

python -m tfigkd.search --experiment ig_kd --tuner bayesian --trials 30
python -m tfigkd.search --experiment kd --tuner hyperband --vary losses.kd.weight=0.1:0.9 --vary view.kind=plain,views

The same command goes on after a stop, and after its end with more --trials. For several processes or machines,
KerasTuner's own variables make one of them the chief and the others workers: KERASTUNER_TUNER_ID (chief, worker-1,
...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, the latter two the chief's; then give each the same command.
"""

import shlex
import sys

from tfigkd.config.flags import read_options
from tfigkd.runtime.command import command
from tfigkd.search.tuner import PROG, Options, search


@command(stopped="stopped; no finished trial is lost. The same command goes on")
def main(arguments: list[str]) -> None:
    """Entry point of `python -m tfigkd.search`."""
    options, flags = read_options(Options, arguments, prog=PROG)
    search(options, flags, f"{PROG} {shlex.join(arguments)}")


if __name__ == "__main__":
    sys.exit(main())

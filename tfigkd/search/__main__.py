"""`python -m tfigkd.search`: search the values of any fields for the best validation accuracy.

python -m tfigkd.search --experiment ig_kd --tuner bayesian --trials 30
python -m tfigkd.search --experiment kd --tuner hyperband --vary losses.kd.weight=0.1:0.9 --vary view.kind=plain,views
python -m tfigkd.search --student --budget latency=0.2ms,size=300kB --training.epochs 5

The same command continues a stopped search, and extends a finished one if --trials is larger. A search can use several
processes or machines: start the same command in each, with KerasTuner's environment variables KERASTUNER_TUNER_ID
(chief, worker-1, ...), and KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, the address and port of the chief.
"""

import shlex
import sys

from tfigkd.config.flags import read_options
from tfigkd.runtime import hosts
from tfigkd.runtime.command import command
from tfigkd.runtime.limit import stop_after
from tfigkd.search.options import PROG, Options
from tfigkd.search.tuner import search


@command(stopped="stopped; finished trials are kept. The same command continues the search")
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.search`."""
    options, flags = read_options(Options, arguments, prog=PROG)
    hosts.require_alone()
    with stop_after(options.minutes):
        search(options, flags, f"{PROG} {shlex.join(arguments)}")


if __name__ == "__main__":
    sys.exit(main())

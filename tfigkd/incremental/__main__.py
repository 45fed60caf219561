"""`python -m tfigkd.incremental`: class-incremental training by FOSTER or by a control.

python -m tfigkd.incremental --experiment cifar10_foster --method foster
python -m tfigkd.incremental --experiment cifar10_foster --method kd --seed 1
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tfigkd.config.experiment import Config
from tfigkd.config.flags import read_experiment_options
from tfigkd.config.incremental_fields import Method
from tfigkd.runtime import console, hosts
from tfigkd.runtime.command import command
from tfigkd.runtime.quiet import quiet_tensorflow
from tfigkd.stages.workdir import TEACHERS, Workdir, default_folder

PROG = "python -m tfigkd.incremental"


@dataclass(frozen=True)
class Options:
    """Let the classes of an experiment come in steps, and train one network through them, with a small memory.

    Every field of the experiment can be overridden by its dotted name. Each finished step is kept; the same command
    goes on in the step, and after the epoch, in which it was interrupted.
    """

    experiment: str
    """Name of a shipped experiment or path of a .toml file, with incremental.steps."""
    method: Method = "foster"
    """How a step learns. foster: a sibling beside the frozen network, both compressed into one; kd: hard labels and the
    old network's logits; finetune: only hard labels. All have the same memory and as many epochs."""
    workdir: Path | None = None
    """Where all methods of a seed write. Default: runs/EXPERIMENT/SEED (runs/EXPERIMENT-smoke/SEED with --smoke)."""
    teachers: Path = TEACHERS
    """Folder in which runs share what they measured of a network's precision."""
    smoke: bool = False
    """Shrink the experiment to a few steps of a small slice."""
    seed: int = 0
    """Seed of weights, order and crops."""
    quiet: bool = False
    """Show errors and the last lines only."""
    verbose: bool = False
    """Show every epoch, and what libraries warn of."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(arguments: list[str]) -> tuple[Options, str]:
    """Return the options, with the resolved experiment, and its name.

    Raises:
        UserError: an unknown experiment, flag or field, or a value of the wrong type or range.
    """
    return read_experiment_options(Options, arguments, prog=PROG, hint="cifar10_foster is the shipped one")


@command(stopped=f"stopped; nothing finished is lost. Go on with: {PROG} {{arguments}}")
def main(arguments: list[str]) -> None:
    """Entry point of `python -m tfigkd.incremental`."""
    options, name = parse(arguments)
    hosts.require_alone()
    console.configure(quiet=options.quiet, verbose=options.verbose)
    root = options.workdir or default_folder(name, options.seed, smoke=options.smoke)
    with quiet_tensorflow():
        from tfigkd.incremental import steps
        from tfigkd.stages.precision import resolve
    steps.check(options.config)
    config = resolve(options.config, Workdir(root, options.teachers, options.seed))
    said = shlex.join(["python", "-m", "tfigkd.incremental", *arguments])
    steps.run_method(config, options.method, root, options.seed, experiment=name, smoke=options.smoke, command=said)
    rows, others = steps.finished_rows(root, config, options.seed)
    for method in others:
        was = f"note: {method} is left out, as {root / method} has other settings"
        console.say(f"{was}; to compare it, delete that folder and train it with these", last=True)
    header, lines = steps.table(rows)
    console.say("test accuracy in percent, of all classes so far:", last=True)
    console.show_columns(header, lines, right=len(header), last=True)
    console.say(f"rows: {root / options.method / 'rows.csv'}", last=True)


if __name__ == "__main__":
    sys.exit(main())

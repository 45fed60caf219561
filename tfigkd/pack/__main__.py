"""`python -m tfigkd.pack RUN`: one .zip of a finished run: files, contracts, model card, report, checksums.

python -m tfigkd.pack runs/quickstart/0 --license apache-2.0
python -m tfigkd.predict runs/quickstart/0/student.zip PICTURE.png --resize
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tfigkd.config.flags import read_all_options
from tfigkd.edge.package import SUFFIX, write_package
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import make_folder
from tfigkd.runtime.quiet import quiet_stderr


@dataclass(frozen=True)
class Options:
    """Pack a finished run into one .zip: LiteRT files, contracts, Keras model, class names, report, model card."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Folder of a run that is finished up to stage `report`, such as runs/quickstart/0."""
    output: Path | None = None
    """The .zip file. Default: student.zip in the folder of the run."""
    license: str | None = None
    """License of the weights, an SPDX identifier such as apache-2.0."""
    report: bool = True
    """Pack the report, which shows pictures of the data set; --no-report leaves it out."""


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.pack`."""
    options = read_all_options(Options, arguments, prog="python -m tfigkd.pack")
    output = options.output or options.run / f"student{SUFFIX}"
    if output.suffix.lower() != SUFFIX:
        raise UserError(f"--output must end in {SUFFIX}, got {output}")
    with quiet_stderr():  # TensorFlow greets when it is imported
        from tfigkd.data.catalog import about
        from tfigkd.pack.content import REPORT, contents, read_facts

    facts = read_facts(options.run)
    files = contents(options.run, facts, output.name, license=options.license, report=options.report)
    make_folder(output.parent, "--output")
    write_package(output, files)
    console.say(f"{output}: {', '.join(files)}; {output.stat().st_size / 1e6:.1f} MB")
    if options.license is None:
        console.say("no license is named in it: give --license, such as --license apache-2.0")
    if REPORT in files:
        console.say(f"its {REPORT} shows pictures of the data set; --no-report leaves it out")
    if not about(facts.config["data"]["name"], facts.config["data"]["dir"])["urls"]:
        console.say("config.json and the command in README.md name the folder of the data")
    console.say(f"next: python -m tfigkd.predict {shlex.quote(str(output))} PICTURE.png --resize", last=True)


if __name__ == "__main__":
    sys.exit(main())

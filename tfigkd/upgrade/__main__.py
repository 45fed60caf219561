"""`python -m tfigkd.upgrade OLD.h5 --output NEW.keras`: a model that Keras 2 saved as a .keras file of Keras 3.

python -m tfigkd.upgrade mobilenet.h5 --output mobilenet.keras
python -m tfigkd.upgrade saved_model_folder --output model.keras
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tfigkd.config.flags import read_all_options
from tfigkd.runtime import console
from tfigkd.runtime.command import command
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic, require_folder_of
from tfigkd.runtime.quiet import quiet_stderr


@dataclass(frozen=True, kw_only=True)
class Options:
    """Build a model of Keras 2 again from layers of Keras 3, with the same weights, and compare the outputs of both."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """A .h5 file, a .keras file of Keras 2, or the folder of a SavedModel that tf.keras wrote."""
    output: Path
    """The .keras file."""


@command()
def main(arguments: list[str]) -> None:
    """Run `python -m tfigkd.upgrade`.

    Raises:
        UserError: the model cannot be read or built, or its outputs are not the same.
    """
    options = read_all_options(Options, arguments, prog="python -m tfigkd.upgrade")
    if options.output.suffix != ".keras":
        raise UserError(f"--output must end in .keras, got {options.output}")
    require_folder_of(options.output, "--output")
    with quiet_stderr():  # TensorFlow greets when it is imported and when it looks for a GPU
        from tfigkd.upgrade.keras2 import upgrade

        upgraded = upgrade(options.model)
        with atomic(options.output) as temporary:
            upgraded.model.save(temporary)
    same = "opened by Keras 3 itself"
    if upgraded.difference is not None:
        same = f"each gives on random images what it gave in Keras 2, within {upgraded.difference:.1e} of the largest"
    model = upgraded.model
    console.say(f"{options.output}: {model.count_params():,} parameters in {len(model.layers)} layers; {same}")
    for note in upgraded.notes:
        console.say(f"note: {note}")
    console.say(f"next: python -m tfigkd.evaluate {shlex.quote(str(options.output))} --data pictures", last=True)


if __name__ == "__main__":
    sys.exit(main())

"""Command-line options of the commands that open LiteRT files, and the data set that they name; without TensorFlow."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from tfigkd.config.data_fields import Fit, Reading, Resident, SplitsConfig
from tfigkd.data import Dataset, load
from tfigkd.data.spaces import Outputs
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.quiet import quiet_stderr


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Return the name of each file without its suffix; before equal names are as many folders as distinguish them."""
    parts = [path.with_suffix("").parts for path in paths]
    names = []
    for own in parts:
        others = {other for other in parts if other != own}
        depth = next((depth for depth in range(1, len(own)) if own[-depth:] not in {o[-depth:] for o in others}), None)
        names.append("/".join(own[-depth:]) if depth else str(Path(*own)))
    return names


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that opens files of other tools; `config.flags.SpaceOptions` has the same."""
    parser.add_argument(
        *("--input-range", "--input_range"),
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="values of a black and of a white pixel that the model takes, such as 0 255 (default: what its contract "
        "or the scale of its input tells, else 0 1)",
    )
    parser.add_argument(
        "--outputs",
        choices=get_args(Outputs),
        help="what the model gives (default: what its contract or its outputs on noise tell)",
    )


def given_spaces(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_space_options` say, as `input_range` and `outputs` for `infer_spaces`."""
    pair = options.input_range
    return {"input_range": None if pair is None else (pair[0], pair[1]), "outputs": options.outputs}


def add_background_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the color behind transparent pixels, see `classifier_files.background_of`."""
    parser.add_argument(
        "--background",
        help='color behind transparent pixels: white, gray, black or "#rrggbb" (default: as in training)',
    )


def add_data_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add the options that name a data set; `config.flags.DataOptions` has the same.

    Args:
        parser: It gets the options.
        purpose: The help of `--data`.
    """
    parser.add_argument("--data", help=purpose)
    parser.add_argument(
        *("--image-size", "--image_size"),
        type=int,
        help="bring pictures to this height and width, antialiased (default: the size that each file takes)",
    )
    parser.add_argument("--data-dir", "--data_dir", help="prepared tfds directory (default: TFDS_DATA_DIR)")
    add_background_option(parser)
    parser.add_argument("--fit", choices=get_args(Fit), help="how pictures come to that size (default: as in training)")
    parser.add_argument("--group", help="what groups pictures, as in data.group (default: as in training on this data)")
    kinds = get_args(Resident)
    parser.add_argument("--resident", choices=kinds, default="auto", help="where decoded pictures are kept")
    parser.add_argument("--cache", help="folder of pictures that are kept on disk (default: .tfigkd beside the data)")
    for role in ("train", "validation", "test"):
        parser.add_argument(
            f"--splits.{role}",
            action=_SplitOf,
            dest="splits",
            const=role,
            default=SplitsConfig(),
            help=f"split of the source, as in data.splits.{role} (default: as in training on this data)",
        )


def refuse_without_data(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options of a data set where none is given.

    Raises:
        UserError: One of them has another value than its default.
    """
    names = ("data_dir", *(one.name for one in fields(Reading)))
    unused = [name for name in names if getattr(options, name) != parser.get_default(name)]
    if unused and not options.data:
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect without --data; leave it out")


class _SplitOf(argparse.Action):
    """An option that names the split of one role, `const`; all of them together are one `SplitsConfig`."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, replace(getattr(namespace, self.dest), **{str(self.const): values}))


def load_data(options: argparse.Namespace, reading: Reading) -> Dataset:
    """Load the data set of `add_data_options`.

    Args:
        options: Parsed.
        reading: From `classifier_files.reading_for`.

    Raises:
        UserError: As for `tfigkd.data.load`.
    """
    with quiet_stderr():  # tfds imports TensorFlow, which greets
        return load(options.data, reading, directory=options.data_dir)

"""How the pictures of a data set are read: size, background, fit, groups, splits, and where they are kept."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from tfigkd.config.declare import forbid, require
from tfigkd.runtime.files import expanded

COLORS = {"white": (255, 255, 255), "gray": (128, 128, 128), "black": (0, 0, 0)}
Fit = Literal["stretch", "crop", "keras"]
Resident = Literal["auto", "memory", "disk"]
BACKGROUND = "white"
"""What transparent pictures are composited on unless another color is given: what browsers and most viewers show."""


def is_color(name: str) -> bool:
    """Return whether a text is a color: white, gray, black or "#rrggbb"."""
    return name in COLORS or re.fullmatch("#[0-9a-fA-F]{6}", name) is not None


def rgb(name: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a color for which `is_color` is true."""
    if name in COLORS:
        return COLORS[name]
    red, green, blue = bytes.fromhex(name.removeprefix("#"))
    return red, green, blue


@dataclass(frozen=True)
class SplitsConfig:
    """Which splits of the source train, validate and test. What is not given is found, or held out by id."""

    train: str | None = None
    """Split that trains, such as "train", "train+extra" or, of a tfds set, "train[:90%]"; not given: train."""
    validation: str | None = None
    """Split that validates; not given: a tenth of each class of train is held out (a CSV file's own where it has
    one)."""
    test: str | None = None
    """Split that only `evaluate` reads; not given: test, or validation where test has no labels or does not exist, or a
    fifth of each class of train."""


@dataclass(frozen=True)
class Reading:
    """How a data set is read, as the fields of `DataConfig` with the same names say.

    Attributes:
        image_size: Height and width in pixels to which every picture is brought; None keeps the source's size.
        background: Color that transparent pictures are composited on: white, gray, black or "#rrggbb".
        fit: How pictures come to `image_size`: "stretch", "crop" or "keras".
        group: What groups pictures; a group is never divided when a split is held out. None: nothing, or the column
            group of a CSV file.
        splits: Which splits of the source train, validate and test.
        resident: Where decoded pictures are kept; "auto": in memory if a split fits into a quarter of what is free,
            else on disk.
        cache: Folder of the pictures that are kept on disk; None: the folder .tfigkd beside the data.

    Raises:
        UserError: A value is out of range.
    """

    image_size: int | None = None
    background: str = BACKGROUND
    fit: Fit = "stretch"
    group: str | None = None
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    resident: Resident = "auto"
    cache: str | None = None

    @classmethod
    def of(cls, options: Any) -> "Reading":
        """Return the fields of the same names of a table or of a command's options; the default where one is None.

        Raises:
            UserError: A value is out of range.
        """
        given = {each.name: getattr(options, each.name) for each in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        require(self.image_size is None or self.image_size > 0, "image_size must be positive", self.image_size)
        require(is_color(self.background), 'background must be white, gray, black or "#rrggbb"', self.background)
        forbid(self.group == "", "group must name a column, a feature or an array", self.group)

    def split_choice(self) -> dict[str, Any]:
        """Return what decides which pictures are test, as far as it is set: `group` and `splits`, as plain values."""
        splits = {role: split for role, split in asdict(self.splits).items() if split is not None}
        return ({} if self.group is None else {"group": self.group}) | ({"splits": splits} if splits else {})

    def with_splits_of_training(self, name: str | None, trained: Mapping[str, Any]) -> "Reading":
        """Return the reading with which a model is tested on the data set that has trained it, if it is that one.

        With other splits or groups than in its training, a part of its training pictures would be in the test split.

        Args:
            name: Of the data set, as for `data.load`; None is none.
            trained: `name` of the data set in its training, and its `split_choice`. What is set here comes first.
        """
        if name is None or not _is_same_source(name, str(trained.get("name"))):
            return self
        given = self.split_choice().get("splits", {})
        splits = {**trained.get("splits", {}), **given}
        if "validation" not in given and splits.get("validation") in given.values():
            splits.pop("validation")  # what validated may be what is tested on; what trained may not
        return replace(self, group=self.group or trained.get("group"), splits=SplitsConfig(**splits))

    def said_of_splits(self, given: "Reading", trained: Mapping[str, Any]) -> str:
        """Return in words that the splits are those of a model's training, or that they could be others, or nothing.

        Args:
            given: The reading without what `with_splits_of_training` has added.
            trained: As there.
        """
        own, asked = self.split_choice(), given.split_choice()
        if own != asked:
            taken = {role: one for role, one in own.get("splits", {}).items() if role not in asked.get("splits", {})}
            group = own.get("group") if "group" not in asked else None
            return f"splits as in the model's training: {_in_words({'group': group, 'splits': taken})}"
        if not self.split_choice() and (trained.get("group") or trained.get("splits")):
            return f"the usual splits, but the model was trained on {trained.get('name')} with {_in_words(trained)}"
        return ""


def _in_words(choice: Mapping[str, Any]) -> str:
    """Return a `split_choice` as options."""
    group = [f"--group {choice['group']}"] if choice.get("group") else []
    return ", ".join(group + [f"--splits.{role} {split}" for role, split in choice.get("splits", {}).items()])


def _is_same_source(first: str, second: str) -> bool:
    """Return whether two names are of one data set, as far as the names tell."""
    return first == second or os.path.realpath(expanded(first)) == os.path.realpath(expanded(second))

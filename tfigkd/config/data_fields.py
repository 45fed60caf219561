"""How the pictures of a data set are read: size, background, fit, groups, splits, and where they are kept."""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from tfigkd.config.declare import forbid, require

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

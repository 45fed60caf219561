"""Pictures of a training, as PNG: examples with their maps, and a confusion matrix. matplotlib only finds fonts."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.batches.augment import overlay
from tfigkd.data import to_model_input

SIDE = 96  # pixels of a picture in a panel, at least, where its own are fewer
LARGEST = 160  # and at most, where its own are more
TEXT = 13
WRITTEN = 20
"""Largest number of classes for which the matrix shows names and counts."""


def heat(maps: np.ndarray) -> np.ndarray:
    """Return maps [N,H,W] as colors uint8 [N,H,W,3]: black, red, yellow, white, each map scaled to its own maximum."""
    top = maps.max(axis=(1, 2), keepdims=True).astype(np.float64)
    scaled = maps / np.where(top > 0, top, 1)
    return np.round(255 * np.clip(3 * scaled[..., None] - np.arange(3), 0, 1)).astype(np.uint8)


def gallery(
    images: np.ndarray, student_maps: np.ndarray, captions: Sequence[str], teacher_maps: np.ndarray | None = None
) -> bytes:
    """Return a row for each example: picture, the teacher's map, the overlay of both, the student's map.

    Args:
        images: uint8 [N,H,W,3].
        student_maps: Not negative, [N,H,W].
        captions: One for each example.
        teacher_maps: Not negative, [N,H,W]; None leaves its two columns out.

    Returns:
        A PNG file.
    """
    columns = {"picture": images}
    if teacher_maps is not None:
        laid = overlay(to_model_input(images), teacher_maps, np.ones(len(images)))
        columns |= {"teacher's IG map": heat(teacher_maps), "overlay": np.round(255 * laid).astype(np.uint8)}
    columns["student's IG map" if teacher_maps is not None else "IG map"] = heat(student_maps)

    width, height = _shown_size(images.shape[2], images.shape[1])
    gap, line = 6, TEXT + 6
    cell = max(width, 118), height + line  # wide enough for the titles
    canvas, write = _canvas((len(columns) * (cell[0] + gap) + gap, line + gap + len(images) * (cell[1] + gap)))
    for column, (title, pictures) in enumerate(columns.items()):
        left = gap + column * (cell[0] + gap)
        write((left, gap // 2), title)
        for row, picture in enumerate(pictures):
            top = line + gap + row * (cell[1] + gap)
            canvas.paste(_sized(picture, (width, height)), (left, top))
            if column == 0:
                write((left, top + height + 2), captions[row])
    return png(canvas)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix: a row for each true class, a column for each predicted one, colored by row share.

    Args:
        matrix: Counts, integers [C,C].
        names: Of the classes.

    Returns:
        A PNG file.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # white to blue, so that black figures can be read on it
    colors = np.round(255 - shares[..., None] * np.array([205, 140, 40])).astype(np.uint8)
    written = len(names) <= WRITTEN
    cell = 44 if written else max(1, 600 // len(names))
    margin = min(160, 16 + max(len(name) for name in names) * 7) if written else 10
    top = 2 * (TEXT + 6)
    side = cell * len(names)
    canvas, write = _canvas((margin + side + 10, top + side + 10))
    canvas.paste(_sized(colors, (side, side)), (margin, top))
    write((margin, 2), "predicted class; rows: true class")
    if written:
        for index, name in enumerate(names):
            write((6, top + index * cell + 14), drawable_name(name, index)[:20])
            write((margin + index * cell + 4, TEXT + 6), drawable_name(name, index)[:5])
            for other, count in enumerate(matrix[index]):
                if count:
                    write((margin + other * cell + 6, top + index * cell + 14), f"{count}")
    return png(canvas)


def _shown_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a picture is shown: its pixels whole times, or less where it is large."""
    longest = max(width, height)
    factor = -(-SIDE // longest) if longest < SIDE else min(1.0, LARGEST / longest)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _sized(picture: np.ndarray, size: tuple[int, int]) -> Any:
    from PIL import Image

    larger = size[0] >= picture.shape[1]
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR)


def drawable_name(name: str, index: int) -> str:
    """Return a class name, or the number of the class if no font on this machine has all its characters."""
    return name if font_for(name) is not None else f"class {index}"


@functools.cache
def font_for(text: str) -> str | None:
    """Return the path of the first font with all characters of a text: DejaVu Sans, else an installed one, or None."""
    import matplotlib

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    wanted = {ord(character) for character in text if not character.isspace()}
    if wanted <= _characters(str(own)):
        return str(own)
    return next((path for path in _installed_fonts() if wanted <= _characters(path)), None)


@functools.cache
def _installed_fonts() -> tuple[str, ...]:
    """Return the paths of the fonts of this machine, sorted."""
    from matplotlib import font_manager

    return tuple(sorted(font_manager.findSystemFonts()))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points that a font has glyphs for."""
    from matplotlib import ft2font

    try:
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a damaged font, or one of a format that FreeType does not read
        return frozenset()


def _canvas(size: tuple[int, int]) -> tuple[Any, Any]:
    """Return a white picture, and a function that writes text on it."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", size, "white")
    draw, plain = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)

    def write(place: tuple[int, int], text: str) -> None:
        # Pillow's own font has only ASCII, and draws the same box for all else
        path = None if text.isascii() else font_for(text)
        draw.text(place, text, fill="black", font=plain if path is None else ImageFont.truetype(path, TEXT))

    return canvas, write


def png(picture: Any) -> bytes:
    """Return a Pillow image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

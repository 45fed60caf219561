"""Images and maps as pictures inside the page, and the gallery of examples."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image

from tfigkd.gallery import Gallery
from tfigkd.report.page import escape

LARGEST = 96
"""Pixels a side of a picture in the page; larger images are reduced to that."""


def picture(pixels: np.ndarray) -> str:
    """Pixels as a PNG in a data URI.

    Args:
        pixels: uint8 [H,W,3], or [H,W] for a map, which is colored from dark to bright.
    """
    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(_palette())
    if max(image.size) > LARGEST:
        image = image.convert("RGB")
        image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _palette() -> bytes:
    return (255 * colormaps["magma"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes()


def scaled(maps: np.ndarray) -> np.ndarray:
    """Maps that are not negative, [K,H,W], as uint8, each by its own maximum."""
    peaks = maps.max(axis=(1, 2), keepdims=True)
    return np.round(255 * (maps / np.where(peaks > 0, peaks, 1))).astype(np.uint8)


def gallery(examples: Gallery, classes: Sequence[str], overlay_note: str) -> str:
    """The examples as HTML: each its pictures in a row, what both models say, and how alike their maps are.

    Args:
        examples: From stage `evaluate`.
        classes: Names by label.
        overlay_note: What an overlay is in this run, for its text alternative.
    """
    own = scaled(examples.maps)
    known = len(examples.teacher_maps) > 0
    laid = len(examples.overlays) > 0
    mark, made = '<em class="mark">disagree</em>', []
    for index, label in enumerate(examples.labels):
        name = classes[label]
        strip = [_shown("image", examples.images[index], f"Image {examples.ids[index]}, a {name}")]
        if known:
            strip.append(_shown("teacher's map", examples.teacher_maps[index], f"Teacher's map of {name} in it"))
        if laid and examples.overlaid[index]:
            strip.append(_shown("overlay", examples.overlays[index], overlay_note))
        elif laid:
            strip.append(_shown("never overlaid", examples.overlays[index], "The image: its map is over the tolerance"))
        strip.append(_shown("student's map", own[index], f"Student's map of {name} in it"))
        said = [f"student: {_said(classes[examples.predicted[index]], name)}"]
        apart = known and examples.predicted[index] != examples.teacher_predicted[index]
        if known:
            said.insert(0, f"teacher: {_said(classes[examples.teacher_predicted[index]], name)}")
            alike, chance = examples.alike[index], examples.chance[index]
            said.append(f"maps alike {alike:.2f} (another image's {chance:.2f})".replace("-", "−"))
        made.append(
            f'<figure><div class="strip">{"".join(strip)}</div><figcaption><b>{escape(name)}</b>'
            f'{mark if apart else ""}<span class="said">{escape("; ".join(said))}</span></figcaption></figure>'
        )
    return f'<div class="gallery">{"".join(made)}</div>'


def _said(predicted: str, label: str) -> str:
    return f"{predicted} ✓" if predicted == label else f"{predicted} ✗"


def _shown(title: str, pixels: np.ndarray, text: str) -> str:
    height, width = pixels.shape[:2]
    source = f'src="{picture(pixels)}" alt="{escape(text)}" width="{width}" height="{height}"'
    return f"<div><img {source}>{escape(title)}</div>"

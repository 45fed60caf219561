"""Images and maps as pictures inside the page, and the gallery of examples."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfigkd.measure.gallery import Gallery
from tfigkd.report.page import escape
from tfigkd.training.panels import heat

LARGEST = 96
"""Pixels a side of a picture in the page; larger images are reduced to that."""


def picture(pixels: np.ndarray) -> str:
    """Pixels uint8 [H,W,3] as a PNG in a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gallery(examples: Gallery, classes: Sequence[str], overlay_note: str) -> str:
    """The examples as HTML: each its pictures in a row, what both models say, and how alike their maps are.

    Args:
        examples: From stage `evaluate`.
        classes: Names by label.
        overlay_note: What an overlay is in this run, for its text alternative.
    """
    known = len(examples.teacher_maps) > 0
    own, teacher = heat(examples.maps), heat(examples.teacher_maps) if known else None
    laid = len(examples.overlays) > 0
    mark, made = '<em class="mark">disagree</em>', []
    for index, label in enumerate(examples.labels):
        name = classes[label]
        strip = [_shown("image", examples.images[index], f"Image {examples.ids[index]}, a {name}")]
        if teacher is not None:
            strip.append(_shown("teacher's map", teacher[index], f"Teacher's map for {name}"))
        if laid and examples.overlaid[index]:
            strip.append(_shown("overlay", examples.overlays[index], overlay_note))
        elif laid:
            strip.append(_shown("never overlaid", examples.overlays[index], "The image: its map is over the tolerance"))
        strip.append(_shown("student's map", own[index], f"Student's map for {name}"))
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

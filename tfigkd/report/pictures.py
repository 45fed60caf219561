"""Images and maps as pictures inside the page: the gallery of examples as plain values."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tfigkd.measure.gallery import Gallery
from tfigkd.training.panels import heat, png

LARGEST = 96
"""Pixels a side of a picture in the page; larger images are reduced to that."""


def picture(pixels: np.ndarray) -> str:
    """Return pixels uint8 [H,W,3] as a PNG in a data URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def examples(gallery: Gallery, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the examples of a gallery, each with its class names, its pictures and the similarity of its maps.

    Args:
        gallery: From stage `evaluate`.
        classes: Names by label.
    """
    known, overlays = len(gallery.teacher_maps) > 0, len(gallery.overlays) > 0
    own, teacher = heat(gallery.maps), heat(gallery.teacher_maps) if known else None
    made = []
    for index, label in enumerate(gallery.labels):
        one = {
            "id": gallery.ids[index],
            "label": classes[label],
            "student": classes[gallery.predicted[index]],
            "image": picture(gallery.images[index]),
            "map": picture(own[index]),
            "size": gallery.images[index].shape[:2],
            "teacher": None,
            "overlay": None,
        }
        if teacher is not None:
            one |= {"teacher": classes[gallery.teacher_predicted[index]], "teacher_map": picture(teacher[index])}
            one |= {"similarity": gallery.alike[index], "chance": gallery.chance[index]}
        if overlays:
            one |= {"overlay": picture(gallery.overlays[index]), "overlaid": gallery.overlaid[index]}
        made.append(one)
    return made

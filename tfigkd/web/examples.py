"""Example pictures of a run for the page, each with the Integrated Gradients maps that the run has stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfigkd.measure.gallery import FILE, Gallery
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest, verify_files
from tfigkd.training.panels import png

FOLDER = "examples"


def read_examples(run: Path) -> tuple[Gallery, list[str]]:
    """Return the example pictures of a finished run with their maps, and the names of its classes.

    Args:
        run: Folder of a run whose stage `evaluate` is done.

    Raises:
        UserError: the folder is no such run, has no examples, or its files are damaged.
    """
    folder = run / "evaluate"
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{run} has no stage evaluate; give --examples the folder of a finished run")
    if FILE not in manifest["files"]:
        raise UserError(f"{run} has no example pictures; run its stage evaluate with --evaluation.gallery-examples 12")
    verify_files(folder, manifest)
    return Gallery.load(folder / FILE), manifest["class_names"]


def list_examples(gallery: Gallery, classes: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return what the page has to know of each example, and the pictures as files.

    Args:
        gallery: K examples.
        classes: Names by label.

    Returns:
        For each example its label and the files of its picture and maps; file names to PNG files. A map is a gray
        picture of the image's size, white where the map has its maximum.
    """
    maps = {"teacher": gallery.teacher_maps, "student": gallery.maps}
    abouts, files = [], {}
    for index, label in enumerate(gallery.labels):
        about: dict[str, Any] = {"label": classes[label], "picture": f"{FOLDER}/{index}.png", "maps": []}
        files[about["picture"]] = png(Image.fromarray(gallery.images[index]))
        for role, known in maps.items():
            if len(known):
                about["maps"].append({"of": role, "file": f"{FOLDER}/{index}.{role}.png"})
                files[about["maps"][-1]["file"]] = png(Image.fromarray(_gray(known[index])))
        abouts.append(about)
    return abouts, files


def _gray(values: np.ndarray) -> np.ndarray:
    """Return a map [H,W] that is not negative as uint8, scaled to its own maximum."""
    return np.round(255 * (values / max(float(values.max()), 1e-12))).astype(np.uint8)

"""Pictures as arrays: decoding, resizing, and errors for damaged or too large pictures.

All encoded pictures, also those of tfds, are decoded by Pillow: JPEG decoders differ by a few gray levels (TensorFlow
and Pillow differ by up to 5 in every one of 11,000 pictures), so another decoder would give a picture another id.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.runtime.errors import UserError

MAX_BYTES = 8 * 2**30
PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded. Pillow also reads others, such as EPS, for which it starts Ghostscript."""


def decode(encoded: bytes | Path, name: str, image_size: int | None = None) -> np.ndarray:
    """Decode one picture to uint8 RGB [H,W,3], without transparency.

    Pixels are used as they are stored: the first frame of an animation, and no rotation by EXIF data, as in tfds, so
    that a picture has the same id from every source.

    Args:
        encoded: The bytes of the file, or its path.
        name: Name of the picture in messages.
        image_size: Height and width to stretch to with antialiased bilinear filtering, or None.

    Raises:
        UserError: The picture is damaged, has more than 8 bits per channel or too many pixels.
    """
    from PIL import Image

    with open_picture(encoded, name) as file:
        deep = [str(tile[3]) for tile in getattr(file, "tile", ()) if ";16" in str(tile[3])]
        if file.mode[0] in "IF" or deep:
            mode = file.mode if file.mode[0] in "IF" else deep[0]
            raise UserError(f"picture {name} has mode {mode}; expected 8 bits per channel, so convert it")
        # Pillow prints a warning for palettes with transparency unless they are converted to RGBA first.
        opaque = file.convert("RGBA") if "transparency" in file.info else file
        picture = opaque.convert("RGB")
        if image_size is not None and picture.size != (image_size, image_size):
            picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(picture)


@contextmanager
def open_picture(encoded: bytes | Path, name: str) -> Iterator[Any]:
    """Open a picture in one of `FORMATS` and yield it; its pixels are read only in the block.

    Raises:
        UserError: The file is not such a picture, is damaged, or has too many pixels.
    """
    from PIL import Image

    with (
        reading(f"picture {name}", "replace or remove it"),
        Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as file,
    ):
        if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
            raise UserError(
                f"picture {name} is {file.width}x{file.height}, more than the {Image.MAX_IMAGE_PIXELS} "
                "pixels allowed per picture; remove or shrink it"
            )
        yield file


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Suppress Pillow's warning about huge pictures, for which `open_picture` raises an error.

    Warning filters are not thread-safe, so this context must enclose all threads.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_all(encoded: Sequence[bytes] | Sequence[Path], names: Sequence[str], image_size: int | None) -> np.ndarray:
    """Decode pictures to uint8 RGB [N,H,W,3]; they must have one size or are resized to `image_size`.

    Raises:
        UserError: As for `decode`; or sizes differ and image_size is None; or the pictures need too much memory.
    """
    if not encoded:
        return np.empty((0, image_size or 1, image_size or 1, 3), np.uint8)
    with bombs_refused():
        first = decode(encoded[0], names[0], image_size)
        check_memory(names[0], (len(encoded), *first.shape))
        images = np.empty((len(encoded), *first.shape), np.uint8)

        def fill(start: int) -> None:
            for index in range(start, min(start + 256, len(encoded))):
                picture = decode(encoded[index], names[index], image_size)
                if picture.shape != first.shape:
                    raise UserError(
                        f"pictures differ in size: {names[0]} is {first.shape[1]}x{first.shape[0]}, "
                        f"{names[index]} is {picture.shape[1]}x{picture.shape[0]}; set data.image_size"
                    )
                images[index] = picture

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(fill, range(0, len(encoded), 256)):
                pass
    return images


def check_memory(what: str, shape: tuple[int, ...]) -> None:
    """Raise a UserError for uint8 arrays above `MAX_BYTES`, before they are allocated."""
    # Python integers do not overflow, so a forged header cannot pass the check.
    size = 1
    for length in shape:
        size *= int(length)
    if size > MAX_BYTES:
        raise UserError(
            f"{what}: {' x '.join(map(str, shape))} bytes are {size / 2**30:.1f} GiB of pictures; at most "
            f"{MAX_BYTES >> 30} GiB fit; set a smaller data.image_size or give fewer pictures"
        )


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of a reader on damaged input into a UserError that names the input and the remedy."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:  # damaged files raise many kinds of errors: zlib, struct, syntax, memory
        raise UserError(f"cannot read {what}: {one_line(error)}; {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return the type and the first line of the message of an exception."""
    # TensorFlow adds the names of graph nodes to its messages.
    message = re.sub(r"\{\{function_node .*?\}\}|\[Op:.*", "", str(error), flags=re.DOTALL).strip()
    return f"{type(error).__name__}: {message.splitlines()[0][:200]}" if message else type(error).__name__


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Convert gray pictures [N,H,W] or [N,H,W,1] to three equal channels [N,H,W,3]."""
    if images.ndim == 3:
        images = images[..., None]
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else np.ascontiguousarray(images)


def resize(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Stretch uint8 RGB pictures [N,H,W,3] to image_size as `decode` does; None returns them unchanged."""
    if image_size is None or images.shape[1:3] == (image_size, image_size) or not images.size:
        return images
    from PIL import Image

    target = (image_size, image_size)
    check_memory("the resized pictures", (len(images), *target, 3))
    resized = np.empty((len(images), *target, 3), np.uint8)
    for index, image in enumerate(images):
        resized[index] = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR))
    return resized

"""Pictures as arrays: decoding, resizing, ids, and errors for damaged or too large pictures.

All encoded pictures, also those of tfds, are decoded by Pillow: JPEG decoders differ by a few gray levels (TensorFlow
and Pillow differ by up to 5 in every one of 11,000 pictures), so another decoder would give a picture another id.
"""

import hashlib
import io
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.data_fields import BACKGROUND, Fit, Reading, rgb
from tfigkd.runtime.errors import UserError, plain, readable
from tfigkd.runtime.machine import cores, free_memory

RAW = frozenset({".cr2", ".nef", ".nrw", ".dng", ".arw", ".pef", ".srw"})
"""Endings of photographs as a camera's sensor gives them."""
PICTURE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".gif", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif"}
    | {".tiff", ".webp"}
)
"""Endings of files that have to be pictures; others are pictures if their first bytes say so."""
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
"""Folders that operating systems leave beside pictures; ignored like hidden ones."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded. Pillow also reads others, such as EPS, for which it starts Ghostscript."""
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
NAMED = 20
"""Largest number of unusable pictures that are named in a line each."""
BITS_PER_SAMPLE = 0x0102
"""The number of the TIFF tag that says how many bits each channel has."""
ORIENTATION = 0x0112
"""The number of the EXIF tag that says how a picture is turned; 1 is upright."""

TURNED = "turned upright by EXIF"
COMPOSITED = "composited on {background}, as they are transparent"
ANIMATED = "read as the first of several frames"
DIGEST_LENGTH = 16


def decode(encoded: bytes | Path, name: str, *, background: str = BACKGROUND, drop_alpha: bool = False) -> np.ndarray:
    """Decode one picture to uint8 RGB [H,W,3], as a viewer shows it.

    It is turned upright by its EXIF data, and transparent pixels are composited on a background, since their own colors
    are invisible and differ from program to program. Of an animation this is the first frame.

    Args:
        encoded: The bytes of the file, or its path.
        name: Name of the picture in messages.
        background: Color behind transparent pixels; see `tfigkd.config.data_fields.is_color`.
        drop_alpha: Read the colors of transparent pixels as if they were opaque.

    Raises:
        UserError: The picture is damaged, has more than 8 bits per channel or too many pixels.
    """
    return _decode(encoded, name, Reading(background=background), drop_alpha)[0]


def scaled(picture: Any, size: tuple[int, int], fit: Fit = "stretch") -> Any:
    """Return a picture in another size, by bilinear filtering.

    Args:
        picture: RGB, of Pillow.
        size: Width and height in pixels.
        fit: "stretch": with antialiasing; "crop": the same of the largest part of its middle that has the new aspect;
            "keras": stretched without antialiasing, as `keras.utils.image_dataset_from_directory` does.
    """
    from PIL import Image, ImageOps

    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    if fit == "keras":
        pixels = np.asarray(picture).astype(np.float32)
        for axis, count in ((0, size[1]), (1, size[0])):
            pixels = _interpolated(pixels, axis, count)
        return Image.fromarray((pixels + 0.5).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _interpolated(pixels: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Return pixels resized along one axis: at the center of each new pixel, between the two nearest old ones."""
    centers = (np.arange(count) + 0.5) * (pixels.shape[axis] / count) - 0.5
    low = np.floor(centers)
    share = np.expand_dims((centers - low).astype(np.float32), [1 - axis, 2])
    first, second = (
        pixels.take(np.clip(low + step, 0, pixels.shape[axis] - 1).astype(int), axis=axis) for step in (0, 1)
    )
    return first + (second - first) * share


def _decode(
    encoded: bytes | Path, name: str, wanted: Reading, drop_alpha: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Decode a picture; the list has what was done to it, such as `TURNED`."""
    from PIL import Image, ImageOps

    done: list[str] = []
    with open_picture(encoded, name) as file:
        if (mode := _deep_mode(file)) is not None:
            raise UserError(f"picture {name} has mode {mode}; expected 8 bits per channel, so convert it")
        if getattr(file, "is_animated", False) and file.format != "MPO":  # further pictures of one photograph
            done.append(ANIMATED)
        # Pillow turns a TIFF when it loads it. The EXIF data of a PNG may be behind its pixels, so it is loaded before
        # they are read: in `_orientation` an error of damaged pixels would be taken for one of the EXIF data.
        turned = file.format == "TIFF" and _orientation(file) != 1
        file.load()
        upright: Image.Image = file
        if _orientation(file) != 1:
            turned, upright = True, ImageOps.exif_transpose(file)
        if turned:
            done.append(TURNED)
        picture = upright
        if upright.has_transparency_data:
            # Pillow converts neither "La" to RGBA, nor palettes with transparency to RGB without a warning.
            rgba = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA")
            picture = rgba
            if not drop_alpha and np.asarray(rgba)[..., 3].min() < 255:
                picture = Image.alpha_composite(Image.new("RGBA", rgba.size, (*rgb(wanted.background), 255)), rgba)
                done.append(COMPOSITED.format(background=wanted.background))
        picture = picture.convert("RGB")
        side = wanted.image_size
        if side is not None and picture.size != (side, side):
            picture = scaled(picture, (side, side), wanted.fit)
        return np.asarray(picture), done


def _deep_mode(file: Any) -> str | None:
    """Return how a picture of more than 8 bits per channel is stored; None for any other."""
    if file.mode[0] in "IF":
        return str(file.mode)
    if file.format == "TIFF" and max(np.ravel(file.tag_v2.get(BITS_PER_SAMPLE, 8))) > 8:
        return f"{file.mode} of 16 bits or more"  # in separate planes, Pillow's own modes do not show it
    modes = [str(tile[3]) for tile in getattr(file, "tile", ())]
    return next((mode for mode in modes if ";16" in mode and "BGR;16" not in mode), None)  # that is 5, 6 and 5 bits


def _orientation(file: Any) -> int:
    """Return how a picture is turned, 1 to 8 as in EXIF; 1 is upright."""
    try:
        turned = file.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise many kinds of errors; a viewer shows such a picture as it is stored
        return 1
    return turned if isinstance(turned, int) and 2 <= turned <= 8 else 1


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden, or was left by an operating system beside pictures."""
    return path.name.startswith(".") or path.name in SYSTEM_FOLDERS


def is_picture(path: Path) -> bool:
    """Return whether a file has to be a picture by its ending, or is one by its first bytes.

    A raw photograph begins as a TIFF file does, and the picture in it is a small one for a preview.
    """
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    if path.suffix.lower() in RAW:
        return False
    if not path.is_file():  # must not be opened: reading from a pipe would wait forever
        return False
    with open(path, "rb") as file:
        start = file.read(18)
    bitmap = start[:2] == b"BM" and start[14:18] in {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)}
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or bitmap


@contextmanager
def open_picture(encoded: bytes | Path, name: str) -> Iterator[Any]:
    """Open a picture in one of `FORMATS` and yield it; its pixels are read only in the block.

    Raises:
        UserError: The file is not such a picture, is damaged, or has too many pixels.
    """
    from PIL import Image

    with (
        readable(f"picture {name}", "replace or remove it"),
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
    """Suppress Pillow's warnings about huge pictures, for which `open_picture` raises an error, and damaged EXIF data.

    Warning filters are not thread-safe, so this context must enclose all threads.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read|Metadata Warning", UserWarning)
        yield


def decode_all(
    encoded: Sequence[bytes] | Sequence[Path], names: Sequence[str], wanted: Reading
) -> tuple[np.ndarray, Counter[str]]:
    """Decode N pictures, by several threads.

    Args:
        encoded: The bytes of each file, or its path.
        names: Name of each picture in messages.
        wanted: Size, background and fit. Without a size the pictures must have one size.

    Returns:
        The pictures, uint8 RGB [N,H,W,3]; and what was done to how many of them, such as `TURNED`.

    Raises:
        UserError: As for `decode`; or sizes differ and none is wanted; or the pictures need too much memory. If several
            pictures are unusable, each is named in a line before.
    """
    done: Counter[str] = Counter()
    if not encoded:
        return np.empty((0, wanted.image_size or 1, wanted.image_size or 1, 3), np.uint8), done
    unusable: dict[int, UserError] = {}

    def tried(index: int) -> tuple[np.ndarray | None, list[str]]:
        found = attempt(encoded[index], names[index], wanted)
        if isinstance(found, UserError):
            unusable[index] = found
            return None, []
        return found

    with bombs_refused():
        good = (index for index in range(len(encoded)) if tried(index)[0] is not None)
        start = next(good, None)
        if start is None:
            raise refusal(unusable, len(encoded))
        first, _ = _decode(encoded[start], names[start], wanted)
        check_memory(names[start], (len(encoded), *first.shape))
        images = np.empty((len(encoded), *first.shape), np.uint8)

        def fill(begin: int) -> Counter[str]:
            counted: Counter[str] = Counter()
            for index in range(max(begin, start), min(begin + 256, len(encoded))):
                picture, what = tried(index)
                if picture is None:
                    continue
                check_size(first.shape, names[start], picture.shape, names[index])
                images[index] = picture
                counted.update(what)
            return counted

        with ThreadPoolExecutor(cores()) as pool:
            for counted in pool.map(fill, range(0, len(encoded), 256)):
                done += counted
    if unusable:
        raise refusal(unusable, len(encoded))
    return images, done


def attempt(encoded: bytes | Path | np.ndarray, name: str, wanted: Reading) -> tuple[np.ndarray, list[str]] | UserError:
    """Decode one picture, or return the error of one that cannot be used.

    Args:
        encoded: The bytes of the file, or its path; or pixels uint8 [H,W,3], which are only resized.
        name: Name of the picture in messages.
        wanted: Size, background and fit.

    Returns:
        The picture, uint8 RGB [H,W,3], and what was done to it; or the error.
    """
    if isinstance(encoded, np.ndarray):
        return resize(encoded[None], wanted.image_size, wanted.fit)[0], []
    try:
        return _decode(encoded, name, wanted)
    except UserError as error:
        return error


def check_size(expected: Sequence[int], first: str, shape: Sequence[int], name: str) -> None:
    """Refuse a picture whose shape is not that of the first one.

    Args:
        expected: (H, W, C) of the first picture.
        first: Its name.
        shape: (H, W, C) of the picture.
        name: Its name.

    Raises:
        UserError: The shapes differ.
    """
    if tuple(shape) != tuple(expected):
        raise UserError(
            f"pictures differ in size: {first} is {expected[1]}x{expected[0]}, {name} is {shape[1]}x{shape[0]}; give "
            "--image-size (data.image_size)"
        )


def refusal(unusable: dict[int, UserError], count: int) -> UserError:
    """Print a line for each unusable picture, and return the error that ends the command."""
    from tfigkd.runtime import console  # not above: `predict` imports this module and needs no rich

    if len(unusable) == 1:
        return next(iter(unusable.values()))
    for index in sorted(unusable)[:NAMED]:
        console.say(plain(str(unusable[index])), last=True)
    which = "they are" if len(unusable) <= NAMED else f"the first {NAMED} are"
    return UserError(
        f"{len(unusable):,} of {count:,} pictures cannot be used; {which} named in the lines before; replace or "
        "remove them"
    )


def check_memory(what: str, shape: Sequence[int]) -> None:
    """Refuse a uint8 array that needs more than the free memory, before it is allocated.

    Args:
        what: What the array holds, for the message.
        shape: Of the array.

    Raises:
        UserError: It needs more.
    """
    # Python integers do not overflow, so a forged header cannot pass the check.
    size, limit = math.prod(map(int, shape)), free_memory()
    if size > limit:
        raise UserError(
            f"{what}: {' x '.join(map(str, shape))} bytes are {size / 2**30:.1f} GiB of pictures, {limit / 2**30:.1f} "
            "GiB of memory are free; give a smaller --image-size (data.image_size), or --resident disk (data.resident)"
        )


def digest(image: np.ndarray) -> str:
    """Return the id of a picture, uint8 [H,W,3]: 16 hex digits of the SHA-256 of its pixels in C order."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:DIGEST_LENGTH]


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Return pictures [N,H,W,3] unchanged, and gray ones, [N,H,W] or [N,H,W,1], with three equal channels."""
    if images.ndim == 3:
        images = images[..., None]
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else np.ascontiguousarray(images)


def resize(images: np.ndarray, image_size: int | None, fit: Fit = "stretch") -> np.ndarray:
    """Bring pictures to one size, as `decode` does.

    Args:
        images: uint8 RGB [N,H,W,3].
        image_size: Height and width in pixels; None leaves them as they are.
        fit: As for `scaled`.

    Raises:
        UserError: They would need more than the free memory.
    """
    if image_size is None or images.shape[1:3] == (image_size, image_size) or not images.size:
        return images
    from PIL import Image

    target = (image_size, image_size)
    check_memory("the resized pictures", (len(images), *target, 3))
    resized = np.empty((len(images), *target, 3), np.uint8)
    for index, image in enumerate(images):
        resized[index] = np.asarray(scaled(Image.fromarray(image), target, fit))
    return resized

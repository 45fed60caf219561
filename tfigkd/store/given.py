"""The pictures that `OverlayStore` is given, a pair of arrays or a `tf.data.Dataset`: checked, and loaded or joined."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tfigkd.data import Examples, check_arrays, hints, identify
from tfigkd.runtime.text import shortened

PEEKED = 16  # pictures of a data set whose values tell in which range its pixels are


def collect(pictures: Any) -> Examples:
    """Load pictures into memory, with their ids and sorted by them.

    Args:
        pictures: A pair of arrays, uint8 [N,H,W,3] and integers [N] or [N,1], or a finite `tf.data.Dataset` of
            (uint8 [H,W,3], integer label).

    Returns:
        The examples; their `source_ids` are the positions, from 0, in `pictures`.

    Raises:
        ValueError: The pictures are not as above, or of several sizes.
    """
    if _is_pair(pictures):
        return identify(*_checked(pictures))
    _check_pairs(pictures)
    images, labels = [], []
    for image, label in pictures.as_numpy_iterator():
        if np.ndim(image) != 3 or np.size(label) != 1:
            raise ValueError(
                f"expected single pictures, uint8 [H,W,3], with a label each, got shapes {np.shape(image)} and "
                f"{np.shape(label)}; pass the data set before batch()"
            )
        _refuse_gray(image.shape)
        images.append(image)
        labels.append(np.reshape(label, ()))
    if not images:
        raise ValueError("the data set has no pictures")
    _check_sizes(images)
    return identify(np.stack(images), np.array(labels))


def single_pictures(pictures: Any) -> Any:
    """Return a `tf.data.Dataset` of (uint8 [H,W,3], integer label), the label a scalar or [1]; it is not loaded.

    Args:
        pictures: As for `collect`; the data set may be infinite.

    Raises:
        ValueError: The pictures are batched, or they or their labels are not as above.
    """
    import tensorflow as tf

    if _is_pair(pictures):
        return tf.data.Dataset.from_tensor_slices(_checked(pictures))
    _check_pairs(pictures)
    image, label = pictures.element_spec
    shape, labels = (tf.TensorShape(getattr(part, "shape", None)) for part in (image, label))
    if shape.rank not in (3, None):
        raise ValueError(f"join takes single pictures [H,W,3], got pixels {tuple(shape)}; call batch() after it")
    if labels.rank not in (0, None) and tuple(labels) != (1,):
        raise ValueError(
            f"join takes a label as one integer, got shape {tuple(labels)}; of one-hot labels take tf.argmax(label)"
        )
    if getattr(image, "dtype", tf.uint8) != tf.uint8:
        some = np.concatenate([np.ravel(one) for one, _ in pictures.take(PEEKED).as_numpy_iterator()] or [np.zeros(0)])
        hint = hints.of_pixels(some.dtype, some)
        raise ValueError(f"join takes pictures uint8 [H,W,3], as build does, got {image.dtype.name}{hint}")
    return pictures


def _is_pair(pictures: Any) -> bool:
    return isinstance(pictures, tuple | list) and len(pictures) == 2


def _checked(pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair of arrays as uint8 [N,H,W,3] and integers [N]."""
    if isinstance(pair[0], list | tuple) or getattr(pair[0], "dtype", None) == np.object_:
        _check_sizes(pair[0])
    images, labels = map(np.asarray, pair)
    if not len(images):
        raise ValueError("the arrays hold no pictures")
    _refuse_gray(images.shape[1:])
    labels = labels.reshape(-1) if labels.shape == (len(images), 1) else labels
    check_arrays(images, labels)
    return images, labels


def _check_pairs(pictures: Any) -> None:
    """Check that an object is a `tf.data.Dataset` whose elements are pairs of an image and its label."""
    if not hasattr(pictures, "as_numpy_iterator"):
        raise ValueError(
            f"expected a pair of arrays (images, labels) or a tf.data.Dataset, got {type(pictures).__name__}"
        )
    spec = pictures.element_spec
    if isinstance(spec, tuple) and len(spec) == 2 and not any(isinstance(part, dict | tuple) for part in spec):
        return
    got, example = "a picture", "lambda image, label, *_: (image, label)"
    if isinstance(spec, tuple):
        got = f"{len(spec)} parts"
    elif isinstance(spec, dict):
        got, example = "a dictionary", 'lambda x: (x["image"], x["label"])'
    raise ValueError(f"expected pairs (picture, label), got {got}; pictures.map({example}) makes pairs")


def _check_sizes(images: Iterable) -> None:
    sizes = sorted({np.shape(image) for image in images})
    if len(sizes) > 1:
        shown = shortened([str(size) for size in sizes], 4)
        raise ValueError(
            f"the pictures are of {len(sizes)} sizes, {shown}; resize them to one, as with tf.image.resize, round and "
            "convert to uint8"
        )


def _refuse_gray(shape: tuple[int, ...]) -> None:
    if len(shape) == 3 and shape[-1] == 1:
        raise ValueError(
            f"expected pictures uint8 [H,W,3], got gray ones {shape}; make them RGB with tf.image.grayscale_to_rgb, "
            "and a teacher of gray images one of RGB images with tfigkd.models.with_rgb"
        )

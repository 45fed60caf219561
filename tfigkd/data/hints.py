"""Hints for error messages: how to convert arrays of another kind to pixels or labels."""

import numpy as np


def of_pixels(dtype: np.dtype, values: np.ndarray) -> str:
    """Return how an array becomes uint8 pixels 0 to 255.

    Args:
        dtype: Of the array, not uint8.
        values: Some of its values, of any shape.

    Returns:
        The end of a sentence, with its separator; nothing where it is not known.
    """
    if dtype.kind == "b":
        return "; convert and multiply by 255"
    if dtype.kind in "iu" and values.size:
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high <= 255:
            return f"; its values go to {high} already: convert with astype(numpy.uint8)"
        return f"; its values are from {low} to {high}: scale them to 0 to 255, round and convert"
    if dtype.kind != "f" or not values.size:
        return ""
    values = values[np.isfinite(values)]
    if not values.size:
        return "; none of its values is a number"
    if values.min() >= 0 and values.max() <= 1:
        return "; multiply by 255, round and convert"
    if values.min() >= 0 and values.max() <= 255:
        return f"; its values go to {values.max():g} already: round and convert, without a factor"
    return f"; its values are from {values.min():g} to {values.max():g}: undo the normalization, round and convert"


def of_labels(dtype: np.dtype, shape: tuple[int, ...], count: int) -> str:
    """Return how an array becomes one integer a picture.

    Args:
        dtype: Of the array.
        shape: Of the array.
        count: Number of pictures.

    Returns:
        The end of a sentence, with its separator; nothing where it is not known.
    """
    if len(shape) == 2 and shape[0] == count and shape[1] > 1:
        return "; of one-hot labels take argmax(axis=1)"
    if shape not in ((count,), (count, 1)):
        return ""
    if dtype.kind in "bf":
        return "; convert with astype(int)"
    if dtype.kind in "OSU":
        return "; class_names, labels = numpy.unique(labels, return_inverse=True) numbers texts; save both"
    return ""

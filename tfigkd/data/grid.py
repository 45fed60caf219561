"""Maps on a coarser grid than the pixels of their images: means of cells, and cells spread over their pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfigkd.runtime.errors import UserError


def check_grid(grid: int | None, side: Sequence[int]) -> None:
    """Refuse a grid, of `grid` rows and columns, that does not divide images of a height and width into equal cells.

    Raises:
        UserError: a cell would have a fraction of a pixel.
    """
    if grid is not None and (side[0] % grid or side[1] % grid):
        raise UserError(f"attribution.grid must divide the size of the images ({side[1]}x{side[0]}), got {grid}")


def cell_means(maps: np.ndarray, grid: int | None) -> np.ndarray:
    """Return the mean of each cell of maps [N,H,W], [N,grid,grid]; without a grid the maps as they are.

    Raises:
        UserError: as for `check_grid`.
    """
    if grid is None:
        return maps
    count, height, width = maps.shape
    check_grid(grid, (height, width))
    return maps.reshape(count, grid, height // grid, grid, width // grid).mean(axis=(2, 4))


def spread(maps: Any, side: Sequence[int]) -> Any:
    """Return maps of a coarser grid, [B,h,w], with each cell's value at all of its pixels; NumPy's arrays or JAX's.

    The mean of a cell stays what it was, so maps that are compared on this grid, or on a coarser one that divides it,
    are those of the pixels. Interpolation would keep neither.

    Args:
        maps: [B,h,w].
        side: Height and width of the images, multiples of h and w.

    Returns:
        An array of the dtype of `maps`, [B,H,W]; the same one where the sizes are equal.

    Raises:
        ValueError: `side` is no multiple of the grid.
    """
    _, rows, columns = maps.shape
    if side[0] % rows or side[1] % columns:
        raise ValueError(f"images of {tuple(side)} are no multiple of maps of {tuple(maps.shape[1:])}")
    if (rows, columns) == (side[0], side[1]):
        return maps
    return maps.repeat(side[0] // rows, axis=1).repeat(side[1] // columns, axis=2)

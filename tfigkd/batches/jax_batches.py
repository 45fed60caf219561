"""Batches made on JAX's device: pixels and maps are copied to it once; a step sends only indices and draws."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tfigkd.batches.augment import augmented, overlay
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data.grid import spread


def on_device(
    images: np.ndarray, maps: np.ndarray | None, augment: AugmentConfig, dim_only: bool, cut: bool = False
) -> Callable[..., tuple[Any, Any, Any]]:
    """Return `augmented` images of a data set that lies on the device.

    The draws come from the host, so a batch is that of the other backends. One compiled function crops, flips and
    overlays; it runs ahead of the training step, as all work on the device does.

    Args:
        images: uint8 [N,H,W,3].
        maps: uint8 [N,H,W], or of a coarser grid, or None.
        augment: What rows and columns are drawn with.
        dim_only: Dim in place of an overlay (a control).
        cut: As for `augmented`.

    Returns:
        A function of indices [B], rows [B,H], columns [B,W] and exponents [B] or None, to JAX arrays.
    """
    import jax
    import jax.numpy as jnp

    def blend(images: Any, maps: Any, exponents: Any) -> Any:
        # every image is overlaid and some are kept: a compiled function has no batches of changing size
        laid = exponents > 0
        changed = images * 0.5 if dim_only else overlay(images, maps, jnp.where(laid, exponents, 1))
        return jnp.where(laid[:, None, None, None], changed, images)

    coarse = None if maps is None or maps.shape[1:] == images.shape[1:3] else jax.device_put(maps)

    @jax.jit
    def made(resident: Any, coarse: Any, chosen: Any, rows: Any, columns: Any, exponents: Any) -> tuple[Any, Any, Any]:
        pixels = resident[chosen]
        if coarse is not None:  # maps of a coarser grid lie beside the pixels, and are spread over those of a batch
            pixels = jnp.concatenate([pixels, spread(coarse[chosen], images.shape[1:3])[..., None]], axis=-1)
        return augmented(pixels, rows, columns, exponents, config=augment, blend=blend, cut=cut)

    pixels = images if maps is None or coarse is not None else np.concatenate([images, maps[..., None]], axis=-1)
    return functools.partial(made, jax.device_put(pixels), coarse)

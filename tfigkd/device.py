"""Batches made on JAX's device: pixels and maps lie there once, and a step is sent indices and draws alone."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tfigkd.augment import gather, overlay
from tfigkd.data import to_model_input


def on_device(pixels: np.ndarray, padding: int, dim_only: bool) -> Callable[..., tuple[Any, Any, Any]]:
    """Moved images, the same with overlays, and their maps, from indices and draws.

    The draws come from the host, so a batch is that of the other backends. One compiled function crops, flips and
    overlays; it runs ahead of the training step, as all work on the device does.

    Args:
        pixels: uint8 [N,H,W,3], or [N,H,W,4] with the maps.
        padding: Pixels that the geometry reaches beyond the images.
        dim_only: Dim in place of an overlay (a control).

    Returns:
        A function of indices [B], rows [B,H], columns [B,W] and exponents [B] or None, to JAX arrays: images
        float32 [B,H,W,3] in [0,1] without and with overlays, and maps float32 [B,H,W] or None.
    """
    import jax
    import jax.numpy as jnp

    @jax.jit
    def made(resident: Any, chosen: Any, rows: Any, columns: Any, exponents: Any) -> tuple[Any, Any, Any]:
        moved = gather(resident[chosen], rows, columns, padding)
        clean = to_model_input(moved[..., :3])
        maps = moved[..., 3].astype(jnp.float32) if moved.shape[-1] == 4 else None
        if exponents is None:
            return clean, clean, maps
        laid = exponents > 0
        changed = clean * 0.5 if dim_only else overlay(clean, maps, jnp.where(laid, exponents, 1))
        return clean, jnp.where(laid[:, None, None, None], changed, clean), maps

    return functools.partial(made, jax.device_put(pixels))

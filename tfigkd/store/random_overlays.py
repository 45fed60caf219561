"""Overlays on random images of batches that any thread may take first, for `OverlayStore.overlay`."""

from collections import Counter
from threading import Lock

import numpy as np

from tfigkd.batches.augment import overlay
from tfigkd.data import to_model_input
from tfigkd.data.pictures import digest


class RandomOverlays:
    """Overlay its map on each image of a batch with a probability; log-uniform exponents.

    The draws follow from the seed, the pixels of the batch and how often this batch came before. So they are the same
    whichever thread takes which batch, and a batch that comes again in the next epoch draws anew.

    Args:
        probability: Share of images that are overlaid.
        min_exponent: Smallest exponent.
        max_exponent: Largest exponent.
        seed: Seed of the draws, not negative.
    """

    def __init__(self, probability: float, min_exponent: float, max_exponent: float, seed: int):
        self._probability = probability
        self._range = np.log(min_exponent), np.log(max_exponent)
        self._seed = np.random.SeedSequence(seed).generate_state(4)
        self._seen: Counter[int] = Counter()
        self._lock = Lock()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return images float32 [B,H,W,3] in [0,1] of pixels [B,H,W,4] from 0 to 255, the last channel the map.

        Raises:
            ValueError: The images are in [0,1] already: fractions, and none above 1.
        """
        colors = pixels[..., :3]
        if colors.dtype != np.uint8 and colors.size and colors.max() <= 1 and (colors != np.round(colors)).any():
            raise ValueError(
                f"overlay takes pixels from 0 to 255, got fractions up to {float(colors.max()):.2f}; leave out the "
                "division by 255, or multiply images and maps by 255: overlay divides them itself"
            )
        generator, images = self._generator(pixels), to_model_input(colors)
        chosen = generator.random(len(pixels)) < self._probability
        exponents = np.exp(generator.uniform(*self._range, len(pixels)))
        images[chosen] = overlay(images[chosen], pixels[chosen, ..., 3], exponents[chosen])
        return images

    def _generator(self, pixels: np.ndarray) -> np.random.Generator:
        name = int(digest(np.ascontiguousarray(pixels).view(np.uint8)), 16)
        with self._lock:
            earlier = self._seen[name]
            self._seen[name] += 1
        return np.random.default_rng([*self._seed, name, earlier])

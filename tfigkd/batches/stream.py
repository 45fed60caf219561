"""The stream of training batches: examples, and what the teacher knows of them, augmented together."""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import keras
import numpy as np

from tfigkd.batches.augment import (
    Purpose,
    augmented,
    cut_square,
    example_keys,
    geometry,
    move_coarse,
    overlay_exponents,
    overlay_some,
    uniform,
)
from tfigkd.batches.jax_batches import on_device
from tfigkd.batches.mixing import mix, mixing_weights
from tfigkd.batches.randaugment import rand_augment_of
from tfigkd.batches.threads import batch_threads, done_in_order
from tfigkd.config.fields import ControlConfig, OverlayConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.data.disk import Pictures
from tfigkd.data.grid import spread
from tfigkd.data.knowledge import TeacherTargets
from tfigkd.data.stored import StoredArrays, masked

Batch = tuple[Any, ...]
"""Images, targets by name and, with weights of classes, a weight for each image."""
BatchPart = tuple[int, int]
"""Which of how many equal parts of a batch, counted from 0."""


SMALLEST_BATCH = 8
"""A last batch of fewer examples ruins a network with batch normalization: its moving averages take a tenth or more of
their value from the statistics of these few, after a whole step of the optimizer in their direction."""


def evens_out(examples: int, batch_size: int) -> bool:
    """Return whether batches of a size would leave a last one that is too small to train on.

    It is part of a training's fingerprint, because earlier versions trained on that small batch.

    Args:
        examples: Examples of an epoch.
        batch_size: Examples of a batch.
    """
    return examples > batch_size and 0 < examples % batch_size < min(SMALLEST_BATCH, batch_size / 2)


def batch_sizes(examples: int, batch_size: int, devices: int = 1) -> list[int]:
    """Return the examples of each batch of an epoch.

    All batches are full and the last one has the rest. Where the rest is too small for batch normalization, the same
    number of batches have nearly equal sizes. An epoch has two sizes at most, as JAX compiles a step for each.

    Args:
        examples: Examples of an epoch.
        batch_size: The most examples of a batch; a multiple of `devices`.
        devices: How many devices share a batch evenly; what is left of an epoch is in no batch.
    """
    of_each, most = examples // devices, batch_size // devices
    if evens_out(of_each * devices, batch_size):
        steps = -(-of_each // most)
        small, larger = divmod(of_each, steps)
        parts = [small + 1] * larger + [small] * (steps - larger)
    else:
        parts = [min(most, of_each - start) for start in range(0, of_each, most)]
    return [devices * part for part in parts]


def part_of(count: int, part: BatchPart) -> slice:
    """Return which of `count` examples are a part of them."""
    number, parts = part
    return slice(count * number // parts, count * (number + 1) // parts)


def _on_host(
    images: Pictures,
    maps: np.ndarray | StoredArrays | None,
    augment: AugmentConfig,
    dim_only: bool,
    cut: bool = False,
) -> Callable[..., tuple[np.ndarray, np.ndarray, Any]]:
    """Return `augmented` images of a data set, from indices and draws; `jax_batches.py` does it on JAX's device."""

    def blend(images: np.ndarray, maps: np.ndarray, exponents: np.ndarray) -> np.ndarray:
        return overlay_some(images, None if dim_only else maps, exponents)

    def make(
        chosen: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        exponents: np.ndarray | None,
        change: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple:
        pixels = images[chosen]
        if maps is not None:
            shown = spread(maps[chosen], pixels.shape[1:3])
            pixels = np.concatenate([pixels, shown[..., None]], axis=-1)
        return augmented(pixels, rows, columns, exponents, config=augment, blend=blend, cut=cut, change=change)

    return make


@dataclass(eq=False)
class TrainingBatches:
    """Endless shuffled, augmented batches of examples, with what the teacher knows of them.

    Image and map are one array of four channels until the crop and flip are done, so both get the same geometry.

    Attributes:
        examples: What to train on.
        recipe: Batch size (an epoch has the batches of `batch_sizes`), mixup, cutmix, cutout, RandAugment and threads.
            Mixed images, with labels `"label_probabilities"` float32 [B,C], have the `"label"` of the larger share.
        augment: Crop and flip.
        seed: The run's seed; draws depend on it, the epoch and the example's id only.
        targets: What is stored of the teacher. It comes as `"teacher_logits"` (of the views, or with plain images of
            the overlay store), `"teacher_features"`, by their tap, and `"teacher_posteriors"`.
        overlay: Overlays the maps of the overlay store, where there is one and the probability is above 0.
        view: With `kind = "views"` each image is moved as one of K views, whether or not their logits are stored: a
            student without a teacher sees the crops of one with a teacher.
        control: `maps = "none"` dims the images that would carry an overlay and adds no map. `logits = "shuffled"`
            makes the inputs of a live teacher those of the example before in the batch, that of the first one the last;
            a batch of one is left.
        wanted: What else the losses compare: `"teacher_map"`, zero where it is not usable; `"teacher_inputs"`, the
            image as the student sees it but without the overlay, where that is another one; `"example"`, the index of
            each example, int32 [B].
        num_classes: C of `"label_probabilities"`; not given: one more than the largest label.
        class_weights: Weight of each class in the loss, [C]; mixed images have the mixed weight.
        devices: How many devices share a batch, see `batch_sizes`.

    Raises:
        ValueError: What is stored is of views, and the images are not.
    """

    examples: Examples
    recipe: TrainingConfig
    augment: AugmentConfig
    _: KW_ONLY
    seed: int
    targets: TeacherTargets = field(default_factory=TeacherTargets)
    overlay: OverlayConfig = field(default_factory=OverlayConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    wanted: Collection[str] = ()
    num_classes: int | None = None
    class_weights: np.ndarray | None = None
    devices: int = 1

    def __post_init__(self) -> None:
        knowledge, attention, pixels = self.targets.knowledge, self.targets.attention, self.examples.images
        of_views = self.targets.views is not None or (attention is not None and self.view.attention != "moved")
        if of_views and self.view.kind != "views":
            raise ValueError(f"stored views need images that are moved alike: view.kind = views, got {self.view.kind}")
        self._keys, self._labels = example_keys(self.examples.ids), self.examples.labels.astype(np.int32)
        self._side = pixels.shape[1], pixels.shape[2]
        self._overlaid = knowledge if self.overlay.probability > 0 else None
        self._mixes = self.recipe.mixup > 0 or self.recipe.cutmix > 0
        self._swaps = self.control.logits == "shuffled" and self.view.kind == "live"
        self._change = rand_augment_of(self.recipe)
        maps: np.ndarray | StoredArrays | None = None
        if knowledge is not None and (self._overlaid or "teacher_map" in self.wanted):
            # a map over the completeness gate explains nothing: it is never overlaid, and never matched
            maps = masked(knowledge.maps, knowledge.usable)
        options = self.augment, self.control.maps == "none", self.recipe.cutout > 0
        on_jax = keras.backend.backend() == "jax" and self._change is None
        if on_jax and isinstance(pixels, np.ndarray) and not isinstance(maps, StoredArrays):
            self._make, self.threads = on_device(pixels, maps, *options), 1
        else:
            self._make = _on_host(pixels, maps, *options)
            self.threads = batch_threads(self.recipe)

    def __call__(self, epoch: int, part: BatchPart = (0, 1), skip: int = 0) -> Iterator[Batch]:
        """Return the batches from an epoch on.

        Args:
            epoch: The first one, from 0.
            part: Yield only this part of each batch; other examples are read only if mixing needs them.
            skip: Batches that are left out at the beginning.

        Returns:
            An iterator of (images float32 [B,H,W,3], {"label": int32 [B], ...}), and with class weights the weight of
            each image, float32 [B], as a third. On JAX, images, maps and teacher inputs are made on its device where
            the pixels are in memory and no RandAugment changes them.
        """
        return done_in_order(self._tasks(epoch, part, skip), self.threads)

    def _tasks(self, epoch: int, part: BatchPart, skip: int) -> Iterator[Callable[[], Batch]]:
        *bounds, used = np.cumsum(batch_sizes(len(self.examples), self.recipe.batch_size, self.devices))
        while True:
            order = np.argsort(uniform(self._keys, seed=self.seed, epoch=epoch, purpose=Purpose.ORDER), kind="stable")
            for chosen in np.split(order[:used], bounds)[skip:]:
                yield functools.partial(self._part, chosen, epoch, part)
            epoch, skip = epoch + 1, 0

    def _part(self, chosen: np.ndarray, epoch: int, part: BatchPart) -> Batch:
        mine = part_of(len(chosen), part)
        # an example takes something of another one, which may be in another part
        related = self._mixes or self._swaps or self._change
        if related and part[1] > 1:
            return keras.tree.map_structure(lambda one: one[mine], self._batch(chosen, epoch))
        return self._batch(chosen[mine], epoch)

    def _batch(self, chosen: np.ndarray, epoch: int) -> Batch:
        """Return the batch of the examples with these indices [B]."""
        labels, moves = self._labels[chosen], self._moves(chosen, epoch)
        clean, images, maps = self._images(chosen, epoch, moves)
        targets: dict[str, Any] = {"label": labels, **self._stored(chosen, moves)}
        if maps is not None and "teacher_map" in self.wanted:
            targets["teacher_map"] = maps
        if "example" in self.wanted:
            targets["example"] = chosen.astype(np.int32)
        weights: tuple[np.ndarray, ...] = ()
        if self.class_weights is not None:
            weights = (self.class_weights[labels].astype(np.float32),)
        if self._mixes:
            alphas = self.recipe.mixup, self.recipe.cutmix
            own = mixing_weights(self._keys[chosen], self._side, *alphas, seed=self.seed, epoch=epoch)
            pixels, shares = own[..., None], own.mean(axis=(1, 2))
            clean, images, weights = mix(clean, pixels), mix(images, pixels), tuple(mix(one, shares) for one in weights)
            hot = np.eye(self.num_classes or self._labels.max() + 1, dtype=np.float32)[labels]
            targets["label_probabilities"] = mix(hot, shares[:, None])
            targets["label"] = np.where(shares >= 0.5, labels, labels[::-1])
        if "teacher_inputs" in self.wanted and (self._overlaid or self._swaps):
            targets["teacher_inputs"] = clean[np.roll(np.arange(len(chosen)), 1)] if self._swaps else clean
        return images, targets, *weights

    def _moves(self, chosen: np.ndarray, epoch: int) -> dict[str, Any]:
        """Return the seed and the epoch of the geometry; where images are moved as views, the number of each one's."""
        if self.view.kind != "views":
            return {"seed": self.seed, "epoch": epoch}
        draws = uniform(self._keys[chosen], seed=self.seed, epoch=epoch, purpose=Purpose.VIEW)
        return {"seed": self.view.seed, "epoch": (draws * self.view.views).astype(np.int64)}

    def _images(self, chosen: np.ndarray, epoch: int, moves: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return the `augmented` images without and with overlays, and their maps."""
        keys, exponents, changes = self._keys[chosen], None, {}
        rows, columns = geometry(keys, self._side, self.augment, **moves)
        if self.recipe.cutout:
            rows, columns = cut_square(rows, columns, keys, self.recipe.cutout, seed=self.seed, epoch=epoch)
        if self._overlaid:
            usable = self._overlaid.usable[chosen]
            exponents = overlay_exponents(usable, keys, self.overlay, seed=self.seed, epoch=epoch)
        if self._change:
            changes["change"] = functools.partial(self._change, keys=keys, seed=self.seed, epoch=epoch)
        return self._make(chosen, rows, columns, exponents, **changes)

    def _stored(self, chosen: np.ndarray, moves: dict[str, Any]) -> dict[str, Any]:
        """Return what is stored of the teacher for images that are moved so."""
        found: dict[str, Any] = {}
        stored, attention = self.targets, self.targets.attention
        if stored.views is not None:
            found["teacher_logits"] = stored.views[chosen, moves["epoch"]].astype(np.float32)
        elif stored.knowledge is not None and self.view.kind == "plain":
            found["teacher_logits"] = stored.knowledge.logits[chosen].astype(np.float32, copy=False)
        if attention is not None and self.view.attention == "moved":
            maps = move_coarse(attention.maps[chosen, 0], self._side, self._keys[chosen], self.augment, **moves)
            found["teacher_features"] = {attention.tap: maps}
        elif attention is not None:
            found["teacher_features"] = {attention.tap: attention.maps[chosen, moves["epoch"]].astype(np.float32)}
        if stored.posteriors is not None:
            found["teacher_posteriors"] = stored.posteriors[chosen]
        return found

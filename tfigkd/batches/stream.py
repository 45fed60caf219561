"""The stream of training batches: examples, and what the teacher knows of them, augmented together."""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfigkd.batches.augment import (
    ORDER,
    VIEW,
    augmented,
    cut_square,
    example_keys,
    geometry,
    move_coarse,
    overlay_exponents,
    overlay_some,
    uniform,
)
from tfigkd.batches.device import on_device
from tfigkd.batches.mixing import mix, own_parts
from tfigkd.batches.randaugment import Change
from tfigkd.batches.threads import done_in_order
from tfigkd.config.fields import OverlayConfig
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data import Examples
from tfigkd.data.disk import Pictures
from tfigkd.data.grid import spread
from tfigkd.data.stored import StoredArrays, masked
from tfigkd.data.top_logits import StoredViews, TopLogits


@dataclass(frozen=True)
class Knowledge:
    """What an overlay store says of N examples, in the order of those examples.

    Attributes:
        logits: The teacher's, float32 [N,C], of the unaugmented image; filled up where `view.top_logits` says so.
        maps: uint8 [N,H,W], each scaled by its own maximum; of a coarser grid where `attribution.grid` says so; in the
            files of their store where the pictures are on disk.
        scales: That maximum, float32 [N], in logits.
        errors: Completeness errors, float32 [N].
        usable: bool [N], false for maps over the completeness gate.
    """

    logits: np.ndarray | TopLogits
    maps: np.ndarray | StoredArrays
    scales: np.ndarray
    errors: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True)
class StoredAttention:
    """The teacher's stored attention maps of N examples, in the order of those examples.

    Attributes:
        tap: The teacher's layer.
        maps: float16 [N,K,h,w], of K views, or with K = 1 of the unaugmented image.
        moved: Whether the map of the unaugmented image is cropped and flipped with it; otherwise each image is moved as
            one of the K views.
    """

    tap: str
    maps: StoredViews
    moved: bool


Batch = tuple[Any, ...]
"""Images, targets by name and, with weights of classes, a weight for each image."""
Part = tuple[int, int]
"""Which of how many equal parts of a batch, counted from 0."""


SMALLEST_BATCH = 8
"""A last batch of fewer examples ruins a network with batch normalization: its moving averages take a tenth or more of
their value from the statistics of these few, after a whole step of the optimizer in their direction."""


def evens_out(examples: int, batch_size: int) -> bool:
    """Return whether batches of a size would leave a last one that is too small to train on.

    Fingerprints of trainings hold it, as earlier versions trained on that last batch.

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


def part_of(count: int, part: Part) -> slice:
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
    """Return `augmented` images of a data set, from indices and draws; `device.py` does the same on JAX's device."""

    def lay(images: np.ndarray, maps: np.ndarray, exponents: np.ndarray) -> np.ndarray:
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
        return augmented(pixels, rows, columns, exponents, config=augment, lay=lay, cut=cut, change=change)

    return make


def training_batches(
    examples: Examples,
    *,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    knowledge: Knowledge | None = None,
    overlay: OverlayConfig | None = None,
    views: StoredViews | None = None,
    attention: StoredAttention | None = None,
    posteriors: np.ndarray | None = None,
    view_count: int | None = None,
    view_seed: int = 0,
    wanted: Collection[str] = ("teacher_logits",),
    dim_only: bool = False,
    swap_inputs: bool = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    cutout: int = 0,
    randaugment: Change | None = None,
    num_classes: int | None = None,
    class_weights: np.ndarray | None = None,
    devices: int = 1,
    threads: int = 1,
) -> Callable[..., Iterator[Batch]]:
    """Endless shuffled, augmented batches, from the epoch on that the returned function is given.

    Image and map are one array of four channels until the crop and flip are done, so they cannot come apart.

    Args:
        examples: What to train on; with `knowledge`, in the same order.
        augment: Crop and flip.
        batch_size: The most examples of a batch; an epoch has the batches of `batch_sizes`.
        seed: The run's seed; draws depend on it, the epoch and the example's id only.
        knowledge: Where maps and logits come from.
        overlay: Overlays maps where its probability is above 0; needs `knowledge`.
        views: The teacher's logits of K stored views, [N,K,C]; each image is then moved as one of them, and the
            targets hold the logits of that view.
        attention: The teacher's stored attention maps; they come as `"teacher_features"`, by their tap.
        posteriors: Soft labels of the examples, [N,C], which come as `"teacher_posteriors"`.
        view_count: Without any stored views: move each image as one of so many. A student without a teacher then sees
            the crops of one with a teacher.
        view_seed: The seed that the stored views were drawn with.
        wanted: What the losses compare: `"teacher_logits"` and `"teacher_map"` (zero where it is not usable), where
            there is knowledge, and
            `"teacher_inputs"`, the image as the student sees it but without the overlay.
        dim_only: Dim the images that would carry an overlay and add no map (a control).
        swap_inputs: `"teacher_inputs"` are those of the next example of the batch (a control); a batch of one is left.
        mixup: Mix each image with another of its batch by a share from Beta(mixup, mixup). `"label_probabilities"`
            [B,C] are then the mixed labels, `"label"` is that of the larger share, and teacher inputs are mixed alike.
        cutmix: The same with a box of the other image, its share from Beta(cutmix, cutmix); labels by area.
        cutout: Side of a square that is filled with gray in each image, teacher inputs alike, and with zero in its map;
            0 cuts none.
        randaugment: From `rand_augment`: changes each image after crop, flip and cutout, teacher inputs alike, before
            the overlay; the map stays where it is. Images are then made on the host.
        num_classes: C of `"label_probabilities"`; not given: one more than the largest label.
        class_weights: Weight of each class in the loss, [C]; mixed images have the mixed weight.
        devices: How many devices share a batch, see `batch_sizes`.
        threads: How many make batches on the host, each a batch of its own; the batches are the same.

    Returns:
        A function from first epoch to an iterator of (images float32 [B,H,W,3], {"label": int32 [B], ...}), and with
        class weights the weight of each image, float32 [B], as a third. On JAX the pixels lie on its device, and
        images, maps and teacher inputs are made there. With `part=`, which of how many parts of each batch, it gives
        these examples alone, and reads no others where none of their images depends on them. `skip=` leaves out so many
        batches at the beginning.
    """
    keys = example_keys(examples.ids)
    overlaid = knowledge is not None and overlay is not None and overlay.probability > 0
    mapped = knowledge is not None and (overlaid or "teacher_map" in wanted)
    pixels = examples.images
    maps: np.ndarray | StoredArrays | None = None
    if mapped:
        assert knowledge is not None
        # a map over the completeness gate explains nothing: it is never overlaid, and never matched
        maps = masked(knowledge.maps, knowledge.usable)
    labels = examples.labels.astype(np.int32)
    if views is not None:
        view_count = views.shape[1]
    elif attention is not None and not attention.moved:
        view_count = attention.maps.shape[1]

    side = pixels.shape[1], pixels.shape[2]
    move = augment, dim_only, cutout > 0
    on_jax = keras.backend.backend() == "jax" and randaugment is None
    if on_jax and isinstance(pixels, np.ndarray) and not isinstance(maps, StoredArrays):
        make, threads = on_device(pixels, maps, *move), 1
    else:
        make = _on_host(pixels, maps, *move)

    def batch(chosen: np.ndarray, epoch: int) -> Batch:
        targets: dict[str, Any] = {"label": labels[chosen]}
        drawn: dict[str, Any] = {"seed": seed, "epoch": epoch}
        if view_count is not None:
            draws = uniform(keys[chosen], seed=seed, epoch=epoch, purpose=VIEW)
            view = (draws * view_count).astype(np.int64)
            drawn = {"seed": view_seed, "epoch": view}
        exponents = None
        if overlaid:
            assert knowledge is not None and overlay is not None
            usable = knowledge.usable[chosen]
            exponents = overlay_exponents(usable, keys[chosen], overlay, seed=seed, epoch=epoch)
        where = geometry(keys[chosen], side, augment, **drawn)
        if cutout:
            where = cut_square(*where, keys[chosen], cutout, seed=seed, epoch=epoch)
        changed: list[Any] = []
        if randaugment is not None:
            changed = [functools.partial(randaugment, keys=keys[chosen], seed=seed, epoch=epoch)]
        clean, images, moved_maps = make(chosen, *where, exponents, *changed)
        if views is not None:
            targets["teacher_logits"] = views[chosen, view].astype(np.float32)
        if attention is not None and attention.moved:
            coarse = move_coarse(attention.maps[chosen, 0], side, keys[chosen], augment, **drawn)
            targets["teacher_features"] = {attention.tap: coarse}
        elif attention is not None:
            targets["teacher_features"] = {attention.tap: attention.maps[chosen, view].astype(np.float32)}
        if posteriors is not None:
            targets["teacher_posteriors"] = posteriors[chosen]
        if knowledge is not None and "teacher_logits" in wanted:
            targets["teacher_logits"] = knowledge.logits[chosen].astype(np.float32, copy=False)
        if mapped and "teacher_map" in wanted:
            targets["teacher_map"] = moved_maps
        if mixup or cutmix:
            own = own_parts(keys[chosen], side, mixup, cutmix, seed=seed, epoch=epoch)
            clean, images, shares = mix(clean, own), mix(images, own), own.mean(axis=(1, 2))
            hot = np.eye(num_classes or labels.max() + 1, dtype=np.float32)[labels[chosen]]
            targets["label_probabilities"] = shares[:, None] * hot + (1 - shares[:, None]) * hot[::-1]
            targets["label"] = np.where(shares >= 0.5, labels[chosen], labels[chosen][::-1])
        if "teacher_inputs" in wanted and (overlaid or swap_inputs):
            order = np.roll(np.arange(len(chosen)), 1)
            targets["teacher_inputs"] = clean[order] if swap_inputs else clean
        if class_weights is None:
            return images, targets
        weights = class_weights[labels[chosen]].astype(np.float32)
        if mixup or cutmix:
            weights = (shares * weights + (1 - shares) * weights[::-1]).astype(np.float32)
        return images, targets, weights

    *bounds, used = np.cumsum(batch_sizes(len(examples), batch_size, devices))
    # an example takes something of another one, which may be in another part
    related = bool(mixup or cutmix or swap_inputs or randaugment)

    def own(chosen: np.ndarray, epoch: int, part: Part) -> Batch:
        mine = part_of(len(chosen), part)
        if related and part[1] > 1:
            return keras.tree.map_structure(lambda one: one[mine], batch(chosen, epoch))
        return batch(chosen[mine], epoch)

    def planned(epoch: int, part: Part, skip: int) -> Iterator[Callable[[], Batch]]:
        while True:
            order = np.argsort(uniform(keys, seed=seed, epoch=epoch, purpose=ORDER), kind="stable")
            for chosen in np.split(order[:used], bounds)[skip:]:
                yield functools.partial(own, chosen, epoch, part)
            epoch, skip = epoch + 1, 0

    def stream(epoch: int, part: Part = (0, 1), skip: int = 0) -> Iterator[Batch]:
        return done_in_order(planned(epoch, part, skip), threads)

    return stream

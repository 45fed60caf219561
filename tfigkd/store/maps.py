"""The overlay store: logits and Integrated Gradients map of every training image, in shards (see `shards.py`)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.attribution import blur_sigma, completeness_error, saliency_map
from tfigkd.attribution.examples import attribute_examples, attribute_in_parts, folded
from tfigkd.config.fields import AttributionConfig
from tfigkd.data import Examples
from tfigkd.data.grid import cell_means
from tfigkd.data.knowledge import Knowledge
from tfigkd.data.top_logits import TopLogits, chosen_classes, finite, pack, spread_rest, unpack
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.store.shards import REBUILD, Record, Shards, join_arrays, open_store, read_all, refuse_broken, write_shards

FORMAT = 1
NAMES = {"scale": "map_scale", "error": "completeness_error", "steps": "n_steps"}  # names now and in earlier versions
CHECKED = 8  # number of records recomputed from their images before a store is marked as done
FIRST_SIGMA = 4.0  # pixels of the blur at any size, in earlier versions
FLAT = 1e-6  # a map whose maximum is below this many logits is rounding noise, which is not reproducible


def store_identity(
    teacher_weights: str,
    data: str,
    config: AttributionConfig,
    *,
    image_shape: Sequence[int] | None = None,
    top_logits: int | None = None,
) -> dict[str, Any]:
    """Return everything that the records depend on; `batch_size` does not change them and is left out.

    Args:
        teacher_weights: From `weights_fingerprint`.
        data: Fingerprint of the images.
        config: Settings of the attribution.
        image_shape: (H, W, C) of the images, which the width of the blur follows.
        top_logits: How many logits of each image are stored; None stands for all.
    """
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "batch_size"}
    if config.grid is None:  # as in stores of versions without it
        del settings["grid"]
    identity = {"format": FORMAT, "teacher": teacher_weights, "data": data, "attribution": settings}
    if config.baseline == "blur" and image_shape is not None and blur_sigma(image_shape) != FIRST_SIGMA:
        identity["sigma"] = blur_sigma(image_shape)
    if top_logits is not None:
        identity["top_logits"] = top_logits
    return identity


def record_features(
    model: keras.Model,
    examples: Examples,
    config: AttributionConfig,
    mean_color: np.ndarray,
    top_logits: int | None = None,
) -> Iterator:
    """Yield the features of each example's record, with all logits or only some of the largest.

    Args:
        model: float32 [B,H,W,C] in [0,1] to logits.
        examples: Images and labels.
        config: The settings of the maps.
        mean_color: Of the training images, float32 [3] in [0,1]; only for the baseline "mean".
        top_logits: How many of the largest logits are stored; None stores all.
    """
    for result in attribute_in_parts(model, examples, config, mean_color):
        maps = cell_means(saliency_map(result.attributions), config.grid)
        stored, scales = to_stored(maps)
        errors = completeness_error(result.attributions, result.convergence_delta)
        for index, logits in enumerate(result.logits.astype(np.float32)):
            yield {
                **({"logits": logits} if top_logits is None else {"top_logits": pack(logits, top_logits).tobytes()}),
                "map": stored[index].tobytes(),
                "scale": [float(scales[index])],
                "error": [float(errors[index])],
                "steps": [int(result.n_steps[index])],
                **_shape(stored[index]),
            }


def to_stored(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps [N,H,W] as uint8, each scaled by its own maximum, and these maxima [N]."""
    scales = maps.max(axis=(1, 2))
    return np.round(255 * maps / np.where(scales > 0, scales, 1)[:, None, None]).astype(np.uint8), scales


def _shape(stored: np.ndarray) -> dict[str, list[int]]:
    """Return the feature for the shape of a map; a square map has none, to keep records small."""
    height, width = stored.shape
    return {} if height == width else {"map_shape": [height, width]}


def parse_record(features: Mapping[str, Any]) -> Record:
    """Return the logits (or uint16 of `pack`), map, scale, error and number of steps of a record."""
    flat = np.frombuffer(features["map"][0], np.uint8)
    shape = features.get("map_shape", (math.isqrt(len(flat)),) * 2)
    # stores of earlier versions have longer feature names
    scale, error, steps = (features[new if new in features else old][0] for new, old in NAMES.items())
    packed = features.get("top_logits")
    return {
        "logits": features["logits"] if packed is None else np.frombuffer(packed[0], "<u2"),
        "map": flat.reshape(tuple(int(side) for side in shape)),
        "scale": float(scale),
        "error": float(error),
        "n_steps": int(steps),
    }


def map_shards(
    folder: Path,
    examples: Examples,
    config: AttributionConfig,
    top_logits: int | None,
    prepared: Callable[[], tuple[keras.Model, np.ndarray]],
) -> Shards:
    """Return the shards of a store of maps; `prepared` gives the folded teacher and the baseline's color."""

    def make(chosen: Examples) -> Iterator[dict[str, Any]]:
        model, color = prepared()
        return record_features(model, chosen, config, color, top_logits)

    return Shards(folder, examples, config.shard_size, parse_record, make)


def write_store(
    folder: Path,
    model: keras.Model,
    examples: Examples,
    color: np.ndarray,
    config: AttributionConfig,
    identity: dict[str, Any],
    source: dict[str, Any],
) -> None:
    """Write a store shard by shard; shards that already exist and are intact are kept.

    Args:
        folder: Folder of the store, named by the fingerprint of `identity`.
        model: The teacher, from images float32 [B,H,W,3] in [0,1] to logits [B,C].
        examples: The examples to store.
        color: From `baseline_color`, float32 [3] in [0,1].
        config: Settings of the attribution.
        identity: The result of `store_identity`.
        source: The data config, so that `verify` can find the images.
    """
    network = folded(model)
    files = write_shards(map_shards(folder, examples, config, identity.get("top_logits"), lambda: (network, color)))
    # Record by record, so that the memory does not grow with the number of images.
    sample = np.arange(min(CHECKED, len(examples)))
    checked, columns = [], np.empty((len(examples), 2))
    for number, record in enumerate(read_all(folder, files, parse_record)):
        columns[number] = record["error"], record["n_steps"]
        if number in sample:
            checked.append(record)
    errors, steps = columns.astype(np.float32).T  # the dtype in which the error was compared with the tolerance
    worst = deviation(model, examples, checked, config, color, sample)
    write_manifest(
        folder,
        fingerprint(identity),
        files=files,
        identity=identity,
        source=source,
        mean_color=[float(value) for value in color],  # zeros where the baseline needs none
        examples=len(examples),
        flagged=int((~(errors <= config.tolerance)).sum()),
        completeness_error={
            "mean": float(errors.mean()),
            "median": float(np.median(errors)),
            "max": float(errors.max()),
        },
        mean_steps=float(steps.mean()),
        verified_deviation=worst,
    )


def deviation(
    model: keras.Model,
    examples: Examples,
    records: list[dict[str, Any]],
    config: AttributionConfig,
    mean_color: np.ndarray,
    sample: np.ndarray,
) -> dict[str, float]:
    """Return the largest relative deviation of stored logits and maps from recomputed ones.

    Logits are relative to max(1, largest logit), maps to their maximum; `flat` counts maps without signal.

    Args:
        model: The teacher, float32 [B,H,W,C] in [0,1] to logits.
        examples: Those that the store is of.
        records: The store's records, those of the sample among them.
        config: The settings of the maps.
        mean_color: Of the training images, float32 [3] in [0,1]; only for the baseline "mean".
        sample: Indices of the examples that are recomputed.

    Raises:
        UserError: A deviation is larger than rounding errors, so the records are not those of the images.
    """
    by_id = {record["id"]: record for record in records}
    chosen = examples.take(sample)
    result = attribute_examples(folded(model), chosen, config, mean_color)
    maps = cell_means(saliency_map(result.attributions), config.grid)
    logits = maps_off = 0.0
    flat = 0
    for index, example_id in enumerate(chosen.ids):
        record, expected = by_id[example_id], result.logits[index]
        known = record["logits"]
        if known.dtype == np.uint16:
            known, expected = unpack(known), spread_rest(expected, chosen_classes(known))
        logits = max(logits, float(np.abs(known - expected).max() / max(1, np.abs(expected).max())))
        stored = record["map"].astype(np.float32) * (record["scale"] / 255)
        if maps[index].max() < FLAT:
            flat += 1
        else:
            maps_off = max(maps_off, float(np.abs(stored - maps[index]).max() / maps[index].max()))
    if logits > 1e-3 or maps_off > 1e-2:
        raise UserError(
            f"overlay store: recomputed records deviate (logits {logits:.2g}, maps {maps_off:.2g}): they do not belong "
            f"to their images or teacher; {REBUILD}"
        )
    return {"logits": logits, "maps": maps_off, "flat": flat}


def read_store(folder: Path, examples: Examples, identity: dict[str, Any]) -> Knowledge:
    """Read the records of examples, found by id.

    Args:
        folder: A finished store.
        examples: The examples to look up; every id must be in the store.
        identity: The identity that the store must have, from `store_identity`.

    Returns:
        Logits and maps in the order of the examples; the maps are left in the store where the examples' pictures are
        on disk.

    Raises:
        UserError: The store is unfinished or damaged, belongs to another teacher, data set or setting, lacks ids, or
            its labels are not those of the examples.
    """
    found = join_arrays(folder, open_store(folder, identity), examples, parse_record, large="map")
    return to_knowledge(folder, found, examples.ids, identity["attribution"]["tolerance"])


def to_knowledge(folder: Path, found: Mapping[str, Any], ids: np.ndarray, tolerance: float) -> Knowledge:
    """Turn the columns of a store's records into `Knowledge`; maps with an error above the tolerance are not usable.

    Args:
        folder: The store, for the message.
        found: `logits`, `map`, `scale` and `error` of N records.
        ids: Ids of these records, [N].
        tolerance: Largest completeness error of a map that is usable.

    Raises:
        UserError: A record has NaN or infinity.
    """
    refuse_broken(folder, ids, finite(found["logits"]) & np.isfinite(found["error"]))
    top = found["logits"].dtype == np.uint16
    errors = found["error"].astype(np.float32)
    return Knowledge(
        logits=TopLogits(found["logits"]) if top else found["logits"].astype(np.float32),
        maps=found["map"],
        scales=found["scale"].astype(np.float32),
        errors=errors,
        usable=errors <= tolerance,
    )

"""Stage `overlays`: store the teacher's logits, Integrated Gradients maps and attention of every example."""

import functools
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd import models
from tfigkd.attribution.examples import baseline_color
from tfigkd.config.declare import require, require_seed
from tfigkd.config.experiment import Config, trainings
from tfigkd.config.fields import AttributionConfig, DataConfig, ViewConfig
from tfigkd.config.reading import from_mapping
from tfigkd.config.training_fields import AugmentConfig
from tfigkd.data import Examples
from tfigkd.data.disk import blocks
from tfigkd.data.grid import spread
from tfigkd.data.knowledge import Knowledge
from tfigkd.data.top_logits import StoredViews, TopLogits, finite
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import console
from tfigkd.runtime.cluster import Cluster
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import finished, locked, read_manifest, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.quiet import quiet_stderr
from tfigkd.runtime.text import counted
from tfigkd.stages.compatibility import data_fingerprints, first_known
from tfigkd.stages.data import dataset, stored_examples, stored_fingerprint
from tfigkd.stages.parts import StorePart
from tfigkd.stages.teacher import load_teacher, members, require_teacher, teacher_folder
from tfigkd.stages.workdir import TEACHER_FILE, Workdir
from tfigkd.store.maps import (
    deviation,
    map_shards,
    parse_record,
    read_store,
    store_identity,
    write_store,
)
from tfigkd.store.shards import REBUILD, Shards, join, join_arrays, open_store, refuse_broken, write_part, write_shards
from tfigkd.store.views import (
    SHARD_SIZE,
    parse_view,
    view_outputs,
    view_record,
    views_deviation,
    views_identity,
    with_attention,
)


def store_folder(config: Config, workdir: Workdir) -> Path:
    """Return where this config's overlay store lies, or will lie; its teacher must be there."""
    return teacher_folder(config, workdir) / "overlays" / fingerprint(_store_identity(config, workdir))


def _store_identity(config: Config, workdir: Workdir) -> dict[str, Any]:
    weights = require_teacher(config, workdir)["weights"]
    shape = dataset(config.data).image_shape
    options: dict[str, Any] = {"image_shape": shape, "top_logits": config.view.top_logits}
    identities = [store_identity(weights, data, config.attribution, **options) for data in _stored_data(config)]
    return _first_stored(identities, teacher_folder(config, workdir) / "overlays")


def _stored_data(config: Config) -> list[str]:
    """Return the fingerprints of the data that a store is of: today's, and that of earlier versions."""
    return [stored_fingerprint(config.data, data) for data in data_fingerprints(config.data)]


def _first_stored(identities: list[dict[str, Any]], parent: Path) -> dict[str, Any]:
    """Return the first identity of which there is a store in a folder; if there is none, the first."""
    return first_known(identities, lambda identity: (parent / fingerprint(identity)).is_dir())


def load_knowledge(config: Config, workdir: Workdir, examples: Examples) -> Knowledge:
    """Return the store of a config, joined to examples."""
    return read_store(store_folder(config, workdir), examples, _store_identity(config, workdir))


def stored_maps(config: Config, workdir: Workdir, examples: Examples) -> np.ndarray | None:
    """Return the stored maps of examples, uint8 [N,H,W]; None if the store covers the student's training set only."""
    if config.data.stored != "all":
        return None
    return spread(load_knowledge(config, workdir, examples).maps[:], examples.image_shape[:2])


def _folded_teacher(config: Config, workdir: Workdir) -> keras.Model:
    with quiet_stderr():  # TensorFlow greets when it looks for a GPU
        return models.fold_batch_norm(load_teacher(config, workdir))


def _overlay_shards(config: Config, workdir: Workdir) -> Shards:
    """Return the shards of a config's overlay store; the teacher is loaded when the first is computed."""

    @functools.cache
    def prepared() -> tuple[keras.Model, np.ndarray]:
        return _folded_teacher(config, workdir), baseline_color(config.attribution, dataset(config.data).train)

    folder, examples = store_folder(config, workdir), stored_examples(config.data)
    return map_shards(folder, examples, config.attribution, config.view.top_logits, prepared)


def build_overlays(config: Config, workdir: Workdir) -> None:
    """Compute the overlay store of a config once: the teacher's logits and maps of every training example."""
    data, folder, identity = dataset(config.data), store_folder(config, workdir), _store_identity(config, workdir)
    with locked(folder, wait=True):
        if finished(folder, folder.name) is None:
            model = load_teacher(config, workdir)
            examples, color = stored_examples(config.data), baseline_color(config.attribution, data.train)
            write_store(folder, model, examples, color, config.attribution, identity, asdict(config.data))
        manifest = read_manifest(folder)
    assert manifest is not None
    error = manifest["completeness_error"]
    console.status(
        f"{manifest['examples']:,} maps, median completeness error {error['median']:.3f}, "
        f"{manifest['flagged']:,} over {config.attribution.tolerance} and never overlaid  ({folder})"
    )


def verify(folder: Path, *, sample: int = 64, seed: int = 0) -> dict[str, float]:
    """Recompute a random sample of a store from the images and the teacher beside it.

    Args:
        folder: A finished store, inside its teacher's folder: of maps, of views, or of attention.
        sample: How many records.
        seed: Of the sample.

    Returns:
        The largest deviations of what the store has: `"logits"` (relative to the largest logit), `"maps"` and
        `"attention"` (to a map's maximum), the number of `"flat"` maps, which hold nothing to compare, and that of
        all that were `"recomputed"`.

    Raises:
        UserError: no finished store, a damaged one, or one whose records are not those of their images.
    """
    require_seed(seed, "--seed")
    require(sample > 0, "--sample must be positive", sample)
    manifest = open_store(folder, {})
    identity = manifest["identity"]
    if manifest.get("source") == {}:
        raise UserError(f"store {folder} was made by OverlayStore.build; verify it with OverlayStore.verify")
    if "source" not in manifest:
        raise UserError(
            f"store {folder} of an earlier version does not say where its images are; to verify it, {REBUILD}"
        )
    source = from_mapping(DataConfig, manifest["source"])
    data, expected = dataset(source), identity["data"]
    found = [stored_fingerprint(source, one) for one in data_fingerprints(source)]
    if expected not in found:
        raise UserError(f"store {folder}: the data set is {found[0]} now, expected {expected}")
    teacher = Path(os.path.abspath(folder)).parents[1] / TEACHER_FILE
    model = models.load_own_classifier(teacher, num_classes=data.num_classes, input_shape=data.image_shape)
    if weights_fingerprint(model) != identity["teacher"]:
        raise UserError(f"store {folder}: {teacher} is another teacher; {REBUILD}")
    examples = stored_examples(source)
    chosen = np.random.default_rng(seed).choice(len(examples), min(sample, len(examples)), replace=False)
    parse = parse_record if "attribution" in identity else parse_view
    wanted = {int(position) for position in chosen}
    records = [record for position, record in join(folder, manifest, examples, parse) if position in wanted]
    if "attribution" in identity:
        settings = from_mapping(AttributionConfig, identity["attribution"])
        color = np.array(manifest["mean_color"], np.float32)
        return {**deviation(model, examples, records, settings, color, chosen), "recomputed": len(chosen)}
    augment = from_mapping(AugmentConfig, identity["augment"])
    view = ViewConfig(views=identity["views"], seed=identity["seed"])
    seen, tap = models.fold_batch_norm(model), identity.get("tap")
    outputs = view_outputs(seen if tap is None else with_attention(seen, tap), examples.take(chosen), augment, view)
    by_id = {record["id"]: record["views"] for record in records}
    stored = np.stack([by_id[each] for each in examples.ids[chosen]])
    off = views_deviation(stored, outputs)
    return {"logits" if tap is None else "attention": off, "flat": 0, "recomputed": len(chosen)}


def _view_settings(config: Config, tap: str | None) -> tuple[AugmentConfig, ViewConfig]:
    """Return the views that are stored; maps that will be moved with their image are only of the unaugmented image."""
    if tap is not None and config.view.attention == "moved":
        return AugmentConfig(crop_padding=0, flip=False), replace(config.view, views=1, seed=0)
    return config.augment, config.view


def _views_identity(config: Config, workdir: Workdir, tap: str | None) -> dict[str, Any]:
    weights = require_teacher(config, workdir)["weights"]
    identities = [views_identity(weights, data, *_view_settings(config, tap), tap) for data in _stored_data(config)]
    return _first_stored(identities, teacher_folder(config, workdir) / "views")


def views_folder(config: Config, workdir: Workdir, tap: str | None = None) -> Path:
    """Return the folder of this config's stored logits, or of the attention of a tap; its teacher must exist."""
    return teacher_folder(config, workdir) / "views" / fingerprint(_views_identity(config, workdir, tap))


def views_name(config: Config, workdir: Workdir) -> str:
    """Return what identifies the stored logits that a student learns from, of one teacher or of several."""
    if not config.teacher.by_label:
        return views_folder(config, workdir).name
    each = [views_folder(member, workdir).name for member in members(config)]
    return fingerprint("views by label", config.teacher.label_temperature, each)


def load_views(config: Config, workdir: Workdir, examples: Examples, tap: str | None = None) -> StoredViews:
    """Return the stored logits of examples, [N,K,C], or the attention of a tap, [N,K,h,w]; joined by id.

    They are float16; logits of several teachers that are weighted by the label are float32 and in memory.
    """
    if tap is None and config.teacher.by_label:
        each = [load_views(member, workdir, examples)[:] for member in members(config)]
        return models.weighted_by_label(each, examples.labels, config.teacher.label_temperature)
    folder = views_folder(config, workdir, tap)
    manifest = open_store(folder, _views_identity(config, workdir, tap))
    views = join_arrays(folder, manifest, examples, parse_view, large="views")["views"]
    refuse_broken(folder, examples.ids, np.concatenate([finite(block) for block in blocks(views)]))
    return TopLogits(views) if views.dtype == np.uint16 else views


def _view_shards(config: Config, workdir: Workdir, tap: str | None = None) -> Shards:
    """Return the shards of the stored views; the teacher is loaded when the first is computed."""
    augment, view = _view_settings(config, tap)

    @functools.cache
    def prepared() -> keras.Model:
        model = _folded_teacher(config, workdir)
        return model if tap is None else with_attention(model, tap)

    def make(chosen: Examples) -> Iterator[dict[str, Any]]:
        for views in view_outputs(prepared(), chosen, augment, view):
            yield view_record(views, view.top_logits if tap is None else None)

    folder = views_folder(config, workdir, tap)
    return Shards(folder, stored_examples(config.data), SHARD_SIZE, parse_view, make)


def build_views(config: Config, workdir: Workdir, tap: str | None = None) -> None:
    """Compute and store the logits of the views, or the attention of a tap, going on after the shards there are."""
    folder, identity = views_folder(config, workdir, tap), _views_identity(config, workdir, tap)
    with locked(folder, wait=True):
        if finished(folder, folder.name) is None:
            shards = _view_shards(config, workdir, tap)
            files = write_shards(shards)
            source, count = asdict(config.data), len(shards.examples)
            write_manifest(folder, folder.name, files=files, identity=identity, source=source, examples=count)
    what = "logits" if tap is None else f"attention of {tap}"
    views = _view_settings(config, tap)[1].views
    console.status(f"{what}: {counted(views, 'view')} of each image  ({folder})")


@dataclass(frozen=True)
class Store:
    """A store that a config asks for.

    Attributes:
        shards: Its shards.
        build: Computes the shards that are missing and writes the manifest.
    """

    shards: Shards
    build: Callable[[], None]


def stores(config: Config, workdir: Workdir) -> list[Store]:
    """Return all that the student's arm and its fine-tuning ask for of what the teacher knows."""
    runs = trainings(config)
    found = []
    if any(each.needs_store for each in runs):
        found.append(Store(_overlay_shards(config, workdir), partial(build_overlays, config, workdir)))
    taps = sorted({each.losses.at.teacher_layer for each in runs if each.needs_attention})
    logits = members(config) if config.teacher.by_label else [config]
    views = [(one, None) for one in logits * any(each.needs_views for each in runs)]
    for one, tap in [*views, *((config, tap) for tap in taps)]:
        found.append(Store(_view_shards(one, workdir, tap), partial(build_views, one, workdir, tap)))
    return found


def store_knowledge(config: Config, workdir: Workdir) -> None:
    """Stage `overlays`: store what the teacher knows and the student's arm and its fine-tuning ask for."""
    for store in stores(config, workdir):
        store.build()


def store_part(config: Config, workdir: Workdir, part: StorePart) -> None:
    """Stage `overlays` of one of several processes or machines: write its shards of each store.

    The process that finds all shards of a store written checks them and writes the manifest; the store equals that of a
    single process.
    """
    for store in stores(config, workdir):
        write_part(store.shards, part.of(len(store.shards)))
        _finish(store)


def store_on_cluster(config: Config, workdir: Workdir, cluster: Cluster) -> None:
    """Stage `overlays` on the machines of a cluster: each shard that is missing is a call of its own."""
    described = pickle.dumps((config, workdir))
    for which, store in enumerate(stores(config, workdir)):
        shards, counts = store.shards, Counter[str]()
        missing = [number for number in range(len(shards)) if not shards.path(number).is_file()]
        with console.progress(shards.title, len(shards), len(shards) - len(missing)) as advance:
            for ended in cluster.call(store_shard, [(described, which, number) for number in missing]):
                counts[ended.node] += 1
                done = ", ".join(f"{node}: {count}" for node, count in sorted(counts.items()))
                advance(note=done)
        if missing:
            console.status(f"{shards.title}: {len(missing)} shards ({done})")
        _finish(store)


def store_shard(described: bytes, which: int, number: int) -> None:
    """Write one shard of a store.

    Args:
        described: The pickled config and workdir, bytes as they travel between machines.
        which: Index of the store in `stores`.
        number: Index of the shard.
    """
    write_part(_stores_of(described)[which].shards, [number])


@functools.lru_cache(maxsize=1)
def _stores_of(described: bytes) -> list[Store]:
    """Return the stores of a pickled config and workdir; data and teacher are loaded once a process."""
    with quiet_stderr():
        return stores(*pickle.loads(described))


def _finish(store: Store) -> None:
    """Finish a store if all its shards are there; otherwise say how many are."""
    shards, there = store.shards, store.shards.count_written()
    if there == len(shards):
        store.build()
    else:
        console.status(f"{shards.title}: {there} of {len(shards)} shards are there; the last part finishes the store")

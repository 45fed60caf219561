"""The overlay store as a library: for any Keras model and any `tf.data.Dataset`, without config or workdir."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfigkd.attribution.examples import baseline_color
from tfigkd.config.fields import AttributionConfig
from tfigkd.config.reading import from_mapping
from tfigkd.data import Examples, digest, splits_fingerprint, to_model_input
from tfigkd.data.grid import check_grid, spread
from tfigkd.data.knowledge import Knowledge
from tfigkd.data.spaces import RANGES, UNIT, Outputs, Range
from tfigkd.data.top_logits import TopLogits
from tfigkd.measure.chance import PROBE_EXAMPLES, suggest_fix
from tfigkd.measure.metrics import balanced_accuracy, predict_logits
from tfigkd.models import cached_classifier
from tfigkd.models.adapt import PROBED_IMAGES, graph_as_classifier
from tfigkd.models.copies import keeps_random_numbers
from tfigkd.models.fingerprints import architecture_fingerprint, weights_fingerprint
from tfigkd.models.graph import single_graph
from tfigkd.models.input_range import infer_input_range
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, finished, locked, read_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.store.given import collect, single_pictures
from tfigkd.store.maps import CHECKED, deviation, parse_record, store_identity, to_knowledge, write_store
from tfigkd.store.random_overlays import RandomOverlays
from tfigkd.store.shards import REBUILD, open_store, read_all


class OverlayStore:
    """A teacher's logits and Integrated Gradients maps on disk, joined to images by the hash of their pixels.

    Args:
        folder: A finished store: the attribute `folder` of the store that `build` returned.

    Attributes:
        folder: Folder of the shards.
        knowledge: Logits, maps and completeness errors; see `tfigkd.data.knowledge.Knowledge`. Their order is that of
            the hashes of the pixels, not that of the pictures that the store was built from: `knowledge_of` gives them
            in the order of your pictures.

    Raises:
        UserError: The store is unfinished or damaged, or contains NaN.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if read_manifest(self.folder) is None:
            inside = sorted(path.parent.name for path in self.folder.glob(f"*/{MANIFEST}"))
            advice = f"the stores in it are {', '.join(inside)}" if inside else "OverlayStore.build makes one"
            raise UserError(f"no finished store in {self.folder}; {advice}")
        manifest = open_store(self.folder, {})
        if "attribution" not in manifest["identity"]:
            raise UserError(f"{self.folder} is a store of views, without maps; give one of OverlayStore.build")
        self.settings = from_mapping(AttributionConfig, manifest["identity"]["attribution"])
        self._teacher = manifest["identity"]["teacher"]
        self._mean_color = np.array(manifest["mean_color"], np.float32)
        records = list(read_all(self.folder, manifest["files"], parse_record))
        columns = {name: np.array([record[name] for record in records]) for name in records[0]}
        self.knowledge = to_knowledge(self.folder, columns, columns["id"], self.settings.tolerance)
        # duplicates of a picture differ only in their ordinal; those with the same label have the same map and logits
        self._rows = {(record["id"].partition("-")[0], record["label"]): row for row, record in enumerate(records)}

    def __len__(self) -> int:
        return len(self.knowledge.logits)

    @classmethod
    @keeps_random_numbers()
    def build(
        cls,
        folder: str | Path,
        teacher: keras.Model,
        pictures: Any,
        *,
        input_range: Range | None = None,
        outputs: Outputs | None = None,
        **settings: Any,
    ) -> "OverlayStore":
        """Open the store if it is finished; otherwise compute it, or resume an interrupted computation.

        Stores of several teachers, data sets or settings are subfolders of `folder`, each named by its fingerprint.
        The images are held in memory while their maps are computed.

        Args:
            folder: Parent folder of the store; created if missing.
            teacher: A classifier of images [B,H,W,3]. One that takes other values than [0,1] or gives probabilities is
                converted as `tfigkd.models.as_classifier` does it; the store holds logits of at least two classes.
            pictures: A finite `tf.data.Dataset` of (uint8 [H,W,3], integer label), not batched and not augmented, or
                a pair of arrays, uint8 [N,H,W,3] and integers [N] or [N,1]; all of one size.
            input_range: Pixel values of black and white that the teacher expects; by default inferred from its layers.
            outputs: "logits" or "probabilities"; by default inferred from the last layer and outputs.
            settings: Fields of `tfigkd.config.fields.AttributionConfig`: `baseline`, `rule`, `n_steps`, `tolerance`,
                `max_steps`, `batch_size`, `shard_size` and `grid`.

        Returns:
            The finished store.

        Raises:
            ValueError: `pictures` are not as above or do not fit the teacher, a label is none of its C outputs, or the
                teacher is right on clearly more of them in another input range than was inferred.
            UserError: A setting is unknown or out of range.
        """
        if not isinstance(teacher, keras.Model):
            raise ValueError(
                f"the teacher must be a Keras model, got {type(teacher).__name__}; keras.saving.load_model opens a file"
            )
        # its errors come before pictures are loaded
        cached_classifier(teacher, input_range=input_range, outputs=outputs)
        examples = collect(pictures)
        given, teacher = teacher, _classifier_of(teacher, input_range, outputs, examples)
        _check_fit(teacher, examples)
        count = _classes(teacher, examples)
        if examples.labels.max() >= count:
            raise ValueError(
                f"labels must be from 0 to {count - 1}, the teacher's outputs; got {examples.labels.max()}"
            )
        config = from_mapping(AttributionConfig, settings, "attribution")
        pixels = splits_fingerprint({"train": examples})
        shape = examples.image_shape
        check_grid(config.grid, shape)
        earlier = store_identity(weights_fingerprint(teacher), pixels, config, image_shape=shape)
        identity = earlier | {"architecture": architecture_fingerprint(teacher)}
        before = Path(folder).resolve() / fingerprint(earlier)  # a store without the architecture in its name
        if finished(before, before.name) is not None:
            store = cls(before)
            if store._is_of(teacher, examples):
                return store
        place = Path(folder).resolve() / fingerprint(identity)
        with locked(place, wait=True):
            if finished(place, place.name) is None:
                if input_range is None and single_graph(given) is not None:
                    _check_range(given, teacher, outputs, examples)
                color = baseline_color(config, examples)
                write_store(place, teacher, examples, color, config, identity, source={})
                return cls(place)
        store = cls(place)
        if not store._is_of(teacher, examples):
            raise UserError(f"overlay store {place}: its records are not those of this teacher; {REBUILD}")
        return store

    def _is_of(self, teacher: keras.Model, examples: Examples) -> bool:
        """Return whether a few recomputed records are those of the store; equal weights may be of another function."""
        try:
            self._verify(teacher, examples, np.arange(min(CHECKED, len(examples))))
        except UserError:
            return False
        return True

    def knowledge_of(self, images: Any, labels: Any) -> Knowledge:
        """Return what the store says of pictures, in their order, such as logits for `Distiller.fit` on arrays.

        Args:
            images: uint8 [N,H,W,3], pictures of the store in any order; not augmented.
            labels: Integers [N] or [N,1].

        Returns:
            Logits float32 [N,C], maps uint8 [N,H,W], scales, errors and `usable` [N]; unlike the channel of `join`, the
            maps that are not usable are not zero.

        Raises:
            ValueError: The arrays are not as above.
            UserError: A picture is not in the store, or has another label there.
        """
        examples = collect((images, labels))
        rows = np.empty(len(examples), np.int64)
        rows[examples.source_ids.astype(np.int64)] = [
            self._row_of(name.partition("-")[0], int(label))
            for name, label in zip(examples.ids, examples.labels, strict=True)
        ]
        return Knowledge(**{field.name: getattr(self.knowledge, field.name)[rows] for field in fields(Knowledge)})

    def join(self, pictures: Any, *, logits: bool = True) -> Any:
        """Add to every picture its map and logits, found by the hash of its pixels, in any order of the pictures.

        The map becomes a fourth channel of its picture, so that crops and flips change both alike. The channel is zero
        if the map's completeness error is above the tolerance; such a picture is never overlaid.

        Args:
            pictures: A `tf.data.Dataset` of (uint8 [H,W,3], integer label), not batched and not yet augmented, or a
                pair of arrays as for `build`, whose order is kept.
            logits: False leaves out the logits, which a live teacher then gives.

        Returns:
            A `tf.data.Dataset` of (uint8 [H,W,4], {"label": int32, "teacher_logits": float32 [C]}). A picture that is
            not in the store, or has another label there, ends the iteration with an error that names it.

        Raises:
            ValueError: The pictures are batched, or not as above.
        """
        import tensorflow as tf

        pictures = single_pictures(pictures)
        classes = self.knowledge.logits.shape[1]

        def find(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            row = self._row(image, int(label))
            shown = spread(self.knowledge.maps[row][None], image.shape[:2])[0] * self.knowledge.usable[row]
            return np.concatenate([image, shown[..., None]], axis=-1), self.knowledge.logits[row].astype(np.float32)

        def attach(image: Any, label: Any) -> tuple[Any, dict[str, Any]]:
            label = tf.reshape(label, [])  # those of keras.datasets are [1]
            pixels, known = tf.numpy_function(find, [image, label], [tf.uint8, tf.float32])
            # the maps of a coarser grid do not tell the size of their pictures
            pixels.set_shape((*(image.shape[:2] if self.settings.grid else self.knowledge.maps.shape[1:]), 4))
            known.set_shape((classes,))
            targets = {"label": tf.cast(label, tf.int32)}
            return pixels, {**targets, "teacher_logits": known} if logits else targets

        return pictures.map(attach)

    @staticmethod
    def overlay(
        probability: float = 0.1, *, min_exponent: float = 1.0, max_exponent: float = 2.0, seed: int = 0
    ) -> Callable[..., tuple[Any, ...]]:
        """Return a function for `dataset.map`, after augmentation and batching, that overlays maps on some images.

        Args:
            probability: Share of images that are overlaid; the papers use 0.1.
            min_exponent: Smallest exponent s of `0.5 image + 0.5 map ** s`, s log-uniform.
            max_exponent: Largest exponent s.
            seed: Seed of the random draws. They follow from it, the pixels of the batch and how often this batch came
                before: they do not depend on `num_parallel_calls`, and differ from epoch to epoch.

        Returns:
            A function from (pixels [B,H,W,4], targets) to (float32 [B,H,W,3] in [0,1], targets); pixels are from 0 to
            255, uint8 or float. Targets that are a dictionary get `"teacher_inputs"`, the images without overlays,
            which a live teacher then sees. Sample weights, a third part, are passed through. It raises a ValueError for
            single pictures; fractions, none above 1, end the iteration with an error.

        Raises:
            ValueError: The probability or an exponent is out of range.
        """
        import tensorflow as tf

        if not 0 <= probability <= 1 or not 0 < min_exponent <= max_exponent < np.inf:
            raise ValueError(
                f"expected a probability in [0, 1] and 0 < min_exponent <= max_exponent < inf, got {probability}, "
                f"{min_exponent} and {max_exponent}"
            )
        blend = RandomOverlays(probability, min_exponent, max_exponent, seed)

        @tf.autograph.experimental.do_not_convert  # an error is then one line
        def overlay_batch(pixels: Any, targets: Any, *sample_weight: Any) -> tuple[Any, ...]:
            if tf.TensorShape(pixels.shape).rank not in (4, None):
                raise ValueError(
                    f"overlay takes batches [B,H,W,4], got pixels {tuple(pixels.shape)}; call batch() before it"
                )
            images = tf.numpy_function(blend, [pixels], tf.float32)
            images.set_shape((*pixels.shape[:-1], 3))
            if isinstance(targets, Mapping):  # a live teacher sees the picture itself
                targets = {**targets, "teacher_inputs": tf.cast(pixels[..., :3], tf.float32) / 255}
            return images, targets, *sample_weight

        return overlay_batch

    def verify(
        self,
        teacher: keras.Model,
        pictures: Any,
        *,
        sample: int = 64,
        seed: int = 0,
        input_range: Range | None = None,
        outputs: Outputs | None = None,
    ) -> dict[str, float]:
        """Recompute the records of a random sample of the pictures; see `tfigkd.store.maps.deviation`.

        Args:
            teacher: The model that the store was built with.
            pictures: The pictures that the store was built from, as for `build`.
            sample: Number of pictures to recompute.
            seed: Seed of the sample.
            input_range: As for `build`.
            outputs: As for `build`.

        Returns:
            The largest deviations of logits and maps.

        Raises:
            UserError: The teacher is another one, or the records are not those of the pictures.
        """
        if weights_fingerprint(cached_classifier(teacher, input_range=input_range, outputs=outputs)) != self._teacher:
            raise UserError(f"overlay store {self.folder}: it belongs to another teacher; build a store for this one")
        examples = collect(pictures)
        teacher = _classifier_of(teacher, input_range, outputs, examples)
        chosen = np.random.default_rng(seed).choice(len(examples), min(sample, len(examples)), replace=False)
        return self._verify(teacher, examples, chosen)

    def _verify(self, teacher: keras.Model, examples: Examples, chosen: np.ndarray) -> dict[str, float]:
        known = self.knowledge
        logits = known.logits.packed if isinstance(known.logits, TopLogits) else known.logits
        records = [
            {"id": examples.ids[index], "logits": logits[row], "map": known.maps[row], "scale": known.scales[row]}
            for index in chosen
            for row in [self._row(examples.images[index], int(examples.labels[index]))]
        ]
        return deviation(teacher, examples, records, self.settings, self._mean_color, chosen)

    def _row(self, image: np.ndarray, label: int) -> int:
        return self._row_of(digest(image), label)

    def _row_of(self, name: str, label: int) -> int:
        """Return the record of a picture, by the hash of its pixels and its label."""
        if (name, label) not in self._rows:
            known = any(row[0] == name for row in self._rows)
            what = f"is in the store, but not with label {label}" if known else "is not in the store"
            raise UserError(
                f"overlay store {self.folder}: the picture {name} {what}; join the pictures that the store was built "
                "from, before any augmentation"
            )
        return self._rows[name, label]


def _classifier_of(
    teacher: keras.Model, input_range: Range | None, outputs: Outputs | None, examples: Examples
) -> keras.Model:
    """Return `as_classifier` of a teacher; a subclassed one, whose layers are not known, is looked at on pictures."""
    some = to_model_input(examples.images[:PROBED_IMAGES])
    return cached_classifier(teacher, input_range=input_range, outputs=outputs, images=some)


def _classes(teacher: keras.Model, examples: Examples) -> int:
    """Return how many classes a teacher gives; a subclassed one tells it only when it runs."""
    return int(predict_logits(teacher, examples.images[:1]).shape[-1])


def _check_fit(teacher: keras.Model, examples: Examples) -> None:
    """Raise a ValueError for pictures that a teacher of known input shape does not take."""
    try:
        takes = tuple(teacher.input_shape[1:])
    except AttributeError:  # a subclassed model
        return
    has = examples.image_shape
    if len(takes) == len(has) and all(size in (None, own) for size, own in zip(takes, has, strict=True)):
        return
    remedy = "resize them" if takes[-1] == has[-1] else "give a teacher of such pictures"
    if len(takes) == len(has) and takes[-1] == 1:
        remedy = "tfigkd.models.with_rgb(teacher) is the same teacher for RGB pictures"
    raise ValueError(f"the teacher takes images {takes}, the pictures are {has}; {remedy}")


def _check_range(given: keras.Model, teacher: keras.Model, outputs: Outputs | None, examples: Examples) -> None:
    """Refuse a teacher that is right on clearly more images if its pixels are in another range than was inferred.

    Args:
        given: As the user has it.
        teacher: As it was read: float32 [B,H,W,C] in [0,1] to logits.
        outputs: As for `build`.
        examples: Of which the first ones decide.
    """
    some = examples.take(slice(PROBE_EXAMPLES))

    def logits(input_range: Range) -> np.ndarray:
        return predict_logits(graph_as_classifier(given, input_range=input_range, outputs=outputs), some.images)

    own = predict_logits(teacher, some.images)
    others = {f"input_range={one}": partial(logits, one) for one in RANGES}
    fix = suggest_fix(own, some.labels, (), others, try_orders=False)
    if fix is not None:
        recall, shown = 100 * balanced_accuracy(own, some.labels), infer_input_range(given) or UNIT
        raise ValueError(
            f"the teacher has a balanced accuracy of {recall:.1f} % on {len(some)} of the pictures; {fix}; "
            f"input_range={shown} keeps it as it is"
        )

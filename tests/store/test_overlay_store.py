"""The public store: any model, any tf.data, joined by the hash of the pixels; and the README's example, unchanged."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfigkd
from tfigkd import Distiller, OverlayStore
from tfigkd.attribution import integrated_gradients, saliency_map
from tfigkd.attribution.examples import baseline_color
from tfigkd.config.fields import AttributionConfig
from tfigkd.data import identify, splits_fingerprint
from tfigkd.data.spaces import to_gray
from tfigkd.losses import KLDivergence
from tfigkd.models.adapt import with_rgb
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.store.maps import store_identity, write_store

COUNT, SIDE, CLASSES = 40, 8, 4
SETTINGS = {"n_steps": 8, "tolerance": 10.0, "shard_size": 16}


def classifier(seed, activation="relu"):
    """Return a user-provided model, with an architecture that this package does not have."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    stack = [layers.Conv2D(6, 3, activation=activation), layers.Flatten(), layers.Dense(CLASSES)]
    return keras.Sequential([layers.Input((SIDE, SIDE, 3)), *stack])


@pytest.fixture(scope="module")
def teacher():
    return classifier(0)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8), rng.integers(0, CLASSES, COUNT)


@pytest.fixture(scope="module")
def store(teacher, arrays, tmp_path_factory):
    return OverlayStore.build(tmp_path_factory.mktemp("store"), teacher, arrays, **SETTINGS)


@pytest.mark.parametrize(
    ("label", "message"), [(CLASSES, "from 0 to 3, the teacher's outputs; got 4"), (-1, "negative")]
)
def test_labels_that_the_teacher_does_not_have_are_refused(teacher, arrays, tmp_path, label, message):
    images, labels = arrays
    wrong = np.where(np.arange(COUNT) == 7, label, labels)
    for pictures in ((images, wrong), tf.data.Dataset.from_tensor_slices((images, wrong))):
        with pytest.raises(ValueError, match=message):
            OverlayStore.build(tmp_path, teacher, pictures, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_every_picture_gets_its_own_map_and_logits_in_any_order(store, teacher, arrays):
    images, labels = arrays
    expected_maps, _ = integrated_gradients(teacher, images / 255.0, labels, n_steps=8)
    expected_maps = saliency_map(expected_maps)
    logits = keras.ops.convert_to_numpy(teacher(images / 255.0))
    numbered = tf.data.Dataset.from_tensor_slices(arrays).shuffle(COUNT, seed=1)
    seen = 0
    for pixels, targets in store.join(numbered).as_numpy_iterator():
        (index,) = np.flatnonzero((images == pixels[..., :3]).all(axis=(1, 2, 3)))
        assert targets["label"] == labels[index]
        np.testing.assert_allclose(targets["teacher_logits"], logits[index], atol=1e-4)
        own = expected_maps[index] / expected_maps[index].max()
        np.testing.assert_allclose(pixels[..., 3] / 255, own, atol=0.01)
        seen += 1
    assert seen == COUNT == len(store)


def test_a_second_build_opens_the_store_and_another_teacher_gets_another(store, teacher, arrays):
    home = store.folder.parent
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert (
        OverlayStore.build(home, teacher, tf.data.Dataset.from_tensor_slices(arrays), **SETTINGS).folder == store.folder
    )
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
    assert OverlayStore.build(home, classifier(1), arrays, **SETTINGS).folder != store.folder


def test_knowledge_comes_in_the_order_of_the_given_pictures(store, teacher, arrays):
    """The attribute is in the order of the hashes, which would mispair silently."""
    images, labels = arrays
    logits = keras.ops.convert_to_numpy(teacher(images / 255.0))
    assert np.abs(store.knowledge.logits - logits).max() > 0.1
    maps = saliency_map(integrated_gradients(teacher, images / 255.0, labels, n_steps=8)[0])
    order = np.random.default_rng(1).permutation(COUNT)[:30]
    order = np.append(order, order[0])  # a picture may come twice
    known = store.knowledge_of(images[order], labels[order, None])
    np.testing.assert_allclose(known.logits, logits[order], atol=1e-4)
    np.testing.assert_allclose(known.scales, maps.max(axis=(1, 2))[order], rtol=1e-3)
    np.testing.assert_allclose(known.maps * known.scales[:, None, None] / 255, maps[order], atol=0.01 * maps.max())
    assert known.usable.all() and known.errors.shape == (31,)
    for wrong, error, message in (
        ((255 - images, labels), UserError, "is not in the store"),
        ((images, (labels + 1) % CLASSES), UserError, "is in the store, but not with label"),
        ((images / 255.0, labels), ValueError, "multiply by 255, round and convert"),
        ((images, labels[1:]), ValueError, r"labels must be integers \[40\]"),
    ):
        with pytest.raises(error, match=message):
            store.knowledge_of(*wrong)


def test_join_takes_a_pair_of_arrays_and_keeps_its_order(store, teacher, arrays):
    images, labels = arrays[0][::-1], arrays[1][::-1]
    joined = [*store.join((images, labels[:, None])).as_numpy_iterator()]
    np.testing.assert_array_equal([pixels[..., :3] for pixels, _ in joined], images)
    np.testing.assert_array_equal([targets["label"] for _, targets in joined], labels)
    logits = keras.ops.convert_to_numpy(teacher(images / 255.0))
    np.testing.assert_allclose([targets["teacher_logits"] for _, targets in joined], logits, atol=1e-4)
    with pytest.raises(ValueError, match=r"a pair of arrays .* or a tf.data.Dataset, got ndarray"):
        store.join(images)


@pytest.mark.parametrize("give", [lambda pair: pair, tf.data.Dataset.from_tensor_slices])
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda images: images / np.float32(255), "got float32.*; multiply by 255, round and convert"),
        (lambda images: images.astype(np.float32), "values go to 255 already: round and convert, without a factor"),
        (lambda images: images.astype(np.int32), r"got int32.*; its values go to 255 already: convert with astype"),
    ],
)
def test_join_refuses_at_once_pictures_that_are_no_uint8(store, arrays, give, convert, message):
    images, labels = arrays
    with pytest.raises(ValueError, match=message):
        store.join(give((convert(images), labels)))


def test_verify_recomputes(store, teacher, arrays):
    assert store.verify(teacher, arrays, sample=10)["maps"] < 0.01
    with pytest.raises(UserError, match="another teacher"):
        store.verify(classifier(1), arrays)


def test_an_unknown_or_augmented_picture_is_refused(store, arrays):
    images, labels = arrays
    for pictures, message in (
        ((images[:, :, ::-1], labels), "is not in the store"),
        ((images, (labels + 1) % CLASSES), "not with label"),
    ):
        joined = store.join(tf.data.Dataset.from_tensor_slices(pictures))
        with pytest.raises(tf.errors.UnknownError, match=message):
            next(joined.as_numpy_iterator())


def test_labels_of_keras_datasets_have_a_column(store, teacher, arrays):
    """A data set of cifar10.load_data() has labels uint8 [1]; the store is that of the same labels without it."""
    images, labels = arrays
    pictures = tf.data.Dataset.from_tensor_slices((images, labels[:, None].astype(np.uint8)))
    assert OverlayStore.build(store.folder.parent, teacher, pictures, **SETTINGS).folder == store.folder
    targets = [targets["label"] for _, targets in store.join(pictures).as_numpy_iterator()]
    np.testing.assert_array_equal(targets, labels)


class Subclassed(keras.Model):
    """A teacher without a graph."""

    def __init__(self, activation=None):
        super().__init__()
        self.inner = [keras.layers.Flatten(), keras.layers.Dense(CLASSES, activation)]

    def call(self, inputs):
        return self.inner[1](self.inner[0](inputs))


def test_a_subclassed_teacher_has_the_maps_of_its_twin_with_a_graph(arrays, tmp_path):
    images, labels = arrays[0][:8], arrays[1][:8]
    subclassed = Subclassed()
    subclassed(images / np.float32(255))
    twin = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    twin.set_weights(subclassed.get_weights())
    mine, its = (OverlayStore.build(tmp_path, one, (images, labels), **SETTINGS) for one in (subclassed, twin))
    assert mine.folder != its.folder
    np.testing.assert_allclose(mine.knowledge.logits, its.knowledge.logits, atol=1e-5)
    np.testing.assert_allclose(mine.knowledge.maps, its.knowledge.maps, atol=1)
    assert mine.verify(subclassed, (images, labels), sample=4)["logits"] < 1e-4


def test_a_subclassed_teacher_that_ends_in_softmax_has_the_maps_of_its_twin_with_a_graph(arrays, tmp_path):
    """Its store holds the logarithms of its probabilities, not these themselves."""
    images, labels = arrays[0][:8], arrays[1][:8]
    softmax = Subclassed("softmax")
    shares = softmax(images / np.float32(255)).numpy()
    inputs = keras.Input((SIDE, SIDE, 3))
    flat = keras.layers.Dense(CLASSES)(keras.layers.Flatten()(inputs))
    twin = keras.Model(inputs, keras.ops.log_softmax(flat))
    twin.set_weights(softmax.get_weights())
    mine, its = (
        OverlayStore.build(tmp_path, one, (images, labels), outputs=outputs, **SETTINGS)
        for one, outputs in ((softmax, None), (keras.Sequential([twin, keras.layers.Identity()]), "logits"))
    )
    rows = [mine._row(image, label) for image, label in zip(images, labels, strict=True)]
    np.testing.assert_allclose(mine.knowledge.logits[rows], np.log(shares), atol=1e-4)
    np.testing.assert_allclose(mine.knowledge.maps, its.knowledge.maps, atol=1)
    assert mine.verify(softmax, (images, labels), sample=4)["logits"] < 1e-4


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ((np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, int)), "uint8"),
        ((np.zeros((4, 8, 8, 3), np.uint8), np.zeros(3, int)), "labels must be integers"),
        (tf.data.Dataset.from_tensor_slices((np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int))).batch(2), "batch"),
        (tf.data.Dataset.from_tensor_slices((np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int))), "no pictures"),
        ((np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int)), "no pictures"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"a pair of arrays \(images, labels\) or a tf.data.Dataset, got ndarray"),
        ((np.ones((4, 8, 8, 3), np.float32), np.zeros(4, int)), "multiply by 255, round and convert"),
        ((np.zeros((4, 8, 8, 3), np.uint8), np.eye(4)), r"take argmax\(axis=1\)"),
        (
            (np.zeros((4, 9, 9, 3), np.uint8), np.zeros(4, int)),
            r"\(8, 8, 3\), the pictures are \(9, 9, 3\); resize them",
        ),
    ],
)
def test_invalid_pictures_are_refused(teacher, pictures, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        OverlayStore.build(tmp_path, teacher, pictures)


@pytest.mark.parametrize("give", [lambda pair: pair, tf.data.Dataset.from_tensor_slices])
def test_gray_pictures_are_refused_with_what_helps(teacher, arrays, give, tmp_path):
    images, labels = arrays
    with pytest.raises(ValueError, match=r"got gray ones \(8, 8, 1\); make them RGB with tf.image.grayscale_to_rgb"):
        OverlayStore.build(tmp_path, teacher, give((images[..., :1], labels)), **SETTINGS)


def test_elements_that_are_no_pairs_are_refused_with_what_makes_pairs(store, teacher, arrays, tmp_path):
    images, labels = arrays
    slices = tf.data.Dataset.from_tensor_slices
    for call in (store.join, lambda pictures: OverlayStore.build(tmp_path, teacher, pictures, **SETTINGS)):
        with pytest.raises(ValueError, match=r"got 3 parts; pictures.map\(lambda image, label, \*_"):
            call(slices((images, labels, np.ones(COUNT))))
        with pytest.raises(
            ValueError, match=r'got a dictionary; pictures.map\(lambda x: \(x\["image"\], x\["label"\]\)\)'
        ):
            call(slices({"image": images, "label": labels}))
        with pytest.raises(ValueError, match="got a picture"):
            call(slices(images))
    with pytest.raises(ValueError, match=r"got shape \(4,\); of one-hot labels take tf.argmax"):
        store.join(slices((images, np.eye(4)[labels])))


def test_batch_comes_after_join_and_before_overlay(store, arrays):
    """A picture's rows are no batch: each would be overlaid by itself."""
    pictures = tf.data.Dataset.from_tensor_slices(arrays)
    with pytest.raises(ValueError, match=r"^join takes single .*\(None, 8, 8, 3\); call batch\(\) after it$"):
        store.join(pictures.batch(4))
    joined = store.join(pictures)
    with pytest.raises(ValueError, match=r"^overlay takes batches .*\(8, 8, 4\); call batch\(\) before it$"):
        joined.map(store.overlay(0.1))
    images, _ = next(joined.batch(4).map(store.overlay(0.0)).as_numpy_iterator())
    np.testing.assert_array_equal(images, arrays[0][:4] / np.float32(255))


def test_a_teacher_that_is_no_model_or_takes_gray_images_is_refused_with_what_helps(arrays, tmp_path):
    with pytest.raises(ValueError, match=r"must be a Keras model, got str; keras.saving.load_model"):
        OverlayStore.build(tmp_path, "teacher.keras", arrays)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]
    gray = keras.Sequential([keras.Input((SIDE, SIDE, 1)), *layers])
    images, labels = arrays[0][:8], arrays[1][:8, None]
    with pytest.raises(ValueError, match=r"with_rgb\(teacher\) is the same teacher for RGB pictures"):
        OverlayStore.build(tmp_path, gray, (images, labels))
    store = OverlayStore.build(tmp_path, with_rgb(gray), (images, labels), **SETTINGS)
    expected = gray(to_gray(images / np.float32(255))).numpy()
    rows = [store._row(image, label) for image, label in zip(images, labels[:, 0], strict=True)]
    np.testing.assert_allclose(store.knowledge.logits[rows], expected, atol=1e-4)


def test_pictures_of_several_sizes_are_refused_with_their_sizes(teacher, tmp_path):
    pictures = [np.zeros((6 + number % 2, 8, 3), np.uint8) for number in range(5)]
    objects = np.empty(5, object)
    objects[:] = pictures
    signature = (tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    stream = tf.data.Dataset.from_generator(lambda: zip(pictures, range(5), strict=True), output_signature=signature)
    message = r"of 2 sizes, \(6, 8, 3\), \(7, 8, 3\); resize them to one"
    for given in (stream, (pictures, np.zeros(5, int)), (objects, np.zeros(5, int))):
        with pytest.raises(ValueError, match=message):
            OverlayStore.build(tmp_path, teacher, given, **SETTINGS)


@pytest.mark.parametrize("give", [np.asarray, tf.constant])
def test_an_array_is_no_baseline_of_a_store(teacher, arrays, give, tmp_path):
    with pytest.raises(UserError, match=r"baseline must be one of 'black', .*, got an array of shape \(8, 8, 3\)$"):
        OverlayStore.build(tmp_path, teacher, arrays, baseline=give(np.zeros((SIDE, SIDE, 3), np.float32)))
    with pytest.raises(UserError, match=r"n_steps must be of type int, got an array of shape \(2,\)"):
        OverlayStore.build(tmp_path, teacher, arrays, n_steps=give(np.array([2, 4])))


def test_a_corrupt_shard_is_computed_anew_once_it_and_the_manifest_are_deleted(teacher, arrays, tmp_path):
    store = OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS)
    first, *others = sorted(store.folder.glob("*.tfrecord"))
    before, times = first.read_bytes(), [path.stat().st_mtime_ns for path in others]
    first.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    for use in (OverlayStore, lambda folder: OverlayStore.build(folder.parent, teacher, arrays, **SETTINGS)):
        with pytest.raises(UserError, match=r"is corrupt.*; delete both and run again what made them$"):
            use(store.folder)
    first.unlink()
    (store.folder / "manifest.json").unlink()
    again = OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS)
    assert first.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in others] == times
    np.testing.assert_array_equal(again.knowledge.maps, store.knowledge.maps)


def test_a_renamed_store_says_its_name_and_opens_under_it(teacher, arrays, tmp_path):
    store = OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS)
    renamed = store.folder.rename(tmp_path / "maps")
    with pytest.raises(UserError, match=f"not named by its fingerprint; rename it to {store.folder.name}$"):
        OverlayStore(renamed)
    (tmp_path / "elsewhere").mkdir()
    back = OverlayStore(renamed.rename(tmp_path / "elsewhere" / store.folder.name))
    np.testing.assert_array_equal(back.knowledge.logits, store.knowledge.logits)
    assert back.verify(teacher, arrays, sample=4)["maps"] < 0.01


def test_unknown_settings_and_folders_without_a_store_are_refused(teacher, arrays, tmp_path):
    with pytest.raises(UserError, match="attribution"):
        OverlayStore.build(tmp_path, teacher, arrays, steps=8)
    with pytest.raises(UserError, match=r"no finished store.*; OverlayStore.build makes one"):
        OverlayStore(tmp_path)
    store = OverlayStore.build(tmp_path, teacher, arrays, n_steps=2, max_steps=2)
    with pytest.raises(UserError, match=f"the stores in it are {store.folder.name}"):
        OverlayStore(tmp_path)
    assert len(OverlayStore(store.folder)) == len(store)
    with pytest.raises(ValueError, match="probability"):
        OverlayStore.overlay(1.5)


@pytest.mark.parametrize("largest", [np.inf, np.nan])
def test_an_exponent_that_is_no_number_is_refused(largest):
    with pytest.raises(ValueError, match="0 < min_exponent <= max_exponent < inf"):
        OverlayStore.overlay(max_exponent=largest)


def test_a_live_teacher_runs_on_batches_without_stored_logits(store, teacher, arrays):
    """It sees the pictures without overlays; beside stored logits, of which it would know nothing, it is refused."""
    pictures = tf.data.Dataset.from_tensor_slices(arrays)
    other, images = classifier(5), arrays[0] / np.float32(255)

    def fit(student, live, **options):
        batches = store.join(pictures, **options).batch(COUNT).map(OverlayStore.overlay(1.0, max_exponent=1.0))
        losses = {"kd": KLDivergence(1.0)}
        distiller = Distiller(student, losses=losses, loss_weights={"kd": 0.5}, teacher=live)
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
        overlaid = next(iter(batches))[0]
        return distiller.fit(batches, shuffle=False, verbose=0).history["kd_loss"][0], student(overlaid)

    for live, options in ((None, {}), (other, {"logits": False})):
        found, logits = fit(classifier(2), live, **options)
        taught = keras.ops.log_softmax((live or teacher)(images))
        own = keras.ops.log_softmax(logits)
        expected = np.mean(np.sum(np.exp(taught) * (taught - own), axis=-1))
        assert found == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match=r"the live teacher would never run, .*join\(pictures, logits=False\)"):
        fit(classifier(2), other)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_overlay_is_half_image_half_map(probability):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, SIDE, SIDE, 4), np.uint8)
    pixels[0, ..., 3] = 0  # an empty map
    lay = OverlayStore.overlay(probability, max_exponent=1.0)
    images, targets = lay(tf.constant(pixels), {"label": 1})
    assert targets["label"] == 1
    # a live teacher sees the picture, not its overlay
    np.testing.assert_array_equal(targets["teacher_inputs"], pixels[..., :3] / np.float32(255))
    plain = pixels[..., :3] / np.float32(255)
    maps = pixels[..., 3:].astype(np.float32)
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    blended = 0.5 * plain + 0.5 * (maps - low) / np.where(high > low, high - low, 1)
    blended[0] = plain[0]
    np.testing.assert_allclose(images, blended if probability else plain, atol=1e-6)


@pytest.mark.parametrize("parallel", [None, 4, tf.data.AUTOTUNE])
def test_draws_do_not_depend_on_threads_and_are_new_in_each_epoch(store, arrays, parallel):
    pictures = store.join(arrays).batch(4)

    def epochs(seed, calls):
        batches = pictures.map(OverlayStore.overlay(0.5, seed=seed), num_parallel_calls=calls)
        return [np.concatenate([images for images, _ in batches.as_numpy_iterator()]) for _ in range(3)]

    first, second, third = epochs(1, None)
    np.testing.assert_array_equal(epochs(1, parallel), [first, second, third])
    for one, other in ((first, second), (second, third), (first, epochs(2, None)[0])):
        assert 5 < (one != other).any(axis=(1, 2, 3)).sum() < COUNT
    overlaid = [(one != arrays[0] / np.float32(255)).any(axis=(1, 2, 3)).sum() for one in (first, second, third)]
    assert 40 < sum(overlaid) < 80  # of 120


def test_draws_follow_from_the_seed_and_the_pixels_whichever_batch_comes_first():
    batches = np.random.default_rng(0).integers(0, 256, (6, 32, SIDE, SIDE, 4), np.uint8)

    def overlaid(order):
        lay, found = OverlayStore.overlay(0.5, seed=3), {}
        for index in order:
            found[index] = lay(tf.constant(batches[index]), 0)[0].numpy()
        return np.stack([found[index] for index in range(6)])

    np.testing.assert_array_equal(overlaid(range(6)), overlaid([3, 5, 0, 1, 4, 2]))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_fractions_are_refused_and_floats_to_255_are_exact(dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 4), np.uint8)
    expected = OverlayStore.overlay(1.0, max_exponent=1.0)(tf.constant(pixels), 0)[0]
    images, _ = OverlayStore.overlay(1.0, max_exponent=1.0)(tf.cast(pixels, dtype), 0)
    np.testing.assert_array_equal(images, expected)
    fractions = tf.cast(pixels / 255, dtype)
    message = "overlay takes pixels from 0 to 255, got fractions up to 1.00; leave out the division by 255"
    with pytest.raises(ValueError, match=message):
        OverlayStore.overlay(1.0)(fractions, 0)
    batches = tf.data.Dataset.from_tensors((fractions, 0)).map(OverlayStore.overlay(1.0))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        next(batches.as_numpy_iterator())
    dark = tf.cast(pixels > 127, dtype)  # 0 and 1 of 255
    images, _ = OverlayStore.overlay(0.0)(dark, 0)
    np.testing.assert_array_equal(images, dark[..., :3].numpy().astype(np.float32) / np.float32(255))
    assert not OverlayStore.overlay(1.0)(tf.zeros((2, SIDE, SIDE, 4), dtype), 0)[0].numpy().any()


def test_sample_weights_pass_through_the_overlay(store, arrays):
    weighted = store.join(arrays).batch(COUNT).map(lambda x, y: (x, y, tf.cast(y["label"], tf.float32)))
    images, targets, weights = next(weighted.map(store.overlay(0.0)).as_numpy_iterator())
    np.testing.assert_array_equal(images, arrays[0] / np.float32(255))
    np.testing.assert_array_equal(targets["teacher_inputs"], images)
    np.testing.assert_array_equal(weights, arrays[1])


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # Keras's own, of every tf.data.Dataset
def test_the_readme_example_runs_as_it_stands(teacher, arrays, tmp_path, monkeypatch):
    text = (Path(tfigkd.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?OverlayStore.*?)```", text, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    monkeypatch.chdir(tmp_path)
    student = classifier(2)
    before = [weight.copy() for weight in student.get_weights()]
    images, labels = arrays
    scope = {"teacher": teacher, "student": student, "x_train": images, "y_train": labels}
    scope |= {"x_test": images[:6], "y_test": labels[:6]}
    exec(compile(example, "README.md", "exec"), scope)
    assert not all(np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True))
    assert scope["attributions"].shape == (6, SIDE, SIDE, 3)


def test_a_teacher_of_equal_weights_but_another_function_gets_its_own_store(arrays, tmp_path):
    """Another activation changes no weight; the old store must not be handed out."""
    teachers = classifier(0), classifier(0, "tanh")
    logits = teachers[0]
    assert weights_fingerprint(teachers[0]) == weights_fingerprint(teachers[1])
    stores = [OverlayStore.build(tmp_path, model, arrays, **SETTINGS) for model in teachers]
    assert stores[0].folder != stores[1].folder
    pictures, _ = arrays
    for store, model in zip(stores, teachers, strict=True):
        expected = keras.ops.convert_to_numpy(model(pictures / 255.0))
        rows = [store._row(image, int(label)) for image, label in zip(*arrays, strict=True)]
        np.testing.assert_allclose(store.knowledge.logits[rows], expected, atol=1e-4)
    # names of layers are no part of a function: the same architecture built anew finds its store
    again = classifier(1)
    again.set_weights(logits.get_weights())
    assert OverlayStore.build(tmp_path, again, arrays, **SETTINGS).folder == stores[0].folder


def test_a_store_of_an_earlier_version_is_used_if_its_records_are_those_of_the_teacher(arrays, tmp_path):
    """Its folder is named without the architecture, so its records decide."""
    teacher, examples, config = classifier(0), identify(*arrays), AttributionConfig(**SETTINGS)
    identity = store_identity(weights_fingerprint(teacher), splits_fingerprint({"train": examples}), config)
    before = tmp_path / fingerprint(identity)
    before.mkdir()
    write_store(before, teacher, examples, baseline_color(config, examples), config, identity, source={})
    assert OverlayStore.build(tmp_path, teacher, arrays, **SETTINGS).folder == before.resolve()
    assert OverlayStore.build(tmp_path, classifier(0, "tanh"), arrays, **SETTINGS).folder != before.resolve()

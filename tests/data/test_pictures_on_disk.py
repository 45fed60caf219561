"""Pictures on disk: the same data, batches and students as in memory; each picture is decoded once."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.config.fields import ControlConfig, OverlayConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples, concatenate, load, mean_color
from tfigkd.data import decoded as module
from tfigkd.data.decoded import FOLDER
from tfigkd.data.disk import DiskPictures, blocks, join, pick
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.data.pictures import digest
from tfigkd.data.spaces import to_gray
from tfigkd.measure.metrics import mirrored_accuracy, predict_logits
from tfigkd.runtime.errors import UserError

COUNT, CLASSES = 90, ("ant", "bee", "cat")
STAGES = ("distill", "export", "evaluate")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 9, 7, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    root = tmp_path / "pictures"
    for index, picture in enumerate(pixels):
        path = root / ("test" if index % 5 == 0 else "train") / CLASSES[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        alpha = np.full((9, 7, 1), 100, np.uint8)
        Image.fromarray(np.concatenate([picture, alpha], axis=-1) if index == 4 else picture).save(path)
    return root


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 16 * 9 * 7 * 3)
    monkeypatch.setattr("tfigkd.data.sources.BLOCK", 16)
    monkeypatch.setattr("tfigkd.data.npz.BLOCK", 16)


def as_table(folder):
    with open(folder / "table.csv", "w", newline="") as file:
        rows = [[path.relative_to(folder), path.parent.name, path.parts[-3]] for path in sorted(folder.rglob("*.png"))]
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return folder / "table.csv"


def as_npz(folder, pixels, gray=False):
    arrays = {"x_train": pixels[:60], "y_train": np.arange(60) % 3, "x_test": pixels[60:], "y_test": np.arange(30) % 3}
    if gray:
        arrays |= {"x_train": pixels[:60, ..., 0], "x_test": pixels[60:, ..., :1]}
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def same(one, other):
    assert (one.fingerprint, one.notes, one.class_names) == (other.fingerprint, other.notes, other.class_names)
    for split in ("train", "validation", "test"):
        left, right = getattr(one, split), getattr(other, split)
        assert isinstance(left.images, np.ndarray) and isinstance(right.images, DiskPictures)
        for name in ("ids", "images", "labels", "source_ids"):
            np.testing.assert_array_equal(getattr(left, name), np.asarray(getattr(right, name)))


@pytest.mark.parametrize("kind", ["folder", "csv", "npz", "gray"])
@pytest.mark.parametrize("size", [None, 6])
def test_the_same_data_as_in_memory(folder, pixels, small_blocks, kind, size):
    make = {"folder": lambda: folder, "csv": lambda: as_table(folder), "npz": lambda: as_npz(folder, pixels)}
    make["gray"] = lambda: as_npz(folder, pixels, gray=True)
    name = str(make[kind]())
    same(load(name, Reading(image_size=size)), load(name, Reading(image_size=size, resident="disk")))
    assert any((folder / FOLDER).glob("*.pixels"))


@pytest.mark.parametrize("size", [None, 6])
def test_the_same_data_of_tfds(tmp_path, pixels, monkeypatch, size):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=CLASSES)}),
        split_datasets={
            split: ((index, {"image": pixels[index], "label": index % 3}) for index in chosen)
            for split, chosen in (("train", range(60)), ("test", range(60, COUNT)))
        },
    )
    expected, attempt = load("tiny", Reading(image_size=size), directory=str(tmp_path)), module.attempt

    def stopping(encoded, name, wanted):
        if name.startswith("test"):
            raise KeyboardInterrupt
        return attempt(encoded, name, wanted)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "attempt", stopping)
        load("tiny", Reading(image_size=size, resident="disk"), directory=str(tmp_path))
    same(expected, load("tiny", Reading(image_size=size, resident="disk"), directory=str(tmp_path)))


def test_tfds_data_that_are_prepared_anew_are_decoded_anew(tmp_path, pixels):
    """tfds orders records by the hash of their keys, such as paths, of which dataset_info.json says nothing."""
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    reading = Reading(resident="disk", cache=str(tmp_path / "cache"))

    def prepared(place):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="tiny",
            version="1.0.0",
            data_dir=tmp_path / place,
            features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=CLASSES)}),
            split_datasets={
                "train": ((f"{place}/{index}", {"image": pixels[index], "label": index % 3}) for index in range(60))
            },
        )
        return str(tmp_path / place)

    places = [prepared(place) for place in ("old", "new")]
    infos = [tmp_path / place / "tiny/1.0.0/dataset_info.json" for place in ("old", "new")]
    assert infos[0].read_bytes() == infos[1].read_bytes()
    for place in places:
        same(load("tiny", directory=place), load("tiny", reading, directory=place))


def test_large_splits_go_to_disk_by_themselves(folder, monkeypatch):
    assert isinstance(load(str(folder)).train.images, np.ndarray)
    monkeypatch.setattr("tfigkd.data.sources.free_memory", lambda: 4 * 40 * 9 * 7 * 3)
    data = load(str(folder))
    assert isinstance(data.train.images, DiskPictures)
    assert isinstance(data.test.images, np.ndarray)  # 18 pictures fit


def test_a_split_on_disk_is_joined_with_one_in_memory(folder, monkeypatch):
    shutil.move(folder / "test", folder / "validation")
    splits = SplitsConfig(validation="validation")
    expected = load(str(folder), Reading(splits=splits))
    monkeypatch.setattr("tfigkd.data.sources.free_memory", lambda: 4 * 40 * 9 * 7 * 3)
    found = load(str(folder), Reading(splits=splits))
    assert found.fingerprint == expected.fingerprint
    for mine, its in ((found.train, expected.train), (found.validation, expected.validation)):
        np.testing.assert_array_equal(mine.images[:], its.images[:])
    both, whole = concatenate([found.validation, found.test]), concatenate([expected.validation, expected.test])
    np.testing.assert_array_equal(both.take(slice(3, 9)).images[:], whole.take(slice(3, 9)).images[:])


def test_pictures_are_decoded_once(folder, small_blocks, monkeypatch):
    first = load(str(folder), Reading(resident="disk"))

    def refuse(*_, **__):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "attempt", refuse)
        assert load(str(folder), Reading(resident="disk")).fingerprint == first.fingerprint
    picture = folder / "train" / "ant" / "03.png"
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(picture)
    assert load(str(folder), Reading(resident="disk")).fingerprint != first.fingerprint


@pytest.mark.parametrize("end", ["", '{"shape": [9, 7', "pixels"])
def test_an_interrupted_decoding_goes_on(folder, small_blocks, monkeypatch, end):
    expected, tried = load(str(folder)), []
    attempt = module.attempt

    def stopping(encoded, name, wanted):
        tried.append(name)
        if len(tried) > 40:
            raise KeyboardInterrupt
        return attempt(encoded, name, wanted)

    monkeypatch.setattr(module, "attempt", stopping)
    with pytest.raises(KeyboardInterrupt):
        load(str(folder), Reading(resident="disk"))
    (journal,) = (folder / FOLDER).glob("*.journal")
    written = [len(json.loads(line)["digests"]) for line in journal.read_text().splitlines()]
    assert sum(written) == 32
    with open(journal.with_suffix(".pixels") if end == "pixels" else journal, "a") as file:
        file.write(end)
    tried.clear()
    monkeypatch.setattr(
        module, "attempt", lambda encoded, name, wanted: tried.append(name) or attempt(encoded, name, wanted)
    )
    same(expected, load(str(folder), Reading(resident="disk")))
    assert len(tried) == COUNT - 32


def refused(folder, message, **reading):
    with pytest.raises(UserError, match=message) as error:
        load(str(folder), Reading(resident="disk", **reading))
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(folder, small_blocks):
    load(str(folder), Reading(resident="disk"))
    kept = sorted((folder / FOLDER).iterdir())
    for path in kept:
        if path.suffix not in (".pixels", ".journal", ".json"):
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        refused(folder, "damaged.*decoded again")
        path.write_bytes(whole)
    load(str(folder), Reading(resident="disk"))


def test_changed_pixels_are_refused_when_they_are_read(folder):
    """A file of the right size; each picture is compared with its hash once in a process."""

    def read():
        data = load(str(folder), Reading(resident="disk"))
        return concatenate([data.train, data.validation, data.test]).images[:]

    expected = read()
    path = next((folder / FOLDER).glob("*.pixels"))
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"\.pixels is damaged; delete .*\.json and .*\.journal, so that"):
        read()
    path.write_bytes(whole)
    np.testing.assert_array_equal(read(), expected)


def test_a_file_that_is_cut_while_it_is_read(folder):
    data = load(str(folder), Reading(resident="disk"))
    for path in (folder / FOLDER).glob("*.pixels"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        data.train.images[:]


@pytest.mark.parametrize("deleted", ["pixels", "journal"])
def test_deleted_files_are_made_anew(folder, small_blocks, deleted):
    expected = load(str(folder))
    load(str(folder), Reading(resident="disk"))
    for path in (folder / FOLDER).iterdir():
        if path.suffix in (".json", f".{deleted}"):
            path.unlink()
    same(expected, load(str(folder), Reading(resident="disk")))


def test_a_finished_cache_needs_no_place_to_write(folder, small_blocks, monkeypatch):
    expected = load(str(folder), Reading(resident="disk")).fingerprint
    monkeypatch.setattr(module, "locked", None)
    assert load(str(folder), Reading(resident="disk")).fingerprint == expected


def test_arrays_in_fortran_order_are_refused(folder, pixels):
    arrays = {"x_train": np.asfortranarray(pixels), "y_train": np.arange(COUNT) % 3}
    np.savez(folder / "f.npz", **arrays, x_test=pixels, y_test=np.arange(COUNT) % 3)
    refused(folder / "f.npz", "Fortran order")


def test_unusable_pictures_are_named_as_in_memory(folder, small_blocks, capsys):
    for name in ("01", "32", "88"):
        (path,) = folder.rglob(f"{name}.png")
        path.write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        load(str(folder))
    said = capsys.readouterr().out
    refused(folder, re.escape(str(error.value)))
    assert capsys.readouterr().out == said != ""
    assert not list((folder / FOLDER).glob("*.json"))


def test_pictures_of_other_sizes_are_refused(folder, small_blocks):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "train" / "cat" / "98.png")
    refused(folder, "pictures differ in size: .* is 7x9, .*98.png is 5x5; give --image-size")
    load(str(folder), Reading(resident="disk", image_size=6))


def test_a_full_disk_and_a_folder_that_cannot_be_made(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refused(folder, "cannot be kept in .*; name a folder in --cache", cache=str(tmp_path / "file" / "x"))
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(folder, "on disk, .* has 0.0; make room")


def test_another_folder(folder, tmp_path):
    load(str(folder), Reading(resident="disk", cache=str(tmp_path / "elsewhere")))
    assert any((tmp_path / "elsewhere").glob("*.pixels"))
    assert not (folder / FOLDER).exists()


@pytest.fixture(scope="module")
def two(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("disk") / "a.pixels"
    path.write_bytes(pixels.tobytes())
    return pixels, DiskPictures.of(path, np.array([digest(one) for one in pixels]), pixels.shape[1:])


INDEX = st.one_of(
    st.integers(-COUNT, COUNT - 1),
    st.slices(COUNT),
    st.lists(st.integers(-COUNT, COUNT - 1), max_size=9).map(lambda chosen: np.array(chosen, np.int64)),
    st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).map(lambda chosen: np.array(chosen)),
)


@settings(max_examples=60)
@given(first=INDEX, rest=st.sampled_from([(), (slice(2, 5),), (slice(None), slice(None, None, -1)), (..., 0)]))
def test_they_are_indexed_as_arrays_are(two, first, rest):
    array, on_disk = two
    np.testing.assert_array_equal(on_disk[(first, *rest)], array[(first, *rest)])
    if not isinstance(first, int):
        picked = pick(on_disk, first)
        assert picked.shape == array[first].shape
        np.testing.assert_array_equal(picked[:], array[first])
        np.testing.assert_array_equal(join([picked, on_disk])[:], np.concatenate([array[first], array]))


def test_gray_pictures_are_converted_when_they_are_read(two):
    array, on_disk = two
    gray = to_gray(on_disk)
    assert isinstance(gray, DiskPictures) and gray.shape == (*array.shape[:3], 1)
    for key in (3, slice(4), np.array([5, 1])):
        np.testing.assert_array_equal(gray[key], to_gray(array)[key])
    np.testing.assert_array_equal(join([pick(gray, slice(3)), gray])[2:5], to_gray(array[[2, 0, 1]]))


def test_blocks_and_iteration(two):
    array, on_disk = two
    np.testing.assert_array_equal(np.concatenate(list(blocks(on_disk, 32))), array)
    np.testing.assert_array_equal(np.stack(list(on_disk)), array)


def both(folder):
    memory, on_disk = load(str(folder)), load(str(folder), Reading(resident="disk"))
    return [concatenate([data.train, data.validation]) for data in (memory, on_disk)]


SWAPPED = {"view": ViewConfig("live"), "control": ControlConfig(logits="shuffled")}


@pytest.mark.parametrize(("recipe", "options"), [({}, {}), ({"mixup": 0.4}, {}), ({"cutout": 3}, {}), ({}, SWAPPED)])
def test_the_same_batches_bit_by_bit(folder, recipe, options):
    epochs = []
    for examples in both(folder):
        assert isinstance(examples.take(slice(3)), Examples)
        count = len(examples)
        maps = np.random.default_rng(1).integers(0, 256, (count, 9, 7), dtype=np.uint8)
        usable = np.arange(count) % 7 > 0
        knowledge = Knowledge(np.zeros((count, 3), np.float32), maps, np.ones(count), np.zeros(count), usable)
        stream = TrainingBatches(
            examples,
            TrainingConfig(batch_size=16, **recipe),
            AugmentConfig(crop_padding=2),
            seed=3,
            targets=TeacherTargets(knowledge),
            overlay=OverlayConfig(probability=0.5),
            wanted=("teacher_map", "teacher_inputs"),
            **options,
        )(2)
        epochs.append([next(stream) for _ in range(10)])
    for (left, its), (right, others) in zip(*epochs, strict=True):
        np.testing.assert_array_equal(left, right)
        assert its.keys() == others.keys()
        for name in its:
            np.testing.assert_array_equal(its[name], others[name])


def test_the_same_figures(folder):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((9, 7, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    memory, on_disk = both(folder)
    np.testing.assert_array_equal(mean_color(memory), mean_color(on_disk))
    np.testing.assert_array_equal(
        mean_color(memory), memory.images.mean(axis=(0, 1, 2), dtype=np.float64).astype("f") / 255
    )
    one = predict_logits(model, memory.images, batch_size=32)
    np.testing.assert_array_equal(one, predict_logits(model, on_disk.images, batch_size=32))
    np.testing.assert_allclose(one, model(memory.images.astype("f") / 255), atol=1e-5)
    scores = [
        mirrored_accuracy(lambda images: predict_logits(model, images), x.images, one, x.labels)
        for x in (memory, on_disk)
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_run_gives_the_same_student(folder, tmp_path):
    """All stages, with maps, views on disk and in memory: equal weights, equal logits of the files."""
    from tfigkd.run import main

    settings = {"teacher.training.epochs": 2, "training.epochs": 2, "attribution.n_steps": 4, "data.image_size": 16}
    settings |= {"attribution.tolerance": 10, "export.min_int8_agreement": 0, "student.width": 0.25}
    settings |= {
        "teacher.width": 0.25,
        "student.drop_blocks": 14,
        "overlay.probability": 0.5,
        "view.kind": "views",
        "evaluation.attribution_examples": 8,
    }
    found = []
    for resident in ("memory", "disk"):
        arguments = ["--experiment", "quickstart", "--data.name", str(folder), "--data.resident", resident]
        arguments += ["--stages", "data,teacher,overlays,distill,export,evaluate"]
        arguments += ["--workdir", str(tmp_path / resident), "--teachers", str(tmp_path / f"teachers_{resident}")]
        arguments += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        assert main(arguments) == 0
        manifests = [json.loads((tmp_path / resident / stage / "manifest.json").read_text()) for stage in STAGES]
        found.append((manifests[0]["weights"], manifests[1]["files"], manifests[2]["results"]))
    assert found[0] == found[1]

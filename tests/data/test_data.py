"""The data module: ids and splits depend only on pixels and labels, not on the source and its order."""

import hashlib
import http.server
import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfigkd import data
from tfigkd.config.data_fields import Reading
from tfigkd.data import catalog, pictures
from tfigkd.runtime.errors import UserError


def _arrays(count: int = 60, classes: int = 3, size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return {
        "x_train": generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "y_train": labels,
        "x_test": generator.integers(0, 256, (count // 3, size, size, 3), dtype=np.uint8),
        "y_test": labels[: count // 3],
    }


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(path, **arrays)
    return str(path)


def _save_folder(root: Path, arrays: dict[str, np.ndarray], held_out: str = "test") -> str:
    for split, folder in (("train", "train"), ("test", held_out)):
        for index, (image, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)):
            path = root / folder / f"class{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return str(root)


def _save_tfds(root: Path, arrays: dict[str, np.ndarray], held_out: str = "test") -> str:
    import tensorflow_datasets as tfds

    def records(split: str):
        pairs = zip(arrays[f"x_{split}"], arrays[f"y_{split}"], strict=True)
        return ((index, {"image": image, "label": int(label)}) for index, (image, label) in enumerate(pairs))

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=root,
        features=features,
        split_datasets={"train": records("train"), held_out: records("test")},
    )
    return "tiny"


def test_float_images_of_tfds_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(4, 4, 1), dtype=np.float32), tfds.features.ClassLabel(num_classes=2)
    records = [(index, {"image": np.full((4, 4, 1), 0.5, np.float32), "label": index % 2}) for index in range(8)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="floats",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": records, "test": records},
    )
    _refused("the image 'image' holds float32; expected uint8", "floats", directory=str(tmp_path))


def test_a_home_folder_of_nobody_is_refused():
    _refused("~nosuch/x: no home folder of this user is known", "~nosuch/x")


def _assert_same(left: data.Dataset, right: data.Dataset) -> None:
    for split in ("train", "validation", "test"):
        one, other = getattr(left, split), getattr(right, split)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert left.fingerprint == right.fingerprint


def _refused(match: str, name: str | Path, *, directory=None, limit=None, download=True, **reading) -> None:
    """Assert that loading ends in one line that matches."""
    with pytest.raises(UserError, match=match) as caught:
        data.load(str(name), Reading(**reading), directory=directory, limit=limit, download=download)
    assert len(str(caught.value).splitlines()) == 1


# The contract


def test_ids_are_hashes_of_pixels_and_splits_are_sorted(tmp_path):
    arrays = _arrays()
    dataset = data.load(_save_npz(tmp_path / "a.npz", arrays))
    for examples in (dataset.train, dataset.validation, dataset.test):
        assert list(examples.ids) == sorted(set(examples.ids))
        for id_, image in zip(examples.ids, examples.images, strict=True):
            assert id_ == hashlib.sha256(image.tobytes()).hexdigest()[:16]
        assert examples.images.dtype == np.uint8
        assert examples.labels.dtype == np.int64
    assert dataset.image_shape == (4, 4, 3)
    assert dataset.num_classes == 3
    label_of = {image.tobytes(): label for image, label in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    assert all(
        label_of[image.tobytes()] == label
        for image, label in zip(dataset.train.images, dataset.train.labels, strict=True)
    )


@given(counts=st.lists(st.integers(2, 35), min_size=2, max_size=4))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_validation_is_the_tenth_of_each_class_that_sorts_first(tmp_path, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(sum(counts)).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:1], "y_test": labels[:1]}
    dataset = data.load(_save_npz(tmp_path / "a.npz", arrays))
    for label, count in enumerate(counts):
        held = dataset.validation.ids[dataset.validation.labels == label]
        kept = dataset.train.ids[dataset.train.labels == label]
        assert len(held) == max(count // 10, 1)
        assert len(held) + len(kept) == count
        assert max(held) < min(kept)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_source_order_does_not_matter_even_with_duplicates(tmp_path, seed):
    arrays = _arrays()
    arrays["x_train"][20:35] = arrays["x_train"][0]
    order = np.random.default_rng(seed).permutation(60)
    permuted = arrays | {"x_train": arrays["x_train"][order], "y_train": arrays["y_train"][order]}
    _assert_same(data.load(_save_npz(tmp_path / "a.npz", arrays)), data.load(_save_npz(tmp_path / "b.npz", permuted)))


def test_duplicates_are_numbered_in_the_order_of_their_labels(tmp_path):
    arrays = _arrays()
    arrays["x_train"][[4, 5, 6]] = arrays["x_train"][5]  # labels 1, 2, 0
    dataset = data.load(_save_npz(tmp_path / "a.npz", arrays))
    digest = hashlib.sha256(arrays["x_train"][5].tobytes()).hexdigest()[:16]
    everything = data.concatenate([dataset.train, dataset.validation])
    label_of = dict(zip(everything.ids, everything.labels, strict=True))
    assert [label_of[digest + suffix] for suffix in ("", "-1", "-2")] == [0, 1, 2]
    assert len(label_of) == 60


def test_test_pictures_seen_in_training_are_counted(tmp_path):
    arrays = _arrays()
    assert data.load(_save_npz(tmp_path / "a.npz", arrays)).test_train_overlap == 0
    arrays["x_test"][:4] = arrays["x_train"][[0, 0, 7, 8]]
    assert data.load(_save_npz(tmp_path / "b.npz", arrays)).test_train_overlap == 4


def test_equal_pictures_with_different_labels_are_named(tmp_path):
    arrays = _arrays()
    arrays["x_test"][3] = arrays["x_train"][3]  # both of label 0
    assert data.load(_save_npz(tmp_path / "a.npz", arrays)).notes == ()
    arrays["x_train"][[7, 8]] = arrays["x_train"][8]  # labels 1 and 2
    arrays["x_test"][0] = arrays["x_train"][8]  # label 0
    (note,) = data.load(_save_folder(tmp_path / "b", arrays)).notes
    assert note.startswith("warning: 3 pictures have the pixels of a picture of another class, such as train/class")
    assert note.endswith("; remove those whose label is wrong")


def test_fingerprint_follows_pixels_labels_and_splits(tmp_path):
    arrays = _arrays()
    other_pixel, other_label = (arrays["x_train"].copy(), arrays["y_test"].copy())
    other_pixel[0, 0, 0, 0] ^= 1
    other_label[0] = 2
    variants = [
        arrays,
        arrays | {"x_train": other_pixel},
        arrays | {"y_test": other_label},
        arrays | {"x_test": arrays["x_test"][1:], "y_test": arrays["y_test"][1:]},
    ]
    names = [_save_npz(tmp_path / f"{index}.npz", variant) for index, variant in enumerate(variants)]
    fingerprints = {data.load(name).fingerprint for name in names} | {data.load(names[0], limit=9).fingerprint}
    assert len(fingerprints) == 5
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


def test_limit_keeps_the_ids_that_sort_first(tmp_path):
    name = _save_npz(tmp_path / "a.npz", _arrays())
    whole, smoke = data.load(name), data.load(name, limit=10)
    np.testing.assert_array_equal(smoke.train.ids, whole.train.ids[:10])
    np.testing.assert_array_equal(smoke.validation.ids, whole.validation.ids)
    np.testing.assert_array_equal(smoke.test.ids, whole.test.ids[:10])
    _refused("limit must be at least 1, got 0", name, limit=0)


def test_classes_that_a_limit_takes_away_are_named(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), np.uint8)
    labels = np.arange(300) % 50
    np.savez(tmp_path / "many.npz", x_train=images, y_train=labels, x_test=images + 1, y_test=labels)
    assert not data.load(str(tmp_path / "many.npz")).notes
    few = data.load(str(tmp_path / "many.npz"), limit=20)
    (said,) = [note for note in few.notes if "leaves train no pictures of" in note]
    first = min(set(few.class_names) - {few.class_names[label] for label in few.train.labels})
    assert said.startswith(f"warning: data.limit = 20 leaves train no pictures of {first}")


def test_take_and_concatenate_keep_rows_together(tmp_path):
    dataset = data.load(_save_npz(tmp_path / "a.npz", _arrays()))
    joined = data.concatenate([dataset.validation, dataset.train])
    assert len(joined) == 60
    assert list(joined.ids) == sorted(joined.ids)
    row = joined.take(np.array([7]))
    assert row.ids[0] == hashlib.sha256(row.images[0].tobytes()).hexdigest()[:16]
    assert len(joined.take(joined.labels == 1)) == 20


def test_model_input_is_float32_between_0_and_1():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    result = data.to_model_input(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[[[0, 0.2, 1]]]], rtol=1e-7)


# The sources


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_folder_and_npz_give_the_same_dataset(tmp_path, held_out):
    arrays = _arrays()
    from_folder = data.load(_save_folder(tmp_path / "pictures", arrays, held_out))
    _assert_same(from_folder, data.load(_save_npz(tmp_path / "a.npz", arrays)))
    assert from_folder.class_names == ("class0", "class1", "class2")
    assert from_folder.test.source_ids[0].startswith(f"{held_out}/class")


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_tfds_and_npz_give_the_same_dataset(tmp_path, monkeypatch, held_out):
    arrays = _arrays()
    name = _save_tfds(tmp_path, arrays, held_out)
    expected = data.load(_save_npz(tmp_path / "a.npz", arrays))
    _assert_same(data.load(name, directory=str(tmp_path)), expected)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    _assert_same(data.load(name, directory=str(tmp_path / "elsewhere")), expected)


def test_sources_agree_after_resizing(tmp_path):
    arrays = _arrays(size=9)
    from_npz = data.load(_save_npz(tmp_path / "a.npz", arrays), Reading(image_size=4))
    _assert_same(from_npz, data.load(_save_folder(tmp_path / "pictures", arrays), Reading(image_size=4)))
    assert from_npz.image_shape == (4, 4, 3)


def test_resizing_averages_instead_of_skipping():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    shrunk = pictures.resize(stripes, 8)
    assert np.abs(shrunk.astype(int) - 127).max() < 24


def test_gray_arrays_become_three_equal_channels(tmp_path):
    arrays = _arrays()
    gray = arrays | {"x_train": arrays["x_train"][..., 0], "x_test": arrays["x_test"][..., :1]}
    rgb = {key: np.stack([value.reshape(-1, 4, 4)] * 3, -1) if key[0] == "x" else value for key, value in gray.items()}
    gray["y_train"] = gray["y_train"][:, None]
    _assert_same(data.load(_save_npz(tmp_path / "a.npz", gray)), data.load(_save_npz(tmp_path / "b.npz", rgb)))


def test_npz_may_name_its_classes_and_miss_some(tmp_path):
    arrays = _arrays() | {"class_names": np.array(["cat", "no such", "dog", "frog"])}
    arrays["y_train"] = np.where(arrays["y_train"] == 1, 3, arrays["y_train"])
    assert data.load(_save_npz(tmp_path / "a.npz", arrays)).class_names == ("cat", "no such", "dog", "frog")


def test_names_of_classes_in_bytes_are_their_text(tmp_path):
    """As h5py and older NumPy files give them."""
    arrays = _arrays() | {"class_names": np.array([b"cat", "Käfer".encode(), b"dog"])}
    assert data.load(_save_npz(tmp_path / "a.npz", arrays)).class_names == ("cat", "Käfer", "dog")


def test_names_of_classes_are_one_line_each(tmp_path):
    """A file of labels has one name a line."""
    arrays = _arrays() | {"class_names": np.array(["cat", "big\ndog", "cow"])}
    with pytest.raises(UserError, match=r"a class named 'big\\ndog', which is not printable; rename it"):
        data.load(_save_npz(tmp_path / "a.npz", arrays))


def test_endings_in_capitals_are_the_same_endings(tmp_path):
    """Windows and cameras write them."""
    lower = _save_npz(tmp_path / "a.npz", _arrays())
    shutil.copy(lower, tmp_path / "B.NPZ")
    assert data.load(str(tmp_path / "B.NPZ")).fingerprint == data.load(lower).fingerprint
    (tmp_path / "T.CSV").write_text("path,label\n")
    with pytest.raises(UserError, match="lists no pictures"):
        data.load(str(tmp_path / "T.CSV"))


def test_digits_and_their_export_give_the_same_dataset(tmp_path):
    digits = data.load("digits")
    train = data.concatenate([digits.train, digits.validation])
    arrays = {
        "x_train": train.images,
        "y_train": train.labels,
        "x_test": digits.test.images,
        "y_test": digits.test.labels,
    }
    _assert_same(digits, data.load(_save_npz(tmp_path / "a.npz", arrays)))
    assert digits.num_classes == 10
    assert digits.image_shape == (8, 8, 3)
    assert digits.train.images.max() == 255
    assert len(train) + len(digits.test) == 1797
    assert data.load("digits", Reading(image_size=32)).image_shape == (32, 32, 3)


def test_folder_without_splits_tests_on_the_fifth_that_sorts_last(tmp_path):
    arrays = _arrays()
    _save_folder(tmp_path, arrays)
    dataset = data.load(str(tmp_path / "train"))
    ids = np.array([hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in arrays["x_train"]])
    expected = [sorted(ids[arrays["y_train"] == label])[-4:] for label in range(3)]
    assert sorted(dataset.test.ids) == sorted(np.concatenate(expected))


def test_folder_ignores_files_that_are_not_pictures(tmp_path):
    name = _save_folder(tmp_path, _arrays())
    expected = data.load(name).fingerprint
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "train" / "class0" / "notes.txt").write_text("about")
    (tmp_path / "train" / "class0" / ".hidden.png").write_text("no picture")
    (tmp_path / "train" / ".cache").mkdir()
    assert data.load(name).fingerprint == expected


def test_pictures_of_any_mode_become_rgb(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        path = tmp_path / "x.tif" if mode == "CMYK" else tmp_path / "x.png"
        Image.new("RGB", (2, 3), (255, 255, 255)).convert(mode).save(path)
        np.testing.assert_array_equal(pictures.decode(path, "x"), np.full((3, 2, 3), 255))
    Image.new("P", (2, 3)).save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert pictures.decode(tmp_path / "x.png", "x").shape == (3, 2, 3)


def test_reading_arrays_needs_numpy_alone(tmp_path):
    name = _save_npz(tmp_path / "a.npz", _arrays())
    blocked = "tensorflow", "tensorflow_datasets", "sklearn", "PIL", "keras"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"from tfigkd import data; assert len(data.load({name!r}).test) == 20\n"
        "from tfigkd.runtime.errors import UserError\n"
        "try: data.load('digits')\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not installed" in done.stdout


def test_cifar10_has_its_splits(cifar10_dir):
    dataset = data.load("cifar10", directory=str(cifar10_dir))
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(examples) for examples in splits] == [45_000, 5_000, 10_000]
    assert len(set(np.concatenate([examples.ids for examples in splits]))) == 60_000
    assert np.bincount(dataset.validation.labels).tolist() == [500] * 10
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.test_train_overlap == 0


# The errors


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"x_train": np.zeros((60, 4, 4, 3), np.float32)},
            "x_train is float32; expected uint8.*multiply by 255",
        ),
        ({"x_train": np.zeros((60, 4, 4, 4), np.uint8)}, r"x_train is \[60, 4, 4, 4\]; expected \[N,H,W\]"),
        ({"x_train": np.zeros((60, 0, 4, 3), np.uint8)}, "no pixels"),
        ({"x_test": np.zeros((20, 5, 4, 3), np.uint8)}, "train pictures are 4x4, test pictures 4x5"),
        ({"y_train": np.zeros(60, np.int64)}, "1 class"),
        ({"y_train": np.arange(60) % 3 + 1}, "3 labels from 1 to 3; expected 0 to classes - 1"),
        ({"y_train": np.arange(59)}, r"y_train is int64 \[59\]; expected one integer for each of the 60"),
        ({"y_train": np.zeros(60)}, "y_train is float64"),
        ({"y_train": np.array([None] * 60)}, "y_train is object"),
        ({"y_test": np.full(20, 3)}, "label 3 in test; expected 0 to 2; add its class to train"),
        ({"y_test": np.full(20, -1)}, "label -1 in test"),
        ({"x_test": np.zeros((0, 4, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "the test split is empty"),
        ({"y_train": np.arange(60)}, "the validation split is empty"),
    ],
)
def test_npz_of_the_wrong_kind_is_refused(tmp_path, change, match):
    _refused(match, _save_npz(tmp_path / "a.npz", _arrays() | change))


def test_npz_with_missing_arrays_or_no_file_is_refused(tmp_path):
    arrays = _arrays()
    del arrays["y_test"]
    _refused("no array y_test", _save_npz(tmp_path / "a.npz", arrays))
    _refused("no file .*missing.npz", tmp_path / "missing.npz")


@given(fraction=st.floats(0, 0.99), flip=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_npz_is_refused_or_harmless(tmp_path, fraction, flip):
    path = Path(_save_npz(tmp_path / "a.npz", _arrays()))
    content = bytearray(path.read_bytes())
    position = int(len(content) * fraction)
    if flip:
        content[position] ^= 0xFF
    path.write_bytes(content if flip else content[:position])
    try:
        data.load(str(path))
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert flip  # a flipped byte of a time stamp is harmless, a missing end never is


def test_npz_that_asks_for_terabytes_is_refused_by_its_header(tmp_path):
    arrays = _arrays()
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            if key == "x_train":
                header = {"descr": "|u1", "fortran_order": False, "shape": (60, 2**20, 2**20, 3)}
                np.lib.format.write_array_header_1_0(buffer, header)
            else:
                np.save(buffer, array)
            archive.writestr(f"{key}.npy", buffer.getvalue())
    _refused("by its header, but has .* bytes; save it again", path)
    _refused("GiB on disk, .* make room", _save_npz(path, arrays), image_size=100_000)
    _refused("GiB of memory are free", path, image_size=100_000, resident="memory")
    _refused("image_size must be positive", path, image_size=-1)


def test_folder_pictures_of_several_sizes_need_image_size(tmp_path):
    name = _save_folder(tmp_path, _arrays())
    Image.new("RGB", (7, 5)).save(tmp_path / "train" / "class1" / "zz.png")
    _refused("differ in size: .* is 4x4, .*zz.png is 7x5; give --image-size", name)
    assert data.load(name, Reading(image_size=6)).image_shape == (6, 6, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", "truncated", "flipped"])
def test_unreadable_picture_is_named(tmp_path, content):
    name = _save_folder(tmp_path, _arrays(size=16))
    path = tmp_path / "train" / "class0" / "0.png"
    whole = path.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "flipped": whole[:200] + b"\xff" * 50 + whole[250:]}
    path.write_bytes(damaged.get(content, content))
    _refused(f"cannot read picture .*{path.name}: ", name)


def _separate_planes(path):
    """Write an uncompressed 16-bit RGB TIFF whose planes lie one after the other, which Pillow reads as 8 bits."""
    plane = np.full((4, 4), 40000, "<u2").tobytes()
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 220)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 3, 240), (284, 3, 1, 2)]
    fields = b"".join(struct.pack("<HHI", *entry[:3]) + struct.pack("<I", entry[3]) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", 0)
    starts = [300 + 32 * index for index in range(3)]
    arrays = struct.pack("<3H", 16, 16, 16).ljust(20, b"\0") + struct.pack("<3I", *starts).ljust(20, b"\0")
    path.write_bytes((head.ljust(200, b"\0") + arrays + struct.pack("<3I", 32, 32, 32)).ljust(300, b"\0") + 3 * plane)


def test_decompression_bombs_and_deep_pictures_are_refused(tmp_path, monkeypatch):
    name = _save_folder(tmp_path, _arrays())
    path = tmp_path / "train" / "class0" / "0.png"
    Image.new("I;16", (4, 4)).save(path)
    _refused("0.png has mode I;16; expected 8 bits", name)
    _separate_planes(path)
    _refused("0.png has mode RGB of 16 bits or more; expected 8 bits", name)
    Image.new("L", (30, 40)).save(path)
    for limit in (1000, 500):  # Pillow warns over the limit and raises over twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        _refused("0.png", name, image_size=4)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    name = _save_folder(tmp_path / "pictures", _arrays())
    inside = tmp_path / "pictures" / "train" / "class0"
    (inside / "again.png").symlink_to(inside / "0.png")
    assert len(data.load(name).train) == 61 - 6
    (tmp_path / "secret.png").write_bytes((inside / "0.png").read_bytes())
    (inside / "leak.png").symlink_to(tmp_path / "secret.png")
    _refused("leak.png is a link that leaves", name)
    (inside / "leak.png").unlink()
    shutil.copytree(inside, tmp_path / "outside")
    (tmp_path / "pictures" / "test" / "class9").symlink_to(tmp_path / "outside")
    _refused("class9 is a link that leaves", name)


def test_folders_of_another_layout_are_refused(tmp_path):
    _refused("has no class folders", tmp_path)
    name = _save_folder(tmp_path / "a", _arrays())
    (tmp_path / "a" / "train" / "empty").mkdir()
    _refused("empty has no pictures", name)
    (tmp_path / "a" / "train" / "empty").rmdir()
    shutil.copytree(tmp_path / "a" / "test" / "class0", tmp_path / "a" / "test" / "unknown")
    _refused("unknown is not a class of train", name)
    shutil.rmtree(tmp_path / "a" / "test")
    _refused("has only train", name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "https://example.com/x", "", "a b"])
def test_names_that_refer_to_nothing_are_refused(name):
    _refused("neither an existing folder nor a tfds name", name)


def test_unknown_tfds_name_is_refused_with_a_suggestion(tmp_path):
    _refused("did you mean cifar10", "ciphar10", directory=str(tmp_path))


def test_a_folder_of_prepared_tfds_data_is_named_as_tfds_names_it(tmp_path):
    name = _save_tfds(tmp_path, _arrays())
    for folder in (tmp_path / "tiny", tmp_path / "tiny/1.0.0"):
        _refused(f"holds a tfds data set; give it by its name: --data {name} --data-dir {tmp_path}$", folder)
    shutil.move(tmp_path / "tiny", tmp_path / "small")
    (tmp_path / "tiny").mkdir()
    shutil.move(tmp_path / "small", tmp_path / "tiny/small")
    info = tmp_path / "tiny/small/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"configName": "small"}))
    _refused(f"by its name: --data tiny/small --data-dir {tmp_path}$", tmp_path / "tiny/small")
    _refused("has tiny/small, give one of them", "tiny", directory=str(tmp_path))


def test_an_unprepared_data_set_without_download_is_refused(tmp_path):
    _refused("not prepared in .*downloading is off", "mnist", directory=str(tmp_path), download=False)


def test_a_missing_network_is_reported(tmp_path, monkeypatch):
    # A proxy that accepts the connection and never answers: the slowest kind of missing network.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for variable in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        _refused("no network.*--data.dir.*TFDS_DATA_DIR.*npz.*folder", "mnist", directory=str(tmp_path))
    assert catalog.PROBE_SECONDS <= 5  # how long the user waits for that line


def test_any_http_answer_means_a_network(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert catalog.has_network(f"http://127.0.0.1:{server.server_port}/nothing")  # answers 501
        server.shutdown()
        thread.join()
    assert not catalog.has_network(f"http://127.0.0.1:{server.server_port}")


def test_highest_version_is_read(tmp_path):
    for version in ("9.0.0", "10.0.0", "2.0.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").touch()
    (tmp_path / "99.incomplete").mkdir()
    assert catalog.find_prepared(tmp_path) == tmp_path / "10.0.0"
    assert catalog.find_prepared(tmp_path / "10.0.0") is None


def test_damaged_tfds_data_are_refused(tmp_path):
    _save_tfds(tmp_path, _arrays())
    folder = tmp_path / "tiny" / "1.0.0"
    record = next(folder.glob("*train.tfrecord*"))
    content = record.read_bytes()
    for damaged in (content[:-5], content[: len(content) // 2], b"", b"\x00" * 100):
        record.write_bytes(damaged)
        _refused("cannot read tfds data in .*prepare it again", "tiny", directory=str(tmp_path))
    record.unlink()
    _refused("cannot read tfds data in", "tiny", directory=str(tmp_path))
    (folder / "features.json").write_text("{")
    _refused("cannot read tfds data in", "tiny", directory=str(tmp_path))

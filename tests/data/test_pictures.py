"""Pictures are read as a viewer shows them, whatever their ending, and what is left out or broken is said."""

import io
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps

from tfigkd import data
from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.data import pictures
from tfigkd.runtime.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def save_folder(
    root: Path, count: int = 12, classes: tuple[str, ...] = ("ant", "bee"), splits=("train", "test")
) -> Path:
    for split in splits:
        for name in classes:
            folder = root / split / name if split else root / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return root


def said(dataset: data.Dataset, word: str) -> str:
    """Return the only note with a word."""
    (line,) = (note for note in dataset.notes if word in note)
    return line


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pictures_are_turned_by_exif_as_pillow_turns_them(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(PIXELS), format, exif=exif)
    with Image.open(io.BytesIO(content)) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(pictures.decode(content, "x"), expected)
    assert expected.shape == ((5, 6, 3) if orientation > 4 else (6, 5, 3))


def test_damaged_exif_data_leave_a_picture_as_it_is_stored(recwarn):
    content = encoded(Image.fromarray(PIXELS), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    with pictures.bombs_refused():
        np.testing.assert_array_equal(pictures.decode(content, "x"), PIXELS)
    assert not recwarn


def test_a_damaged_picture_with_exif_data_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG", exif=exif)
    with pytest.raises(UserError, match="cannot read picture x"):
        pictures.decode(content[: len(content) // 2], "x")


@pytest.mark.parametrize("background", ["white", "black", "gray", "#10c0ff"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_as_pillow_pastes_them(background, mode):
    gray = Image.fromarray(PIXELS).convert(mode)
    gray.putalpha(Image.fromarray(np.linspace(0, 255, 30).astype(np.uint8).reshape(6, 5)))
    expected = Image.new("RGB", gray.size, background)
    expected.paste(gray.convert("RGB"), mask=gray.getchannel("A"))
    found = pictures.decode(encoded(gray), "x", background=background)
    np.testing.assert_allclose(found.astype(int), np.asarray(expected).astype(int), atol=1)


def test_hidden_colors_have_no_effect():
    def cut_out(hidden: int) -> bytes:
        pixels = np.full((6, 5, 4), hidden, np.uint8)
        pixels[..., 3] = 0
        pixels[2:4, 1:4] = (200, 30, 40, 255)
        return encoded(Image.fromarray(pixels))

    black, white = pictures.decode(cut_out(0), "x"), pictures.decode(cut_out(255), "x")
    np.testing.assert_array_equal(black, white)
    assert tuple(black[0, 0]) == (255, 255, 255) and tuple(black[2, 1]) == (200, 30, 40)
    dropped = pictures.decode(cut_out(0), "x", drop_alpha=True)
    assert tuple(dropped[0, 0]) == (0, 0, 0)


def test_palettes_with_a_transparent_color_are_composited():
    picture = Image.new("P", (2, 1))
    picture.putpalette([9, 8, 7, 200, 201, 202])
    picture.putdata([0, 1])
    found = pictures.decode(encoded(picture, transparency=0), "x", background="black")
    assert found.tolist() == [[[0, 0, 0], [200, 201, 202]]]


def test_the_data_set_counts_what_was_done_to_its_pictures(tmp_path):
    root = save_folder(tmp_path / "pictures")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[:4, :4]).save(root / "train/ant/turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(root / "test/ant/clear.png")
    dataset = data.load(str(root), Reading(background="#0000ff"))
    assert said(dataset, "EXIF") == "1 picture turned upright by EXIF"
    assert said(dataset, "transparent") == "1 picture composited on #0000ff, as they are transparent"
    clear = dataset.test.images[np.flatnonzero(dataset.test.source_ids == "test/ant/clear.png")[0]]
    assert (clear == (0, 0, 255)).all()


def test_pictures_are_known_by_content_and_deeper_folders_are_walked(tmp_path):
    root = save_folder(tmp_path / "pictures")
    ant, picture = root / "train/ant", Image.fromarray(PIXELS[:4, :4])
    for name, format in (("a.jfif", "JPEG"), ("b.JPG", "JPEG"), ("c.heic", "PNG"), ("d", "PNG"), ("e.dat", "WEBP")):
        (ant / name).write_bytes(encoded(picture.rotate(len(name) * 30), format))
    (ant / "holiday/2019").mkdir(parents=True)
    picture.save(ant / "holiday/2019/f.png")
    for name in ("Thumbs.db", "notes.TXT", "more.txt", "real.heic"):
        (ant / name).write_bytes(b"\x00\x00\x00\x1cftypheic")
    picture.save(ant / "raw.dng", "TIFF")  # a raw photograph holds such a picture, a small one
    (ant / ".ipynb_checkpoints").mkdir()
    picture.save(ant / ".ipynb_checkpoints/g.png")
    (root / "train/__MACOSX").mkdir()
    dataset = data.load(str(root))
    everything = data.concatenate([dataset.train, dataset.validation])
    assert len(everything) == 24 + 6
    assert dataset.class_names == ("ant", "bee")
    deep = everything.source_ids == "train/ant/holiday/2019/f.png"
    assert deep.sum() == 1 and dataset.class_names[everything.labels[deep][0]] == "ant"
    counts = said(dataset, "left out")
    assert counts.startswith("left out 5 files of no known picture format (2 .txt, ") and "1 .dng" in counts
    assert counts.endswith("; save them as .jpg to use them") and "1 .db" in counts and "1 .heic" in counts


def test_pictures_outside_of_class_folders_are_counted(tmp_path):
    root = save_folder(tmp_path / "pictures")
    Image.fromarray(PIXELS).save(root / "train/loose.png")
    assert "left out 1 picture of" in said(data.load(str(root)), "class folder")


def test_hidden_folders_of_pictures_are_named(tmp_path):
    """A class may be called .net; folders such as .git hold no pictures."""
    root = save_folder(tmp_path / "pictures", classes=("ant", "bee", ".net"))
    (root / "train/.git").mkdir()
    dataset = data.load(str(root))
    assert dataset.class_names == ("ant", "bee")
    assert said(dataset, "train/.net") == f"left out {root}/train/.net, a hidden folder of pictures"


def test_a_class_may_have_no_pictures_to_test_on(tmp_path):
    """Its folder may be there, as the empty one that a script makes for every class."""
    root = save_folder(tmp_path / "pictures", classes=("ant", "bee", "cat"))
    for picture in (root / "test/bee").iterdir():
        picture.unlink()
    dataset = data.load(str(root))
    assert np.bincount(dataset.test.labels, minlength=3)[1] == 0 and dataset.class_names == ("ant", "bee", "cat")
    assert said(dataset, "test has no pictures") == "warning: test has no pictures of bee"
    for picture in (root / "train/bee").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="bee has no pictures of a known format; add some or remove it"):
        data.load(str(root))


def test_all_broken_pictures_are_named_at_once(tmp_path, capsys):
    root = save_folder(tmp_path / "pictures")
    broken = [root / f"train/bee/{index:02d}.png" for index in (0, 5, 9)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        data.load(str(root))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(str(path) in line for path, line in zip(broken, lines, strict=True))
    assert str(caught.value).startswith("3 of 24 pictures cannot be used; they are named in the lines before")


def test_only_the_first_broken_pictures_are_named(tmp_path, capsys):
    root = save_folder(tmp_path / "pictures", count=15)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="30 of 30 pictures cannot be used; the first 20 are named"):
        data.load(str(root))
    assert len(capsys.readouterr().out.splitlines()) == 20


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "TESTING"), ("train", "valid"), ("Train", "Val")])
def test_splits_are_known_by_their_usual_names(tmp_path, names):
    root = save_folder(tmp_path / "pictures", splits=names)
    dataset = data.load(str(root))
    assert dataset.class_names == ("ant", "bee")
    assert len(dataset.test) == 24 and all(name.startswith(f"{names[1]}/") for name in dataset.test.source_ids)


def test_a_class_may_be_called_test_or_train(tmp_path):
    root = save_folder(tmp_path / "pictures", classes=("test", "train", "control"), splits=("",))
    assert data.load(str(root)).class_names == ("control", "test", "train")


def test_split_folders_without_class_folders_are_no_classes(tmp_path):
    """A folder train/ and a folder test/ full of pictures are not the two classes train and test."""
    root = save_folder(tmp_path / "pictures", classes=("",))
    with pytest.raises(UserError, match=r"test, train of .* have no class folders; expected test/<class>/<picture>"):
        data.load(str(root))


def test_names_of_classes_are_equal_however_their_accents_are_stored(tmp_path):
    """As one letter, or as a letter and its accent, as macOS stores the names of folders."""
    for split, form in (("train", "NFC"), ("test", "NFD")):
        save_folder(tmp_path, 4, (unicodedata.normalize(form, "\u00c4pfel"), "bee"), splits=(split,))
    loaded = data.load(str(tmp_path))
    assert loaded.class_names == ("bee", "\u00c4pfel") and np.bincount(loaded.test.labels).tolist() == [4, 4]


def test_classes_are_in_the_order_in_which_keras_reads_their_folders(tmp_path):
    """Keras sorts the names as they are on disk, where an accent may be a sign of its own."""
    names = [unicodedata.normalize("NFD", name) for name in ("\u00e2ne", "chat", "\u00e9l\u00e9phant", "lion")]
    save_folder(tmp_path, 4, names)
    theirs = keras.utils.image_dataset_from_directory(tmp_path / "train", image_size=(8, 8), verbose=False).class_names
    ours = data.load(str(tmp_path)).class_names
    assert ours == tuple(unicodedata.normalize("NFC", name) for name in theirs)
    assert ours == ("\u00e2ne", "chat", "\u00e9l\u00e9phant", "lion")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("a.npy", "numpy.savez"), ("a.zip", "unpack it"), ("a.TXT", "as .csv"), ("a.jpg", "give the folder or the list")],
)
def test_files_of_other_kinds_say_what_to_give(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name} is a file, but no .npz or .csv file; .*{hint}"):
        data.load(str(tmp_path / name))


def test_a_folder_whose_pictures_cannot_be_decoded_names_their_ending(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"ant has no pictures of a known format; save those of .heic as .jpg"):
        data.load(str(tmp_path))


def test_a_test_folder_without_classes_is_left_out(tmp_path):
    root = save_folder(tmp_path / "pictures", splits=("train",))
    (root / "test").mkdir()
    Image.fromarray(PIXELS).save(root / "test/1.png")  # as in competitions
    dataset = data.load(str(root))
    assert len(dataset.test) == 4 and all(name.startswith("train/") for name in dataset.test.source_ids)
    assert said(dataset, "no class folders") == "left out the folder test, which has no class folders"


def test_a_folder_above_the_classes_is_named(tmp_path):
    save_folder(tmp_path / "pictures/all", splits=("",))
    with pytest.raises(UserError, match=r"1 class\(es\).*; are the classes the folders in .*pictures/all\?"):
        data.load(str(tmp_path / "pictures"))


@pytest.mark.parametrize(
    ("images", "hint"),
    [
        (np.full((4, 4, 4, 3), 0.5), "multiply by 255, round and convert"),
        (np.full((4, 4, 4, 3), 254.0, np.float32), "its values go to 254 already: round and convert, without a factor"),
        (np.linspace(-2, 2, 192).reshape(4, 4, 4, 3), "from -2 to 2: undo the normalization"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"channels come last: transpose\(0, 2, 3, 1\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"of RGBA take the first three channels, \[..., :3\]"),
        (np.full((4, 4, 4, 3), 200), r"go to 200 already: convert with astype\(numpy.uint8\)"),
        (np.full((4, 4, 4, 3), 9000, np.uint16), "from 9000 to 9000: scale them to 0 to 255"),
        (np.ones((4, 4, 4, 3), bool), "expected uint8 pixels 0 to 255; convert and multiply by 255"),
        (np.full((4, 4, 4, 3), np.nan), "none of its values is a number"),
    ],
)
def test_hints_for_arrays_are_those_that_help(tmp_path, images, hint):
    arrays = {"x_train": images, "y_train": np.arange(4) % 2, "x_test": images, "y_test": np.arange(4) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=hint):
        data.load(str(tmp_path / "a.npz"))


def test_hints_for_labels_and_masks(tmp_path):
    path, images = tmp_path / "a.npz", RNG.integers(0, 2, (40, 4, 4, 3), dtype=np.uint8)
    labels, names = np.arange(40) % 2, np.array(["a", "b"])
    for wrong, hint in ((np.eye(2)[labels], r"take argmax\(axis=1\)"), (labels + 1, "count from 1, so subtract 1")):
        np.savez(path, x_train=images, y_train=wrong, x_test=images, y_test=wrong, class_names=names)
        with pytest.raises(UserError, match=hint):
            data.load(str(path))
    texts = names[labels]
    for wrong, hint in (
        (labels == 1, r"convert with astype\(int\)"),
        (labels.astype(float), r"convert with astype\(int\)"),
        (texts, r"numpy.unique\(labels, return_inverse=True\)"),
        (texts.astype(object), r"numpy.unique\(labels, return_inverse=True\)"),
    ):
        np.savez(path, x_train=images, y_train=wrong, x_test=images, y_test=labels)
        with pytest.raises(UserError, match=hint):
            data.load(str(path))
    for wrong, hint in (
        (np.array(["a"]), "labels to 1, class_names names 1 classes, 0 to 0; name each class"),
        (np.array(["a", "a"]), "two classes named 'a'; give each class a name of its own"),
        (np.array(["a", "b"], object), r"such as numpy.array\(names, dtype=str\)"),
    ):
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, class_names=wrong)
        with pytest.raises(UserError, match=hint):
            data.load(str(path))
    np.savez(path, train_images=images, train_labels=labels)
    with pytest.raises(UserError, match="it has train_images, train_labels, so save them under these names"):
        data.load(str(path))
    np.savez(path, x_train=images, y_train=labels)
    with pytest.raises(UserError, match=r'no array x_test; .* or hold some of train out with data.splits.train = "'):
        data.load(str(path))
    assert len(data.load(str(path), Reading(splits=SplitsConfig(train="train"))).test) == 8
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert "multiply pixels from 0 to 1 by 255" in said(data.load(str(path)), "warning")


@pytest.mark.parametrize(("height", "width"), [(40, 24), (5, 7), (16, 16), (33, 100)])
def test_pictures_are_resized_as_keras_resizes_those_of_folders(tmp_path, height, width):
    (tmp_path / "ant").mkdir()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "ant/one.png")
    ((images, _),) = keras.utils.image_dataset_from_directory(tmp_path, image_size=(16, 16), verbose=False)
    found = pictures.decode_all([tmp_path / "ant/one.png"], ["one"], Reading(image_size=16, fit="keras"))[0][0]
    np.testing.assert_allclose(found, images[0], atol=0.51)  # Keras does not round


def test_photographs_are_cropped_in_the_middle_and_not_distorted(tmp_path):
    wide = RNG.integers(0, 256, (8, 20, 3), dtype=np.uint8)
    (cropped,), _ = pictures.decode_all([encoded(Image.fromarray(wide))], ["wide"], Reading(image_size=8, fit="crop"))
    np.testing.assert_array_equal(cropped, wide[:, 6:14])
    np.testing.assert_array_equal(pictures.resize(wide[None], 8, "crop")[0], cropped)
    tall = np.swapaxes(wide, 0, 1)
    smaller = np.asarray(Image.fromarray(tall).resize((4, 10), Image.Resampling.BILINEAR))[3:7]
    (found,), _ = pictures.decode_all([encoded(Image.fromarray(tall))], ["tall"], Reading(image_size=4, fit="crop"))
    np.testing.assert_allclose(found.astype(int), smaller, atol=1)
    for split, side in (("train", 20), ("test", 12)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(12):
                pixels = RNG.integers(0, 256, (8, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index:02d}.png")
    stretched, in_memory, on_disk = (
        data.load(str(tmp_path), Reading(image_size=8, fit=fit, resident=resident))
        for fit, resident in (("stretch", "memory"), ("crop", "memory"), ("crop", "disk"))
    )
    assert on_disk.fingerprint == in_memory.fingerprint != stretched.fingerprint
    np.testing.assert_array_equal(on_disk.train.images[:], in_memory.train.images)
    assert (
        data.load(str(tmp_path), Reading(image_size=8, resident="disk")).fingerprint == stretched.fingerprint
    )  # its own cache

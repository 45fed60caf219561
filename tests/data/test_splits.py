"""Named splits, tables of pictures, and groups that stay on one side of every split that is held out."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfigkd import data
from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.config.experiment import Config, override
from tfigkd.runtime.errors import UserError

RNG = np.random.default_rng(0)


def pixels(count: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def save_table(folder: Path, rows: list[dict[str, str]], name: str = "list.csv", delimiter: str = ",") -> str:
    """Write a table and its pictures, PATH of each row; return the path of the table."""
    folder.mkdir(exist_ok=True)
    lines = [delimiter.join(rows[0])] + [delimiter.join(row.values()) for row in rows]
    (folder / name).write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    for row, image in zip(rows, pixels(len(rows)), strict=True):
        path = folder / row["path"].replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(folder / name)


def rows_of(count: int, classes=("cat", "dog"), **columns) -> list[dict[str, str]]:
    """Return rows with path, label and further columns, functions of the row's number."""
    return [
        {"path": f"some/{index:03d}.png", "label": classes[index % len(classes)]}
        | {name: make(index) for name, make in columns.items()}
        for index in range(count)
    ]


def refused(match: str, name: str, *, directory=None, **reading) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(name, Reading(**reading), directory=directory)
    assert len(str(caught.value).splitlines()) == 1


def sources(examples: data.Examples) -> set[str]:
    return set(examples.source_ids.tolist())


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_without_splits_is_split_by_id_like_arrays(tmp_path, delimiter):
    table = save_table(tmp_path / "photos", rows_of(40), delimiter=delimiter)
    dataset = data.load(table)
    assert dataset.class_names == ("cat", "dog")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [30, 2, 8]
    everything = data.concatenate([dataset.train, dataset.validation, dataset.test])
    for id_, name, label in zip(everything.ids, everything.source_ids, everything.labels, strict=True):
        with Image.open(tmp_path / "photos" / name) as picture:
            assert id_ == hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()[:16]
        assert int(name[5:8]) % 2 == label


def test_the_split_column_of_a_table_decides(tmp_path):
    split = ("Train", "train", "valid", "test", "TEST", "train")
    table = save_table(tmp_path, rows_of(60, split=lambda index: split[index % 6]))
    dataset = data.load(table)
    found = {name: sources(getattr(dataset, name)) for name in ("train", "validation", "test")}
    wanted = {"train": (0, 1, 5), "validation": (2,), "test": (3, 4)}
    for name, remainders in wanted.items():
        assert found[name] == {f"some/{index:03d}.png" for index in range(60) if index % 6 in remainders}


def test_folds_of_a_table_are_named_in_the_config(tmp_path):
    table = save_table(tmp_path, rows_of(60, split=lambda index: f"fold{index // 2 % 5}"))
    refused("split 'fold0' is none of train, validation and test; rename it or set data.splits", table)
    dataset = data.load(table, Reading(splits=SplitsConfig("fold0 + fold1+fold2", "fold3", "fold4")))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [36, 12, 12]
    assert {int(name[5:8]) // 2 % 5 for name in sources(dataset.validation)} == {3}
    partly = data.load(table, Reading(splits=SplitsConfig("fold0", test="fold4")))
    assert sum("left out the rows of split" in note for note in partly.notes) == 3
    refused("no split 'fold9'; did you mean 'fold", table, splits=SplitsConfig("fold9"))
    refused("takes the pictures of 'fold0' twice", table, splits=SplitsConfig("fold0", "fold0"))
    refused("only tfds sets can be sliced", table, splits=SplitsConfig("fold0[:50%]"))


def test_the_usual_split_is_not_taken_twice(tmp_path):
    """Test would be what trains."""
    table = save_table(tmp_path, rows_of(40))
    images = pixels(40)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(40) % 2)
    for name in (table, str(tmp_path / "a.npz"), "digits"):
        for role in ("validation", "test"):
            refused("takes the pictures of 'train' twice", name, splits=SplitsConfig(**{role: "train"}))


def test_a_column_that_happens_to_be_called_group_is_named(tmp_path):
    table = save_table(tmp_path / "one", rows_of(40, group=lambda index: "A"))
    refused("split is empty; its pictures need more groups; if the column group of a CSV file is another", table)
    rows = rows_of(40, group=lambda index: "AB"[index % 2], split=lambda index: "train" if index % 4 else "test")
    table = save_table(tmp_path / "two", rows)
    refused("group 'A' is in train and in test; .*; if the column group of a CSV file is another thing", table)


def test_labels_that_are_numbers_are_sorted_by_number(tmp_path):
    table = save_table(tmp_path, rows_of(60, classes=("2", "10", "1")))
    assert data.load(table).class_names == ("1", "2", "10")


def test_columns_may_begin_with_capitals(tmp_path):
    table = Path(save_table(tmp_path, rows_of(40)))
    text = table.read_text(encoding="utf-8-sig")
    assert text.startswith("path,label")
    table.write_text("Path,LABEL" + text[len("path,label") :], encoding="utf-8")
    assert len(data.load(str(table)).train) == 30


def test_tables_made_on_windows_are_read(tmp_path):
    rows = [row | {"path": row["path"].replace("/", "\\")} for row in rows_of(40)]
    assert len(data.load(save_table(tmp_path, rows)).test) == 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: [{"file": row["path"], **row} | {"path": row["path"]} for row in rows], None),
        (lambda rows: [{"path": row["path"], "class": row["label"]} for row in rows], "has the columns path, class"),
        (lambda rows: [*rows[:5], rows[5] | {"label": ""}, *rows[6:]], "line 7: the column label is empty"),
        (lambda rows: [*rows, rows[3] | {"label": "dog"}], "line 42: some/003.png is listed in line 5 as well"),
        (lambda rows: [row | {"label": "cat"} for row in rows], r"1 class\(es\)"),
    ],
)
def test_tables_of_the_wrong_kind_are_refused(tmp_path, change, match):
    table = save_table(tmp_path, change(rows_of(40)))
    if match is None:
        assert len(data.load(table).train) == 30
    else:
        refused(match, table)


def test_a_table_that_excel_wrote_and_columns_with_other_delimiters(tmp_path):
    table = Path(save_table(tmp_path / "excel", rows_of(40), delimiter=";"))
    table.write_text("sep=;\n" + table.read_text(encoding="utf-8-sig"), encoding="utf-8")
    commas = save_table(tmp_path / "commas", [{**row, "a,b,c,d": "1,2,3,4"} for row in rows_of(40)], delimiter=";")
    for name in (str(table), commas):
        found = data.load(name)
        assert (found.class_names, len(found.train), len(found.test)) == (("cat", "dog"), 30, 8)
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([lines[0], lines[1] + ";label", *(f"{line};x" for line in lines[2:])]), encoding="utf-8")
    refused("has several columns label; rename all but one", str(table))
    table.write_text("\n".join([*lines[:5], "some/003.png;"]), encoding="utf-8")
    refused("line 6: the column label is empty", str(table))


def test_missing_pictures_of_a_table_are_named_at_once(tmp_path, capsys):
    table = save_table(tmp_path, rows_of(40))
    for index in (3, 7):
        (tmp_path / f"some/{index:03d}.png").unlink()
    refused("2 of 40 pictures cannot be used; they are named in the lines before", table)
    assert [line.split("some/")[1][:3] for line in capsys.readouterr().out.splitlines()] == ["003", "007"]
    refused("no file .*absent.csv; expected a .csv with the columns path and label", str(tmp_path / "absent.csv"))


def test_labels_are_numbers_however_they_are_written_and_alike_ones_are_named(tmp_path):
    floats = save_table(tmp_path / "floats", rows_of(60, classes=[f"{number}.0" for number in range(12)]))
    assert data.load(floats).class_names == tuple(f"{number}.0" for number in range(12))
    signed = save_table(tmp_path / "signed", rows_of(40, classes=["-10", "-2", "3"]))
    assert data.load(signed).class_names == ("-10", "-2", "3")
    for classes in (("BOX", "box"), ("01", "1")):
        loaded = data.load(save_table(tmp_path / classes[0], rows_of(40, classes=classes)))
        assert f"warning: {classes[0]!r} and {classes[1]!r} are two classes; write them alike" in " ".join(loaded.notes)


def test_a_picture_is_listed_once_however_its_path_is_written(tmp_path):
    table = Path(save_table(tmp_path, rows_of(40)))
    text = table.read_text(encoding="utf-8-sig")
    table.write_text(text + f"{tmp_path}/some/003.png,dog\n", encoding="utf-8")
    refused("line 42: .*some/003.png is listed in line 5 as well", str(table))
    table.write_bytes(text.encode("utf-16"))
    refused("is not text in UTF-8; save it as CSV UTF-8", str(table))


# Groups


def patients(count: int = 120, groups: int = 24) -> list[dict[str, str]]:
    return rows_of(count, patient=lambda index: f"p{index // 2 % groups}")


def sides(dataset: data.Dataset, rows: list[dict[str, str]], column: str) -> dict[str, set[str]]:
    """Return the splits in which the pictures of each group are."""
    group_of = {row["path"]: row[column] for row in rows}
    found: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for name in sources(getattr(dataset, split)):
            found.setdefault(group_of[name], set()).add(split)
    return found


def test_pictures_of_a_group_stay_on_one_side(tmp_path):
    rows = patients()
    table = save_table(tmp_path, rows)
    grouped = data.load(table, Reading(group="patient"))
    assert all(len(splits) == 1 for splits in sides(grouped, rows, "patient").values())
    assert any(len(splits) > 1 for splits in sides(data.load(table), rows, "patient").values())
    # every patient has 4 or 6 pictures: a fifth of 120 and then a tenth of the rest, as near as whole patients come
    assert 20 <= len(grouped.test) <= 28 and 4 <= len(grouped.validation) <= 14
    for part in (grouped.train, grouped.validation, grouped.test):
        assert abs(np.bincount(part.labels, minlength=2) / len(part) - 0.5).max() <= 0.1


def test_the_column_group_is_used_by_itself(tmp_path):
    rows = [{**row, "group": row.pop("patient")} for row in patients()]
    dataset = data.load(save_table(tmp_path, rows))
    assert all(len(splits) == 1 for splits in sides(dataset, rows, "group").values())


def test_groups_are_chosen_by_their_names_and_not_by_the_order(tmp_path):
    rows = patients()
    table = save_table(tmp_path, rows)
    expected = sides(data.load(table, Reading(group="patient")), rows, "patient")
    lines = Path(table).read_text(encoding="utf-8-sig").splitlines()
    (tmp_path / "reversed.csv").write_text("\n".join([lines[0], *lines[:0:-1]]), encoding="utf-8")
    assert sides(data.load(str(tmp_path / "reversed.csv"), Reading(group="patient")), rows, "patient") == expected
    # one more picture of one patient, and no other changes sides
    more = [*rows, rows[0] | {"path": "some/900.png"}]
    larger = sides(data.load(save_table(tmp_path / "more", more), Reading(group="patient")), more, "patient")
    assert sum(larger[name] != expected[name] for name in expected) <= 2


def test_unequal_groups_come_near_to_each_class(tmp_path):
    # class cat is rare, and each patient has pictures of one class alone
    rows = []
    for index in range(400):
        patient, label = (f"d{index % 37}", "dog") if index % 10 else (f"c{index % 70 // 10}", "cat")
        rows.append({"path": f"some/{index:03d}.png", "label": label, "patient": patient})
    dataset = data.load(save_table(tmp_path, rows), Reading(group="patient"))
    assert all(len(splits) == 1 for splits in sides(dataset, rows, "patient").values())
    for label, count in enumerate(np.bincount([row["label"] == "dog" for row in rows])):
        tested = (dataset.test.labels == label).sum()
        assert 0.1 * count <= tested <= 0.35 * count  # a fifth is wanted
        assert (dataset.train.labels == label).any() and (dataset.validation.labels == label).any()


def test_a_class_of_one_group_stays_in_training(tmp_path):
    rows = [row | {"patient": "only" if row["label"] == "cat" else row["patient"]} for row in patients()]
    dataset = data.load(save_table(tmp_path, rows), Reading(group="patient"))
    assert set(dataset.train.labels) == {0, 1} and set(dataset.test.labels) == {1}
    assert "warning: test has no pictures of cat" in dataset.notes


def test_a_group_on_two_sides_of_the_sources_own_splits_is_refused(tmp_path):
    rows = [row | {"split": "test" if index < 20 else "train"} for index, row in enumerate(patients())]
    refused("group 'p[0-9]' is in train and in test; move its pictures", save_table(tmp_path, rows), group="patient")
    refused("no column 'pateint'; did you mean 'patient'", save_table(tmp_path, patients()), group="pateint")


def test_folders_below_the_class_folders_are_groups(tmp_path):
    for index, image in enumerate(pixels(96)):
        path = tmp_path / "pictures" / ("ant", "bee")[index % 2] / f"day{index // 2 % 12}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    dataset = data.load(str(tmp_path / "pictures"), Reading(group="folder"))
    days = [
        {name.split("/")[1] for name in sources(part)} for part in (dataset.train, dataset.validation, dataset.test)
    ]
    assert all(days) and len(set.union(*days)) == sum(map(len, days)) == 12
    refused("the groups of a folder are 'folder'", str(tmp_path / "pictures"), group="patient")


def test_pictures_of_one_name_in_two_splits_are_no_group(tmp_path):
    for index, image in enumerate(pixels(48)):
        path = tmp_path / ("train", "test")[index % 2] / ("ant", "bee")[index // 2 % 2] / f"{index // 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    dataset = data.load(str(tmp_path), Reading(group="folder"))
    assert len(dataset.test) == 24 and len({*dataset.test.groups}) == 24


def test_groups_of_arrays(tmp_path):
    images, labels = pixels(120), np.arange(120) % 2
    arrays = {"x_train": images, "y_train": labels, "patient_train": np.arange(120) // 2 % 24}
    arrays |= {"x_test": pixels(4), "y_test": labels[:4], "patient_test": np.array([90, 91, 92, 93])}
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = data.load(str(tmp_path / "a.npz"), Reading(group="patient"))
    assert dataset.train.groups is not None and dataset.validation.groups is not None
    assert not {*dataset.train.groups} & {*dataset.validation.groups}
    refused("has no array camera_", str(tmp_path / "a.npz"), group="camera")
    refused("digits has no groups", "digits", group="patient")


# Named splits


def save_npz(path: Path, **counts: int) -> str:
    arrays = {}
    for name, count in counts.items():
        arrays |= {f"x_{name}": pixels(count), f"y_{name}": np.arange(count) % 2}
    np.savez(path, **arrays)
    return str(path)


def test_arrays_of_other_names_are_splits(tmp_path):
    path = save_npz(tmp_path / "a.npz", train=40, extra=20, val=10, test=12)
    usual = data.load(path)
    assert [len(part) for part in (usual.train, usual.validation, usual.test)] == [36, 4, 12]
    assert [note.split(";")[1].strip() for note in usual.notes] == [
        'data.splits.train = "extra" uses it',
        'data.splits.validation = "val" uses it',
    ]
    named = data.load(path, Reading(splits=SplitsConfig("train+extra", "val")))
    assert [len(part) for part in (named.train, named.validation, named.test)] == [60, 10, 12]


def test_folders_of_other_names_are_splits(tmp_path):
    for split, count in (("train", 10), ("valid", 4), ("test", 6), ("2021", 8)):
        for index, image in enumerate(pixels(2 * count)):
            path = tmp_path / split / ("ant", "bee")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    usual = data.load(str(tmp_path))
    assert [len(part) for part in (usual.train, usual.validation, usual.test)] == [18, 2, 12]
    assert [note.split(";")[0] for note in usual.notes] == ["left out the folder 2021", "left out the folder valid"]
    named = data.load(str(tmp_path), Reading(splits=SplitsConfig("train+2021", "valid")))
    assert [len(part) for part in (named.train, named.validation, named.test)] == [36, 8, 12]
    swapped = data.load(str(tmp_path), Reading(splits=SplitsConfig(test="2021")))
    assert {name.split("/")[0] for name in sources(swapped.test)} == {"2021"}


def test_equal_pictures_in_train_and_validation_have_ids_of_their_own(tmp_path):
    arrays = {"x_train": pixels(20), "y_train": np.arange(20) % 2, "x_test": pixels(4), "y_test": np.arange(4) % 2}
    arrays |= {"x_val": arrays["x_train"][:6], "y_val": arrays["y_train"][:6]}
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = data.load(str(tmp_path / "a.npz"), Reading(splits=SplitsConfig(validation="val")))
    assert [len(dataset.train), len(dataset.validation)] == [20, 6]
    assert len({*data.train_and_validation(dataset).ids}) == 26
    assert "6 validation pictures are in train as well" in dataset.notes
    for name, count in (("train", 20), ("val", 6)):
        part = dataset.train if name == "train" else dataset.validation
        assert {image.tobytes() for image in part.images} == {image.tobytes() for image in arrays[f"x_{name}"][:count]}


def test_splits_are_fields_of_an_experiment():
    config = override(
        Config(), {"data.splits.train": "train[:90%]", "data.group": "patient", "data.background": "gray"}
    )
    assert config.data.splits == SplitsConfig("train[:90%]")
    for field, value in (("data.background", "pink"), ("data.group", ""), ("data.splits.train", 3)):
        with pytest.raises(UserError, match=field):
            override(Config(), {field: value})


# tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared tfds sets: like ImageNet, with a test split without labels; and without a train split."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "patient": tfds.features.Text(),
        }
    )

    def records(count: int, labeled: bool, first: int = 0):
        for index, image in enumerate(pixels(count)):
            label = index % 2 if labeled else -1
            yield index, {"image": image, "label": label, "patient": f"p{first + index // 2 % 12}"}

    splits = {
        "imagenet_like": {"train": records(60, True), "validation": records(20, True, 50), "test": records(8, False)},
        "folds": {"first": records(40, True), "second": records(20, True, 50)},
    }
    for name, datasets in splits.items():
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", data_dir=folder, features=features, split_datasets=datasets
        )
    return str(folder)


def test_the_labeled_split_of_a_tfds_set_is_its_test(prepared):
    dataset = data.load("imagenet_like", directory=prepared)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [54, 6, 20]
    assert dataset.notes == ("left out the split test, which has no labels",)
    pinned = data.load("imagenet_like:1.0.0", directory=prepared)
    assert pinned.fingerprint == dataset.fingerprint
    refused("-1 in test", "imagenet_like", directory=prepared, splits=SplitsConfig(test="test"))


def test_tfds_splits_may_be_sliced_as_in_tfds(prepared):
    import tensorflow_datasets as tfds

    splits = SplitsConfig("train[:80%]", "train[80%:]", "validation[:5]")
    dataset = data.load("imagenet_like", Reading(splits=splits), directory=prepared)
    builder = tfds.builder_from_directory(f"{prepared}/imagenet_like/1.0.0")
    for part, text in (
        (dataset.train, "train[:80%]"),
        (dataset.validation, "train[80%:]"),
        (dataset.test, "validation[:5]"),
    ):
        expected = {
            image.tobytes() for image in (one["image"] for one in tfds.as_numpy(builder.as_dataset(split=text)))
        }
        assert {image.tobytes() for image in part.images} == expected
    overlapping = SplitsConfig("train[:80%]", "train[70%:]")
    refused("takes pictures of 'train' twice", "imagenet_like", directory=prepared, splits=overlapping)
    refused("splits train, validation, test", "imagenet_like", directory=prepared, splits=SplitsConfig("trian"))


def test_a_train_split_that_another_replaces_is_said_to_be_left_out(prepared):
    splits = SplitsConfig("validation[:5]", test="validation[5:]")
    notes = data.load("imagenet_like", Reading(splits=splits), directory=prepared).notes
    assert any('"train" uses it' in note for note in notes), notes


def test_tfds_sets_without_a_train_split_are_read_by_name(prepared):
    refused("the splits first, second; expected a split train", "folds", directory=prepared)
    dataset = data.load("folds", Reading(splits=SplitsConfig("first", test="second")), directory=prepared)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 20]


def test_a_feature_of_a_tfds_set_groups_its_pictures(prepared):
    dataset = data.load("imagenet_like", Reading(group="patient"), directory=prepared)
    assert dataset.train.groups is not None and dataset.validation.groups is not None
    assert not {*dataset.train.groups} & {*dataset.validation.groups}
    refused(
        "have the features .*; expected a text or an integer 'camera'",
        "imagenet_like",
        directory=prepared,
        group="camera",
    )


def test_mistyped_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("pictres", "Pictures", ".\\pictres"):
        refused("did you mean pictures", name, directory=str(tmp_path))

"""`python -m tfigkd.evaluate` reads data as `run` does: named splits, background, tables."""

import argparse
import json
import os
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import special, stats

from tfigkd import export
from tfigkd.config.data_fields import Reading, SplitsConfig
from tfigkd.config.experiment import Config, override, to_mapping
from tfigkd.config.flags import with_flags
from tfigkd.edge.classifier_files import reading_for
from tfigkd.edge.contract import read_contract, write_contract
from tfigkd.edge.convert import convert
from tfigkd.edge.options import add_data_options, load_data
from tfigkd.evaluate import Options, check, main
from tfigkd.runtime.files import write_manifest
from tfigkd.runtime.rows import read_rows
from tfigkd.stages.workdir import reading_of_model, written_reading

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of three classes, and pictures: arrays in three splits, and a table of transparent ones."""
    folder, layers = tmp_path_factory.mktemp("evaluate"), keras.layers
    keras.utils.set_random_seed(1)
    network = [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    keras.Sequential(network).save(folder / "own.keras")
    arrays = {}
    for split, count in (("train", 30), ("test", 12), ("extra", 45)):
        arrays |= {
            f"x_{split}": RNG.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
            f"y_{split}": np.arange(count) % 3,
        }
    np.savez(folder / "a.npz", **arrays)
    lines = ["path,label,split"]
    for index in range(60):
        Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{index % 3},{'test' if index % 2 else 'train'}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder


def measured(capsys, folder, *arguments) -> tuple[float, int]:
    """Return accuracy in percent and number of images."""
    assert main([str(folder / "own.keras"), *map(str, arguments)]) == 0
    found = re.search(r"^accuracy ([\d.]+) %.*\((\d+) images\)", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    return float(found[1]), int(found[2])


def by_keras(folder, images, labels) -> float:
    model = keras.saving.load_model(folder / "own.keras", compile=False)
    logits = keras.ops.convert_to_numpy(model(np.asarray(images, np.float32) / 255))
    return round(100 * float(np.mean(logits.argmax(axis=1) == labels)), 2)


def test_a_named_split_is_measured(folder, capsys):
    with np.load(folder / "a.npz") as arrays:
        expected = by_keras(folder, arrays["x_extra"], arrays["y_extra"]), 45
    found = measured(capsys, folder, "--data", folder / "a.npz", "--splits.train", "train", "--splits.test", "extra")
    assert found == expected


def test_the_test_split_is_that_of_the_models_training(folder, capsys, tmp_path):
    """With the usual splits, training pictures of the model would be among those that it is tested on."""
    with np.load(folder / "a.npz") as arrays:
        expected = by_keras(folder, arrays["x_extra"], arrays["y_extra"]), 45
    source, other = str(folder / "a.npz"), tmp_path / "b.npz"
    shutil.copy(source, other)
    splits = {"data.splits.train": "train+test", "data.splits.test": "extra", "data.group": "patient"}
    config = override(Config(), {"data.name": source} | splits)
    student = tmp_path / "run/distill/student.keras"
    student.parent.mkdir(parents=True)
    shutil.copy(folder / "own.keras", student)

    def read(**given):
        given["splits"] = SplitsConfig(**given.get("splits", {}))
        return reading_of_model(str(student), Options(model=str(student), **given)).split_choice()

    run = tmp_path / "run"
    write_manifest(run / "distill", "0", files={}, reading=written_reading(config.data))  # as a teacher's
    chosen = {"group": "patient", "splits": {"train": "train+test", "test": "extra"}}
    assert read(data=source) == read(data=os.path.relpath(source)) == chosen
    (run / "config.json").write_text(json.dumps({"config": to_mapping(config)}))
    (run / "distill/manifest.json").unlink()
    assert read(data=source) == chosen
    assert read(data=str(other)) == {}  # other pictures
    given = read(data=source, splits={"train": "train"}, group="day")
    assert given == {"group": "day", "splits": {"train": "train", "test": "extra"}}

    held = override(config, {"data.splits.train": None, "data.splits.validation": "extra", "data.group": None})
    (run / "config.json").write_text(json.dumps({"config": to_mapping(held)}))
    assert read(data=source, splits={"test": "extra"}) == {"splits": {"test": "extra"}}  # what has validated
    plain = override(config, {"data.group": None})
    (run / "config.json").write_text(json.dumps({"config": to_mapping(plain)}))
    assert main([str(student), "--data", source]) == 0
    assert f"accuracy {expected[0]:.2f} %" in capsys.readouterr().out
    file = tmp_path / "student.tflite"
    assert export.main([str(student), "--data", source, "--format", "float32", "--output", str(file)]) == 0
    assert read_contract(file)["data"]["splits"] == {"train": "train+test", "test": "extra"}
    shutil.move(file, folder / "moved.tflite")
    shutil.move(file.with_suffix(".json"), folder / "moved.json")
    capsys.readouterr()
    assert main([str(folder / "moved.tflite"), "--data", source]) == 0
    assert f"accuracy {expected[0]:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize("background", ["white", "black"])
def test_transparent_pictures_of_a_table_are_composited(folder, capsys, background):
    images = []
    for index in range(1, 60, 2):
        shown = Image.new("RGBA", (8, 8), background)
        shown.alpha_composite(Image.open(folder / f"{index}.png"))
        images.append(np.asarray(shown.convert("RGB")))
    expected = by_keras(folder, images, np.arange(1, 60, 2) % 3), 30
    assert measured(capsys, folder, "--data", folder / "list.csv", "--background", background) == expected


def test_wide_pictures_are_cropped_as_in_the_training(folder, capsys):
    """The margins are white, and the model sees the middle alone."""
    lines, images = ["path,label,split"], []
    for index in range(60):
        wide = Image.new("RGB", (20, 8), "white")
        middle = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        wide.paste(middle, (6, 0))
        wide.save(folder / f"wide{index}.png")
        images.append(np.asarray(middle))
        lines.append(f"wide{index}.png,{index % 3},{'test' if index % 2 else 'train'}")
    (folder / "wide.csv").write_text("\n".join(lines))
    expected = by_keras(folder, images[1::2], np.arange(1, 60, 2) % 3), 30
    given = ["--data", folder / "wide.csv", "--image-size", 8]
    assert measured(capsys, folder, *given, "--fit", "crop") == expected

    # a student in the folder of its run is measured on pictures that are read as the run read them
    run = folder / "run"
    (run / "distill").mkdir(parents=True)
    shutil.copy(folder / "own.keras", run / "distill/student.keras")
    config = override(Config(), {"data.name": str(folder / "wide.csv"), "data.fit": "crop"})
    (run / "config.json").write_text(json.dumps({"config": to_mapping(config)}))
    given = [str(run / "distill/student.keras"), "--data", str(folder / "wide.csv")]
    assert main([*given, "--fit", "crop"]) == 0
    cropped = capsys.readouterr().out
    assert f"accuracy {expected[0]:.2f} %" in cropped
    assert main(given) == 0
    assert capsys.readouterr().out == cropped
    shutil.copy(run / "distill/student.keras", run / "student.keras")  # as in saved_models
    assert reading_of_model(str(run / "student.keras"), Options(model="student.keras")).fit == "crop"
    teacher = folder / "teachers/0"
    teacher.mkdir(parents=True)
    shutil.copy(folder / "own.keras", teacher / "teacher.keras")
    write_manifest(teacher, "0", files={}, reading={"fit": "crop", "background": "gray"})
    reading = reading_of_model(str(teacher / "teacher.keras"), Options(model="teacher.keras"))
    assert (reading.fit, reading.background) == ("crop", "gray")
    assert main([*given, "--fit", "stretch"]) == 0
    assert capsys.readouterr().out != cropped
    file = folder / "run.tflite"
    assert export.main([given[0], "--format", "float32", *given[1:], "--output", str(file)]) == 0
    assert json.loads(file.with_suffix(".json").read_text())["fit"] == "crop"

    # the contract of a file says how its pictures were read in training: nothing is to be given
    model = keras.saving.load_model(folder / "own.keras", compile=False)
    file = folder / "cropped.tflite"
    file.write_bytes(convert(model, "float32", None))
    write_contract(file, ["0", "1", "2"], fit="crop", background="gray")
    assert main([str(file), "--data", str(folder / "wide.csv")]) == 0
    assert f"accuracy {expected[0]:.2f} %" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    add_data_options(parser, "")
    options = parser.parse_args(["--data", str(folder / "wide.csv")])
    reading = reading_for(file, options)
    assert reading == Reading(image_size=8, background="gray", fit="crop")
    assert {image.tobytes() for image in load_data(options, reading).test.images} == {
        image.tobytes() for image in images[1::2]
    }
    options.fit = "stretch"
    assert reading_for(file, options).fit == "stretch"


def test_other_values_are_refused_in_one_line(folder, capsys):
    wrong = [["--background", "pink"], ["--splits.test", "validation"], ["--group", "patient"], ["--rows", "no/r.csv"]]
    for arguments in wrong:
        assert main([str(folder / "own.keras"), "--data", str(folder / "list.csv"), *arguments]) == 1
        assert re.fullmatch(
            r"error: (--background must be white|[^\n]*(no split 'validation'|data\.group|no folder no))[^\n]*\n",
            capsys.readouterr().err,
        )


def test_what_is_known_before_the_work_is_refused_then(folder, tmp_path, capsys, monkeypatch):
    """Options of named networks for a file, and rows of other columns; rows of the same columns follow."""
    table = tmp_path / "rows.csv"
    given = [str(folder / "own.keras"), "--data", str(folder / "a.npz"), "--rows", str(table)]
    for _ in range(2):
        assert main(given) == 0
    whole = table.read_text()
    assert whole.count("\n") == 3
    capsys.readouterr()
    monkeypatch.setattr("tfigkd.evaluate._measure", lambda *_: pytest.fail("measured"))
    for more, message in (
        (["--mirrored"], r"rows\.csv has other columns than these rows \(mirrored_accuracy is in one of both\)"),
        (
            ["--weights", "x.npz", "--drop-blocks", "5"],
            "--weights, --drop-blocks: only a named network takes this",
        ),
        (
            ["--normalization", "imagenet"],
            "--normalization: only a named network takes this; .* file .*keras",
        ),
    ):
        assert main([*given, *more]) == 1
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)
    assert table.read_text() == whole


@pytest.fixture(scope="module")
def teacher(folder):
    """Another model of the same three classes; without activations, so its gradient is the same at every image."""
    keras.utils.set_random_seed(2)
    network = [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 5), keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential(network).save(folder / "teacher.keras")
    return str(folder / "teacher.keras")


def map_by_keras(path, images, labels):
    """Integrated Gradients from black of a network without activations: pixel times gradient, of plain Keras."""
    model, inputs = keras.saving.load_model(path, compile=False), tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        scores = tf.gather(model(inputs), labels, axis=1, batch_dims=1)
    return np.abs((inputs * tape.gradient(scores, inputs)).numpy()).sum(axis=-1).reshape(len(images), -1)


def test_a_model_is_compared_with_its_teacher(folder, teacher, tmp_path, capsys):
    """Agreement, KL divergence and similarity of the maps are those of plain Keras and SciPy, with and without maps."""
    with np.load(folder / "a.npz") as arrays:
        images, labels = arrays["x_test"].astype(np.float32) / 255, arrays["y_test"]
    logits = [
        keras.ops.convert_to_numpy(keras.saving.load_model(path, compile=False)(images)).astype(np.float64)
        for path in (folder / "own.keras", teacher)
    ]
    student, reference = (special.softmax(each, axis=1) for each in logits)
    common = [str(folder / "own.keras"), "--data", str(folder / "a.npz"), "--teacher", teacher]
    for more, table in ([], tmp_path / "rows.csv"), (["--maps", "12"], tmp_path / "maps.csv"):
        assert main([*common, *more, "--rows", str(table)]) == 0
        (row,) = read_rows(table)
        check(Options(model=common[0], teacher=teacher, maps=12 if more else 0, rows=table))  # a second row fits
        assert float(row["agreement"]) == np.mean(student.argmax(axis=1) == reference.argmax(axis=1))
        assert float(row["kl"]) == pytest.approx(stats.entropy(reference, student, axis=1).mean(), rel=1e-5)
    assert f"agreement with {teacher} {100 * float(row['agreement']):.2f} %" in capsys.readouterr().out

    order = [int(np.flatnonzero((images == one).all(axis=(1, 2, 3)))[0]) for one in _as_read(folder)]
    maps, others = (map_by_keras(path, images[order], labels[order]) for path in (folder / "own.keras", teacher))
    alike = [stats.spearmanr(*pair).statistic for pair in zip(maps, others, strict=True)]
    chance = [stats.spearmanr(*pair).statistic for pair in zip(maps, np.roll(others, 1, axis=0), strict=True)]
    assert float(row["attribution_rank_correlation"]) == pytest.approx(np.mean(alike), abs=1e-3)
    assert float(row["attribution_rank_correlation_chance"]) == pytest.approx(np.mean(chance), abs=1e-3)
    assert float(row["attribution_completeness_error"]) < 1e-4 and row["maps"] == "12"
    assert 0 < float(row["attribution_insertion"]) < 1


def _as_read(folder):
    """The test images in the order in which they are read, float32 in [0,1]."""
    return load_data(argparse.Namespace(data=str(folder / "a.npz"), data_dir=None), Reading()).test.images[
        :
    ] / np.float32(255)


def test_maps_that_cannot_be_are_refused_before_the_work(folder, teacher, capsys, monkeypatch):
    monkeypatch.setattr("tfigkd.evaluate._measure", lambda *_: pytest.fail("measured"))
    for more, message in (
        (["--maps", "1"], "--maps must be at least 2, got 1"),
        (["--teacher", "other.tflite", "--maps", "2"], "--maps: other.tflite has no gradient"),
        (["--teacher", "resnet20"], "--teacher resnet20 is no .tflite or .keras file"),
        (["--attribution.n-steps", "4"], "--attribution.n_steps: has no effect without --maps"),
        (["--maps", "2", "--attribution.grid", "4"], "--attribution.grid: has an effect on stores only"),
    ):
        assert main([str(folder / "own.keras"), "--data", str(folder / "a.npz"), *more]) == 1
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)


def test_run_understands_the_same_options():
    flags = [
        "--background",
        "gray",
        "--fit",
        "crop",
        "--group",
        "patient",
        "--splits.train",
        "train[:90%]",
        "--splits.test=test",
    ]
    config = with_flags(Config(), flags)
    assert (config.data.background, config.data.fit, config.data.group) == ("gray", "crop", "patient")
    assert config.data.splits == SplitsConfig("train[:90%]", test="test")


def test_benchmark_measures_the_same_split(folder, capsys):
    from tfigkd.benchmark import main as benchmark

    model = keras.saving.load_model(folder / "own.keras", compile=False)
    (folder / "own.tflite").write_bytes(convert(model, "float32", None))
    with np.load(folder / "a.npz") as arrays:
        expected = by_keras(folder, arrays["x_extra"], arrays["y_extra"])
    arguments = ["--data", str(folder / "a.npz"), "--splits.train", "train", "--splits.test", "extra", "--runs", "3"]
    assert benchmark([str(folder / "own.tflite"), *arguments, "--warmup", "1", "--threads", "1"]) == 0
    assert f"accuracy {expected:.2f} %" in capsys.readouterr().out

"""Latency, memory and contents of LiteRT files, and the rows made of them."""

import csv
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd import models
from tfigkd.benchmark import main, rows
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import FORMATS, convert
from tfigkd.edge.footprint import count_weights, footprint
from tfigkd.edge.latency import latencies
from tfigkd.models.cost import count_parameters, multiply_adds

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
QUICK = BenchmarkConfig(runs=12, warmup=2)


@pytest.fixture(scope="module")
def network():
    """A network whose every weight and bias is there and not zero, as after training."""
    keras.utils.set_random_seed(0)
    model = models.mobilenet_v2(10, 16, input_shape=(8, 8, 3), normalization=(models.CIFAR10_MEAN, models.CIFAR10_STD))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name != "normalization":
            layer.set_weights([generator.uniform(0.5, 1, weight.shape) for weight in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for format in FORMATS:
        (folder / f"{format}.tflite").write_bytes(convert(network, format, PIXELS))
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_weights_and_multiply_adds_are_those_of_the_network(files, network, format):
    weights, nonzero, products = count_weights(files / f"{format}.tflite")
    folded = models.fold_batch_norm(network)
    normalization = sum(weight.size for weight in network.get_layer("normalization").get_weights())
    assert weights == count_parameters(folded) + normalization
    assert products == multiply_adds(network)
    assert nonzero == weights


def test_zeros_are_counted_and_shrink_the_gzipped_file_alone(network, files, tmp_path):
    sparse = keras.models.clone_model(network)
    sparse.set_weights(network.get_weights())
    generator, zeros = np.random.default_rng(1), 0
    for layer in sparse.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = layer.get_weights()[0]
            kept = generator.random(kernel.shape) < 0.25
            layer.set_weights([kernel * kept])
            zeros += int((~kept).sum())
    path = tmp_path / "sparse.tflite"
    path.write_bytes(convert(sparse, "float32"))
    whole, pruned = footprint(files / "float32.tflite"), footprint(path)
    assert pruned.weights == whole.weights
    assert pruned.weights - pruned.nonzero_weights == zeros
    assert pruned.bytes == pytest.approx(whole.bytes, rel=0.01)
    assert pruned.gzip_bytes < 0.7 * whole.gzip_bytes


def test_memory_grows_with_the_model(files, tmp_path):
    large = tmp_path / "large.tflite"
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Dense(8_000)(keras.layers.Flatten()(inputs))
    large.write_bytes(convert(keras.Model(inputs, keras.layers.Dense(200)(hidden)), "float32"))
    small, much = (footprint(path).peak_memory for path in (files / "int8.tflite", large))
    assert 0 < small < 20e6
    assert much > large.stat().st_size > 12e6


def test_every_file_is_timed_with_each_number_of_threads(files):
    paths = [files / "float32.tflite", files / "int8.tflite"]
    timed = latencies(paths, QUICK)
    assert list(timed) == paths
    for threads in timed.values():
        assert list(threads) == [1, 2]
        for percentiles in threads.values():
            assert 0 < percentiles["min"] <= percentiles["p50"] <= percentiles["p90"] <= percentiles["p99"]


def test_a_larger_network_takes_longer_in_the_same_run(files, tmp_path):
    keras.utils.set_random_seed(0)
    large = tmp_path / "large.tflite"
    large.write_bytes(convert(models.mobilenet_v2(10, input_shape=(32, 32, 3)), "float32"))
    first, second = rows({large: {}, files / "float32.tflite": {}}, BenchmarkConfig(20, 2, (1,)), "test", repeat=2)
    assert (first["ratio_1t"], first["repeats"]) == (1.0, 2)
    assert second["ratio_1t"] > 5


def test_the_command_writes_rows_with_their_origin(files, tmp_path, capsys):
    for format in ("float32", "int8"):
        write_contract(files / f"{format}.tflite", None, format=format, parameters=123, parity={"agreement": 1.0})
    table = tmp_path / "edge.csv"
    arguments = [str(files / "float32.tflite"), str(files / "int8.tflite"), "--rows", str(table), "--data", "digits"]
    assert main([*arguments, "--runs", "10", "--warmup", "1", "--threads", "1"]) == 0
    assert len(re.findall(r"kB .*multiply-adds.* 1 thread .* ms .*accuracy", capsys.readouterr().out)) == 2
    first, second = csv.DictReader(table.read_text().splitlines())
    assert (first["format"], second["format"]) == ("float32", "int8")
    assert (first["parameters"], first["validation_agreement"], first["n_test"]) == ("123", "1.0", "355")
    assert 0 <= float(second["accuracy"]) <= 1
    assert second["command"].startswith("python -m tfigkd.benchmark ")
    assert all(first[name] for name in ("hardware", "versions", "ms_p99_1t", "gzip_bytes", "nonzero_weights"))


def test_equal_names_are_told_apart_by_their_folders(files, tmp_path, capsys):
    """Else `tfigkd.pareto` would average two models."""
    paths = [tmp_path / place / "x.int8.tflite" for place in ("kd", "ig")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(files / "float32.tflite", path)
    quick = ["--runs", "2", "--warmup", "1", "--threads", "1", "--rows", str(tmp_path / "rows.csv")]
    assert main([*map(str, paths), str(files / "int8.tflite"), *quick]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\S+): ", said, re.MULTILINE) == ["kd/x.int8", "ig/x.int8", "int8"]
    found = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert [row["model"] for row in found] == ["kd/x.int8", "ig/x.int8", "int8"]


def test_rows_of_other_columns_are_refused_before_the_work(files, tmp_path, capsys, monkeypatch):
    table = tmp_path / "rows.csv"
    given = [str(files / "int8.tflite"), "--runs", "2", "--warmup", "1", "--rows", str(table), "--threads"]
    for _ in range(2):  # rows of the same columns follow
        assert main([*given, "1"]) == 0
    whole = table.read_text()
    assert whole.count("\n") == 3
    capsys.readouterr()
    monkeypatch.setattr("tfigkd.benchmark.latencies", lambda *_: pytest.fail("measured"))
    assert main([*given, "1", "2"]) == 1
    line = r"\S+rows.csv has other columns than these rows \(ms_p50_2t, .*ratio_2t are in one of both\); write to"
    assert re.fullmatch(rf"error: {line}[^\n]*\n", capsys.readouterr().err)
    assert table.read_text() == whole


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Photographs of 30x20 in two classes, dark and light, and a file for pixels from 0 to 255 at 8x8 that is right."""
    folder = tmp_path_factory.mktemp("shades")
    for split in ("train", "test"):
        for name, brightness in (("dark", 30), ("light", 180)):
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = np.full((20, 30, 3), brightness + 4 * number, np.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{number}.png")
    images = keras.Input((8, 8, 3))
    head = keras.layers.Dense(2)
    model = keras.Model(images, head(keras.layers.GlobalAveragePooling2D()(images)))
    head.set_weights([np.array([[-1, 1]] * 3, np.float32) / 3, np.array([128, -128], np.float32)])
    (folder / "shades.tflite").write_bytes(convert(model, "float32"))
    return folder


def test_accuracy_on_photographs_of_another_size_and_range(shades, tmp_path, capsys):
    quick = ["--runs", "2", "--warmup", "1", "--threads", "1", "--rows", str(tmp_path / "rows.csv")]
    given = [str(shades / "shades.tflite"), "--data", str(shades / "data"), "--outputs", "logits", *quick]
    for more in ([], ["--input-range", "0", "255"], ["--input-range", "0", "255", "--image-size", "8"]):
        assert main([*given, *more]) == 0
    unit, right, resized = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert (unit["accuracy"], right["accuracy"], resized["accuracy"]) == ("0.5", "1.0", "1.0")
    assert right["n_test"] == "20" and right["data_fingerprint"] == resized["data_fingerprint"]
    capsys.readouterr()
    assert main([*given, "--image-size", "16"]) == 1
    assert re.fullmatch(r"error: [^\n]*takes[^\n]*8, 8[^\n]*16, 16[^\n]*\n", capsys.readouterr().err)


def test_what_the_command_refuses(files, tmp_path, capsys):
    (tmp_path / "bad.tflite").write_bytes(b"nothing of the kind")
    for arguments, message in {
        (str(tmp_path / "bad.tflite"),): "is not a LiteRT file",
        (str(tmp_path / "absent.tflite"),): "no file",
        (str(files / "int8.tflite"), "--threads", "0"): "--threads must be positive",
        (str(files / "int8.tflite"), "--runs", "0"): "--runs must be positive",
        (str(files / "int8.tflite"), "--fit", "crop"): "--fit has no effect without --data; leave it out",
        (str(files / "int8.tflite"), "--splits.test", "x"): "--splits has no effect without --data; leave it out",
        (str(files / "int8.tflite"), "--rows", str(tmp_path / "no" / "r.csv")): "no folder .*; make it or choose",
    }.items():
        assert main(list(arguments)) == 1
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)

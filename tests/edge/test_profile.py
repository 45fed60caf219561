"""Profiles of LiteRT files: times, bytes and multiply-adds of operations, and layers of int8 files beside Keras's."""

import csv
import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.edge.spoiling import spoil
from tfigkd import models
from tfigkd.config.measure_fields import BenchmarkConfig
from tfigkd.edge import litert_profiler
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import convert
from tfigkd.edge.event_matching import operation_times, partition
from tfigkd.edge.layer_differences import compare
from tfigkd.edge.litert import open_classifier, open_litert
from tfigkd.edge.litert_profiler import Event
from tfigkd.edge.operations import Operation, read_operations
from tfigkd.edge.profile import about_layers, about_times, profile, rows
from tfigkd.models.cost import multiply_adds
from tfigkd.profile import main
from tfigkd.runtime.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
QUICK = BenchmarkConfig(runs=20, warmup=2, threads=(1,))
layers = keras.layers


def initialized(model):
    """Weights with spread, so that no activation is constant."""
    generator = np.random.default_rng(1)
    for variable in model.weights:
        low, high = (0.5, 1.5) if "variance" in variable.path or "gamma" in variable.path else (-0.3, 0.3)
        variable.assign(generator.uniform(low, high, variable.shape))
    return model


def residual(prefix="a"):
    inputs = keras.Input((16, 16, 3))
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", name=f"{prefix}_stem")(inputs)
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu", name=f"{prefix}_first")(stem)
    hidden = layers.Conv2D(8, 3, padding="same", name=f"{prefix}_second")(hidden)
    joined = layers.ReLU(name=f"{prefix}_joined")(layers.Add(name=f"{prefix}_add")([stem, hidden]))
    pooled = layers.GlobalAveragePooling2D(name=f"{prefix}_pool")(joined)
    return initialized(keras.Model(inputs, layers.Dense(5, name=f"{prefix}_head")(pooled)))


def depthwise():
    inputs = keras.Input((16, 16, 3))
    hidden = inputs
    for number, strides in enumerate((1, 2)):
        hidden = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"depthwise{number}")(hidden)
        hidden = layers.ReLU(6, name=f"relu{number}")(layers.BatchNormalization(name=f"norm{number}")(hidden))
        hidden = layers.Conv2D(8, 1, name=f"point{number}")(hidden)
    return initialized(keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(hidden))))


def nested():
    """A model in a model, beside two branches of one shape."""
    inner_input = keras.Input((16, 16, 3))
    inner = keras.Model(inner_input, layers.Conv2D(6, 3, activation="relu", name="inner_conv")(inner_input), name="in")
    inputs = keras.Input((16, 16, 3))
    body = inner(inputs)
    left = layers.Conv2D(6, 1, name="left")(body)
    right = layers.Conv2D(6, 1, name="right")(body)
    hidden = layers.Concatenate(name="both")([left, right])
    return initialized(keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(hidden))))


NETWORKS = {"residual": residual, "depthwise": depthwise, "nested": nested}


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, tmp_path_factory):
    """A network with its float32 and its int8 file."""
    folder, model = tmp_path_factory.mktemp(request.param), NETWORKS[request.param]()
    (folder / "m.float32.tflite").write_bytes(convert(model, "float32"))
    (folder / "m.int8.tflite").write_bytes(convert(model, "int8", PIXELS[:8]))
    return model, folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The residual network's files with contracts, so that they are opened without a trial run."""
    folder, model = tmp_path_factory.mktemp("written"), residual()
    for format in ("float32", "int8"):
        path = folder / f"m.{format}.tflite"
        path.write_bytes(convert(model, format, PIXELS[:8]))
        write_contract(path, None)
    return model, folder


def test_multiply_adds_and_bytes_of_each_operation(pair):
    model, folder = pair
    for format, size in (("float32", 4), ("int8", 1)):
        operations = read_operations(folder / f"m.{format}.tflite")
        assert sum(one.multiply_adds for one in operations) == multiply_adds(model)
        for one in operations:
            if one.kind == "FULLY_CONNECTED":  # the last layer, by hand
                (units, width) = model.layers[-1].kernel.shape[::-1]
                assert one.multiply_adds == units * width
                assert one.weight_bytes == size * units * width + 4 * units  # the bias has four bytes in both
                assert one.activation_bytes == size * (units + width)


def test_a_convolution_by_hand(tmp_path):
    inputs = keras.Input((16, 16, 3))
    hidden = layers.Conv2D(8, 3, 2, padding="same", name="body")(inputs)
    hidden = layers.DepthwiseConv2D(3, name="deep")(hidden)
    model = initialized(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(hidden))))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    first, second = [one for one in read_operations(path) if "CONV" in one.kind]
    assert (first.layer.removesuffix("_1"), first.shape, first.dtype) == ("body", (1, 8, 8, 8), "float32")
    assert first.multiply_adds == 8 * 8 * 8 * 3 * 3 * 3
    assert first.weight_bytes == 4 * (8 * 3 * 3 * 3 + 8)
    assert first.activation_bytes == 4 * (16 * 16 * 3 + 8 * 8 * 8)
    assert (second.kind, second.multiply_adds) == ("DEPTHWISE_CONV_2D", 6 * 6 * 8 * 3 * 3)


def kept(path, images):
    """All tensors of a file for each image by name, run by TensorFlow's own interpreter; integers made real."""
    interpreter = tf.lite.Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    found = {}
    for image in images:
        values = image[None] / np.float32(255)
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            values = np.clip(np.round(values / scale) + zero, -128, 127)
        interpreter.set_tensor(source["index"], values.astype(source["dtype"]))
        interpreter.invoke()
        for operation in interpreter._get_ops_details():
            tensor = interpreter._get_tensor_details(operation["outputs"][0], 0)
            values = interpreter.get_tensor(tensor["index"])
            scale, zero = tensor["quantization"]
            real = values.astype(np.float64) if not scale else (values.astype(np.float64) - zero) * scale
            found.setdefault(operation["index"], []).append((real, values))
    return {index: [np.concatenate(part) for part in zip(*one, strict=True)] for index, one in found.items()}


@pytest.fixture(scope="module")
def tensorflow_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf.lite.Interpreter tells that it will move
        yield


@pytest.mark.usefixtures("tensorflow_warnings")
@pytest.mark.filterwarnings("ignore")
def test_the_difference_of_each_layer_is_that_of_keras_layers_and_numpy(pair):
    model, folder = pair
    images = PIXELS[16:]
    compared = compare(folder / "m.int8.tflite", folder / "m.float32.tflite", images)
    assert not compared.unmatched and compared.images == 8
    integers = kept(folder / "m.int8.tflite", images)
    expected = keras_outputs(model, images)
    seen = 0
    for one in compared.differences:
        real = integers[one.operation.index][0]
        fitting = [values for values in expected if values.shape == real.shape]
        # of all of Keras's layers the one that this operation computes is closest to it
        wanted = min(fitting, key=lambda values: float(np.square(values - real).sum()), default=None)
        if wanted is None:
            continue  # a padding or the like, which Keras has no layer for
        noise = np.square(wanted - real).sum() / np.square(wanted).sum()
        assert one.sqnr == pytest.approx(-10 * math.log10(noise), abs=0.05)
        cosine = (wanted * real).sum() / math.sqrt(np.square(wanted).sum() * np.square(real).sum())
        assert one.cosine == pytest.approx(cosine, abs=1e-5)
        assert one.noise == pytest.approx(noise, rel=0.02)
        seen += 1
    assert seen >= 5
    assert 10 < min(one.sqnr for one in compared.differences) < 50


def keras_outputs(model, images):
    """What each layer of a model and of models in it gives, float64."""
    outputs, inputs = [], images / np.float32(255)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            outputs += keras_outputs(layer, images)
        elif not isinstance(layer, layers.InputLayer):
            outputs.append(np.asarray(keras.Model(model.inputs, layer.output)(inputs), np.float64))
    return outputs


@pytest.mark.usefixtures("tensorflow_warnings")
@pytest.mark.filterwarnings("ignore")
def test_saturated_values_are_those_beyond_the_range(tmp_path):
    """Calibrated on dark pictures, so that light ones go beyond the ranges; counted from Keras's values."""
    model = residual()
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    path.write_bytes(convert(model, "int8", PIXELS[:8] // 3))
    other.write_bytes(convert(model, "float32"))
    compared = compare(path, other, PIXELS[16:])
    (last,) = [one for one in compared.differences if one.operation.kind == "FULLY_CONNECTED"]
    wanted = np.asarray(model(PIXELS[16:] / np.float32(255)))
    tensor = open_litert(path, delegates=False).get_output_details()[0]
    scale, zero = tensor["quantization"]
    stored = kept(path, PIXELS[16:])[last.operation.index][1]
    low, high = (-128 - zero - 0.5) * scale, (127 - zero + 0.5) * scale
    count = int(((wanted < low) & (stored == -128) | (wanted > high) & (stored == 127)).sum())
    assert count > 0
    assert last.saturated == pytest.approx(count / wanted.size)
    assert "values beyond the range of their integers: " in " ".join(about_layers(compared))
    fitting = tmp_path / "fitting.int8.tflite"
    fitting.write_bytes(convert(model, "int8", PIXELS))
    assert all(one.saturated < 0.01 for one in compare(fitting, other, PIXELS[16:]).differences)


def test_files_with_other_names_are_matched_by_their_structure(tmp_path):
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    path.write_bytes(convert(residual("a"), "int8", PIXELS[:8]))
    other.write_bytes(convert(residual("b"), "float32"))
    compared = compare(path, other, PIXELS[16:])
    assert not compared.unmatched and all(one.cosine > 0.99 for one in compared.differences)
    # two branches of one shape, in the other order and with each other's names: their weights tell them apart
    model = nested()
    inputs = keras.Input((16, 16, 3))
    body = model.get_layer("in")(inputs)
    swapped = {name: layers.Conv2D(6, 1, name=other) for name, other in (("right", "left"), ("left", "right"))}
    branches = {name: layer(body) for name, layer in swapped.items()}
    hidden = layers.Concatenate()([branches["left"], branches["right"]])
    twin = keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(hidden)))
    for name, layer in swapped.items():
        layer.set_weights(model.get_layer(name).get_weights())
    twin.get_layer("head").set_weights(model.layers[-1].get_weights())
    np.testing.assert_allclose(twin(PIXELS / np.float32(255)), model(PIXELS / np.float32(255)), atol=1e-5)
    other.write_bytes(convert(twin, "float32"))
    path.write_bytes(convert(model, "int8", PIXELS[:8]))
    compared = compare(path, other, PIXELS[16:])
    assert not compared.unmatched and all(one.cosine > 0.99 for one in compared.differences)


def test_operations_without_counterpart_are_told(tmp_path):
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    path.write_bytes(convert(residual(), "int8", PIXELS[:8]))
    other.write_bytes(convert(depthwise(), "float32"))
    compared = compare(path, other, PIXELS[16:18])
    assert {"CONV_2D", "ADD"} <= {one.kind for one in compared.unmatched}
    assert re.search(
        r"[3-9] of \d operations have no counterpart in the float32 file: #0 CONV_2D", str(about_layers(compared))
    )


def test_the_worst_layer_is_the_one_with_few_distinct_values(tmp_path):
    """Weights of 9 on a channel that is always zero have no effect, but the others have few int8 values left."""
    model = residual()
    spoil(model.get_layer("a_first"), model.get_layer("a_second"))
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    path.write_bytes(convert(model, "int8", PIXELS[:8]))
    other.write_bytes(convert(model, "float32"))
    compared = compare(path, other, PIXELS[16:])
    assert compared.worst(1)[0].operation.layer.removesuffix("_1") == "a_second"
    assert "most noise is added by a_second" in about_layers(compared)[0]


def test_times_of_operations(pair):
    _, folder = pair
    for format in ("float32", "int8"):
        found = profile(folder / f"m.{format}.tflite", QUICK)
        assert found.reason == "" and found.runs == 20 and not found.unmatched
        # every convolution is timed, or fused into a neighbor
        assert all(one.index in found.times for one in found.operations if one.multiply_adds)
        assert 0 <= found.inside <= 1.2 * found.profiled
        assert len(about_times(found)) <= 3


def test_the_largest_operation_takes_longest_and_the_sum_is_the_whole(tmp_path):
    inputs = keras.Input((16, 16, 3))
    hidden = layers.Conv2D(64, 3, padding="same", name="small", activation="relu")(inputs)
    hidden = layers.Conv2D(256, 5, padding="same", name="large", activation="relu")(hidden)
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(hidden)))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    found = profile(path, QUICK)
    longest = max(rows(found), key=lambda row: row["milliseconds"] or 0)
    assert longest["layer"].removesuffix("_1") == "large" and longest["share"] > 0.8
    assert found.inside == pytest.approx(found.profiled, rel=0.25)
    assert sum(row["share"] or 0 for row in rows(found)) == pytest.approx(1, abs=1e-4)


def test_a_network_that_others_made(tmp_path):
    """MobileNetV3's HARD_SWISH has no int8 kernel in XNNPACK: LiteRT's kernels run it, between many groups."""
    own = {"input_shape": (32, 32, 3), "classes": 10, "include_preprocessing": False}  # which takes pixels to 255
    model = keras.applications.MobileNetV3Small(weights=None, **own)
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    images = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    path.write_bytes(convert(model, "int8", images))
    other.write_bytes(convert(model, "float32"))
    for one in (path, other):
        assert sum(operation.multiply_adds for operation in read_operations(one)) == multiply_adds(model)
    found = profile(path, QUICK)
    slow = [one.kind for one in found.operations if one.index in found.builtin]
    assert slow.count("HARD_SWISH") == 19 and found.groups > 15
    assert "XNNPACK does not take 19 HARD_SWISH" in about_times(found)[1]
    assert all(one.index in found.times for one in found.operations if one.multiply_adds)
    compared = compare(path, other, images[:1])
    assert len(compared.differences) == len(found.operations) and not compared.unmatched


def test_what_xnnpack_does_not_take_is_named(tmp_path):
    """ResNet-20's shortcut is a 1x1 pool with stride 2, which cuts the network into three groups."""
    model = models.resnet(20, input_shape=(16, 16, 3))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    found = profile(path, QUICK)
    assert [one.kind for one in found.operations if one.index in found.builtin] == ["AVERAGE_POOL_2D"] * 2
    assert found.groups == 3 and not found.unmatched
    assert "XNNPACK does not take 2 AVERAGE_POOL_2D" in about_times(found)[1]
    assert all(one.index in found.times for one in found.operations if one.multiply_adds)


def operation(index, kind, inputs, output):
    return Operation(index, kind, f"{kind}{index}", tuple(inputs), (), (output,), (1,), "float32", 0, 0, 0)


def events(*tags, first=0):
    return [Event(tag, first + place, True, 1.0) for place, tag in enumerate(tags)]


def test_events_are_assigned_in_order():
    chain = [
        operation(0, "PAD", [0], 1),
        operation(1, "CONV_2D", [1], 2),
        operation(2, "DEPTHWISE_CONV_2D", [2], 3),
        operation(3, "CONV_2D", [3], 4),
        operation(4, "ADD", [2, 4], 5),
        operation(5, "MEAN", [5], 6),
        operation(6, "FULLY_CONNECTED", [6], 7),
    ]
    seen = events(
        "Convolution (NHWC, F32) IGEMM",  # the padding is in it
        "Convolution (NHWC, F32) DWConv",
        "Fully Connected (NC, F32) GEMM",  # a convolution of 1x1
        "Add (ND)",
        "Clamp (NC)",
        "Mean (ND) Reduce2",
        "Static Reshape (NC)",
        "Fully Connected (NC, F32) GEMM",
    )
    found = operation_times(chain, seen)
    assert found.milliseconds == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 1.0}
    assert (found.groups, found.unmatched) == (1, ())
    tags = [one.tag for one in seen]
    strange = operation_times(chain, events(*tags[:3], "Invalid Unary Op", *tags[3:]))
    assert [one.tag for one in strange.unmatched] == ["Invalid Unary Op"]
    assert strange.milliseconds == found.milliseconds


def test_groups_take_what_is_ready():
    """The pooling of a shortcut is not delegated: the first group goes on along the other branch."""
    graph = [
        operation(0, "CONV_2D", [0], 1),
        operation(1, "AVERAGE_POOL_2D", [1], 2),
        operation(2, "CONV_2D", [1], 3),
        operation(3, "ADD", [2, 3], 4),
        operation(4, "CONV_2D", [4], 5),
    ]
    groups = partition(graph, frozenset({1}))
    assert [[one.index for one in group] for group in groups] == [[0, 2], [3, 4]]
    seen = [
        *events("Convolution (NHWC, F32) IGEMM", "Convolution (NHWC, F32) IGEMM"),
        Event("AVERAGE_POOL_2D", 1, False, 5.0),
        *events("Add (ND)", "Convolution (NHWC, F32) IGEMM"),
    ]
    found = operation_times(graph, seen)
    assert found.milliseconds == {0: 1.0, 1: 5.0, 2: 1.0, 3: 1.0, 4: 1.0}
    assert (found.builtin, found.groups) == (frozenset({1}), 2)
    whole = [Event("TfLiteXNNPackDelegate", 5, False, 2.0), *seen]  # a delegate beside its operators counts once
    assert operation_times(graph, whole) == found
    other = operation_times(graph[:1], seen)  # of another file
    assert other.milliseconds == {} and len(other.unmatched) == 4


def test_one_thread_and_two(tmp_path):
    """The number of threads reaches LiteRT: a large convolution is not slower with two, on a machine with two."""
    inputs = keras.Input((32, 32, 3))
    hidden = layers.Conv2D(256, 3)(layers.Conv2D(128, 3)(inputs))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(hidden))), "float32"))
    one, two = (litert_profiler.record(path, runs=20, warmup=2, threads=threads) for threads in (1, 2))
    assert [event.tag for event in one.events] == [event.tag for event in two.events]
    assert max(event.milliseconds for event in one.events) > 0.1


def test_without_a_profiler_the_whole_is_timed(written, tmp_path, monkeypatch):
    """As with a version of LiteRT whose library lacks the functions."""
    _, folder = written
    module = Path(litert_profiler.__file__).read_text()
    module = module.replace("LiteRtCompiledModelGetProfiler", "LiteRtNoSuchFunction")
    script = tmp_path / "changed.py"
    script.write_text(module)
    real = subprocess.run

    def run(words, **options):
        return real([words[0], str(script), *words[3:]], **options)

    monkeypatch.setattr(subprocess, "run", run)
    found = profile(folder / "m.float32.tflite", QUICK)
    assert found.times is None and found.milliseconds > 0
    said = " ".join(about_times(found))
    assert "no times of operations: LiteRT's profiler is not reachable in this version: " in said
    assert "LiteRtNoSuchFunction" in said
    assert all(row["milliseconds"] is None and row["runs_on"] == "" for row in rows(found))


def test_the_command_writes_tables(written, tmp_path, capsys):
    model, folder = written
    given = [str(folder / "m.int8.tflite"), "--runs", "10", "--warmup", "1", "--images", "4", "--top", "2"]
    assert main([*given, "--output", str(tmp_path / "p.csv")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ *# +us +% +M mult-adds +kB weights", said, re.MULTILINE)
    assert "Difference from m.float32.tflite, 4 images of noise, which no model was made for: give --data" in said
    assert re.search(r"m\.int8\.tflite: \d\.\d{3} ms an image with 1 thread; ", said)
    table = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["operation"] for row in table] == [one.kind for one in read_operations(folder / "m.int8.tflite")]
    compared = compare(folder / "m.int8.tflite", folder / "m.float32.tflite", noise(4))
    for one in compared.differences:
        row = table[one.operation.index]
        assert float(row["sqnr_db"]) == pytest.approx(one.sqnr, abs=1e-3)
        assert float(row["saturated"]) == pytest.approx(one.saturated, abs=1e-6)
    assert {row["float32"] for row in table} == {"m.float32.tflite"} and all(row["hardware"] for row in table)
    assert main([*given, "--output", str(tmp_path / "p.json")]) == 0
    content = json.loads((tmp_path / "p.json").read_text())
    assert len(content["operations"]) == len(table) and content["compared_on"].startswith("4 images of noise")
    assert sum(row["multiply_adds"] for row in content["operations"]) == multiply_adds(model)


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_data_and_a_keras_file(tmp_path, capsys):
    """The layers of a network of gray digits, on validation images, beside its .keras file."""
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(4, 3, activation="relu")(inputs)
    model = initialized(keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden))))
    model.save(tmp_path / "m.keras")
    (tmp_path / "m.int8.tflite").write_bytes(convert(model, "int8", PIXELS[:, :8, :8, :1]))
    words = ["--float32", str(tmp_path / "m.keras"), "--data", "digits", "--runs", "10", "--warmup", "1"]
    assert main([str(tmp_path / "m.int8.tflite"), *words, "--images", "9"]) == 0
    assert "Difference from m.keras, 9 validation images of digits" in capsys.readouterr().out


def test_the_range_that_is_given_is_that_of_the_keras_file(tmp_path, monkeypatch, capsys):
    """A model for pixels 0 to 255, which its first layer does not show; the int8 file's contract says [0,1]."""
    from tfigkd import profile as module
    from tfigkd.export import main as export

    inputs = keras.Input((8, 8, 3))
    hidden = layers.Conv2D(4, 3, activation="relu")(inputs)
    initialized(keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))).save(tmp_path / "m.keras")
    path, table = tmp_path / "m.int8.tflite", tmp_path / "t.json"
    known = ["--data", "digits", "--input-range", "0", "255", "--outputs", "logits"]
    assert export([str(tmp_path / "m.keras"), "--format", "int8", "--output", str(path), *known]) == 0
    asked, real = [], module.call_module

    def call(name, *words):
        asked.extend(words)
        return real(name, *words)

    monkeypatch.setattr(module, "call_module", call)
    words = [str(path), "--float32", str(tmp_path / "m.keras"), *known, "--runs", "10", "--warmup", "1"]
    assert main([*words, "--output", str(table)]) == 0, capsys.readouterr().err
    cosines = [one["cosine"] for one in json.loads(table.read_text())["operations"] if one["cosine"] is not None]
    assert len(cosines) >= 2 and min(cosines) > 0.99
    assert asked[-2:] == ["--outputs", "logits"]


def test_what_the_command_refuses(written, tmp_path, capsys):
    _, folder = written
    integer, floating = str(folder / "m.int8.tflite"), str(folder / "m.float32.tflite")
    (tmp_path / "bad.tflite").write_bytes(b"nothing of the kind")
    (tmp_path / "alone.int8.tflite").write_bytes(Path(integer).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))))
        (tmp_path / "any.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    for arguments, message in {
        (str(tmp_path / "bad.tflite"),): "is not a LiteRT file",
        (str(tmp_path / "absent.tflite"),): "no file",
        (str(tmp_path), "--data", "digits"): "no file .*; give the path of a .tflite file",
        (str(tmp_path / "any.tflite"),): r"takes images of any size, \[\?,\?,\?,3\]; export it with a fixed size",
        (floating, "--float32", floating): "computes in floats; layers are compared of an int8 file",
        (integer, "--float32", integer): "computes in integers; --float32 takes the float32 file",
        (integer, "--float32", str(tmp_path / "no.keras")): "no file .*no.keras; give the path of a .keras file",
        (str(tmp_path / "alone.int8.tflite"), "--data", "digits"): "give --float32 FILE",
        (integer, "--data", "digits", "--image-size", "8"): r"takes images \(16, 16, 3\), got \(8, 8, 3\)",
        (integer, "--output", "table.txt"): "--output must end in .csv or .json",
        (integer, "--output", str(tmp_path / "no" / "t.csv")): "no folder",
        (integer, "--output", integer.replace(".tflite", ".json")): "the place of the contract of .*; choose another",
        (integer, "--images", "0"): "--images must be at least 1",
        (integer, "--threads", "0"): "--threads must be positive",
    }.items():
        assert main(list(arguments)) == 1, arguments
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err), arguments


def test_an_open_batch_is_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = tf.lite.TFLiteConverter.from_keras_model(depthwise()).convert()
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    found = profile(path, QUICK)
    assert found.reason == "" and all(one.index in found.times for one in found.operations if one.multiply_adds)
    open_classifier(path)


def test_other_sizes_are_refused(tmp_path):
    path, other = tmp_path / "m.int8.tflite", tmp_path / "m.float32.tflite"
    path.write_bytes(convert(residual(), "int8", PIXELS[:8]))
    inputs = keras.Input((8, 8, 3))
    other.write_bytes(convert(keras.Model(inputs, layers.Dense(5)(layers.Flatten()(inputs))), "float32"))
    with pytest.raises(UserError, match="give files of the same model"):
        compare(path, other, PIXELS)


def test_neither_tensorflow_nor_keras_is_imported():
    program = "import sys, tfigkd.profile; assert not {'tensorflow', 'keras', 'tyro'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)

"""`python -m tfigkd.predict`: right, without TensorFlow, and one line for what does not fit."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd import models
from tfigkd.data import to_model_input
from tfigkd.edge.contract import contract_path, read_contract, write_contract
from tfigkd.edge.convert import convert
from tfigkd.predict import main, pictures_in, probabilities
from tfigkd.runtime.errors import UserError

NAMES = [f"kind {index}" for index in range(10)]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return models.resnet(8, 10, input_shape=(8, 8, 3))


@pytest.fixture
def folder(tmp_path, contents):
    """float32.tflite and int8.tflite with contracts, and pictures."""
    for format, content in contents.items():
        path = tmp_path / f"{format}.tflite"
        path.write_bytes(content)
        write_contract(path, NAMES, format=format)
    Image.fromarray(PIXELS[0]).save(tmp_path / "first.png")
    Image.fromarray(PIXELS[1]).save(tmp_path / "second.png")
    Image.fromarray(np.dstack([PIXELS[0], PIXELS[0, ..., 0]])).save(tmp_path / "transparent.png")
    Image.fromarray(np.dstack([PIXELS[0], np.full((8, 8), 255, np.uint8)])).save(tmp_path / "opaque.png")
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    return tmp_path


@pytest.fixture(scope="module")
def contents(network):
    return {format: convert(network, format, PIXELS) for format in ("float32", "int8")}


def said(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: [^\n]*\n", captured.err)
    return captured.err


def test_top_classes_and_their_probabilities_are_keras_own(folder, network, capsys):
    lines = said(
        capsys, folder / "float32.tflite", folder / "first.png", folder / "second.png", "--top", 3
    ).splitlines()
    expected = keras.ops.softmax(network(to_model_input(PIXELS[:2]), training=False)).numpy()
    for start, shares, name in zip((0, 4), expected, ("first", "second"), strict=True):
        assert re.fullmatch(rf".*{name}\.png  \(\d+\.\d\d ms\)", lines[start])
        order = np.argsort(-shares)[:3]
        assert [line.split()[1] for line in lines[start + 1 : start + 4]] == [str(index) for index in order]
        printed = [float(line.split()[2]) for line in lines[start + 1 : start + 4]]
        np.testing.assert_allclose(printed, 100 * shares[order], atol=0.02)


def test_the_column_of_names_is_that_of_the_printed_ones(folder, capsys):
    model, picture = folder / "float32.tflite", folder / "first.png"
    order = [line.split()[1] for line in said(capsys, model, picture, "--top", 10).splitlines()[1:]]
    for long, width in ((order[-1], 6), (order[0], 40)):  # not printed, and printed
        names = [name if name != f"kind {long}" else "long " * 40 for name in NAMES]
        write_contract(model, names, format="float32")
        lines = said(capsys, model, picture, "--top", 3).splitlines()[1:]
        assert {len(line) for line in lines if "long" not in line} == {len("  ") + width + len("   12.34 %")}


def test_probabilities_by_hand():
    np.testing.assert_allclose(
        probabilities(np.log(np.array([1, 2, 5], np.float32)) + 700), [1 / 8, 1 / 4, 5 / 8], 1e-4
    )


def test_neither_tensorflow_nor_keras_is_imported(folder):
    """In an interpreter that refuses every package but the three that it is said to need."""
    program = """
import importlib.abc, runpy, sys
allowed = {*sys.stdlib_module_names, "ai_edge_litert", "numpy", "PIL", "tfigkd"}
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
sys.argv = ["predict", *sys.argv[1:]]
try:
    runpy.run_module("tfigkd.predict", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert not {"tensorflow", "keras", "rich", "tyro", "sklearn"} & {*sys.modules}
"""
    command = [sys.executable, "-c", program, str(folder / "int8.tflite"), str(folder / "first.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kind") == 5
    assert done.stderr == ""


def test_a_folder_stands_for_the_pictures_that_training_reads_in_it(tmp_path):
    """Also behind a link, but neither hidden ones nor those that an operating system has left."""
    for place, count in (("a/deep", 3), ("b", 2), ("__MACOSX", 1), (".hidden", 1), ("a/@eaDir", 1)):
        for index in range(count):
            (tmp_path / "given" / place).mkdir(parents=True, exist_ok=True)
            shade = 10 * index + len(place)
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(tmp_path / "given" / place / f"{index}.png")
    (tmp_path / "given/a/more").symlink_to(tmp_path / "given/b")
    (tmp_path / "given/a/round").symlink_to(tmp_path / "given")
    found = [str(path.relative_to(tmp_path / "given")) for path in pictures_in([tmp_path / "given"])]
    assert found == [*(f"a/deep/{index}.png" for index in range(3)), *(f"a/more/{index}.png" for index in range(2))] + [
        f"b/{index}.png" for index in range(2)
    ]


def test_pictures_that_do_not_fit(folder, capsys):
    model = folder / "int8.tflite"
    assert "large.png is 30x20, the model takes 8x8; give --resize" in refusal(capsys, model, folder / "large.png")
    assert "--background must be white" in refusal(capsys, model, folder / "first.png", "--background", "pink")
    assert "no picture" in refusal(capsys, model, folder / "absent.png")
    (folder / "text.png").write_text("no picture at all")
    assert "cannot read picture" in refusal(capsys, model, folder / "text.png")
    assert said(capsys, model, folder / "large.png", "--resize").count("kind") == 5
    opaque, plain = (said(capsys, model, folder / name).splitlines()[1:] for name in ("opaque.png", "first.png"))
    assert opaque == plain == said(capsys, model, folder / "transparent.png", "--drop-alpha").splitlines()[1:]


def test_a_folder_stands_for_all_pictures_below_it(folder, network, capsys):
    """Nested folders are walked in the order of names; hidden files and other kinds of files are left out."""
    pictures = folder / "pictures"
    for index, name in enumerate(("a.png", "deep/er/b.JPG", "deep/c.png", ".hidden/d.png", "deep/.e.png")):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(pictures / name, "PNG")
    (pictures / "deep" / "notes.txt").write_text("no picture")
    lines = said(capsys, folder / "float32.tflite", pictures, folder / "first.png", "--top", 1).splitlines()
    shown = [line.split("  (")[0].removeprefix(f"{folder}/") for line in lines[::2]]
    assert shown == ["pictures/a.png", "pictures/deep/c.png", "pictures/deep/er/b.JPG", "first.png"]
    expected = network(to_model_input(PIXELS[[0, 2, 1, 0]]), training=False).numpy().argmax(axis=1)
    assert [line.split()[1] for line in lines[1::2]] == [str(index) for index in expected]
    (folder / "empty").mkdir()
    assert "has no pictures; give pictures or a folder" in refusal(capsys, folder / "int8.tflite", folder / "empty")


def test_all_broken_pictures_of_a_folder_are_named_at_once(folder, capsys):
    pictures = folder / "pictures" / "inner"
    pictures.mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(pictures / "good.png")
    for index in range(7):
        (pictures / f"bad{index}.png").write_bytes(b"\x89PNG\r\n" + bytes(index))
    error = refusal(capsys, folder / "int8.tflite", folder / "pictures")
    assert error.startswith("error: 7 of 8 pictures cannot be used: ") and error.endswith(" and 2 more\n")
    assert [f"bad{index}.png" in error for index in range(7)] == [True] * 5 + [False] * 2
    for index in range(1, 7):
        (pictures / f"bad{index}.png").unlink()
    assert "cannot read picture" in refusal(capsys, folder / "int8.tflite", folder / "pictures")


def test_transparent_pixels_have_the_color_that_training_gave_them(folder, capsys):
    model = folder / "float32.tflite"
    for name in ("white", "black"):
        shown = Image.new("RGBA", (8, 8), name)
        shown.alpha_composite(Image.open(folder / "transparent.png"))
        shown.convert("RGB").save(folder / f"on_{name}.png")
    answers = {name: said(capsys, model, folder / f"on_{name}.png").splitlines()[1:] for name in ("white", "black")}
    assert answers["white"] != answers["black"]
    transparent = folder / "transparent.png"
    assert said(capsys, model, transparent).splitlines()[1:] == answers["white"]
    assert said(capsys, model, transparent, "--background", "#000000").splitlines()[1:] == answers["black"]
    write_contract(model, NAMES, format="float32", background="black")
    assert said(capsys, model, transparent).splitlines()[1:] == answers["black"]


def test_photographs_are_turned_upright(folder, capsys):
    model, exif = folder / "float32.tflite", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS[0])).save(folder / "turned.png", exif=exif)
    upright, turned = (said(capsys, model, folder / name).splitlines()[1:] for name in ("first.png", "turned.png"))
    assert turned == upright


def test_a_byte_order_mark_is_no_part_of_the_first_label(folder, capsys):
    labels = folder / "labels.txt"
    labels.write_text("\ufeff" + "\n".join(f"name {index}" for index in range(10)), encoding="utf-8")
    output = said(capsys, folder / "int8.tflite", folder / "first.png", "--labels", labels, "--top", 10)
    assert "\ufeff" not in output and re.search(r"^  name 0 ", output, re.MULTILINE)


def test_class_names_are_escaped_where_the_console_cannot_show_them(folder):
    write_contract(folder / "int8.tflite", ["猫", *NAMES[1:]], format="int8")
    command = [sys.executable, "-m", "tfigkd.predict", "int8.tflite", "first.png", "--top", "10"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment)
    assert done.returncode == 0 and rb"\u732b" in done.stdout, done.stderr


def test_labels(folder, capsys):
    model, picture, labels = folder / "int8.tflite", folder / "first.png", folder / "labels.txt"
    labels.write_text("\n".join(f"name {index}" for index in range(10)) + "\n\n")
    assert said(capsys, model, picture, "--labels", labels).count("name ") == 5
    labels.write_text("only\nthree\nlines\n")
    assert "labels.txt names 3 classes" in (line := refusal(capsys, model, picture, "--labels", labels))
    assert "has 10; give one name for each" in line
    labels.write_bytes(b"\xff\xfe\x00")
    assert "cannot read label file" in refusal(capsys, model, picture, "--labels", labels)
    assert "no label file" in refusal(capsys, model, picture, "--labels", folder / "absent.txt")
    contract_path(model).unlink()
    assert said(capsys, model, picture).count("class ") == 5


def test_a_contract_of_the_wrong_length_or_damaged(folder, capsys):
    model, picture = folder / "int8.tflite", folder / "first.png"
    content = json.loads(contract_path(model).read_text())
    contract_path(model).write_text(json.dumps(content | {"class_names": NAMES[::-1]}))
    assert "its checksum does not fit" in refusal(capsys, model, picture)
    del content["checksum"]  # as earlier versions left it
    contract_path(model).write_text(json.dumps(content | {"class_names": NAMES[:9]}))
    assert "names 9 classes" in refusal(capsys, model, picture)
    contract_path(model).write_text(json.dumps(content | {"class_names": 10}))
    assert "has no list of class_names" in refusal(capsys, model, picture)
    contract_path(model).write_text("{")
    assert "is damaged (JSONDecodeError); delete it or export anew" in refusal(capsys, model, picture)


def test_a_file_that_changed_after_its_contract(folder, capsys):
    """Zeros in the middle of the weights: LiteRT runs such a file without a word."""
    model = folder / "float32.tflite"
    content = bytearray(model.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    model.write_bytes(content)
    assert "its checksum differs; export it anew" in refusal(capsys, model, folder / "first.png")


@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda content: b"", lambda content: b"no model"])
def test_a_corrupt_file_without_contract(folder, capsys, damage):
    model = folder / "int8.tflite"
    model.write_bytes(damage(model.read_bytes()))
    contract_path(model).unlink()
    assert "is not a LiteRT file" in refusal(capsys, model, folder / "first.png")
    model.unlink()
    assert "no file" in refusal(capsys, model, folder / "first.png")


def test_a_file_that_is_no_classifier_of_images(folder, capsys):
    inputs = keras.Input((4,))
    network = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    (folder / "table.tflite").write_bytes(convert(network, "float32"))
    assert "expected one image [1,H,W,3]" in refusal(capsys, folder / "table.tflite", folder / "first.png")


def test_the_contract_states_input_and_output(folder):
    contract = read_contract(folder / "int8.tflite")
    assert contract["input"]["shape"] == [1, 8, 8, 3]
    assert contract["input"]["dtype"] == contract["output"]["dtype"] == "int8"
    scale, zero_point = (contract["input"]["quantization"][name] for name in ("scale", "zero_point"))
    # 0 and 1, the ends of the range, are within the integers
    assert -128 <= round(0 / scale) + zero_point <= round(1 / scale) + zero_point <= 127
    assert contract["class_names"] == NAMES
    assert "quantization" not in read_contract(folder / "float32.tflite")["input"]
    with pytest.raises(UserError, match="no file"):
        contract_path(folder / "gone.tflite").write_text(contract_path(folder / "int8.tflite").read_text())
        read_contract(folder / "gone.tflite")

"""The command `tfigkd.web`: what it writes and what it refuses; the page itself is tested in tests/browser."""

import configparser
import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd.edge.contract import contract_path, read_contract, write_contract
from tfigkd.edge.convert import convert
from tfigkd.measure.gallery import FILE, Gallery
from tfigkd.runtime.files import checksum, write_manifest
from tfigkd.web import __main__ as web
from tfigkd.web.__main__ import ASSETS, main
from tfigkd.web.litert_js import PARTS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["ant", "bee", "<b>cat</b>"]
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def contents():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    made = {"float32": convert(model, "float32"), "integer": convert(model, "int8", PIXELS)}
    return made | {"int8": convert(model, "int8", PIXELS, io="float32")}


@pytest.fixture
def folder(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(web, "read_litert_js", lambda given: dict.fromkeys(PARTS, b"script"))
    for name, content in contents.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(content)
        parity = {"agreement": 0.9, "examples": 10, "on": "validation", "kl": 0.1}
        write_contract(path, NAMES, format=name, background="black", fit="crop", parity=parity)
    return tmp_path


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error)
    return error


def test_the_folder_has_all_that_the_page_needs(folder, capsys):
    files, site = [folder / "float32.tflite", folder / "int8.tflite"], folder / "site"
    assert main([*map(str, files), "--output", str(site)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"site: 2 models, 0\.\d MB; python -m http\.server --bind 127\.0\.0\.1 --directory \S+site", said)
    listed = json.loads((site / "models.json").read_text())["models"]
    for file, model in zip(files, listed, strict=True):
        assert checksum(site / model["file"]) == checksum(file) == model["sha256"]
        assert read_contract(site / model["file"]) == read_contract(file)
        assert (site / model["contract"]).name == contract_path(file).name
        assert (model["name"], model["format"]) == (file.stem, file.stem)
        assert (model["shape"], model["count"], model["classes"]) == ([8, 8, 3], 3, NAMES)
        assert (model["range"], model["outputs"], model["background"]) == ([0, 1], "logits", [0, 0, 0])
        assert model["fit"] == "crop"
        assert model["parity"] == {"agreement": 0.9, "examples": 10, "on": "validation"}
    assert {path.name for path in (site / "litert").iterdir()} == {*PARTS}
    assert {path.name for path in ASSETS.iterdir()} < {path.name for path in site.iterdir()}
    written = "".join(path.read_text() for path in site.iterdir() if path.is_file())
    assert str(folder) not in written  # a published page says nothing of the computer that made it
    # once more, with other files, over the earlier page
    earlier = json.loads((site / "models.json").read_text())["models"]
    (site / "models" / "notes").mkdir()
    (site / "models" / "notes" / "mine.txt").write_text("kept")
    assert main([str(files[0]), "--output", str(site)]) == 0
    assert [(site / one["file"]).exists() for one in earlier] == [True] + [False] * (len(earlier) - 1)
    assert (site / "models" / "notes" / "mine.txt").exists()
    assert len(json.loads((site / "models.json").read_text())["models"]) == 1


def test_a_file_without_contract_and_labels(folder):
    path, site = folder / "float32.tflite", folder / "site"
    contract_path(path).unlink()
    assert main([str(path), "--output", str(site)]) == 0
    (model,) = json.loads((site / "models.json").read_text())["models"]
    assert model["classes"] == ["class 0", "class 1", "class 2"]
    assert (model["format"], model["parity"], model["background"]) == (None, {}, [255, 255, 255])
    assert model["fit"] == "stretch"
    assert "contract" not in model and not model["named"]
    (folder / "names.txt").write_text("x\ny\nz\n")
    options = ["--labels", str(folder / "names.txt"), "--input-range", "0", "255", "--background", "#0a0b0c"]
    assert main([str(path), "--output", str(site), *options]) == 0
    (model,) = json.loads((site / "models.json").read_text())["models"]
    assert (model["classes"], model["range"], model["background"]) == (["x", "y", "z"], [0, 255], [10, 11, 12])
    assert model["named"]


def test_signs_of_addresses_in_the_names_of_files(folder):
    """A browser would take what follows # or ? for no part of the path, and %41 for A."""
    path, site = folder / "cat #1? 90%41.tflite", folder / "site"
    path.write_bytes((folder / "float32.tflite").read_bytes())
    write_contract(path, NAMES)
    for _ in range(2):  # once more, over the earlier page, which deletes files that are no longer listed
        assert main([str(path), "--output", str(site)]) == 0
    (model,) = json.loads((site / "models.json").read_text())["models"]
    assert model["file"] == "models/0/cat%20%231%3F%2090%2541.tflite"
    assert checksum(site / unquote(urlsplit(model["file"]).path)) == model["sha256"]
    assert (site / unquote(urlsplit(model["contract"]).path)).name == contract_path(path).name


def test_equal_names_are_told_apart_by_their_folders(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for place in ("one", "two"):
        Path(place).mkdir()
        Path(place, "student.tflite").write_bytes(Path("float32.tflite").read_bytes())
    assert main(["one/student.tflite", "two/student.tflite", "int8.tflite", "--output", "site"]) == 0
    listed = json.loads(Path("site/models.json").read_text())["models"]
    assert [model["name"] for model in listed] == ["one/student", "two/student", "int8"]
    assert len({model["file"] for model in listed}) == 3


def test_what_the_command_refuses(folder, capsys):
    site = ("--output", folder / "site")
    line = refusal(capsys, folder / "float32.tflite", folder / "integer.tflite", *site)
    assert "integer.tflite has int8 at its input or output" in line
    assert "export it with --io float32, or the run with --export.io float32" in line
    (folder / "text.tflite").write_text("no model")
    assert "is not a LiteRT file" in refusal(capsys, folder / "text.tflite", *site)
    assert "no file" in refusal(capsys, folder / "absent.tflite", *site)
    (folder / "int8.tflite").write_bytes((folder / "float32.tflite").read_bytes())
    assert "its checksum differs; export it anew" in refusal(capsys, folder / "int8.tflite", *site)
    assert not (folder / "site").exists()
    (folder / "other").mkdir()
    (folder / "other" / "index.html").write_text("my page")
    line = refusal(capsys, folder / "float32.tflite", "--output", folder / "other")
    assert "has an index.html of another page; choose another --output" in line
    assert (folder / "other" / "index.html").read_text() == "my page"


def test_examples_of_a_run_and_their_maps(folder, capsys):
    """The stored values come back from the PNG files: pictures exactly, maps to a half of 1/255 of their maximum."""
    run, site, files = folder / "run", folder / "site", ["--output", str(folder / "site")]
    random = np.random.default_rng(1)
    maps = random.random((2, 8, 8)).astype(np.float32)
    stored = random.integers(0, 256, (2, 8, 8), dtype=np.uint8)
    stored[:, 0, 0], maps[1] = 255, 0
    twos, none = np.array([2, 0]), np.zeros(0)
    gallery = Gallery(twos, PIXELS[:2], twos, twos, maps, twos, stored, none, none, none, none)
    (run / "evaluate").mkdir(parents=True)
    line = refusal(capsys, folder / "float32.tflite", *files, "--examples", run)
    assert "has no stage evaluate; give --examples the folder of a finished run" in line
    write_manifest(run / "evaluate", "f", class_names=NAMES)
    assert "has no example pictures" in refusal(capsys, folder / "float32.tflite", *files, "--examples", run)
    sums = {FILE: gallery.save(run / "evaluate" / FILE)}
    write_manifest(run / "evaluate", "f", files=sums, class_names=NAMES)
    assert main([str(folder / "float32.tflite"), *files, "--examples", str(run)]) == 0
    examples = json.loads((site / "models.json").read_text())["examples"]
    assert [example["label"] for example in examples] == [NAMES[2], NAMES[0]]
    for index, example in enumerate(examples):
        np.testing.assert_array_equal(np.asarray(Image.open(site / example["picture"])), PIXELS[index])
        teacher, student = (np.asarray(Image.open(site / one["file"])) for one in example["maps"])
        np.testing.assert_array_equal(teacher, stored[index])
        np.testing.assert_allclose(student / 255, maps[index] / max(maps[index].max(), 1e-9), atol=0.5001 / 255)
    assert main([str(folder / "float32.tflite"), *files]) == 0
    assert not (site / "examples").exists() and json.loads((site / "models.json").read_text())["examples"] == []
    (run / "evaluate" / FILE).write_bytes(b"damaged")
    assert "is corrupt" in refusal(capsys, folder / "float32.tflite", *files, "--examples", run)


def test_neither_tensorflow_nor_keras_is_imported():
    program = "import sys, tfigkd.web.__main__; assert not {'tensorflow', 'keras', 'rich', 'tyro'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_wheel_contains_the_page():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["tfigkd.web"].split(", ")
    for asset in ASSETS.iterdir():
        assert any(fnmatch.fnmatch(f"site/{asset.name}", pattern) for pattern in patterns), asset.name


def test_the_page_says_how_pictures_come_to_the_size_of_a_model():
    """A contract with the fit "crop" has them cropped."""
    text = " ".join((ASSETS / "index.html").read_text(encoding="utf-8").split())
    assert "Pictures are stretched or cropped to the size that a model takes, as in its training" in text


def test_the_page_names_no_other_address():
    """Nothing of it is loaded from elsewhere, and its policy forbids that."""
    for asset in ASSETS.iterdir():
        text = asset.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+/", text), asset.name
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (ASSETS / "index.html").read_text())[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for rule, sources in rules.items():
        assert {*sources.split()} <= {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:"}, rule

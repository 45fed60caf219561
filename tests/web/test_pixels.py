"""The page's own pixel arithmetic, run by node, beside Pillow's and NumPy's.

Node comes with playwright, so these tests run wherever the browser tests can.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from tfigkd.data import to_model_input
from tfigkd.data.pictures import scaled
from tfigkd.data.spaces import in_range, to_logits
from tfigkd.predict import probabilities
from tfigkd.web.__main__ import ASSETS

RNG = np.random.default_rng(0)
# from width, height to width, height: smaller, larger, one axis alone, extreme, equal
SIZES = (
    *((8, 8, 32, 32), (32, 32, 8, 8), (33, 21, 32, 32), (640, 427, 32, 32), (7, 300, 96, 96), (96, 5, 96, 32)),
    *((10, 31, 8, 8), (64, 96, 32, 32), (64, 97, 32, 32), (200, 289, 64, 16), (7, 50, 96, 96), (31, 33, 32, 32)),
    *((5, 64, 40, 64), (1, 1, 4, 3), (2, 9, 1, 1), (17, 13, 17, 13), (500, 375, 224, 224), (224, 224, 33, 47)),
)


@pytest.fixture(scope="module")
def node():
    """Run statements with the names of pixels.js; they print JSON."""
    program = shutil.which("node")
    if program is None:
        playwright = pytest.importorskip("playwright", reason="NEEDS NODE: pip install playwright")
        program = str(Path(playwright.__file__).parent / "driver" / "node")

    def run(statements, given):
        text = f"import * as pixels from {json.dumps((ASSETS / 'pixels.js').as_uri())};\n"
        text += "import fs from 'node:fs'; const given = JSON.parse(fs.readFileSync(0));\n" + statements
        done = subprocess.run(
            [program, "--input-type=module", "-e", text], input=json.dumps(given), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_resizing_is_pillows_bit_by_bit(node, fit):
    """Noise, and black and white alone, which shows every rounding;
    one gray level where an older Pillow has its own order."""
    bound = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1
    cases, wanted = [], []
    for index, (width, height, to_width, to_height) in enumerate(SIZES):
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if index % 2:
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        change = ImageOps.fit if fit == "crop" else Image.Image.resize
        resized = change(Image.fromarray(pixels), (to_width, to_height), Image.Resampling.BILINEAR)
        cases.append([pixels.ravel().tolist(), width, height, to_width, to_height, fit])
        wanted.append(np.asarray(resized).ravel().tolist())
    said = node("console.log(JSON.stringify(given.map((one) => [...pixels.resize(...one)])))", cases)
    for case, one, other in zip(SIZES, said, wanted, strict=True):
        assert np.abs(np.array(one) - np.array(other)).max() <= bound, case


def test_resizing_as_keras_is_that_of_training(node):
    cases, wanted = [], []
    for width, height, to_width, to_height in SIZES:
        pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cases.append([pixels.ravel().tolist(), width, height, to_width, to_height, "keras"])
        wanted.append(np.asarray(scaled(Image.fromarray(pixels), (to_width, to_height), "keras")).ravel())
    said = node("console.log(JSON.stringify(given.map((one) => [...pixels.resize(...one)])))", cases)
    for case, one, other in zip(SIZES, said, wanted, strict=True):
        differences = np.abs(np.array(one) - other.astype(int))
        assert differences.max() <= 1 and differences.mean() < 0.01, case  # where one rounds a half up, one down


def test_gray_and_transparent_pixels_are_pillows(node):
    rgba = RNG.integers(0, 256, (20, 20, 4), dtype=np.uint8)
    rgba[:5, :, 3], rgba[5:10, :, 3] = 0, 255
    statements = """
const rgb = pixels.opaque(given.rgba, [10, 200, 255]);
console.log(JSON.stringify([[...rgb], [...pixels.gray(given.rgb)]]));
"""
    rgb = RNG.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    composited, gray = node(statements, {"rgba": rgba.ravel().tolist(), "rgb": rgb.ravel().tolist()})
    assert gray == np.asarray(Image.fromarray(rgb).convert("L")).ravel().tolist()
    back = Image.new("RGBA", (20, 20), (10, 200, 255, 255))
    wanted = np.asarray(Image.alpha_composite(back, Image.fromarray(rgba)).convert("RGB")).ravel()
    differences = np.abs(np.array(composited) - wanted.astype(int))
    assert differences.max() <= 1
    assert (differences.reshape(20, 60)[:10] == 0).all()  # clear and opaque pixels are exact


@pytest.mark.parametrize("given", [(0, 1), (0, 255), (-1, 1), (-2.1, 2.6)])
def test_input_values_are_those_of_python(node, given):
    pixels = np.arange(256, dtype=np.uint8)
    said = node("console.log(JSON.stringify([...pixels.inputValues(given[0], given[1])]))", [pixels.tolist(), given])
    np.testing.assert_array_equal(np.array(said, np.float32), in_range(to_model_input(pixels), given))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.5, -2.0, 700.0, 699.0], "logits"),
        ([0.25, 0.0, 0.75], "probabilities"),
        ([-0.7], "logits"),
        ([0.9], "probabilities"),
        ([1.0], "probabilities"),
    ],
)
def test_probabilities_are_those_of_python(node, values, kind):
    said = node("console.log(JSON.stringify(pixels.probabilities(given[0], given[1])))", [values, kind])
    np.testing.assert_allclose(said, probabilities(to_logits(np.array([values]), kind)[0]), atol=1e-9)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_outputs_that_are_not_finite_are_no_answer(node, kind):
    """As in `predict`; the likeliest class of NaN would be none, and two models of NaN would agree."""
    statements = """
const said = [[NaN, 0], [0, Infinity], [-Infinity, 0], [NaN]].map((one) => {
  try { return pixels.probabilities(Float32Array.from(one), given); } catch (error) { return error.message; }
});
console.log(JSON.stringify(said));
"""
    assert node(statements, kind) == ["the model gives NaN or infinity"] * 4


def test_the_median_of_an_even_number_of_times_lies_between_two(node):
    said = node("console.log(JSON.stringify(given.map(pixels.median)))", [[3, 1], [5], [10, 2, 9], [1, 2, 30, 4]])
    assert said == [2, 5, 9, 3]


def test_answers_without_class_names_are_compared_by_their_places(node):
    """Else every picture would be one on which the models disagree."""

    def answer(best, name, named):
        return {"best": best, "name": name, "model": {"about": {"named": named}}}

    cat, dog = answer(0, "cat", True), answer(1, "dog", True)
    pairs = [[cat, cat], [cat, dog], [cat, answer(1, "cat", True)]]
    pairs += [[cat, answer(0, "class 0", False)], [answer(1, "class 1", False), cat]]
    said = node("console.log(JSON.stringify(given.map(([one, other]) => pixels.agree(one, other))))", pairs)
    assert said == [True, False, True, True, False]


def test_the_occlusion_map_by_hand(node):
    """The score is the mean of the top left pixel of a black picture with one white pixel: only patches there count."""
    statements = """
const rgb = new Uint8ClampedArray(12 * 8 * 3);
rgb.set([255, 255, 255], 0);
let asked = 0;
const score = async (image) => { asked += 1; return image[0] / 255; };
const map = await pixels.occlusionMap(rgb, 12, 8, score);
console.log(JSON.stringify([[...map], asked]));
"""
    values, asked = node(statements, None)
    values = np.array(values).reshape(8, 12)
    # patches of 3x2, one pixel apart; the mean color of 96 pixels, one of them white, is 3
    assert asked == 1 + 10 * 7
    fall = 1 - 3 / 255
    np.testing.assert_allclose(values[:2, :3], [[fall, fall / 2, fall / 3], [fall / 2, fall / 4, fall / 6]], rtol=1e-6)
    assert not values[2:].any() and not values[:, 3:].any()

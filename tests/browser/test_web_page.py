"""The page of `tfigkd.web` in Debian's Chromium, from Python's own web server on 127.0.0.1.

Skipped loudly where there is no chromium (`.ci/run` installs it) or LiteRT.js cannot be fetched.
"""

import functools
import http.server
import io
import json
import shutil
import threading

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd.data import load
from tfigkd.edge.contract import write_contract
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import open_classifier
from tfigkd.measure.gallery import FILE, Gallery
from tfigkd.predict import predictions, read_picture
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import write_manifest
from tfigkd.web.__main__ import main
from tfigkd.web.litert_js import read_litert_js

NAMES = ["zero", "one", "two", "<img src=x onerror=alert(1)>", *map(str, range(4, 10))]
FILES = ("small.float32", "small.int8", "gray.float32")
# equal here up to 3e-8: the same XNNPACK on the same pixels; other processors may add in another order
BOUND = 1e-6
SECONDS = 120_000


@pytest.fixture(scope="module")
def litert(tmp_path_factory):
    try:
        read_litert_js()
    except UserError as error:
        pytest.skip(f"NEEDS LITERT.JS: {error}")


def network(channels, activation=None):
    inputs = keras.Input((8, 8, channels))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation=activation)(keras.layers.Flatten()(x)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits learned in seconds: float32, int8 with float32 ends, and one of gray pictures with a softmax."""
    folder, data = tmp_path_factory.mktemp("web"), load("digits", limit=500)
    for name, channels, activation in (("small", 3, None), ("gray", 1, "softmax")):
        keras.utils.set_random_seed(len(name))
        model = network(channels, activation)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
        model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
        images = data.train.images[..., :channels]
        model.fit(images / np.float32(255), data.train.labels, epochs=6, batch_size=32, verbose=0)
        (folder / f"{name}.float32.tflite").write_bytes(convert(model, "float32"))
        if channels == 3:
            (folder / f"{name}.int8.tflite").write_bytes(convert(model, "int8", images[:50], io="float32"))
            write_contract(folder / f"{name}.float32.tflite", NAMES, format="float32", background="black")
            write_contract(folder / f"{name}.int8.tflite", NAMES, format="int8", background="black")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    pictures = folder / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for index, image in enumerate(data.test.images[:50]):
        width, height = random.integers(6, 40, 2)
        size = (8, 8) if index < 10 else (int(width), int(height))
        picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        noise = random.integers(0, 60, (size[1], size[0], 3))
        noisy = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
        noisy.convert(("RGB", "L", "P", "RGBA")[index % 4]).save(pictures / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def site(folder, litert):
    files = [str(folder / f"{name}.tflite") for name in FILES]
    labels = ["--labels", str(folder / "names.txt")]
    assert main([*files, "--output", str(folder / "site"), *labels]) == 0
    return folder / "site"


@pytest.fixture(scope="module")
def serve():
    """Start Python's web server on a folder; returns the address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def visit(browser, serve):
    """Opens a folder as a page; closing, it checks that nothing was complained of or asked of another origin."""
    opened = []

    def visit(folder, width=1440, scheme="light"):
        address = serve(folder)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(SECONDS)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append((context, address, said, asked))
        page.goto(address)
        page.locator("html[data-ready]").wait_for()
        return page

    yield visit
    for context, address, said, asked in opened:
        context.close()
        assert said == []
        assert len(asked) > 5 and all(url.startswith((address, f"blob:{address}")) for url in asked), asked


def expected(folder, name, paths):
    """Probabilities [N,10] as `tfigkd.predict` has them."""
    interpreter = open_classifier(folder / f"{name}.tflite", threads=1)
    shape, outputs = interpreter.get_input_details()[0]["shape"][1:], "probabilities" if "gray" in name else "logits"
    pictures = [read_picture(path, shape, resize=True) for path in paths]
    return np.stack([shares for shares, _ in predictions(interpreter, pictures, outputs=outputs)])


def choose(page, paths):
    before = page.locator("article").count()
    page.set_input_files("#files", [str(path) for path in paths])
    page.locator("article").nth(before + len(paths) - 1).wait_for(state="attached")


def shown(page, count):
    """The probabilities on the page [pictures, files, classes], in the order in which the pictures were given."""
    page.locator("#top").select_option("10")
    articles = page.evaluate(
        """() => [...document.querySelectorAll('article')].map((article) => [...article.querySelectorAll('ol')].map(
            (list) => [...list.children].map((row) => [
                row.querySelector('span').textContent, Number(row.querySelector('data').value)])))"""
    )
    assert len(articles) == count
    return np.array([[[dict(rows)[name] for name in NAMES] for rows in article] for article in articles[::-1]])


def test_probabilities_are_those_of_python(visit, site, folder):
    page, paths = visit(site), sorted((folder / "pictures").iterdir())
    assert page.evaluate("document.documentElement.dataset.ready") == "3"
    assert len(paths) == 50
    choose(page, paths)
    seen = shown(page, 50)
    for index, name in enumerate(FILES):
        wanted = expected(folder, name, paths)
        assert wanted.max(axis=1).min() < 0.9, "the answers of the test are too sure to tell anything"
        differences = np.abs(seen[:, index] - wanted).max()
        print(f"{name}: largest difference {differences:.2g}")
        assert differences <= BOUND, name
    tops = np.stack([expected(folder, name, paths).argmax(axis=1) for name in FILES])
    apart = (tops != tops[0]).any(axis=0)
    assert 0 < apart.sum() < 50
    said = page.locator("#summary").text_content()
    assert said == f"50 pictures, the models agree on {50 - apart.sum()} and disagree on {apart.sum()}."
    page.locator("#apart").check()
    visible = page.locator("article:visible h3").all_text_contents()
    assert visible == [path.name for path, differs in zip(paths, apart, strict=True) if differs][::-1]
    times = [float(text.split(" ")[0]) for text in page.locator("#models td:nth-child(2)").all_text_contents()]
    assert len(times) == 3 and min(times) > 0


def test_transparent_and_turned_pictures(visit, site, folder, tmp_path):
    """The browser premultiplies transparent colors, so these are compared a little more loosely."""
    image = np.asarray(Image.open(folder / "pictures" / "00.png").convert("RGB"))
    alpha = np.random.default_rng(1).choice([0, 80, 255], (*image.shape[:2], 1)).astype(np.uint8)
    Image.fromarray(np.concatenate([image, alpha], axis=2)).save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    big = Image.fromarray(image).resize((64, 48), Image.Resampling.BICUBIC)
    big.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    paths = [tmp_path / "transparent.png", tmp_path / "turned.jpg"]
    page = visit(site)
    choose(page, paths)
    seen = shown(page, 2)[:, 0]
    interpreter = open_classifier(folder / "small.float32.tflite")
    pictures = [read_picture(path, (8, 8, 3), resize=True, background="black") for path in paths]
    wanted = np.stack([shares for shares, _ in predictions(interpreter, pictures)])
    np.testing.assert_allclose(seen, wanted, atol=0.02)
    others = [read_picture(paths[0], (8, 8, 3), background="white"), np.rot90(pictures[1]).copy()]
    for one, (shares, _) in zip(seen, predictions(interpreter, others), strict=True):
        assert np.abs(one - shares).max() > 0.1


def occlusion(interpreter, picture):
    """The mean fall of the likeliest class's probability over 2x2 patches, one pixel apart, as in pixels.js."""
    height, width = picture.shape[:2]
    (whole, _), *_ = predictions(interpreter, [picture])
    best, mean = whole.argmax(), np.round(picture.reshape(-1, 3).mean(axis=0))
    falls, covered = np.zeros((height, width)), np.zeros((height, width))
    for top in range(height - 1):
        for left in range(width - 1):
            hidden = picture.copy()
            hidden[top : top + 2, left : left + 2] = mean
            ((shares, _),) = predictions(interpreter, [hidden])
            falls[top : top + 2, left : left + 2] += whole[best] - shares[best]
            covered[top : top + 2, left : left + 2] += 1
    return falls / covered


def test_the_map_of_where_it_looks(visit, site, folder):
    page, path = visit(site), folder / "pictures" / "04.png"
    choose(page, [path])
    page.get_by_role("button", name="Where the models look").click()
    page.locator("figure").nth(2).wait_for()
    values = page.locator("figure").first.get_attribute("data-map")
    wanted = occlusion(open_classifier(folder / "small.float32.tflite"), read_picture(path, (8, 8, 3), resize=True))
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(np.array(values.split(), float).reshape(8, 8), wanted, atol=1e-4)
    assert page.locator("figcaption").first.text_content().startswith("Orange: hiding this part lowers “")
    assert page.locator("figure canvas").first.get_attribute("aria-label").startswith("Map of small.float32: where")


def test_examples_of_a_run_come_with_their_stored_maps(visit, folder, litert, tmp_path):
    """A map is drawn over its picture: the gray picture where it is zero, orange where it has its maximum."""
    image = np.random.default_rng(2).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    teacher, student = np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.float32)
    teacher[0, 2, 5], student[0, 6, 1] = 255, 0.7
    one, none = np.array([3]), np.zeros(0)
    (tmp_path / "evaluate").mkdir()
    stored = Gallery(one, image, one, one, student, one, teacher, none, none, none, none)
    write_manifest(
        tmp_path / "evaluate", "f", files={FILE: stored.save(tmp_path / "evaluate" / FILE)}, class_names=NAMES
    )
    path = folder / "small.float32.tflite"
    assert main([str(path), "--output", str(tmp_path / "site"), "--examples", str(tmp_path)]) == 0
    page = visit(tmp_path / "site")
    page.get_by_role("button", name=f"Example 1, “{NAMES[3]}”").click()
    page.locator("article").wait_for()
    seen = shown(page, 1)[0, 0]
    ((wanted, _),) = predictions(open_classifier(path), [image[0]])
    np.testing.assert_allclose(seen, wanted, atol=BOUND)
    read = """canvas => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data]"""
    gray = np.asarray(Image.fromarray(image[0]).convert("L")).astype(float)
    for role, place in (("teacher", (2, 5)), ("student", (6, 1))):
        drawn = np.array(page.locator(f"figure[data-of={role}] canvas").evaluate(read)).reshape(8, 8, 4)[..., :3]
        wanted = np.repeat(90 + 0.55 * gray[..., None], 3, axis=2)
        wanted[place] = 0.15 * wanted[place] + 0.85 * np.array([255, 110, 0])
        np.testing.assert_allclose(drawn, wanted, atol=1)
    page.get_by_role("button", name="Where the model looks").click()
    page.locator("figure[data-map]").wait_for()
    assert page.locator("article figure").count() == 3  # what is hidden, beside the two stored maps


def test_the_keyboard_does_everything(visit, site, folder):
    page = visit(site)

    def tab_to(name):
        for _ in range(30):
            page.keyboard.press("Tab")
            label = "document.activeElement.ariaLabel ?? document.activeElement.textContent"
            if page.evaluate(label).strip() == name:
                return
        raise AssertionError(f"the Tab key does not reach {name!r}")

    tab_to("To the pictures")
    page.keyboard.press("Enter")
    page.locator("#add:target").wait_for()  # the jump takes the focus away, a moment after the key
    with page.expect_file_chooser() as chooser:  # opened before the key, which the browser may otherwise handle first
        tab_to("Choose pictures")
        page.keyboard.press("Enter")
    chooser.value.set_files(str(folder / "pictures" / "00.png"))
    page.locator("article").wait_for()
    page.locator("#top").focus()
    page.keyboard.press("Home")
    assert page.locator("article li").count() == 3  # one class of each of three files
    tab_to("Where the models look")
    page.keyboard.press("Enter")
    page.locator("figure").nth(2).wait_for()
    tab_to("Remove 00.png")
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0
    assert page.evaluate("document.activeElement.id") == "choose"


def test_pasted_and_dropped_pictures(visit, site, folder):
    page, content = visit(site), list((folder / "pictures" / "01.png").read_bytes())
    for kind in ("paste", "drop"):
        page.evaluate(
            """([kind, content]) => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(content)], `${kind}.png`, { type: 'image/png' }));
                const event = kind === 'paste'
                    ? new ClipboardEvent(kind, { clipboardData: files, bubbles: true })
                    : new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true });
                document.querySelector('#drop').dispatchEvent(event);
            }""",
            [kind, content],
        )
        page.get_by_role("heading", name=f"{kind}.png").wait_for()


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(visit, site, folder, width, scheme):
    page = visit(site, width, scheme)
    choose(page, sorted((folder / "pictures").iterdir())[:2])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pairs = page.evaluate(
        """() => [...document.querySelectorAll('h1, p, th, td, button, li span, li data, label, h4 span, .mark')]
            .filter((one) => one.checkVisibility() && !one.closest(':disabled')).map((one) => {
                let back = one;
                const clear = 'rgba(0, 0, 0, 0)';
                while (getComputedStyle(back).backgroundColor === clear) back = back.parentElement;
                const bar = one.closest('li')?.querySelector('i');
                return [one.textContent, ...[one, bar ?? back].map((which, index) =>
                    getComputedStyle(which)[index ? 'backgroundColor' : 'color'].match(/[0-9]+/g).map(Number))];
            })"""
    )
    assert len(pairs) > 40

    def luminance(color):
        shares = [one / 255 for one in color[:3]]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ink, back in pairs:
        low, high = sorted((luminance(ink), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, back)
    for box in page.evaluate("[...document.querySelectorAll('article *')].map((one) => one.getBoundingClientRect())"):
        assert box["right"] <= width
    unnamed = "[...document.querySelectorAll('button, select, canvas, video')].filter((one) => "
    unnamed += "!one.ariaLabel && !one.textContent.trim() && !one.closest('label')).length"
    assert page.evaluate(unnamed) == 0


def test_what_is_no_picture_is_one_line(visit, site, tmp_path):
    page = visit(site)
    (tmp_path / "note.png").write_text("no picture")
    page.set_input_files("#files", str(tmp_path / "note.png"))
    page.locator("#errors p").wait_for()
    said = page.locator("#errors p span").all_text_contents()
    assert said == ["Cannot read note.png: it is no picture that this browser knows; choose a PNG, JPEG or WebP file."]
    page.get_by_role("button", name="Close this message").click()
    assert page.locator("#errors p").count() == 0
    page.get_by_role("button", name="Use the camera").click()  # a machine without one, or one that refuses it
    page.locator("#errors p").wait_for()
    assert "amera" in page.locator("#errors p span").text_content()


def test_the_time_of_an_image_is_that_of_the_pictures_below(visit, site, folder):
    page = visit(site)
    cells = page.locator("#models td:nth-child(2)")
    assert cells.all_text_contents() == ["–"] * 3
    choose(page, sorted((folder / "pictures").iterdir())[:2])
    each = [one.locator("h4 span").all_text_contents() for one in page.locator("article").all()]
    times = np.array([[float(text.split()[0]) for text in texts] for texts in each])
    shown = [float(text.split()[0]) for text in cells.all_text_contents()]
    np.testing.assert_allclose(shown, times.mean(axis=0), atol=0.011 if times.max() < 10 else 1)
    page.get_by_role("button", name="Remove 00.png").click()
    assert cells.all_text_contents() == each[0]  # the later picture is the first of the page
    page.locator("#clear").click()
    assert cells.all_text_contents() == ["–"] * 3


def test_a_model_that_gives_nan_gives_no_answer(visit, litert, tmp_path):
    """Here of dark gray pictures, a logarithm of a negative number; not of black, white and noise, as at the build."""
    inputs = keras.Input((8, 8, 3))
    means = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.ops.log((means - 0.2) ** 2 - 0.01)))
    path = tmp_path / "dark.float32.tflite"
    path.write_bytes(convert(model, "float32"))
    write_contract(path, NAMES, format="float32", background="black")
    assert main([str(path), "--output", str(tmp_path / "site")]) == 0
    for name, gray in (("dark", 51), ("light", 200)):
        Image.new("RGB", (8, 8), (gray, gray, gray)).save(tmp_path / f"{name}.png")
    page = visit(tmp_path / "site")
    page.set_input_files("#files", [str(tmp_path / "dark.png"), str(tmp_path / "light.png")])
    page.get_by_role("heading", name="light.png").wait_for()
    said = page.locator("#errors p span").all_text_contents()
    assert said == ["Cannot classify dark.png: the model gives NaN or infinity."]
    assert page.locator("article").count() == 1
    page.evaluate(
        """() => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [8, 8];
            window.paint = (color) => {
                canvas.getContext('2d').fillStyle = color;
                canvas.getContext('2d').fillRect(0, 0, 8, 8);
            };
            window.paint('rgb(51, 51, 51)');
            setInterval(() => window.paint(window.color ?? 'rgb(51, 51, 51)'), 50);
            const media = { getUserMedia: async () => canvas.captureStream(20) };
            Object.defineProperty(navigator, 'mediaDevices', { value: media });
        }"""
    )
    page.get_by_role("button", name="Use the camera").click()
    live = page.locator("#live dd")
    live.get_by_text("No answer: the model gives NaN or infinity.").wait_for()
    page.evaluate("() => { window.color = 'rgb(200, 200, 200)'; }")
    page.locator("#live dd", has_text="%").wait_for()  # the loop goes on with the next frame
    page.locator("#stop").click()


def test_models_that_do_not_fit_are_named_and_the_others_work(visit, site, folder, tmp_path):
    broken = shutil.copytree(site, tmp_path / "site")
    model = next((broken / "models" / "0").glob("*.tflite"))
    model.write_bytes(model.read_bytes()[:-8] + bytes(8))
    content = json.loads((broken / "models.json").read_text())
    content["models"][1]["classes"] = NAMES[:9]
    (broken / "models.json").write_text(json.dumps(content))
    page = visit(broken)
    first, second = page.locator("#errors p span").all_text_contents()
    assert "small.float32 cannot be used: it is not the file of models.json: its checksum differs" in first
    assert "small.int8 cannot be used: it gives 10 values, models.json has 9 class names" in second
    assert page.locator("#status").text_content() == "1 model is ready."
    choose(page, [folder / "pictures" / "00.png"])
    assert page.locator("article ol").count() == 1


def test_the_policy_lets_no_request_out(browser, serve, site, tmp_path):
    other = serve(tmp_path)
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.goto(serve(site))
    page.locator("html[data-ready]").wait_for(timeout=SECONDS)
    page.on("requestfinished", lambda request: asked.append(request.url))
    failed = page.evaluate("address => fetch(address).then(() => 'sent', (error) => error.name)", other)
    loaded = "address => new Promise((done) => { const one = new Image(); one.onload = () => done('sent'); "
    loaded += "one.onerror = () => done('refused'); one.src = address; })"
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    (tmp_path / "x.png").write_bytes(picture.getvalue())
    assert (failed, page.evaluate(loaded, f"{other}x.png")) == ("TypeError", "refused")
    assert asked == []
    context.close()

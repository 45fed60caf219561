"""Malicious files: none of their code is executed, no outside file is read or written, and one line refuses them."""

import base64
import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from test_fuzz import published_network, small_network

from tfigkd.config.data_fields import Reading
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.data import load
from tfigkd.data.pictures import decode
from tfigkd.models import load_classifier, load_torch_weights
from tfigkd.predict import read_picture
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, finished, make_folder, signature
from tfigkd.training import checkpoint
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import make_optimizer

MARKER = "executed"
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


class Payload:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return open, (MARKER, "w")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in a temporary folder, and check at the end that no payload was executed."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob(MARKER))


def refused(tally, case, read, name):
    """Check that a reader ends with one error line that names the file."""
    tally.read(case, lambda: f"{read()} was accepted", set(), {name})
    assert not Path(MARKER).exists(), case


def arrays(count=30):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = generator.integers(0, 256, (2, count, 8, 8, 3), np.uint8)
    return {"x_train": images[0], "y_train": labels, "x_test": images[1], "y_test": labels}


def test_npz_with_pickled_objects(tally):
    one = tally("pickled objects in .npz and checkpoints")
    evil = np.array([Payload()] * 30, dtype=object)
    for name in ("x_train", "y_train", "x_test", "y_test", "class_names"):
        np.savez("evil.npz", allow_pickle=True, **arrays() | {name: evil})
        refused(one, name, lambda: load("evil.npz"), "evil.npz")
    np.savez("weights.npz", allow_pickle=True, **{"classifier.1.weight": evil})
    refused(one, "weights", lambda: load_torch_weights(published_network(), "weights.npz"), "weights.npz")
    Path("weights.npz").write_bytes(evil.dumps())
    refused(one, "a pickle by itself", lambda: load_torch_weights(published_network(), "weights.npz"), "weights.npz")
    Path("evil.npz").write_bytes(evil.dumps())
    refused(one, "a pickle as data", lambda: load("evil.npz"), "evil.npz")

    # a checkpoint with the right checksum
    model = Distiller(small_network())
    model.compile(make_optimizer(TrainingConfig(), 4), jit_compile=False)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, note=evil, v0=evil)
    content = buffer.getvalue()
    Path("checkpoint-00001.ckpt").write_bytes(content + hashlib.sha256(content).digest())
    one.check("a checkpoint", checkpoint.restore(Path(), model, "f") == checkpoint.Progress(), said=True)
    one.end()


def inflate(path, member, size):
    """Change a zip's directory so that a member claims to unpack to `size` bytes."""
    content = bytearray(Path(path).read_bytes())
    place = content.index(b"PK\x01\x02")
    while bytes(content[place + 46 : place + 46 + len(member)]) != member.encode():
        place = content.index(b"PK\x01\x02", place + 1)
    content[place + 24 : place + 28] = struct.pack("<I", size)
    Path(path).write_bytes(content)


def forged(shape, descr="|u1"):
    """Return an .npy file whose header claims a shape, with almost no data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(100)


def test_archives_that_unpack_to_more_than_a_machine_holds(tally):
    one = tally("archives and headers that ask for terabytes")
    for name, header in (
        ("x_train", forged((60, 2**20, 2**20, 3))),
        ("x_test", forged((2**62, 8, 8, 3))),
        ("class_names", forged((3,), "<U1000000000")),
        ("class_names", forged((2**40,), "<U8")),
    ):
        np.savez("bomb.npz", **{key: value for key, value in arrays().items() if key != name})
        with zipfile.ZipFile("bomb.npz", "a") as archive:
            archive.writestr(f"{name}.npy", header)
        refused(one, name, lambda: load("bomb.npz"), "bomb.npz")
    np.savez("weights.npz", a=np.zeros(3, np.float32), b=np.zeros(3, np.float32))
    for member in ("a.npy", "b.npy"):
        inflate("weights.npz", member, 0xFFFFFFF0)
    refused(one, "weights", lambda: load_torch_weights(published_network(), "weights.npz"), "weights.npz")
    for member in ("config.json", "model.weights.h5"):
        small_network().save("bomb.keras")
        inflate("bomb.keras", member, 0xFFFFFFF0)
        refused(one, f".keras {member}", lambda: load_classifier("bomb.keras"), "bomb.keras")
    one.end()


def with_config(change, path="evil.keras", extra=()):
    """Write a saved model with a changed config and further members."""
    small_network().save("good.keras")
    with zipfile.ZipFile("good.keras") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = json.dumps(change(json.loads(content))).encode()
            target.writestr(name, content)
        for name, content in extra:
            target.writestr(name, content)


def layer(whole, **changes):
    """Change the last layer in a config, and return the config."""
    whole["config"]["layers"][-1].update(changes)
    return whole


CODE = f"open({MARKER!r}, 'w')\nimport keras\nclass Evil(keras.layers.Layer):\n    pass\n"


def test_keras_files_that_bring_code(tally, monkeypatch):
    one = tally("hostile .keras: code, foreign modules, paths, sizes")
    monkeypatch.syspath_prepend(os.getcwd())
    inputs = keras.Input((4, 4, 3))
    code = keras.layers.Lambda(lambda x: [open("executed", "w"), x][1], output_shape=(4, 4, 3))  # noqa: SIM115
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(code(inputs)))
    Path(MARKER).unlink(missing_ok=True)  # the layer was executed once when the model was built
    keras.Model(inputs, outputs).save("lambda.keras")
    Path(MARKER).unlink(missing_ok=True)
    refused(one, "lambda", lambda: load_classifier("lambda.keras"), "lambda.keras")

    for module in ("evil", "keras_hub", "keras_evil", "os.path"):
        for name in ("evil.py", "keras_hub.py", "keras_evil.py"):
            Path(name).write_text(CODE)
        with_config(lambda config, module=module: layer(config, module=module, class_name="Evil", registered_name=None))
        refused(one, f"module {module}", lambda: load_classifier("evil.keras"), "evil.keras")
        assert module not in sys.modules or module == "os.path"
    function = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
    with_config(lambda config: layer(config, inbound_nodes=[{"args": [function], "kwargs": {}}]))
    refused(one, "a function of os", lambda: load_classifier("evil.keras"), "evil.keras")
    marshalled = {"class_name": "__lambda__", "config": {"value": base64.b64encode(b"\xe3" * 30).decode()}}
    with_config(lambda config: layer(config, config={"units": 3, "activation": marshalled}))
    refused(one, "a marshalled function", lambda: load_classifier("evil.keras"), "evil.keras")
    unsafe = {"module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}}
    with_config(lambda config: {**unsafe, "registered_name": None, "inner": config})
    refused(one, "safe mode switched off", lambda: load_classifier("evil.keras"), "evil.keras")
    vocabulary = {"name": "words", "vocabulary": "/etc/hostname", "max_tokens": None}
    lookup = {"module": "keras.layers", "class_name": "StringLookup", "registered_name": None, "config": vocabulary}
    with_config(lambda config: layer(config, **lookup))
    refused(one, "a vocabulary from another file", lambda: load_classifier("evil.keras"), "evil.keras")
    one.end()


def test_keras_files_that_reach_out_of_their_folder(tally, tmp_path):
    one = tally(".keras archives with paths, doubles, bombs, other formats")
    for name in ("../evil.txt", "/etc/evil.txt", "assets/../../evil.txt", "evil.py", "assets/a\nb", "C:\\evil"):
        with_config(lambda config: config, extra=[(name, b"x")])
        refused(one, name, lambda: load_classifier("evil.keras"), "evil.keras")
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_config(lambda config: config, extra=[("config.json", b"{}")])
    refused(one, "two configs", lambda: load_classifier("evil.keras"), "evil.keras")
    for units in (10**9, 10**15):
        with_config(lambda config, units=units: layer(config, config={"units": units}))
        refused(one, f"a layer of {units} units", lambda: load_classifier("evil.keras"), "evil.keras")
    with keras.StatelessScope():
        pass  # at its end, as in many a layer's call, Keras would create what a refused model had left to it: petabytes
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(2000), b"PK\x05\x06" + bytes(18), "[" * 10**6):
        data = content if isinstance(content, bytes) else zipped(content)
        Path("evil.keras").write_bytes(data)
        refused(one, data[:8], lambda: load_classifier("evil.keras"), "evil.keras")
    Path("evil.keras").unlink()
    Path("evil.keras").mkdir()
    refused(one, "a folder", lambda: load_classifier("evil.keras"), "evil.keras")
    os.mkfifo("pipe.keras")
    refused(one, "a pipe", lambda: load_classifier("pipe.keras"), "pipe.keras")
    assert not list(tmp_path.parent.glob("evil*"))
    one.end()


def zipped(config):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")
    return buffer.getvalue()


def test_manifests_with_the_right_checksum_and_the_wrong_content(tally, tmp_path):
    one = tally("manifests signed anew over nonsense, or nested without end")
    for content in ({}, {"fingerprint": "f"}, {"files": {}}):
        (tmp_path / MANIFEST).write_text(json.dumps({**content, "checksum": signature(content)}))
        refused(one, content, lambda: finished(tmp_path, "f"), MANIFEST)
    for text in ("[" * 10**5, "null", "3", '"x"', "[]", '{"a": ' * 10**5):
        (tmp_path / MANIFEST).write_text(text)
        refused(one, text[:10], lambda: finished(tmp_path, "f"), MANIFEST)
    one.end()


def pictures(folder, classes=("cat", "dog"), count=12):
    """Write a folder of valid pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(PICTURE + np.uint8(20 * number + index)).save(folder / name / f"{index}.png")
    return folder


def bomb(side=50_000):
    """Return a PNG whose header claims 2.5 gigapixels, without the data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bad_pictures():
    """Return name to content of pictures that must be refused."""
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    jpeg = encoded(photograph, "JPEG")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    yield "over the limit", bomb(12_000)
    yield "over twice the limit", bomb()
    yield "a truncated JPEG", jpeg[: len(jpeg) // 2]
    yield "a JPEG's head", jpeg[:300]
    yield "16 bits of gray", encoded(Image.fromarray(deep), "PNG")
    yield "16 bits of color", sixteen_bits()
    yield "floats", encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    yield "PostScript", EPS
    yield "text", b"no picture"
    yield "nothing", b""
    yield "a web page", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"


def sixteen_bits():
    """Return a PNG with 16 bits per channel, which Pillow would silently reduce to 8."""
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_pictures_that_must_be_refused(tally, tmp_path, monkeypatch):
    one = tally("bombs, cut, deep and disguised pictures, in a data set and in predict")
    ghostscript = tmp_path / "bin/gs"  # Pillow starts this program for PostScript
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / MARKER}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    for what, content in bad_pictures():
        folder = pictures(tmp_path / "pictures")
        (folder / "cat/3.png").write_bytes(content)
        refused(one, f"data: {what}", lambda: load("pictures", Reading(image_size=8)), "cat/3.png")
        for drop in (False, True):
            options = {"resize": True, "drop_alpha": drop}
            refused(
                one,
                f"predict: {what}",
                lambda at=folder / "cat/3.png", options=options: read_picture(at, (8, 8, 3), **options),
                "cat/3.png",
            )
    one.end()


def good_pictures():
    """Return name, content and expected pixels of unusual but valid pictures."""
    picture = Image.fromarray(PICTURE)
    yield "one pixel", encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), np.full((1, 1, 3), (1, 2, 3), np.uint8)
    frames = [Image.new("P", (8, 8), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([9, 8, 7, 200, 201, 202])
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "an animation's first frame", moving, np.full((8, 8, 3), (9, 8, 7), np.uint8)
    turned = picture.getexif()
    turned[0x0112] = 6  # EXIF orientation: rotated by 90 degrees
    yield "pixels as EXIF turns them", encoded(picture, "PNG", exif=turned), np.rot90(PICTURE, -1)
    alpha = np.concatenate([PICTURE, np.full((8, 8, 1), 255, np.uint8)], axis=-1)
    alpha[:, :4, 3] = 0
    shown = PICTURE.copy()
    shown[:, :4] = 255
    yield "white behind what is transparent", encoded(Image.fromarray(alpha), "PNG"), shown
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    yield "CMYK as red", encoded(ink, "TIFF"), np.full((8, 8, 3), (255, 0, 0), np.uint8)
    yield "gray and alpha", encoded(Image.new("LA", (8, 8), (77, 255)), "PNG"), np.full((8, 8, 3), 77, np.uint8)


def test_odd_pictures_have_one_meaning(tally):
    one = tally("odd pictures: 1x1, animated, turned by EXIF, CMYK, alpha")
    for what, content, expected in good_pictures():
        one.check(what, np.array_equal(decode(content, what), expected))
    one.end()


def test_folders_with_traps(tally, tmp_path):
    one = tally("folders with links, pipes, loops, odd names")
    outside = tmp_path / "secret"
    outside.mkdir()
    Image.fromarray(PICTURE).save(outside / "secret.png")

    def trap(what, set_up, name):
        folder = pictures(tmp_path / "pictures")
        set_up(folder)
        refused(one, what, lambda: load("pictures"), name)

    trap("a link to a picture outside", lambda at: (at / "cat/a.png").symlink_to(outside / "secret.png"), "cat/a.png")
    trap("a link by ..", lambda at: (at / "cat/a.png").symlink_to("../../secret/secret.png"), "cat/a.png")
    trap("a class that lies outside", lambda at: (at / "owl").symlink_to(outside), "owl")
    trap("a link by way of a link", lambda at: chain(at, outside), "cat/a.png")
    trap("a link that leads nowhere", lambda at: (at / "cat/a.png").symlink_to(at / "cat/none.png"), "cat/a.png")
    trap("a circle of links", lambda at: (at / "cat/a.png").symlink_to(at / "cat/a.png"), "cat/a.png")
    trap("a pipe", lambda at: os.mkfifo(at / "cat/a.png"), "cat/a.png")
    trap("a folder named as a picture", lambda at: (at / "cat/a.png").mkdir(), "cat/a.png")
    trap("an empty class", lambda at: (at / "owl").mkdir(), "owl")
    for name in (b"caf\xe9", b"two\nlines", b"\x1b[2Jclear", b"\xff\xfe"):
        shown = ascii(os.fsdecode(name))[1:-1]
        trap(ascii(name), lambda at, name=name: odd_class(at, name), shown)
    os.mkfifo("pipe.png")
    for path in ("pipe.png", "pictures/cat", "/dev/zero"):
        refused(one, f"predict {path}", lambda path=path: read_picture(Path(path), (8, 8, 3)), path)

    # unusual but valid: a link inside the folder, a picture whose name is not UTF-8, a cycle of folders (not walked)
    folder = pictures(tmp_path / "pictures")
    plain = load("pictures")
    os.rename(os.fsencode(folder / "cat/3.png"), os.fsencode(folder / "cat") + b"/caf\xe9.png")
    one.check("a file name that is no UTF-8", load("pictures").fingerprint == plain.fingerprint)
    os.rename(folder / "cat/4.png", folder / "cat/.hidden")
    (folder / "cat/4.png").symlink_to(folder / "cat/.hidden")
    one.check("a link inside", load("pictures").fingerprint == plain.fingerprint)
    (folder / "cat/again").symlink_to(folder / "cat")
    one.check("a circle of folders", load("pictures").fingerprint == plain.fingerprint)
    one.end()


def chain(folder, outside):
    (folder / "cat/b.txt").symlink_to(outside / "secret.png")
    (folder / "cat/a.png").symlink_to(folder / "cat/b.txt")


def odd_class(folder, name):
    path = os.path.join(os.fsencode(folder), name)
    os.mkdir(path)
    shutil.copy(folder / "cat/0.png", os.path.join(path, b"0.png"))


def test_names_that_no_terminal_shows_are_refused_by_name(tally):
    one = tally("workdir, data set or picture named in no UTF-8")
    odd = os.fsdecode(b"caf\xe9")
    shown = "caf\\udce9"
    refused(one, "a folder", lambda: make_folder(Path(odd) / "run"), shown)
    pictures(Path(odd))
    refused(one, "a data set", lambda: load(odd), shown)
    refused(one, "an .npz", lambda: load(f"{odd}.npz"), shown)
    refused(one, "a model", lambda: load_classifier(f"{odd}.keras"), shown)
    refused(one, "a picture", lambda: read_picture(Path(f"{odd}.png"), (8, 8, 3)), shown)
    one.end()


def test_a_hostile_line_stays_one_line(tmp_path):
    """A picture's name may contain a line break; the message about it must not contain control characters."""
    folder = pictures(tmp_path / "pictures")
    (folder / "cat/two\nlines.png").write_bytes(b"none")
    with pytest.raises(UserError, match="two") as caught:
        load("pictures")
    assert "\n" not in str(caught.value)

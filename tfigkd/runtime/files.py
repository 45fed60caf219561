"""The files of stages: atomic writes, manifests with checksums, and locks.

A stage writes its files first and its `manifest.json` last, atomically. A stage is done when its manifest has the
fingerprint of the stage's inputs and every file that it lists has the checksum stated there.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from tfigkd.runtime.errors import InUseError, UserError

MANIFEST = "manifest.json"
LOCK = ".lock"


def require_folder_of(path: Path | None, flag: str) -> None:
    """Check, before the work begins, that the folder of an output file exists; None stands for no file.

    Raises:
        UserError: It does not, or the path has no name; `flag` is the option that gave the path.
    """
    if path is not None and not path.name:
        raise UserError(f"{flag} is no name of a file, got {str(path)!r}")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"no folder {path.parent}; make it or choose another {flag}")


def make_folder(folder: Path, flag: str = "--workdir") -> Path:
    """Create a folder and its parents, and return it.

    Raises:
        UserError: The folder cannot be created, for example because a file has the same path; `flag` is the option that
            gave the path.
    """
    if not str(folder).isprintable():  # TensorFlow cannot write there, and no terminal can show the name
        raise UserError(f"cannot make the folder {folder}: its name is not printable UTF-8; choose another {flag}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another {flag}") from error
    return folder


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_scraps(folder: Path, start: str, end: str) -> None:
    """Remove temporary files of `atomic` that killed processes of this machine have left: START PROCESS-TOKEN END."""
    for scrap in folder.glob(f"{escape(start)}*{escape(end)}"):
        process = scrap.name.removeprefix(start).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            scrap.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success the file is synced and replaces `path`.

    A crash leaves either the old file or the new one, never a partial file. Of several processes that write the same
    file, the last one wins. Where `path` is a symbolic link, the file that it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    start, end = f".{path.stem[:40]}.{os.uname().nodename[:20]}.", f".partial{path.suffix}"
    _remove_scraps(path.parent, start, end)
    temporary = path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}{end}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: Path, target: Path) -> str:
    """Copy a file atomically and return the checksum of the copy."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)
    return checksum(target)


def signature(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain JSON values, as hex digits; the order of the names does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain JSON values atomically, together with their signature."""
    write_text(path, json.dumps({**content, "checksum": signature(content)}, indent=1) + "\n")


def read_signed(path: Path, remedy: str, *, names: Collection[str] = (), unsigned: bool = False) -> dict[str, Any]:
    """Return the values of a file that `write_signed` wrote, without the signature.

    Args:
        path: The file.
        remedy: What the user can do when the file is damaged; the end of the error message.
        names: Names that the values must include.
        unsigned: Whether to accept a file of an earlier version, which has no signature.

    Raises:
        FileNotFoundError: The file does not exist.
        UserError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        signed = content.pop("checksum", None) if unsigned else content.pop("checksum")
        lacking = [name for name in names if name not in content]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); {remedy}") from error
    if (signed is not None or not unsigned) and signed != signature(content):
        raise UserError(f"{path} is damaged (its checksum does not fit); {remedy}")
    if lacking:
        raise UserError(f"{path} is damaged ({lacking[0]!r} is missing in it); {remedy}")
    return content


def write_manifest(folder: Path, fingerprint: str, *, files: Mapping[str, str] | None = None, **outputs: Any) -> None:
    """Mark a stage as done.

    Args:
        folder: The stage's folder.
        fingerprint: Fingerprint of everything the stage depends on.
        files: File name, relative to the folder, to SHA-256.
        **outputs: Results for later stages and readers; plain JSON values.
    """
    write_signed(folder / MANIFEST, {"fingerprint": fingerprint, "files": dict(files or {}), **outputs})


def outputs_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results in a manifest, as `write_manifest` takes them."""
    return {name: value for name, value in manifest.items() if name not in ("fingerprint", "files")}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, or None if the folder has no manifest.

    Raises:
        UserError: The manifest is damaged.
    """
    try:
        return read_signed(folder / MANIFEST, "delete it and run again what made it", names=("fingerprint", "files"))
    except FileNotFoundError:
        return None


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file that a manifest lists with its checksum.

    Raises:
        UserError: A file is missing or differs.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{path} is missing but listed in {folder / MANIFEST}; delete the manifest and run again what made it"
            )
        if checksum(path) != expected:
            # not the whole folder: a store resumes from its intact shards, and a teacher's folder contains stores
            raise UserError(
                f"{path} is corrupt: its checksum is not the one in {MANIFEST}; delete both and run again what "
                "made them"
            )


def expanded(path: str) -> Path:
    """Return a path with a leading ~ replaced by the home folder.

    Raises:
        UserError: It names a user that does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path}: no home folder of this user is known; a name that begins with ~ is ./{path}"
        ) from error


def finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest of a stage that is done with these inputs; None if the stage has to run.

    The files that the manifest lists are verified.

    Raises:
        UserError: The stage was done, but its manifest or one of its files is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest["fingerprint"] != fingerprint:
        return None
    verify_files(folder, manifest)
    return manifest


def require_stage(folder: Path, stage: str) -> dict[str, Any]:
    """Return the manifest of a stage that an earlier call must have finished; its files are verified.

    Raises:
        UserError: The stage has not run, or its manifest or one of its files is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"stage {stage!r} has not run in {folder.parent}; add it to --stages")
    verify_files(folder, manifest)
    return manifest


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool, name: str = LOCK, shared: bool = False) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process, even after kill -9.

    Args:
        folder: The folder; it is created if missing.
        wait: Whether to wait for a process that holds the lock, instead of raising an error.
        name: File of the lock, where a lock is of a part of the folder.
        shared: Whether others may share the lock; it then keeps out only those that ask for it unshared.

    Raises:
        InUseError: Another process holds the lock and `wait` is false.
        UserError: The folder cannot be created or written.
    """
    make_folder(folder)
    try:
        # closed below, the lock must outlive this line; a shared lock on NFS needs a file that is open for reading
        file = open(folder / name, "a+")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; choose another --workdir") from error
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InUseError(
                    f"{folder} is in use by another process; wait for it or choose another --workdir"
                ) from None
            fcntl.flock(file, kind)
        yield

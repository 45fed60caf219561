"""Stores of teacher outputs, keyed by example id: TFRecord shards that can be resumed, and a checked join.

Records are joined to examples by id, never by position. The published code of the method joins by position after a
shuffle and so trains every image with the map of another image (arXiv 2503.13008; see the README).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data import Examples
from tfigkd.data.disk import DiskPictures
from tfigkd.data.stored import StoredArrays
from tfigkd.runtime import console, tfrecord
from tfigkd.runtime.errors import InUseError, UserError
from tfigkd.runtime.files import checksum, locked, read_manifest, verify_files
from tfigkd.runtime.fingerprint import fingerprint

REBUILD = "delete the folder and make the store again: --stages overlays, or OverlayStore.build"

SHARD_LOCKS = ".*.lock"
"""The locks of single shards, beside that of the folder."""

Record = dict[str, Any]
Parse = Callable[[Mapping[str, Any]], Record]


@dataclass(frozen=True)
class Shards:
    """The shards of a store: which examples are in which file, and how their records are made.

    A batch never spans two shards, so a shard is the same whoever writes it, and a resumed store equals an
    uninterrupted one.

    Attributes:
        folder: Folder of the store, named by the store's fingerprint, which is part of every record; the name of its
            parent is the prefix of the shards' names.
        examples: The examples to store, sorted by id.
        size: Number of examples per shard.
        parse: Reads a record, to check existing shards.
        make: Computes the features of given examples, in their order; id, label and store are added here.
    """

    folder: Path
    examples: Examples
    size: int
    parse: Parse
    make: Callable[[Examples], Iterable[Mapping[str, Any]]]

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    @property
    def title(self) -> str:
        """What the shards' names begin with."""
        return self.folder.parent.name

    def path(self, number: int) -> Path:
        """Return the file of a shard, numbered from 0."""
        return self.folder / f"{self.title}-{number:05d}-of-{len(self):05d}.tfrecord"

    def examples_of(self, number: int) -> Examples:
        """Return the examples of a shard."""
        start = number * self.size
        return self.examples.take(np.arange(start, min(start + self.size, len(self.examples))))

    def count_written(self) -> int:
        """Return how many shards exist; they are not read."""
        return sum(self.path(number).is_file() for number in range(len(self)))

    def complete(self, number: int, chosen: Examples) -> bool:
        """Return whether a shard of an unfinished store is intact and has exactly the chosen examples."""
        path = self.path(number)
        if not path.is_file():
            return False
        try:
            return [record["id"] for record in read_shard(path, self.folder.name, self.parse)] == list(chosen.ids)
        except UserError as error:
            console.status(f"{error}; writing this shard again")
            return False

    def write(self, number: int, chosen: Examples, features: Iterable[Mapping[str, Any]]) -> None:
        """Write the records of a shard's examples.

        Args:
            number: Of the shard, from 0.
            chosen: Its examples.
            features: What is stored of each example, in their order.
        """
        identified = zip(chosen.ids, chosen.labels, features, strict=True)
        records = (
            tfrecord.encode_example({"store": self.folder.name, "id": str(id_), "label": [int(label)], **values})
            for id_, label, values in identified
        )
        tfrecord.write_records(self.path(number), records)


def write_shards(shards: Shards) -> dict[str, str]:
    """Write the missing shards of a store, and return file name to SHA-256 of all of them."""
    files: dict[str, str] = {}
    writing: Future | None = None

    def write(number: int, chosen: Examples, features: list[Mapping[str, Any]]) -> None:
        shards.write(number, chosen, features)
        note(number, chosen)

    def note(number: int, chosen: Examples) -> None:
        path = shards.path(number)
        files[path.name] = checksum(path)
        advance(len(chosen))

    # One shard is written while the next is computed; at most one waits to be written.
    with console.progress(shards.title, len(shards.examples)) as advance, ThreadPoolExecutor(1) as writer:
        for number in range(len(shards)):
            chosen = shards.examples_of(number)
            if shards.complete(number, chosen):
                note(number, chosen)
                continue
            features = list(shards.make(chosen))
            if writing is not None:
                writing.result()
            writing = writer.submit(write, number, chosen, features)
        if writing is not None:
            writing.result()
    for path in shards.folder.glob(SHARD_LOCKS):
        path.unlink()
    return dict(sorted(files.items()))


def write_part(shards: Shards, numbers: Sequence[int]) -> None:
    """Write some shards of a store that other processes may be writing as well; each one once, under its lock.

    A shard that another process is writing is left to it. At the end this process waits for it, and writes the shard
    itself if the other one was killed. A process that writes the whole store waits for all writers of parts.

    Args:
        shards: The shards of the store; its folder is created if missing.
        numbers: Which of them to write.
    """
    folder, busy = shards.folder, []

    def write(number: int, *, wait: bool) -> None:
        with locked(folder, wait=wait, name=f".{shards.path(number).stem}.lock"):
            chosen = shards.examples_of(number)
            if not shards.complete(number, chosen):
                shards.write(number, chosen, shards.make(chosen))
            advance()

    with locked(folder, wait=True, shared=True), console.progress(shards.title, len(numbers)) as advance:
        if read_manifest(folder) is not None:  # another process has finished the store
            return
        for number in numbers:
            try:
                write(number, wait=False)
            except InUseError:
                busy.append(number)
        for number in busy:
            write(number, wait=True)


def read_shard(path: Path, store: str, parse: Parse) -> Iterator[Record]:
    """Yield the records of a shard one by one, each with its `"id"`, its `"label"` and its `"offset"` in the file.

    Args:
        path: The shard.
        store: Name of the store that it must belong to.
        parse: Reads a record.

    Raises:
        UserError: The shard is damaged, or a record is of another kind or store.
    """
    for number, (offset, raw) in enumerate(tfrecord.read_placed(path)):
        features = tfrecord.decode_example(raw)
        try:
            origin, id_ = (features[name][0].decode() for name in ("store", "id"))
            record = {"id": id_, "label": int(features["label"][0]), "offset": offset, **parse(features)}
        except (KeyError, IndexError, ValueError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(f"{path}: record {number} is not a record of this store ({error}); {REBUILD}") from error
        if origin != store:
            raise UserError(f"{path}: record {number} belongs to store {origin}, not to {store}; {REBUILD}")
        yield record


def _name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name  # "." has none


def read_all(folder: Path, files: Iterable[str], parse: Parse) -> Iterator[Record]:
    """Yield the records of all shards of a store one by one, with the number of their `"shard"`.

    The folder's name is the store's fingerprint.

    Args:
        folder: A finished store.
        files: Names of its shards.
        parse: Reads a record.

    Raises:
        UserError: As for `read_shard`.
    """
    store = _name(folder)
    for shard, name in enumerate(files):
        for record in read_shard(folder / name, store, parse):
            yield {**record, "shard": shard}


def open_store(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a store is finished and has the given identity, verify its files, and return its manifest.

    Raises:
        UserError: The store is unfinished or damaged, or belongs to another teacher, data set or setting.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"no finished store in {folder}; add the stage: --stages overlays")
    if "identity" not in manifest:
        raise UserError(f"{folder} is no store; give a folder such as runs/teachers/TEACHER/overlays/STORE")
    for part, expected in identity.items():
        found = manifest["identity"].get(part)
        if found != expected:
            raise UserError(f"store {folder}: its {part} is {found}, expected {expected}; {REBUILD}")
    named = fingerprint(manifest["identity"])
    if _name(folder) != named:
        raise UserError(f"store {folder}: the folder is not named by its fingerprint; rename it to {named}")
    verify_files(folder, manifest)
    return manifest


def refuse_broken(folder: Path, ids: np.ndarray, sound: np.ndarray) -> None:
    """Refuse the records [N] of a store if not all are sound, bool [N].

    Raises:
        UserError: Some hold NaN or infinity.
    """
    if not sound.all():
        first, count = ids[int(sound.argmin())], int((~sound).sum())
        raise UserError(f"store {folder}: {count} records hold NaN or infinity, the first {first}; {REBUILD}")


def join(folder: Path, manifest: Mapping[str, Any], examples: Examples, parse: Parse) -> Iterator[tuple[int, Record]]:
    """Yield the position of each example with its record, found by id, in the order of the store.

    Reading stops after the last example: examples and store are sorted by id, so examples that sort first, such as
    those of validation, are in the first shards.

    Args:
        folder: A finished store.
        manifest: Its manifest.
        examples: The examples to look up.
        parse: Reads a record.

    Raises:
        UserError: Ids are missing, or labels are not those of the examples; raised after the last record.
    """
    positions = {str(example_id): position for position, example_id in enumerate(examples.ids)}
    missing, wrong = dict(positions), []
    for record in read_all(folder, manifest["files"], parse):
        position = positions.get(record["id"])
        if position is None:
            continue
        missing.pop(record["id"], None)
        if record["label"] != examples.labels[position]:
            wrong.append(record["id"])
        yield position, record
        if not missing:
            break
    if missing:
        raise UserError(f"store {folder}: {len(missing)} ids are missing, the first {next(iter(missing))}; {REBUILD}")
    if wrong:
        raise UserError(
            f"store {folder}: {len(wrong)} labels are not those of their images, the first at id {wrong[0]}; its ids "
            f"are permuted; {REBUILD}"
        )


def join_arrays(
    folder: Path, manifest: Mapping[str, Any], examples: Examples, parse: Parse, large: str
) -> dict[str, Any]:
    """Return the parsed records of the examples as arrays [N,...] by name, in the order of the examples.

    Args:
        folder: A finished store.
        manifest: Its manifest.
        examples: The examples to look up.
        parse: Reads a record.
        large: Name of what a record has most of. Where the pictures of the examples are on disk, it stays in the
            shards, as `StoredArrays`.

    Raises:
        UserError: As for `join`.
    """
    arrays: dict[str, Any] = {}
    places = np.empty((len(examples), 2), np.int64)
    on_disk = {large} if isinstance(examples.images, DiskPictures) else set()
    for position, record in join(folder, manifest, examples, parse):
        places[position] = record["shard"], record["offset"]
        for name in record.keys() - {"id", "label", "shard", "offset"} - on_disk:
            value = np.asarray(record[name])
            if name not in arrays:
                arrays[name] = np.empty((len(examples), *value.shape), value.dtype)
            arrays[name][position] = value
    if on_disk:
        paths = [folder / name for name in manifest["files"]]
        arrays[large] = StoredArrays(paths, places, lambda raw: parse(tfrecord.decode_example(raw))[large])
    return arrays

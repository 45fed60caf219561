"""Stores of teacher outputs, keyed by example id: TFRecord shards that can be resumed, and a checked join.

Records are joined to examples by id, never by position. The published code of the method joins by position after a
shuffle and so trains every image with the map of another image (arXiv 2503.13008; see the README).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data import Examples
from tfigkd.runtime import console, tfrecord
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, fingerprint, read_manifest, verify_files

REBUILD = "delete the folder and make the store again: --stages overlays, or OverlayStore.build"

Record = dict[str, Any]
Parse = Callable[[Mapping[str, Any]], Record]


def write_shards(
    folder: Path,
    examples: Examples,
    shard_size: int,
    *,
    store: str,
    parse: Parse,
    make: Callable[[Examples], Iterable[Mapping[str, Any]]],
) -> dict[str, str]:
    """Write the missing shards of a store.

    A batch never spans two shards, so a resumed store equals an uninterrupted one.

    Args:
        folder: Folder of the store; the name of its parent is the prefix of the shards' names.
        examples: The examples to store, sorted by id.
        shard_size: Number of examples per shard.
        store: The store's fingerprint, which is part of every record.
        parse: Reads a record, to check existing shards.
        make: Computes the features of given examples, in their order; id, label and store are added here.

    Returns:
        File name to SHA-256.
    """
    title, starts = folder.parent.name, range(0, len(examples), shard_size)
    files: dict[str, str] = {}
    writing: Future | None = None

    def write(path: Path, chosen: Examples, features: list[Mapping[str, Any]]) -> None:
        identified = zip(chosen.ids, chosen.labels, features, strict=True)
        records = (
            tfrecord.encode_example({"store": store, "id": str(id_), "label": [int(label)], **values})
            for id_, label, values in identified
        )
        tfrecord.write_records(path, records)
        files[path.name] = checksum(path)
        advance(len(chosen))

    # One shard is written while the next is computed; at most one waits to be written.
    with console.progress(title, len(examples)) as advance, ThreadPoolExecutor(1) as writer:
        for number, start in enumerate(starts):
            chosen = examples.take(np.arange(start, min(start + shard_size, len(examples))))
            path = folder / f"{title}-{number:05d}-of-{len(starts):05d}.tfrecord"
            if _complete(path, chosen, store, parse):
                files[path.name] = checksum(path)
                advance(len(chosen))
                continue
            features = list(make(chosen))
            if writing is not None:
                writing.result()
            writing = writer.submit(write, path, chosen, features)
        if writing is not None:
            writing.result()
    return dict(sorted(files.items()))


def _complete(path: Path, examples: Examples, store: str, parse: Parse) -> bool:
    """Return whether a shard of an interrupted store is intact and has exactly these examples."""
    if not path.is_file():
        return False
    try:
        return [record["id"] for record in read_shard(path, store, parse)] == list(examples.ids)
    except UserError as error:
        console.say(f"  {error}; writing this shard again")
        return False


def read_shard(path: Path, store: str, parse: Parse) -> Iterator[Record]:
    """Yield the records of a shard one by one, each with its `"id"` and `"label"`.

    Raises:
        UserError: The shard is damaged, or a record is of another kind or store.
    """
    for number, raw in enumerate(tfrecord.read_records(path)):
        features = tfrecord.decode_example(raw)
        try:
            origin, id_ = (features[name][0].decode() for name in ("store", "id"))
            record = {"id": id_, "label": int(features["label"][0]), **parse(features)}
        except (KeyError, IndexError, ValueError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(f"{path}: record {number} is not a record of this store ({error}); {REBUILD}") from error
        if origin != store:
            raise UserError(f"{path}: record {number} belongs to store {origin}, not to {store}; {REBUILD}")
        yield record


def read_all(folder: Path, files: Iterable[str], parse: Parse) -> Iterator[Record]:
    """Yield the records of all shards of a store one by one; the folder's name is the store's fingerprint."""
    for name in files:
        yield from read_shard(folder / name, folder.name, parse)


def open_store(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a store is finished and has the given identity, verify its files, and return its manifest.

    Raises:
        UserError: The store is unfinished or damaged, or belongs to another teacher, data set or setting.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"no finished store in {folder}; add the stage: --stages overlays")
    for part, expected in identity.items():
        found = manifest["identity"].get(part)
        if found != expected:
            raise UserError(f"store {folder}: its {part} is {found}, expected {expected}; {REBUILD}")
    if folder.name != fingerprint(manifest["identity"]):
        raise UserError(f"store {folder}: the folder's name is not its fingerprint; {REBUILD}")
    verify_files(folder, manifest)
    return manifest


def join(folder: Path, manifest: Mapping[str, Any], examples: Examples, parse: Parse) -> Iterator[tuple[int, Record]]:
    """Yield the position of each example with its record, found by id, in the order of the store.

    Reading stops after the last example: examples and store are sorted by id, so examples that sort first, such as
    those of validation, are in the first shards.

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


def join_arrays(folder: Path, manifest: Mapping[str, Any], examples: Examples, parse: Parse) -> dict[str, np.ndarray]:
    """Return the parsed records of the examples as arrays [N,...] by name, in the order of the examples.

    Raises:
        UserError: As for `join`.
    """
    arrays: dict[str, np.ndarray] = {}
    for position, record in join(folder, manifest, examples, parse):
        for name in record.keys() - {"id", "label"}:
            value = np.asarray(record[name])
            if name not in arrays:
                arrays[name] = np.empty((len(examples), *value.shape), value.dtype)
            arrays[name][position] = value
    return arrays

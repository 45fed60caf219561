"""Stores of what the teacher knows, keyed by example id: TFRecord shards that resume, and a join that refuses.

Records are joined to examples by id, never by position: the published code of the method joined by position after a
shuffle, and so taught every image with another image's map (arXiv 2503.13008; see the README).
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
    """Write the shards of a store that are not there yet.

    Batches never cross shards, so a resumed store equals an uninterrupted one.

    Args:
        folder: Where to; its parent's name says what is stored.
        examples: What is covered, sorted by id.
        shard_size: Examples a shard.
        store: The store's fingerprint; every record carries it.
        parse: Reads a record back, to check the shards that are there.
        make: The features of some examples, in their order; id, label and store are added.

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

    # One shard is written while the next is computed, and never more than one waits.
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
    """Whether a shard of an interrupted store is whole and of these examples."""
    if not path.is_file():
        return False
    try:
        return [record["id"] for record in read_shard(path, store, parse)] == list(examples.ids)
    except UserError as error:
        console.say(f"  {error}; writing this shard again")
        return False


def read_shard(path: Path, store: str, parse: Parse) -> Iterator[Record]:
    """The records of a shard one by one, each with its `"id"` and `"label"`.

    Raises:
        UserError: the shard is damaged, or a record is of another kind or store.
    """
    for number, raw in enumerate(tfrecord.read_records(path)):
        features = tfrecord.decode_example(raw)
        try:
            origin, id_ = (features[name][0].decode() for name in ("store", "id"))
            record = {"id": id_, "label": int(features["label"][0]), **parse(features)}
        except (KeyError, IndexError, ValueError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(f"{path}: record {number} is not one of this store ({error}); {REBUILD}") from error
        if origin != store:
            raise UserError(f"{path}: record {number} belongs to store {origin}, not to {store}; {REBUILD}")
        yield record


def read_all(folder: Path, files: Iterable[str], parse: Parse) -> Iterator[Record]:
    """The records of all shards of a store, one by one; its folder is named by its fingerprint."""
    for name in files:
        yield from read_shard(folder / name, folder.name, parse)


def open_store(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished store that is the one wanted, its files verified.

    Raises:
        UserError: the store is unfinished or damaged, or belongs to another teacher, data set or setting.
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
    """The position of each example, found by id, with its record; in the order of the store, one by one.

    Nothing is read after the last of them: examples and store are sorted by id, so a few that sort first, such as those
    of validation, lie in the first shards.

    Raises:
        UserError: ids are missing, or labels are not those of the examples; after the last record.
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
    """What `parse` finds in the record of each example, as arrays [N,...] in the order of the examples.

    Raises:
        UserError: as `join`.
    """
    arrays: dict[str, np.ndarray] = {}
    for position, record in join(folder, manifest, examples, parse):
        for name in record.keys() - {"id", "label"}:
            value = np.asarray(record[name])
            if name not in arrays:
                arrays[name] = np.empty((len(examples), *value.shape), value.dtype)
            arrays[name][position] = value
    return arrays

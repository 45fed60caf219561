"""Data sets of the TensorFlow Datasets catalog, prepared on disk or downloaded.

A prepared data set is read from its folder, without the code of its builder, so data sets whose builder is not
installed (for example one defined in a user's script) can be read too.
"""

import difflib
import functools
import hashlib
import http.client
import json
import os
import re
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.config.data_fields import Reading
from tfigkd.data.decoded import decoded
from tfigkd.data.disk import AT_ONCE, Pictures
from tfigkd.data.pictures import check_memory, decode_all
from tfigkd.data.sources import ROLES, Notes, Source, SplitPart, cache_folder, kept_on_disk, unused, usual
from tfigkd.runtime.errors import UserError, one_line, readable
from tfigkd.runtime.files import expanded

# The host of the files of TensorFlow Datasets. Without a network tfds itself would wait for minutes.
PROBE_URL = "https://storage.googleapis.com"
PROBE_SECONDS = 4.0
PROBED_RECORDS = 256
"""How many records of a split are read to see whether it has labels."""
RECORDS = 1024
"""Records of a split that are read at once, as far as `AT_ONCE` bytes hold them."""
NAME_PATTERN = re.compile(r"[A-Za-z_]\w*(/[A-Za-z0-9_][\w.\-]*)?(:\d+\.\d+\.\d+)?")
OTHER_FILES = {
    ".npy": "save pictures and labels in one file: numpy.savez('NAME.npz', x_train=..., y_train=..., ...)",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), "unpack it and give the folder"),
    **dict.fromkeys((".txt", ".tsv", ".xlsx"), "save it as .csv with the columns path and label"),
}
"""What to do with files of other kinds, by their endings."""
VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")


def read_tfds(name: str, directory: str | None, wanted: Reading, download: bool) -> Source:
    """Read a tfds data set; if it is not prepared, download it first.

    Args:
        name: "name" or "name/config", with or without ":version".
        directory: The data directory that is searched first and used for downloads.
        wanted: Size, without which all pictures must have the same size; background, splits; the feature that groups.
        download: Whether to download a data set that is not prepared.

    Raises:
        UserError: The data set does not exist, cannot be downloaded, is damaged, or lacks an image or label feature.
    """
    if not NAME_PATTERN.fullmatch(name):
        if expanded(name).is_file():
            remedy = OTHER_FILES.get(Path(name).suffix.lower(), "give the folder or the list of the pictures")
            raise UserError(f"{name} is a file, but no .npz or .csv file; {remedy}")
        raise UserError(
            f"{name!r} is neither an existing folder nor a tfds name; expected digits, a tfds name (name or "
            f"name/config), the path of an .npz or .csv file or the path of an image folder{similar_folder(name)}"
        )
    directories = data_directories(directory)
    folder = _prepared(name, directory)
    if folder is None:
        where = ", ".join(map(str, directories))
        if not download:
            raise UserError(f"tfds data set {name!r} is not prepared in {where}, and downloading is off")
        folder = _prepare(name, directory)
    return _read_prepared(folder, wanted)


def similar_folder(name: str) -> str:
    """Return a hint at a folder or file whose name is nearly `name`, or nothing."""
    path = expanded(name.replace("\\", "/"))
    try:
        names = [child.name for child in path.parent.iterdir()]
    except OSError:
        return ""
    near = [one for one in names if one.lower() == path.name.lower()] or difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def data_directories(directory: str | None) -> list[Path]:
    """Return the folders to search for prepared data: `directory`, $TFDS_DATA_DIR, tfds's default."""
    candidates = [directory, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    return [expanded(candidate) for candidate in candidates if candidate]


def find_prepared(folder: Path, version: str = "") -> Path | None:
    """Return the folder of a version prepared in `folder`, of the highest if none is given, or None."""
    versions = [
        info.parent
        for info in folder.glob("*/dataset_info.json")
        if VERSION_PATTERN.fullmatch(info.parent.name) and version in ("", info.parent.name)
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def options_of_prepared(folder: Path) -> str | None:
    """Return the options that name the tfds data prepared in a folder: in itself, its versions, or its configs."""
    folder = folder.absolute()
    below = [folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))]
    below += sorted(folder.glob("*/*/dataset_info.json"))
    info = next((one for one in below if one.is_file() and VERSION_PATTERN.fullmatch(one.parent.name)), None)
    if info is None:
        return None
    with readable(f"tfds data in {info.parent}", "restore that folder or prepare it again"):
        said = json.loads(info.read_text(encoding="utf-8"))
        name = "/".join(part for part in (said["name"], said.get("configName")) if part)
        directory = info.parents[1 + len(name.split("/"))]
        return f"--data {name} --data-dir {shlex.quote(str(directory))}"


def _prepared_configs(name: str, directory: str | None) -> str:
    """Return a hint that names the prepared configs of a tfds data set, or nothing."""
    for place in data_directories(directory):
        infos = (place / name).glob("*/*/dataset_info.json")
        found = sorted({info.parents[1].name for info in infos if VERSION_PATTERN.fullmatch(info.parent.name)})
        if found:
            return f"; {place} has {', '.join(f'{name}/{config}' for config in found)}, give one of them"
    return ""


def _prepared(name: str, directory: str | None) -> Path | None:
    """Return the folder of a tfds data set, of the highest version if the name gives none; None if none is prepared."""
    plain, _, version = name.partition(":")
    places = data_directories(directory)
    places.insert(1 if directory else 0, Path())  # an existing folder wins over one that is only found by its name
    folders = (find_prepared(parent / plain, version) for parent in places)
    return next((found for found in folders if found), None)


def about(name: str, directory: str | None) -> dict[str, Any]:
    """Return where a data set comes from: `version`, `urls` and `citation`, empty for one of the user's own.

    Args:
        name: As in `read_tfds`.
        directory: As in `read_tfds`.
    """
    if name == "digits":
        return {"version": "", "urls": ["https://doi.org/10.24432/C50P49"], "citation": ""}
    folder = _prepared(name, directory) if NAME_PATTERN.fullmatch(name) else None
    if folder is None:
        return {"version": name.partition(":")[2], "urls": [], "citation": ""}
    with readable(f"tfds data in {folder}", "restore that folder or prepare it again"):
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        urls = [url for url in info.get("location", {}).get("urls", []) if url.startswith("http")]
        return {"version": folder.name, "urls": urls, "citation": info.get("citation", "")}


def has_network(url: str = PROBE_URL) -> bool:
    """Return whether any HTTP answer comes from `url` within `PROBE_SECONDS`; proxies of the environment are used."""
    answered = threading.Event()

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                answered.set()
        except urllib.error.HTTPError as error:
            error.close()
            answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # no network, or a proxy setting that is not an address

    # A thread, because looking up a host name may take longer than the socket timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()


def _prepare(name: str, given: str | None) -> Path:
    """Download a data set of the catalog and return the folder in which it is prepared.

    Args:
        name: As in `read_tfds`.
        given: The directory that was asked for, if any.

    Raises:
        UserError: It is unknown, there is no network, or tfds cannot prepare it.
    """
    import tensorflow_datasets as tfds

    directory = data_directories(given)[0]
    known = tfds.list_builders(with_community_datasets=False)
    plain_name = re.split("[/:]", name)[0]
    if plain_name not in known:
        similar = difflib.get_close_matches(plain_name, known)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "is it a path that does not exist?"
        hint = (_prepared_configs(plain_name, given) or similar_folder(name)).removeprefix("; ") or hint
        raise UserError(f"tfds data set {name!r} is unknown and not prepared in {directory}; {hint}")
    if not has_network():
        raise UserError(
            f"tfds data set {name!r} is not prepared and there is no network to download it; prepare it in "
            "--data.dir, set TFDS_DATA_DIR to where it lies, or give an .npz file or an image folder"
            f"{_prepared_configs(plain_name, given)}"
        )
    try:
        builder = tfds.builder(name, data_dir=directory)
        builder.download_and_prepare()
    except Exception as error:  # hosts, archives and disks raise many kinds of errors
        raise UserError(f"tfds could not prepare {name!r} in {directory}: {one_line(error)}") from error
    return Path(builder.data_dir)


def _read_prepared(folder: Path, wanted: Reading) -> Source:
    import tensorflow_datasets as tfds

    with readable(f"tfds data in {folder}", "restore that folder or prepare it again"):
        builder = tfds.builder_from_directory(folder)
        keys = _find_keys(builder, folder, wanted.group)
        notes = Notes()
        chosen = _choose_splits(builder, folder, keys[1], wanted, notes)
        parts = {role: _read_split(builder, split, keys, wanted, notes) for role, split in chosen.items()}
        names = tuple(builder.info.features[keys[1]].names)
        return Source(parts["train"], parts.get("test"), names, parts.get("validation"), notes.said())


def _choose_splits(builder: Any, folder: Path, label_key: str, wanted: Reading, notes: Notes) -> dict[str, str]:
    """Return the split, such as "train[:90%]", of each role that has one.

    Raises:
        UserError: There is no split to train on, or a picture would be in two splits.
    """
    splits = builder.info.splits
    chosen = {role: text for role in ROLES if (text := getattr(wanted.splits, role)) is not None}
    used = [piece for role, text in chosen.items() for piece in _pieces(splits, role, text, folder)]
    for number, (name, start, end) in enumerate(used):
        if any(name == other and start < stop and first < end for other, first, stop in used[:number]):
            raise UserError(f"data.splits takes pictures of {name!r} twice; let the parts not overlap: {chosen}")
    taken = {name for name, _, _ in used}
    if "train" not in chosen:
        if "train" not in splits or "train" in taken:
            raise UserError(
                f"tfds data in {folder} have the splits {', '.join(splits)}; expected a split train, or its name in "
                "data.splits.train"
            )
        chosen["train"] = "train"
        taken.add("train")
    if "test" not in chosen:
        for name in [*usual("test", splits, but=taken), *usual("validation", splits, but=taken)]:
            if _is_labeled(builder, name, label_key):
                chosen["test"] = name
                taken.add(name)
                break
            notes.lines.append(f"left out the split {name}, which has no labels")
            taken.add(name)
    notes.lines += [unused("split", name, name) for name in splits if name not in taken]
    return chosen


def _pieces(splits: Any, role: str, text: str, folder: Path) -> list[tuple[str, int, int]]:
    """Return the name, first and last position of each piece of a split such as "train[:50%]+extra".

    Raises:
        UserError: tfds does not understand the split, or the data set lacks it.
    """
    import tensorflow_datasets as tfds

    lengths = {name: info.num_examples for name, info in splits.items()}
    try:
        pieces = tfds.core.ReadInstruction.from_spec(text).to_absolute(splits)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"data.splits.{role} = {text!r}: {one_line(error)}; tfds data in {folder} have the splits "
            f"{', '.join(splits)}, and parts of them such as {next(iter(splits))}[:90%]"
        ) from error
    return [
        (piece.splitname, piece.from_ or 0, lengths[piece.splitname] if piece.to is None else piece.to)
        for piece in pieces
    ]


def _is_labeled(builder: Any, split: str, label_key: str) -> bool:
    """Return whether any of the first records of a split has a label; tfds writes -1 where there is none."""
    count = min(PROBED_RECORDS, builder.info.splits[split].num_examples)
    records = _records(builder, f"{split}[:{count}]", (label_key,))
    return any((batch[label_key] >= 0).any() for batch in records.as_numpy_iterator())


def _find_keys(builder: Any, folder: Path, group: str | None) -> tuple[str, str]:
    """Return the names of the image and the label feature, found by supervised_keys or by type.

    Raises:
        UserError: There is not exactly one of each, the image is not uint8, or there is no feature `group`.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    if group is not None and (group not in features or features[group].shape != ()):
        raise UserError(
            f"data.group: tfds data in {folder} have the features {', '.join(features)}; expected a text or an integer "
            f"{group!r} of each picture"
        )
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    labels = [key for key, feature in features.items() if type(feature) is tfds.features.ClassLabel]
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        image, label = keys
    elif len(images) == 1 and len(labels) == 1:
        image, label = images[0], labels[0]
    else:
        raise UserError(
            f"tfds data in {folder} have the features {', '.join(features)}; expected one image and one class label"
        )
    kind = np.dtype(features[image].np_dtype)
    if kind != np.uint8:  # floats are stored as the bytes of a picture of four channels
        raise UserError(f"tfds data in {folder}: the image {image!r} holds {kind.name}; expected uint8 pixels")
    return image, label


def _records(builder: Any, split: str, keys: tuple[str, ...]) -> Any:
    """Return batches of some features of a split; pictures stay encoded."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    # tfds's own PartialDecoding prints a warning, and its batch_size fails on ragged features.
    records = builder.as_dataset(
        split=split,
        decoders={key: tfds.decode.SkipDecoding() for key in images},
        read_config=tfds.ReadConfig(try_autocache=False),  # read once; a cache would only print a warning
    )
    info = builder.info.splits.get(split.partition("[")[0])
    each = 1 if info is None else max(info.num_bytes / max(info.num_examples, 1), 1)
    count = min(max(int(AT_ONCE / each), 1), RECORDS)
    return records.map(lambda record: {key: record[key] for key in keys}).batch(count)


def _encoded(
    builder: Any, split: str, image_key: str, names: list[str], start: int
) -> Iterator[tuple[list[bytes], list[str]]]:
    """Yield blocks of the encoded pictures of a split, with their names, from one picture on."""
    position = 0
    for batch in _records(builder, split, (image_key,)).as_numpy_iterator():
        pictures = batch[image_key]
        first, last = max(start - position, 0), position + len(pictures)
        if last > start:
            yield list(pictures[first:]), names[position + first : last]
        position = last


def _read_split(builder: Any, split: str, keys: tuple[str, str], wanted: Reading, notes: Notes) -> SplitPart:
    """Read one split; the pictures stay encoded and are decoded like those of other sources."""
    import tensorflow_datasets as tfds

    image_key, label_key = keys
    features, size = builder.info.features, wanted.image_size
    info = builder.info.splits[split]
    expected = info.num_examples
    height, width = (size, size) if size else features[image_key].shape[:2]
    on_disk = expected > 0 and kept_on_disk(wanted, expected, (height or 1, width or 1, 3), info.num_bytes)
    if not on_disk:
        check_memory(f"{builder.data_dir} {split}", (expected, height or 1, width or 1, 3))
    texts = ["id"] if "id" in features and type(features["id"]) is tfds.features.Text else []
    texts += [] if wanted.group is None else [wanted.group]
    encoded: list[bytes] = []
    labels: list[np.ndarray] = []
    found: dict[str, list[str]] = {key: [] for key in texts}
    contents: list[str] = []  # of pictures on disk: prepared anew, the same pictures may come in another order
    for batch in _records(builder, split, (label_key, *texts, image_key)).as_numpy_iterator():
        if on_disk:
            contents.extend(hashlib.sha256(picture).hexdigest() for picture in batch[image_key])
        else:
            encoded.extend(batch[image_key])
        labels.append(batch[label_key])
        for key in found:
            values = batch[key]
            found[key].extend(one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values)
    all_labels = np.concatenate(labels).astype(np.int64) if labels else np.empty(0, np.int64)
    ids = found.get("id") or [f"{split}-{index:06d}" for index in range(len(all_labels))]
    names = [f"{id_} of {builder.data_dir}" for id_ in ids]
    images: Pictures
    digests = None
    if on_disk:
        images, digests, done = decoded(
            cache_folder(wanted, Path(builder.data_dir)),
            [f"{one} {split} {index}" for index, one in enumerate(contents)],
            functools.partial(_encoded, builder, split, image_key, names),
            wanted,
        )
    else:
        images, done = decode_all(encoded, names, wanted)
    notes.done += done
    groups = None if wanted.group is None else np.array(found[wanted.group])
    return SplitPart(images, all_labels, np.array(ids), groups, digests)

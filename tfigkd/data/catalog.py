"""Data sets of the TensorFlow Datasets catalog, prepared on disk or downloaded.

A prepared data set is read from its folder, without the code of its builder, so data sets whose builder is not
installed (for example one defined in a user's script) can be read too.
"""

import difflib
import http.client
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from tfigkd.data.pictures import check_memory, decode_all, one_line, reading
from tfigkd.data.sources import Part, Source
from tfigkd.runtime.errors import UserError

# The host of the files of TensorFlow Datasets. Without a network tfds itself would wait for minutes.
PROBE_URL = "https://storage.googleapis.com"
PROBE_SECONDS = 4.0
NAME_PATTERN = re.compile(r"[A-Za-z_]\w*(/[A-Za-z0-9_][\w.\-]*)?")
VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")


def read(name: str, directory: str | None, image_size: int | None, download: bool) -> Source:
    """Read a tfds data set; if it is not prepared, download it first.

    Args:
        name: "name" or "name/config".
        directory: The data directory that is searched first and used for downloads.
        image_size: Height and width to resize to; may be None if all pictures have the same size.
        download: Whether to download a data set that is not prepared.

    Raises:
        UserError: The data set does not exist, cannot be downloaded, is damaged, or lacks an image or label feature.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(
            f"{name!r} is neither an existing folder nor a tfds name; expected digits, a tfds name (name or "
            "name/config), the path of an .npz file or the path of an image folder"
        )
    directories = data_directories(directory)
    folder = next((found for parent in directories if (found := find_prepared(parent / name))), None)
    if folder is None:
        where = ", ".join(map(str, directories))
        if not download:
            raise UserError(f"tfds data set {name!r} is not prepared in {where}, and downloading is off")
        folder = _prepare(name, directories[0])
    return _read_prepared(folder, image_size)


def data_directories(directory: str | None) -> list[Path]:
    """Return the folders to search for prepared data: `directory`, $TFDS_DATA_DIR, tfds's default."""
    candidates = [directory, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    return [Path(candidate).expanduser() for candidate in candidates if candidate]


def find_prepared(folder: Path) -> Path | None:
    """Return the folder of the highest version prepared in `folder`, or None."""
    versions = [
        info.parent for info in folder.glob("*/dataset_info.json") if VERSION_PATTERN.fullmatch(info.parent.name)
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def has_network(url: str = PROBE_URL, seconds: float = PROBE_SECONDS) -> bool:
    """Return whether any HTTP answer comes from `url` within `seconds`; proxies of the environment are used."""
    answered = threading.Event()

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:
            error.close()
            answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # no network, or a proxy setting that is not an address

    # A thread, because looking up a host name may take longer than the socket timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _prepare(name: str, directory: Path) -> Path:
    """Download a data set of the catalog and return the folder in which it is prepared."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    plain_name = name.split("/")[0]
    if plain_name not in known:
        similar = difflib.get_close_matches(plain_name, known)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "is it a path that does not exist?"
        raise UserError(f"tfds data set {name!r} is unknown and not prepared in {directory}; {hint}")
    if not has_network():
        raise UserError(
            f"tfds data set {name!r} is not prepared and there is no network to download it; prepare it in "
            "--data.dir, set TFDS_DATA_DIR to where it lies, or give an .npz file or an image folder"
        )
    try:
        builder = tfds.builder(name, data_dir=directory)
        builder.download_and_prepare()
    except Exception as error:  # hosts, archives and disks raise many kinds of errors
        raise UserError(f"tfds could not prepare {name!r} in {directory}: {one_line(error)}") from error
    return Path(builder.data_dir)


def _read_prepared(folder: Path, image_size: int | None) -> Source:
    import tensorflow_datasets as tfds

    with reading(f"tfds data in {folder}", "restore that folder or prepare it again"):
        builder = tfds.builder_from_directory(folder)
        image_key, label_key = _find_keys(builder, folder)
        splits = builder.info.splits
        if "train" not in splits:
            raise UserError(f"tfds data in {folder} have the splits {', '.join(splits)}; expected a split train")
        held_out = next((split for split in ("test", "validation") if split in splits), None)
        train = _read_split(builder, "train", image_key, label_key, image_size)
        test = _read_split(builder, held_out, image_key, label_key, image_size) if held_out else None
        return Source(train, test, tuple(builder.info.features[label_key].names))


def _find_keys(builder: Any, folder: Path) -> tuple[str, str]:
    """Return the names of the image and the label feature, found by supervised_keys or by type."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    labels = [key for key, feature in features.items() if type(feature) is tfds.features.ClassLabel]
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        return keys
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"tfds data in {folder} have the features {', '.join(features)}; expected one image and one class label"
    )


def _read_split(builder: Any, split: str, image_key: str, label_key: str, image_size: int | None) -> Part:
    """Read one split; the pictures stay encoded and are decoded like those of other sources."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    expected = builder.info.splits[split].num_examples
    height, width = (image_size, image_size) if image_size else features[image_key].shape[:2]
    check_memory(f"{builder.data_dir} {split}", (expected, height or 1, width or 1, 3))
    has_id = "id" in features and type(features["id"]) is tfds.features.Text
    keys = {image_key, label_key} | ({"id"} if has_id else set())

    # tfds's own PartialDecoding prints a warning, and its batch_size fails on ragged features.
    records = builder.as_dataset(
        split=split,
        decoders={image_key: tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),  # read once; a cache would only print a warning
    )
    records = records.map(lambda record: {key: record[key] for key in keys}).batch(1024)
    encoded: list[bytes] = []
    labels: list[np.ndarray] = []
    ids: list[str] = []
    for batch in records.as_numpy_iterator():
        encoded.extend(batch[image_key])
        labels.append(batch[label_key])
        ids.extend(text.decode(errors="replace") for text in (batch["id"] if has_id else ()))
    ids = ids or [f"{split}-{index:06d}" for index in range(expected)]
    images = decode_all(encoded, [f"{id_} of {builder.data_dir}" for id_ in ids], image_size)
    return Part(images, np.concatenate(labels).astype(np.int64), np.array(ids))

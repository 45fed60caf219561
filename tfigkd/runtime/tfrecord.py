"""TFRecord files and `tf.train.Example`, read and written without TensorFlow.

A TFRecord file is a sequence of records: the length of the data (8 bytes), its masked CRC-32C (4), the data, their
masked CRC-32C (4), all little-endian. An Example is a protocol buffer: a map from names to lists of bytes, floats or
integers. Formats: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import atomic

LENGTH = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")
HEADER = struct.Struct("<QI")

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
FIRST, SECOND = 1 << 3 | LENGTH_DELIMITED, 2 << 3 | LENGTH_DELIMITED
BYTES_LIST, FLOAT_LIST, INT64_LIST = FIRST, SECOND, 3 << 3 | LENGTH_DELIMITED
"""Tags: the number and the wire type of a field in one integer. Tags that an Example does not have are skipped."""


def write_records(path: Path, records: Iterable[bytes]) -> str:
    """Write a TFRecord file atomically: a crash leaves the old file or the new one, never a partial file.

    Args:
        path: The file to write; its folder must exist.
        records: The data of each record.

    Returns:
        SHA-256 of the file, as hex digits.
    """
    digest = hashlib.sha256()
    with atomic(Path(path)) as temporary, open(temporary, "wb") as file:
        for data in records:
            record = framed(data)
            file.write(record)
            digest.update(record)
    return digest.hexdigest()


def framed(data: bytes) -> bytes:
    """Return one record as it is stored in a file: length, data and the checksums of both."""
    length = LENGTH.pack(len(data))
    return b"".join((length, CHECKSUM.pack(_masked_crc(length)), data, CHECKSUM.pack(_masked_crc(data))))


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the data of each record of a TFRecord file after checking its checksums.

    A file that is cut exactly between two records is a valid, shorter file; only the SHA-256 of `write_records` shows
    that records are missing.

    Args:
        path: The file; it is read record by record.

    Raises:
        UserError: The file cannot be read, or a record is cut off or has a changed byte.
    """
    return (data for _, data in read_placed(path))


def read_placed(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the offset of each record in a TFRecord file, for `read_record`, with its data; else as `read_records`."""
    try:
        with open(path, "rb") as file:
            size, position, number = os.fstat(file.fileno()).st_size, 0, 0
            while position < size:
                header = file.read(HEADER.size)
                if len(header) < HEADER.size:
                    raise _damaged(path, number, "it is cut off")
                length = _length(path, number, header)
                offset, position = position, position + HEADER.size + length + CHECKSUM.size
                if position > size:  # before anything of that length is allocated
                    raise _damaged(path, number, f"it is cut off: {length} bytes announced, but the file ends earlier")
                data = file.read(length)
                yield offset, _checked(path, number, data, file.read(CHECKSUM.size))
                number += 1
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error


def read_record(path: Path, descriptor: int, offset: int) -> bytes:
    """Return the data of one record of an open TFRecord file after checking its checksums.

    Args:
        path: The file, for messages.
        descriptor: Of the open file; its position does not matter.
        offset: Where the record begins, from `read_placed`.

    Raises:
        UserError: No intact record begins there.
    """
    where = f"at {offset}"
    header = os.pread(descriptor, HEADER.size, offset)
    if len(header) < HEADER.size:
        raise _damaged(path, where, "it is cut off")
    length = _length(path, where, header)
    if offset + HEADER.size + length + CHECKSUM.size > os.fstat(descriptor).st_size:
        raise _damaged(path, where, "it is cut off")
    data = os.pread(descriptor, length + CHECKSUM.size, offset + HEADER.size)
    return _checked(path, where, data[:length], data[length:])


def _length(path: Path, number: int | str, header: bytes) -> int:
    """Return the length that the header of a record announces."""
    length, expected = HEADER.unpack(header)
    if _masked_crc(header[: LENGTH.size]) != expected:
        raise _damaged(path, number, "the checksum of its length does not fit")
    return length


def _checked(path: Path, number: int | str, data: bytes, footer: bytes) -> bytes:
    """Return the data of a record if the checksum behind them fits."""
    if len(footer) < CHECKSUM.size:
        raise _damaged(path, number, "it is cut off")
    if _masked_crc(data) != CHECKSUM.unpack(footer)[0]:
        raise _damaged(path, number, "the checksum of its data does not fit")
    return data


def _damaged(path: Path, number: int | str, reason: str) -> UserError:
    return UserError(f"{path}: record {number} is damaged, {reason}; delete the file and write it again")


def _masked_crc(data: bytes) -> int:
    """Return the CRC rotated and shifted, so that the CRC of data that contain CRCs stays meaningful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode_example(features: Mapping[str, Any]) -> bytes:
    """Serialize a `tf.train.Example`; equal features give equal bytes in any order.

    Args:
        features: Name to value. bytes, str (UTF-8) and lists of them become a bytes list; integers, booleans, lists
            and arrays of them an int64 list; floats, lists and arrays of them a float list, rounded to float32.
            Arrays are flattened in C order. An empty list becomes an empty bytes list; for an empty array the dtype
            decides.

    Raises:
        TypeError: A value has another type.
        ValueError: An integer does not fit into int64.
    """
    entries = []
    for name in sorted(features):
        value = _encode_feature(name, features[name])
        entries.append(_delimited(FIRST, _delimited(FIRST, name.encode()) + _delimited(SECOND, value)))
    return _delimited(FIRST, b"".join(entries))


def _encode_feature(name: str, value: Any) -> bytes:
    if isinstance(value, bytes | str):
        value = [value]
    if isinstance(value, list | tuple) and all(isinstance(item, bytes | str) for item in value):
        items = [item.encode() if isinstance(item, str) else item for item in value]
        return _delimited(BYTES_LIST, b"".join(_delimited(FIRST, item) for item in items))
    array = np.asarray(value)
    if array.dtype.kind == "f":
        kind, packed = FLOAT_LIST, array.astype("<f4").tobytes()
    elif array.dtype.kind in "iub":
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"feature {name!r} holds {array.max()}, which does not fit into int64.")
        kind, packed = INT64_LIST, b"".join(_varint(item & 0xFFFFFFFFFFFFFFFF) for item in array.ravel().tolist())
    else:
        raise TypeError(f"feature {name!r} must be bytes, str, integers or floats, got {array.dtype} in {type(value)}.")
    return _delimited(kind, _delimited(FIRST, packed) if packed else b"")


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _delimited(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(data)) + data


def decode_example(data: bytes) -> dict[str, list[bytes] | np.ndarray]:
    """Parse a serialized `tf.train.Example`, packed or unpacked.

    Args:
        data: The bytes that `encode_example` or TensorFlow produced.

    Returns:
        Name to value: a bytes list as list[bytes] (also for a single value, and for a feature without a kind, which
        is empty), a float list as float32 [n], an int64 list as int64 [n].

    Raises:
        UserError: The data are not an Example.
    """
    features: dict[str, list[bytes] | np.ndarray] = {}
    try:
        # Concatenated serialized messages are one merged message.
        entries = b"".join(value for tag, value in _fields(data) if tag == FIRST)
        for tag, entry in _fields(entries):
            if tag == FIRST:
                parts = {FIRST: b"", SECOND: b""} | dict(_fields(entry))
                features[str(parts[FIRST], "utf-8")] = _decode_feature(parts[SECOND])
    except (IndexError, ValueError) as error:
        raise UserError(f"not a tf.train.Example: {error}; the record is damaged or of another format") from error
    return features


def _decode_feature(data: bytes) -> list[bytes] | np.ndarray:
    kind, message = BYTES_LIST, b""
    for tag, value in _fields(data):
        if tag in (BYTES_LIST, FLOAT_LIST, INT64_LIST):
            kind, message = tag, (message + value if tag == kind else value)
    values = list(_fields(message))
    if kind == BYTES_LIST:
        return [value for tag, value in values if tag == FIRST]
    if kind == FLOAT_LIST:
        unpacked = 1 << 3 | FIXED32
        return np.frombuffer(b"".join(value for tag, value in values if tag in (FIRST, unpacked)), "<f4").copy()
    numbers: list[int] = []
    for tag, value in values:
        if tag == 1 << 3 | VARINT:
            numbers.append(value)
        elif tag == FIRST:
            position = 0
            while position < len(value):
                number, position = _read_varint(value, position)
                numbers.append(number)
    return np.array(numbers, np.uint64).view(np.int64)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the integer at a position, and the position after it."""
    value = data[position]
    if value < 0x80:
        return value, position + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        position += 1
        digit = data[position]
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
    raise ValueError("an integer of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the tag and value of each field of a message: an int for a varint, bytes for everything else."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _read_varint(data, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _read_varint(data, position)
            yield tag, value
            continue
        if wire_type == LENGTH_DELIMITED:
            length, position = _read_varint(data, position)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError(f"a field of type {wire_type}")
        if length > end - position:
            raise ValueError("a field is cut off")
        yield tag, data[position : position + length]
        position += length

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfigkd.runtime import tfrecord
from tfigkd.runtime.errors import UserError

FEATURES: dict[str, Any] = {
    "id": "0123456789abcdef",
    "blob": bytes(range(256)),
    "blobs": [b"", b"one", "zwölf"],
    "label": [7],
    "negative": [-1, -(2**63), 2**63 - 1, 0, 127, 128],
    "logits": np.array([[1.5, -2.25], [np.inf, 1e-30]], np.float32),
    "flags": np.array([True, False]),
    "no_floats": np.empty(0, np.float32),
    "no_integers": np.empty(0, np.int64),
}


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert type(value) is type(right[name])
        if isinstance(value, np.ndarray):
            assert value.dtype == right[name].dtype
            np.testing.assert_array_equal(value, right[name])
        else:
            assert value == right[name]


def test_decode_gives_the_documented_types() -> None:
    decoded = tfrecord.decode_example(tfrecord.encode_example(FEATURES))
    expected = {
        "id": [b"0123456789abcdef"],
        "blob": [bytes(range(256))],
        "blobs": [b"", b"one", "zwölf".encode()],
        "label": np.array([7]),
        "negative": np.array(FEATURES["negative"]),
        "logits": FEATURES["logits"].ravel(),
        "flags": np.array([1, 0]),
        "no_floats": np.empty(0, np.float32),
        "no_integers": np.empty(0, np.int64),
    }
    same(decoded, expected)


def test_bytes_do_not_depend_on_the_order_of_the_features() -> None:
    backwards = dict(reversed(FEATURES.items()))
    assert tfrecord.encode_example(backwards) == tfrecord.encode_example(FEATURES)


def test_tensorflow_parses_ours() -> None:
    import tensorflow as tf

    encoded = tfrecord.encode_example(FEATURES)
    example = tf.train.Example.FromString(encoded)
    feature = example.features.feature
    assert feature["blobs"].bytes_list.value == [b"", b"one", "zwölf".encode()]
    assert feature["negative"].int64_list.value == FEATURES["negative"]
    np.testing.assert_array_equal(feature["logits"].float_list.value, FEATURES["logits"].ravel())
    assert feature["no_floats"].WhichOneof("kind") == "float_list"
    assert len(example.SerializeToString()) == len(encoded)  # TensorFlow skips no field as unknown


def test_ours_parses_tensorflow() -> None:
    import tensorflow as tf

    example = tf.train.Example.FromString(tfrecord.encode_example(FEATURES))
    expected = tfrecord.decode_example(tfrecord.encode_example(FEATURES))
    _ = example.features.feature["without_kind"]
    same(tfrecord.decode_example(example.SerializeToString()), {**expected, "without_kind": []})


def test_unpacked_lists_are_read() -> None:
    import tensorflow as tf

    def entry(name: bytes, feature: bytes) -> bytes:
        body = bytes((0x0A, len(name))) + name + bytes((0x12, len(feature))) + feature
        return bytes((0x0A, len(body))) + body

    integers = b"\x1a\x05\x08\x03\x08\x80\x01"  # field 3: int64_list {value: 3, value: 128}, each with its own tag
    floats = b"\x12\x0a" + b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    mixed = b"\x1a\x06\x08\x01\x0a\x02\x02\x03"  # one unpacked, then two packed
    body = entry(b"i", integers) + entry(b"f", floats) + entry(b"m", mixed)
    data = bytes((0x0A, len(body))) + body
    decoded = tfrecord.decode_example(data)
    same(decoded, {"i": np.array([3, 128]), "f": np.array([1.5, -2], np.float32), "m": np.array([1, 2, 3])})
    again = tf.train.Example.FromString(data).features.feature
    assert list(again["i"].int64_list.value) == [3, 128]
    assert list(again["m"].int64_list.value) == [1, 2, 3]


names = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20).map(lambda values: np.array(values, np.int64))
floats = st.lists(st.floats(width=32), max_size=20).map(lambda values: np.array(values, np.float32))
blobs = st.lists(st.binary(max_size=300), max_size=4)


@given(st.dictionaries(names, st.one_of(numbers, floats, blobs), max_size=6))
def test_round_trip(features: dict[str, Any]) -> None:
    encoded = tfrecord.encode_example(features)
    decoded = tfrecord.decode_example(encoded)
    same(decoded, features)
    assert tfrecord.encode_example(decoded) == encoded


@pytest.mark.parametrize("value", [None, {"a": 1}, [b"bytes", 1], [None], [2**70], 1 + 2j])
def test_unknown_values_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        tfrecord.encode_example({"feature": value})


def test_integers_beyond_int64_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        tfrecord.encode_example({"feature": np.array([2**63], np.uint64)})


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_give_a_user_error(data: bytes) -> None:
    for start in (b"", b"\x0a" + bytes((len(data),)), b"\x0a" + bytes((len(data) + 2, 0x0A, len(data)))):
        try:
            tfrecord.decode_example(start + data)
        except UserError as error:
            assert "\n" not in str(error)


def test_cut_examples_give_a_user_error() -> None:
    encoded = tfrecord.encode_example(FEATURES)
    for length in range(1, len(encoded)):
        with pytest.raises(UserError, match=r"not a tf\.train\.Example"):
            tfrecord.decode_example(encoded[:length])


RECORDS = [b"", b"first record", bytes(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.tfrecord"
    tfrecord.write_records(path, RECORDS)
    return path


def test_records_survive_the_file(path: Path) -> None:
    assert list(tfrecord.read_records(path)) == RECORDS
    assert [file.name for file in path.parent.iterdir()] == ["a.tfrecord"]


def test_write_returns_the_checksum_of_the_file(tmp_path: Path) -> None:
    digest = tfrecord.write_records(tmp_path / "a", iter(RECORDS))
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_no_records_are_an_empty_file(tmp_path: Path) -> None:
    tfrecord.write_records(tmp_path / "a", [])
    assert list(tfrecord.read_records(tmp_path / "a")) == []


def test_framing_equals_tensorflow_both_ways(path: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    theirs = tmp_path / "theirs.tfrecord"
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert theirs.read_bytes() == path.read_bytes()
    assert list(tfrecord.read_records(theirs)) == RECORDS
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(path))] == RECORDS


def test_a_failing_write_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()

    def failing() -> Any:
        yield b"new"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        tfrecord.write_records(path, failing())
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_every_changed_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    ends = np.cumsum([16 + len(record) for record in RECORDS])
    for position in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[position] ^= flip
            path.write_bytes(changed)
            record = int(np.searchsorted(ends, position, side="right"))
            with pytest.raises(UserError, match=rf"a\.tfrecord: record {record} is damaged") as error:
                list(tfrecord.read_records(path))
            assert "\n" not in str(error.value)


def test_every_cut_inside_a_record_is_found(path: Path) -> None:
    whole = path.read_bytes()
    ends = {0, *np.cumsum([16 + len(record) for record in RECORDS]).tolist()}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length in ends:  # a valid, shorter file: the SHA-256 in the manifest finds it
            assert list(tfrecord.read_records(path)) == RECORDS[: sorted(ends).index(length)]
            continue
        with pytest.raises(UserError, match=r"record \d is damaged"):
            list(tfrecord.read_records(path))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40])
def test_an_absurd_length_is_refused_before_anything_is_allocated(path: Path, length: int) -> None:
    field = tfrecord.LENGTH.pack(length)
    path.write_bytes(field + tfrecord.CHECKSUM.pack(tfrecord._masked_crc(field)) + bytes(100))
    with pytest.raises(UserError, match=f"record 0 is damaged, it is cut off: {length} bytes announced"):
        list(tfrecord.read_records(path))


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        list(tfrecord.read_records(tmp_path / "missing"))


def test_single_records_are_read_where_they_begin(path: Path) -> None:
    content = path.read_bytes()
    with open(path, "rb") as file:
        places = [offset for offset, _ in tfrecord.read_placed(path)]
        assert [tfrecord.read_record(path, file.fileno(), offset) for offset in reversed(places)] == RECORDS[::-1]
        for offset in {*range(len(content) + 2)} - {*places}:
            with pytest.raises(UserError, match=f"record at {offset} is damaged"):
                tfrecord.read_record(path, file.fileno(), offset)
    for position in range(places[1], places[2]):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with open(path, "rb") as file, pytest.raises(UserError, match="damaged"):
            tfrecord.read_record(path, file.fileno(), places[1])
    path.write_bytes(content[: places[2] - 1])
    with open(path, "rb") as file, pytest.raises(UserError, match="it is cut off"):
        tfrecord.read_record(path, file.fileno(), places[1])

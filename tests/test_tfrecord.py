"""The codec against tf.io in both directions, and every kind of damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfigkd.errors import UserError
from tfigkd.tfrecord import decode_example, encode_example, read_records, write_records

FEATURES = {
    "id": "abc",
    "map": bytes(range(256)),
    "label": [3, -1, 2**62],
    "logits": np.array([0.5, -1e30], np.float32),
}


def test_tensorflow_reads_what_we_write(tmp_path):
    import tensorflow as tf

    write_records(tmp_path / "x.tfrecord", [encode_example(FEATURES), b"", encode_example({})])
    raw = [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "x.tfrecord"))]
    assert len(raw) == 3
    parsed = tf.train.Example.FromString(raw[0]).features.feature
    assert parsed["id"].bytes_list.value == [b"abc"]
    assert parsed["map"].bytes_list.value == [bytes(range(256))]
    assert parsed["label"].int64_list.value == [3, -1, 2**62]
    np.testing.assert_array_equal(parsed["logits"].float_list.value, FEATURES["logits"])


def test_we_read_what_tensorflow_writes(tmp_path):
    import tensorflow as tf

    feature = tf.train.Feature
    message = tf.train.Example(
        features=tf.train.Features(
            feature={
                "a": feature(bytes_list=tf.train.BytesList(value=[b"x", b"", b"yz"])),
                "b": feature(int64_list=tf.train.Int64List(value=[0, -5, 300])),
                "c": feature(float_list=tf.train.FloatList(value=[1.5, -2.0])),
                "d": feature(),
            }
        )
    )
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        writer.write(message.SerializeToString())
    (record,) = read_records(tmp_path / "x.tfrecord")
    decoded = decode_example(record)
    assert decoded["a"] == [b"x", b"", b"yz"]
    assert decoded["b"].tolist() == [0, -5, 300]
    assert decoded["c"].tolist() == [1.5, -2.0]
    assert decoded["d"] == []


def test_numbers_that_are_not_packed_are_read():
    integers = b"\x0a\x09" + b"\x0a\x07" + b"\x0a\x01n" + b"\x12\x02" + b"\x1a\x00"
    assert decode_example(integers)["n"].tolist() == []
    unpacked = b"\x1a\x04\x08\x05\x08\x07"  # Int64List { value: 5, value: 7 }, one by one
    entry = b"\x0a\x01n" + b"\x12" + bytes([len(unpacked)]) + unpacked
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert decode_example(b"\x0a" + bytes([len(features)]) + features)["n"].tolist() == [5, 7]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.binary(max_size=300)
        | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200),
        max_size=5,
    )
)
def test_round_trip(features):
    decoded = decode_example(encode_example(features))
    assert decoded.keys() == features.keys()
    for name, value in features.items():
        assert list(decoded[name]) == ([value] if isinstance(value, bytes) else value)


def test_equal_features_give_equal_bytes():
    assert encode_example(FEATURES) == encode_example(dict(reversed(FEATURES.items())))


def test_every_flipped_byte_and_every_truncation_is_seen(tmp_path):
    path = tmp_path / "x.tfrecord"
    write_records(path, [encode_example({"id": "a"}), encode_example({"label": [1]})])
    good = path.read_bytes()
    ends = [0, 16 + len(next(read_records(path)))]
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(UserError, match=r"record [01]"):
            list(read_records(path))
        path.write_bytes(good[:position])
        if position in ends:  # a cut between two records is a shorter file; the store's manifest sees it
            assert len(list(read_records(path))) == ends.index(position)
        else:
            with pytest.raises(UserError, match="truncated"):
                list(read_records(path))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read_and_never_crashes(data):
    try:
        decode_example(data)
    except UserError as error:
        assert "tf.train.Example" in str(error)  # noqa: PT017 - both outcomes are allowed

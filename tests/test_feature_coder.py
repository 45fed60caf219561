"""Codes of features: lengths by hand and by SciPy, what zlib really packs, the step of a rate, and the rows."""

import zlib

import keras
import numpy as np
import pytest
from scipy.stats import entropy

from experiments.benchmarks import embedding_bits
from experiments.benchmarks.feature_coder import Coder, packed_bits, split, step_for
from experiments.benchmarks.feature_enhancer import enhancer
from tfigkd.data import Examples

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(4000, 3)) * np.array([1.0, 2.0, 0.1])


def test_the_length_by_hand():
    coder = Coder.fit(np.array([[0.1], [-0.2], [0.3], [1.2]]), 1.0)  # 0 0 0 1, each once more: 4/6 and 2/6
    np.testing.assert_allclose(coder.costs[0], -np.log2([4 / 6, 2 / 6]))
    numbers = coder.encode(np.array([[0.0], [0.9]]))
    assert numbers.tolist() == [[0], [1]]
    assert coder.ideal_bits(numbers) == pytest.approx(-np.log2([4 / 6, 2 / 6]).mean())


def test_the_length_of_many_is_their_entropy():
    coder = Coder.fit(FEATURES, 0.5)
    numbers = coder.encode(FEATURES)
    expected = sum(entropy(np.bincount(column), base=2) for column in numbers.T)
    assert coder.ideal_bits(numbers) == pytest.approx(expected, rel=5e-3)
    assert coder.ideal_bits(numbers) >= expected


def test_decoded_features_are_near_and_those_beyond_the_range_at_its_end():
    coder = Coder.fit(FEATURES, 0.5)
    assert np.abs(coder.decode(coder.encode(FEATURES)) - FEATURES).max() <= 0.25 + 1e-6
    end = coder.decode(coder.encode(np.full((1, 3), 1e3)))
    np.testing.assert_allclose(end[0], coder.decode(coder.encode(FEATURES)).max(axis=0))


def test_packed_is_what_zlib_gives_back():
    numbers = Coder.fit(FEATURES, 0.25).encode(FEATURES)
    packed = zlib.compress(numbers.T.astype(np.uint8).tobytes(), 9)
    assert packed_bits(numbers) == 8 * len(packed) / len(numbers)
    back = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(numbers.shape[::-1]).T
    np.testing.assert_array_equal(back, numbers)
    coder = Coder.fit(FEATURES, 0.25)
    assert packed_bits(numbers) >= 0.99 * coder.ideal_bits(numbers)  # zlib is no better than the ideal code here
    assert packed_bits(numbers + 300) > packed_bits(numbers)


@pytest.mark.parametrize("bits", [1.5, 6.0, 12.0])
def test_the_step_of_a_rate_takes_that_rate(bits):
    coder = Coder.fit(FEATURES, step_for(FEATURES, bits))
    assert coder.ideal_bits(coder.encode(FEATURES)) == pytest.approx(bits, abs=0.1)


def test_the_enhancing_decoder_is_better_than_a_linear_one():
    low = RNG.uniform(-2, 2, size=(2000, 2)).astype(np.float32)
    high = np.stack([np.abs(low[:, 0]), low[:, 1] ** 2], axis=1).astype(np.float32)
    found = np.mean((enhancer(low, high, epochs=20, batch_size=64)(low) - high) ** 2)
    linear = np.c_[low, np.ones(len(low))]
    fitted = linear @ np.linalg.lstsq(linear, high, rcond=None)[0]
    assert found < 0.3 * np.mean((fitted - high) ** 2)


def test_the_rows_compare_codes_of_the_same_bits():
    keras.utils.set_random_seed(0)

    def network():
        inputs = keras.Input((4, 4, 3))
        features = keras.layers.Dense(6, activation="tanh")(keras.layers.Flatten()(inputs))
        return keras.Model(inputs, keras.layers.Dense(4, name="logits")(features))

    images = RNG.integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    ids = np.array([f"{index:016x}" for index in range(300)])
    train = Examples(ids, images, np.arange(300) % 4, ids)
    students = {name: network() for name in ("plain", "low", "high")}
    rows = {
        row["code"]: row for row in embedding_bits.rows_of(students, {"low": 0.5, "high": 0.05}, train, train, epochs=2)
    }
    assert len(rows) == 6
    whole = rows["none, plain student in float32"]
    front, classifier = split(students["plain"])
    right = classifier(front(images / np.float32(255))).numpy().argmax(axis=1) == train.labels
    assert (whole["ideal_bits"], whole["accuracy"]) == (6 * 32, pytest.approx(right.mean()))
    for rate in ("low", "high"):
        own, control = rows[f"{rate} rate"], rows[f"plain student rounded to the {rate} rate"]
        assert control["ideal_bits"] == pytest.approx(own["ideal_bits"], abs=0.3)
    assert rows["low rate"]["ideal_bits"] == rows["low rate, enhanced"]["ideal_bits"] < rows["high rate"]["ideal_bits"]

"""Metrics against values worked out by hand."""

import csv

import keras
import numpy as np
import pytest

from tfigkd.metrics import accuracy, comparison, metrics, predict_logits
from tfigkd.provenance import append_row, hardware, versions

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], np.float32))


def test_accuracy_and_nll_by_hand():
    labels = np.array([0, 2, 2])
    values = dict(metrics(LOGITS, labels))
    assert accuracy(LOGITS, labels) == values["accuracy"] == pytest.approx(2 / 3)
    assert values["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.4]).mean())


def test_comparison_by_hand():
    other = LOGITS[[0, 2, 2]]
    values = dict(comparison(other, LOGITS))
    reference, actual = np.exp(LOGITS[1]), np.exp(LOGITS[2])
    assert values["agreement"] == pytest.approx(2 / 3)
    assert values["kl"] == pytest.approx((reference * np.log(reference / actual)).sum() / 3)
    assert values["max_difference"] == pytest.approx(np.log(3))
    equal = dict(comparison(LOGITS + 5, LOGITS))
    assert (equal["agreement"], equal["kl"]) == (1, pytest.approx(0, abs=1e-9))


def test_huge_logits_stay_finite():
    assert np.isfinite(dict(metrics(np.array([[1e30, -1e30]], np.float32), np.array([1])))["nll"])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_predictions_do_not_depend_on_the_batch_size(count):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    whole = keras.ops.convert_to_numpy(model(images.astype(np.float32) / 255, training=False))
    logits = predict_logits(model, images, batch_size=8)
    assert logits.shape == (count, 3)
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_rows_are_appended_and_other_columns_refused(tmp_path):
    path = tmp_path / "rows.csv"
    append_row(path, {"a": 1, "b": "x, y"})
    append_row(path, {"a": 2, "b": "z"})
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z"}]
    with pytest.raises(ValueError, match="columns"):
        append_row(path, {"a": 3})


def test_provenance_names_what_decides_the_numbers():
    assert "tensorflow 2.21" in versions()
    assert hardware().endswith("cores")

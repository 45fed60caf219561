"""Metrics of a student that gives one logit, against those of the same student with a sigmoid."""

import keras
import numpy as np
import pytest

from tfigkd.training.distiller import Distiller

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)
Y = (X[:, 0] + RNG.normal(size=64) > 0).astype(int)
NAMES = ["accuracy", "AUC", "mse"]


def student(activation=None) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(1, activation=activation)(inputs))


def measured(network: keras.Model, metrics, labels=Y, **options) -> dict[str, float]:
    model = Distiller(network)
    model.compile("sgd", metrics=metrics, jit_compile=False, **options)
    return model.evaluate(X, labels, verbose=0, return_dict=True)


def check_metrics():
    logits = keras.ops.convert_to_numpy(student()(X))[:, 0]
    right = np.mean((logits > 0) == Y)
    assert right != np.mean((logits > 0.5) == Y)
    expected = measured(student("sigmoid"), NAMES)
    assert measured(student(), NAMES[:1], np.eye(2)[Y])["accuracy"] == pytest.approx(right)
    for labels in (Y, Y[:, None]):
        found = measured(student(), NAMES, labels)
        assert found["accuracy"] == pytest.approx(right)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value == pytest.approx(expected[name], rel=1e-5), name
    weighted = measured(student(), None, weighted_metrics=["acc"])
    assert weighted["acc"] == pytest.approx(right)


def test_metrics_by_name_see_the_probability():
    check_metrics()


def test_a_metric_that_knows_of_logits_sees_them():
    given = [keras.metrics.BinaryAccuracy(name="own", threshold=0.0), keras.metrics.AUC(from_logits=True, name="area")]
    found, named = measured(student(), given), measured(student(), NAMES)
    assert found["own"] == named["accuracy"]
    assert found["area"] == pytest.approx(named["AUC"], abs=0.01)


def test_metrics_are_saved_with_the_distiller(tmp_path):
    model = Distiller(student())
    model.compile("sgd", metrics=NAMES, jit_compile=False)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    expected, found = (one.evaluate(X, Y, verbose=0, return_dict=True) for one in (model, loaded))
    assert found == pytest.approx(expected, rel=1e-5)

"""Labels are looked at in whatever form the data come, and arguments are known by position as by name."""

from functools import partial

import keras
import numpy as np
import pytest

from tests.training.test_distiller_as_keras import CROSS_ENTROPY, distiller, largest_difference, net
from tfigkd.training.distiller import Distiller

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6)).astype(np.float32), RNG.integers(0, 5, 32)
WRONG = {r"labels must be in 0\.\.4 for 5 classes, got \d\.\.9": 9, r"whole numbers, got 0\.[89]": np.float32(0.9)}


class Batches(keras.utils.PyDataset):
    """Batches of 8, of labels as they are given or in a dictionary; it counts its epochs."""

    def __init__(self, labels, named=False, **options):
        super().__init__(**options)
        self.labels, self.named, self.epochs = labels, named, 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        chosen = slice(8 * index, 8 * index + 8)
        labels = self.labels[chosen]
        return X[chosen], {"label": labels} if self.named else labels

    def on_epoch_end(self):
        self.epochs += 1


def generator(labels):
    batches = Batches(labels)
    while True:
        yield from (batches[index] for index in range(len(batches)))


def model():
    return distiller(weight=0.5, teacher=net(1))


def uses(labels):
    """Yield what takes labels in batches, in training and evaluation."""
    for data in (partial(Batches, labels), partial(Batches, labels, named=True), partial(Batches, labels, workers=2)):
        yield lambda data=data: model().fit(data(), verbose=0)
        yield lambda data=data: model().evaluate(data(), verbose=0)
    yield lambda: model().fit(generator(labels), steps_per_epoch=4, shuffle=False, verbose=0)
    yield lambda: model().fit(X, Y, validation_data=generator(labels), validation_steps=4, verbose=0)
    yield lambda: model().fit(X, Y, 16, 1, 0, None, 0.0, (X, labels))
    yield lambda: model().train_on_batch(X, labels)
    yield lambda: model().test_on_batch(X, {"label": labels})


def check_refused():
    for place, (said, value) in zip((0, 30), WRONG.items(), strict=True):  # in the first batch and in the last one
        labels = np.where(np.arange(32) == place, value, Y)
        for number, use in enumerate(uses(labels)):
            with pytest.raises(ValueError, match=said) as caught:
                use()
            assert "\n" not in str(caught.value), (number, place)


def check_taken():
    """What is right trains as arrays do, and a data set is told of its epochs."""
    expected, plain, counted = model(), net(), Batches(Y)
    expected.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    plain.compile("sgd", CROSS_ENTROPY)
    plain.fit(counted, epochs=2, shuffle=False, verbose=0)
    batches = Batches(Y)
    for data, options in ((batches, {}), (generator(Y), {"steps_per_epoch": 4})):
        found = model()
        found.fit(data, epochs=2, shuffle=False, verbose=0, **options)
        assert largest_difference(found.student, expected.student) < 1e-6
    assert batches.epochs == counted.epochs >= 2
    assert all(use() is not None for use in uses(Y))


def test_labels_of_batches_that_are_no_class_are_refused():
    check_refused()


def test_batches_of_any_kind_train_alike():
    check_taken()


WEIGHTS = {0: 10.0, 2: 0.5}


def test_arguments_by_position_are_those_by_name():
    """A share that is held out by position is neither trained on with weights nor measured with them."""
    plain, (named, placed, both) = net(), (distiller(weight=0.0, teacher=net(1)) for _ in range(3))
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    options = {"validation_split": 0.25, "shuffle": False, "class_weight": WEIGHTS}
    expected = plain.fit(X, Y, batch_size=8, epochs=2, verbose=0, **options).history
    for found in (
        named.fit(X, Y, batch_size=8, epochs=2, verbose=0, **options).history,
        placed.fit(X, Y, 8, 2, 0, None, 0.25, None, False, WEIGHTS).history,
        both.fit(X, Y, 8, 2, 0, None, 0.25, shuffle=False, class_weight=WEIGHTS).history,
    ):
        np.testing.assert_allclose(found["val_hard_loss"], expected["val_loss"], rtol=1e-5)
        np.testing.assert_allclose(found["hard_loss"], expected["loss"], rtol=1e-5)
    with pytest.raises(TypeError, match="batches"):
        model().fit(X, Y, batches=3)


def test_a_split_that_keras_ignores_takes_no_weights_away():
    """With `validation_data` all examples train, and all have the weights of their classes."""
    plain, ours = net(), distiller(weight=0.0, teacher=net(1))
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    options = {"batch_size": 8, "validation_split": 0.5, "validation_data": (X, Y), "class_weight": WEIGHTS}
    expected = plain.fit(X, Y, shuffle=False, verbose=0, **options).history["loss"]
    np.testing.assert_allclose(ours.fit(X, Y, shuffle=False, verbose=0, **options).history["hard_loss"], expected, 1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"label_smoothing": one}, r"label_smoothing must be in \[0, 1\), got") for one in (1.5, -0.1, np.nan, 1.0)),
        *(({"finetune_from": one}, "finetune_from must be a whole number from 0") for one in ("a", -5, 1.5)),
        *(({"input_range": one}, "input_range: expected different values") for one in ((0, 0), (0, np.nan))),
        *(({"input_range": one}, "input_range: expected two numbers") for one in ((0,), 255, ("a", "b"))),
        *(({one: np.inf}, f"or infinite, got .*{one} inf") for one in ("l1", "hard_weight")),
    ],
)
def test_numbers_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Distiller(net(), **options)


def test_class_weight_of_a_single_batch_is_that_of_fit():
    weights, logits = {0: 3.0, 2: 0.5}, RNG.normal(size=(32, 5)).astype(np.float32)
    plain = net()
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    plain.train_on_batch(X, Y, class_weight=weights)
    for labels in (Y, Y[:, None], np.eye(5)[Y]):
        model = distiller(weight=0.0)
        model.train_on_batch(X, {"label": labels, "teacher_logits": logits}, None, weights)
        assert largest_difference(plain, model.student) < 1e-6
    fitted, single = distiller(), distiller()
    targets = {"label": Y, "teacher_logits": logits}
    logs = fitted.fit(X, targets, batch_size=32, shuffle=False, class_weight=weights, verbose=0).history
    found = single.train_on_batch(X, targets, class_weight=weights, return_dict=True)
    assert {name: values[0] for name, values in logs.items()} == pytest.approx(found)
    with pytest.raises(ValueError, match="dictionary of class number to weight"):
        single.train_on_batch(X, targets, class_weight=[1.0, 2.0])

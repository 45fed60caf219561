"""What counts as chance, by hand, and what makes a classifier at chance right."""

import numpy as np

from tfigkd.data import concatenate, load
from tfigkd.measure.chance import (
    FITTED_EXAMPLES,
    better_order,
    examples_of_each_class,
    near_chance,
    suggest_fix,
    suggest_order,
)
from tfigkd.measure.metrics import balanced_accuracy
from tfigkd.runtime.errors import UserError


def logits_of(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[predicted]


def test_chance_by_hand() -> None:
    """Of 100 labels of 4 classes chance is right on 25 and a deviation is 4.33, so up to 33 are near it."""
    labels = np.arange(100) % 4
    for right, near in ((25, True), (33, True), (34, False), (100, False)):
        predicted = np.where(np.arange(100) < right, labels, (labels + 1) % 4)
        recall = balanced_accuracy(logits_of(predicted, 4), labels)
        assert abs(recall - right / 100) < 0.01
        assert near_chance(logits_of(predicted, 4), labels) == near


def test_chance_of_classes_of_other_sizes_by_hand() -> None:
    """Of 250 and 6 labels the recalls deviate by 0.0316 and 0.2041, their mean by 0.1033: 0.706 is near chance."""
    labels = np.array([0] * 250 + [1] * 6)
    for right, near in ((5, True), (6, False)):
        recalled = [np.arange(250) < 125, np.arange(6) < right]  # a recall of 0.5, and of 5/6 or 1
        predicted = np.where(np.concatenate(recalled), labels, 1 - labels)
        assert balanced_accuracy(logits_of(predicted, 2), labels) == 0.25 + right / 12
        assert near_chance(logits_of(predicted, 2), labels) == near
    assert near_chance(np.zeros((0, 2)), np.zeros(0, int))


def test_a_constant_answer_is_chance_however_large_its_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    constant = logits_of(np.zeros(100, int), 2)
    assert balanced_accuracy(constant, labels) == 0.5 and near_chance(constant, labels)


def test_fix_is_suggested() -> None:
    labels = np.arange(60) % 3
    wrong, right = logits_of(np.zeros(60, int), 3), logits_of(labels, 3)
    said = suggest_fix(wrong, labels, ["a", "b", "c"], {"--input-range 0 255": lambda: right, "--x": lambda: wrong})
    assert said == "with --input-range 0 255 its balanced accuracy on the same images is 100.0 %"
    # output 0 means c, 1 means a, 2 means b
    turned = logits_of((labels + 1) % 3, 3)
    assert better_order(turned, labels, 3) == [2, 0, 1]
    assert "in the order c, a, b" in str(suggest_fix(turned, labels, ["a", "b", "c"], {}))
    assert "(balanced accuracy in this order: 100.0 %)" in str(suggest_fix(turned, labels, ["a", "b", "c"], {}))
    assert suggest_fix(wrong, labels, ["a", "b", "c"], {"--x": lambda: wrong}) is None


def test_a_model_that_never_names_a_class_is_no_model_of_another_order() -> None:
    """An untrained network often tells two of three classes apart, which is right on 67 % in some order."""
    labels = np.arange(60) % 3
    untrained = logits_of(np.array([1, 0, 0])[labels], 3)
    assert near_chance(untrained, labels)
    assert better_order(untrained, labels, 3) is None
    assert suggest_fix(untrained, labels, ["a", "b", "c"], {}) is None
    # of ten classes one may fail
    labels = np.arange(100) % 10
    almost = logits_of(np.where(labels == 9, 1, (labels + 1) % 10), 10)
    assert better_order(almost, labels, 10) is not None


def test_a_classifier_far_above_chance_may_still_have_another_range_or_order() -> None:
    labels = np.arange(100) % 10
    weak = logits_of(np.where(np.arange(100) < 40, labels, 0), 10)
    strong = logits_of(np.where(np.arange(100) < 95, labels, 0), 10)
    names = [str(index) for index in range(10)]
    said = suggest_fix(weak, labels, names, {"--input-range -1 1": lambda: strong})
    assert said == "with --input-range -1 1 its balanced accuracy on the same images is 95.0 %"
    assert suggest_fix(strong, labels, names, {"--input-range -1 1": lambda: weak}) is None
    # folders sorted as text, outputs by number: 0, 1, 10, 11, 2, ...; right on 2 of 12 classes
    numbers = [str(index) for index in range(12)]
    names, labels = sorted(numbers), np.arange(120) % 12
    outputs = logits_of(np.array([int(names[label]) for label in labels]), 12)
    assert balanced_accuracy(outputs, labels) > 0.16 and not near_chance(outputs, labels)
    assert "in the order 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in str(suggest_fix(outputs, labels, names, {}))
    # two of four classes in each other's place
    labels = np.arange(40) % 4
    swapped = logits_of(np.array([0, 1, 3, 2])[labels], 4)
    assert "order a, b, d, c" in str(suggest_fix(swapped, labels, list("abcd"), {}))


def test_an_order_of_many_classes() -> None:
    """Of 1000 classes 256 images show a part, which no order is fitted to: those in which programs sort are tried."""
    numbers = [str(index) for index in range(1000)]
    names, labels = sorted(numbers), np.arange(0, 1000, 4)[:256]
    outputs = logits_of(np.array([int(names[label]) for label in labels]), 1000)
    assert "in the order 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more" in str(suggest_fix(outputs, labels, names, {}))
    assert suggest_fix(logits_of(labels, 1000), labels, names, {}) is None
    # sorted by a program that makes no difference between a and A
    names = ["Bee", "Dog", "ant", "cat"]
    labels = np.arange(40) % 4
    outputs = logits_of(np.array([1, 3, 0, 2])[labels], 4)
    assert "in the order ant, Bee, cat, Dog" in str(suggest_fix(outputs, labels, names, {}))
    # of any other order of many classes a few images of each tell; answers at random have none
    random = np.random.default_rng(0)
    shuffled, labels = random.permutation(300), np.repeat(np.arange(300), FITTED_EXAMPLES)
    names = [f"{index:03}" for index in range(300)]
    first = ", ".join(names[index] for index in np.argsort(shuffled)[:9])
    assert f"in the order {first}" in str(suggest_order(logits_of(shuffled[labels], 300), labels, names))
    assert suggest_order(logits_of(random.integers(0, 300, len(labels)), 300), labels, names) is None


def test_a_few_images_of_each_class() -> None:
    data = load("digits", limit=300)
    chosen, known = examples_of_each_class(data), concatenate([data.validation, data.train])
    assert np.bincount(chosen.labels).tolist() == [FITTED_EXAMPLES] * 10
    rows = [np.flatnonzero(known.ids == name).item() for name in chosen.ids]
    np.testing.assert_array_equal(chosen.labels, known.labels[rows])


def test_a_weak_classifier_is_no_other_one() -> None:
    """Right on a part of the images, wrong at random on the others; or of few images of one class, or of one alone."""
    random = np.random.default_rng(0)
    rare = (np.arange(256) % 20 == 0).astype(int)
    useful = logits_of(np.where(random.random(256) < 0.85, rare, 1 - rare), 2)
    others = {"--x": lambda: logits_of(np.where(np.arange(256) < 80, rare, 0), 2)}  # right on more, for its large class
    assert balanced_accuracy(others["--x"](), rare) < balanced_accuracy(useful, rare)
    assert (others["--x"]().argmax(1) == rare).mean() > 0.9 > (useful.argmax(1) == rare).mean()
    assert suggest_fix(useful, rare, ["a", "b"], others) is None
    one, constant = np.zeros(40, int), logits_of(np.zeros(40, int), 2)
    assert suggest_fix(logits_of(np.arange(40) % 3 // 2, 2), one, ["a", "b"], {"--x": lambda: constant}) is None
    for classes in (2, 10, 100):
        for accuracy in (0.3, 0.5, 0.7, 0.9):
            labels = np.arange(256) % classes
            guessed = np.where(random.random(256) < accuracy, labels, random.integers(0, classes, 256))
            other = np.where(random.random(256) < accuracy, labels, random.integers(0, classes, 256))
            others = {"--x": lambda other=other, classes=classes: logits_of(other, classes)}
            assert suggest_fix(logits_of(guessed, classes), labels, [""] * classes, others) is None


def test_a_range_that_a_model_cannot_take_is_left_out() -> None:
    labels = np.arange(60) % 3

    def refused() -> np.ndarray:
        raise UserError("another function than Keras opens")

    right = logits_of(labels, 3)
    others = {"--x": refused, "--y": lambda: right}
    assert str(suggest_fix(logits_of(np.zeros(60, int), 3), labels, list("abc"), others)).startswith("with --y")

"""What counts as chance, by hand, and what makes a classifier at chance right."""

import numpy as np

from tfigkd.measure.chance import better_order, mean_recall, near_chance, what_helps


def logits_of(predicted: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[predicted]


def test_chance_by_hand() -> None:
    """Of 100 labels of 4 classes chance is right on 25 and a deviation is 4.33, so up to 33 are near it."""
    labels = np.arange(100) % 4
    for right, near in ((25, True), (33, True), (34, False), (100, False)):
        predicted = np.where(np.arange(100) < right, labels, (labels + 1) % 4)
        recall = mean_recall(logits_of(predicted, 4), labels)
        assert abs(recall - right / 100) < 0.01
        assert near_chance(logits_of(predicted, 4), labels) == near


def test_a_constant_answer_is_chance_however_large_its_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    constant = logits_of(np.zeros(100, int), 2)
    assert mean_recall(constant, labels) == 0.5 and near_chance(constant, labels)


def test_what_helps() -> None:
    labels = np.arange(60) % 3
    wrong, right = logits_of(np.zeros(60, int), 3), logits_of(labels, 3)
    said = what_helps(wrong, labels, ["a", "b", "c"], {"--input-range 0 255": lambda: right, "--x": lambda: wrong})
    assert said == "with --input-range 0 255 its balanced accuracy on the same images is 100.0 %"
    # output 0 means c, 1 means a, 2 means b
    turned = logits_of((labels + 1) % 3, 3)
    assert better_order(turned, labels, 3) == [2, 0, 1]
    assert "in the order c, a, b" in str(what_helps(turned, labels, ["a", "b", "c"], {}))
    assert "(balanced accuracy in this order: 100.0 %)" in str(what_helps(turned, labels, ["a", "b", "c"], {}))
    assert what_helps(wrong, labels, ["a", "b", "c"], {"--x": lambda: wrong}) is None


def test_a_model_that_never_names_a_class_is_no_model_of_another_order() -> None:
    """An untrained network often tells two of three classes apart, which is right on 67 % in some order."""
    labels = np.arange(60) % 3
    untrained = logits_of(np.array([1, 0, 0])[labels], 3)
    assert near_chance(untrained, labels)
    assert better_order(untrained, labels, 3) is None
    assert what_helps(untrained, labels, ["a", "b", "c"], {}) is None
    # of ten classes one may fail
    labels = np.arange(100) % 10
    almost = logits_of(np.where(labels == 9, 1, (labels + 1) % 10), 10)
    assert better_order(almost, labels, 10) is not None

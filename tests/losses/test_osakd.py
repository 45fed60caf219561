"""Soft labels from neighbors: shares and loss by hand, itself left out, places of the queue."""

import numpy as np
import pytest

from tfigkd.losses import OSAKD, neighbor_posteriors
from tfigkd.losses.osakd import Queue

LOGITS = np.array([[0.0, 0.0], [5.0, 5.0]], np.float32)
CANDIDATES = np.array([[0.0, 1.0], [0.0, -2.0], [3.0, 0.0], [5.0, 4.0], [0.0, 0.0]], np.float32)
CLASSES = np.array([1, 0, 1, 0, 1], np.int32)


def posteriors(neighbors, excluded=None):
    excluded = np.zeros((2, 5), bool) if excluded is None else excluded
    return np.asarray(neighbor_posteriors(LOGITS, CANDIDATES, CLASSES, excluded, neighbors=neighbors))


def test_posteriors_by_hand():
    # the first's nearest: 4, 0, 1, 2; the second's: 3 (1), 2 (29), 0 (41), 4 (50), 1 (74)
    np.testing.assert_allclose(posteriors(1), [[0, 1], [1, 0]])
    np.testing.assert_allclose(posteriors(3), [[1 / 3, 2 / 3], [1 / 3, 2 / 3]], rtol=1e-6)
    itself = np.zeros((2, 5), bool)
    itself[0, 4] = True
    np.testing.assert_allclose(posteriors(2, itself), [[0.5, 0.5], [0.5, 0.5]])


def test_fewer_candidates_count_alike_and_none_gives_zeros():
    excluded = np.ones((2, 5), bool)
    excluded[0, [1, 2]] = False
    np.testing.assert_allclose(posteriors(4, excluded), [[0.5, 0.5], [0, 0]])


def test_the_loss_is_the_divergence_from_the_soft_labels():
    soft = np.array([[0.75, 0.25], [1.0, 0.0], [0.0, 0.0]], np.float32)
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], np.float32))
    expected = [0.75 * np.log(1.5) + 0.25 * np.log(0.5), np.log(4), 0]
    np.testing.assert_allclose(OSAKD().per_example(soft, logits), expected, rtol=1e-5, atol=1e-6)


def test_an_example_is_no_neighbor_of_itself_and_those_before_it_are():
    loss = OSAKD(neighbors=1, queue=4)
    loss.build([(None, 2)], [(None, 2)])
    logits, labels = np.array([[0.0, 0.0], [0.0, 9.0]], np.float32), np.array([0, 1])
    np.testing.assert_allclose(loss.soft_labels(logits, labels, training=True), [[0, 1], [1, 0]])
    # now the same logits are in the queue
    np.testing.assert_allclose(loss.soft_labels(logits, labels, training=False), [[1, 0], [0, 1]])
    assert int(loss.extra_layer.count) == 2


def test_the_oldest_examples_leave_the_queue():
    queue = Queue(3, 1)
    for start in (0, 2, 4, 6):
        rows = np.arange(start, start + 2)
        queue.put(rows[:, None].astype(np.float32), rows.astype(np.int32), rows.astype(np.int32))
    np.testing.assert_array_equal(queue.labels, [6, 7, 5])
    np.testing.assert_array_equal(queue.examples, [6, 7, 5])
    np.testing.assert_array_equal(queue.logits[:, 0], [6, 7, 5])
    assert np.asarray(queue.filled()).all()
    assert int(queue.count) < 6


def test_an_example_is_no_neighbor_of_itself_in_the_next_epoch():
    """Five distinct examples, two epochs: with its number the nearest one is another example, without it is itself."""
    logits = np.eye(5, dtype=np.float32)
    labels, examples = np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32)
    own = {}
    for told in (True, False):
        loss = OSAKD(neighbors=1, queue=8)
        loss.build([(None, 5)], [(None, 5)])
        for _ in range(2):
            soft = np.asarray(loss.soft_labels(logits, labels, examples if told else None, training=True))
        own[told] = float(np.diag(soft).mean())
        np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert own == {True: 0.0, False: 1.0}


def test_of_a_batch_that_is_larger_than_the_queue_the_last_examples_stay():
    queue = Queue(3, 1)
    for start in (0, 8, 16):  # places go on from the number of examples seen
        rows = np.arange(start, start + 8)
        queue.put(rows[:, None].astype(np.float32), rows.astype(np.int32), rows.astype(np.int32))
        assert sorted(np.asarray(queue.labels)) == [*rows[-3:]]
        np.testing.assert_array_equal(queue.logits[:, 0], queue.labels)
        assert np.asarray(queue.filled()).all() and int(queue.count) < 6
    queue.put(np.full((1, 1), 24.0, np.float32), *2 * [np.array([24], np.int32)])
    assert sorted(np.asarray(queue.labels)) == [22, 23, 24]


def test_no_gradient_passes_through_a_soft_label():
    import tensorflow as tf

    loss = OSAKD(neighbors=2, queue=4)
    loss.build([(None, 3)], [(None, 3)])
    logits = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    with tf.GradientTape() as tape:
        soft = loss.soft_labels(logits, tf.constant([0, 1, 2, 0]), training=False)
        value = tf.reduce_sum(loss.per_example(soft, logits))
    # of the cross-entropy alone: probabilities less soft labels
    np.testing.assert_allclose(tape.gradient(value, logits), tf.nn.softmax(logits) - soft, atol=1e-6)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at most the queue, got 5 and 4"):
        OSAKD(neighbors=5, queue=4)
    with pytest.raises(ValueError, match="not built"):
        OSAKD().soft_labels(LOGITS, np.array([0, 1]), training=False)

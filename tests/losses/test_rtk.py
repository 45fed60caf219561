"""Representative teacher keys: differences, attention and the kept keys by hand; the uniform control."""

import numpy as np
import pytest
from keras import ops

from tfigkd.losses import RTK, attention_difference

RNG = np.random.default_rng(0)


def maps(*rows):
    """Return features [1,1,W,1] whose spatial attention is the given one."""
    return [np.sqrt(np.array(row, np.float32)).reshape(1, 1, -1, 1) for row in rows]


def test_differences_by_hand():
    teacher, student = maps([3, 4], [0, 5])
    # 0.6, 0.8 against 0, 1: 0.36 + 0.04; doubling every position changes nothing
    np.testing.assert_allclose(attention_difference(teacher, student), [0.4], rtol=1e-5)
    doubled = [one.repeat(2, axis=1) for one in (teacher, student)]
    np.testing.assert_allclose(attention_difference(*doubled), [0.4], rtol=1e-5)


def built(**options):
    loss = RTK(["a"], ["b", "c", "d"], width=1, **options)
    shape = (None, 1, 2, 1)
    loss.build([shape] * 3, [shape])
    for layer, weight in zip([*loss.extra_layer.queries, *loss.extra_layer.keys], (0.0, 1.0, 1.0, 1.0), strict=True):
        layer.set_weights([np.full((1, 1), weight), np.zeros(1)])
    # the query is 0, so that the scores are those of the pairs
    loss.extra_layer.pairs.assign(np.log(np.array([[1.0, 3.0, 2.0]])))
    return loss


STUDENT = maps([0, 5])
TEACHER = maps([3, 4], [5, 0], [0, 7])  # differences 0.4, 2 and 0


@pytest.mark.parametrize(("keys", "expected"), [(1, 2.0), (2, 3 / 5 * 2), (3, 1 / 6 * 0.4 + 3 / 6 * 2)])
def test_the_loss_has_the_keys_of_the_highest_scores(keys, expected):
    np.testing.assert_allclose(built(keys=keys).per_example(TEACHER, STUDENT), [expected], rtol=1e-4)


def test_uniform_weights_are_the_mean():
    loss = RTK(["a"], ["b", "c", "d"], uniform=True)
    loss.build([(None, 1, 2, 1)] * 3, [(None, 1, 2, 1)])
    assert loss.extra_layer is None
    np.testing.assert_allclose(loss.per_example(TEACHER, STUDENT), [0.8], rtol=1e-5)


def test_scores_are_products_of_query_and_key():
    loss = RTK(["a"], ["b", "c"], keys=2, width=4)
    student, teacher = RNG.normal(size=(3, 2, 2, 5)), [RNG.normal(size=(3, 4, 4, 2)), RNG.normal(size=(3, 2, 2, 3))]
    loss.build([one.shape for one in teacher], [student.shape])
    attention = loss.extra_layer
    attention.pairs.assign([[0.5, -0.5]])
    query, *keys = (
        one.mean((1, 2)) @ ops.convert_to_numpy(layer.kernel) + ops.convert_to_numpy(layer.bias)
        for one, layer in zip([student, *teacher], [*attention.queries, *attention.keys], strict=True)
    )
    scores = np.exp([((query * key).sum(1) + pair) / 2 for key, pair in zip(keys, (0.5, -0.5), strict=True)])
    expected = (scores / scores.sum(0)).T[:, None]
    np.testing.assert_allclose(attention([student], teacher=teacher, kept=2), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="built for channels"):
        loss.build([(None, 4, 4, 9), (None, 2, 2, 3)], [student.shape])


def test_keys_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"keys in 1\.\.2, the teacher's taps"):
        RTK(["a"], ["b", "c"], keys=3)
    with pytest.raises(ValueError, match=r"maps of several positions, got \(None, 1, 1, 3\)"):
        RTK(["a"], ["b"], keys=1).build([(None, 1, 1, 3)], [(None, 4, 4, 3)])
    with pytest.raises(ValueError, match="lists of taps"):
        RTK("a", ["b", "c"])

"""Attention, relations, flow and hints against values computed by hand, and at unequal resolution."""

import keras
import numpy as np
import pytest
from keras import ops

from tfigkd.losses import (
    SKT,
    Hint,
    ReviewKD,
    attention_map,
    attention_transfer,
    context_distance,
    dense_flow_distance,
    direction_distance,
    flow_distance,
    hint_distance,
    probabilistic_distance,
    relational_distance,
    similarity_distance,
    spatial_attention,
)
from tfigkd.losses.features import match_resolution, pool_to
from tfigkd.losses.relation import flow_matrix, pairwise_angles, pairwise_distances
from tfigkd.losses.reviewkd import adaptive_average_pool

RNG = np.random.default_rng(0)


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def enlarged(features, times):
    return features.repeat(times, axis=1).repeat(times, axis=2)


def test_pooling_averages_where_it_divides_and_resizes_where_not():
    features = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(numpy_of(pool_to(features, 2, 2))[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None, None], (1, 5, 5, 1))
    resized = numpy_of(pool_to(ramp, 3, 5))[0, :, 0, 0]
    np.testing.assert_allclose(resized, [1 / 3, 2, 11 / 3], rtol=1e-5)
    left, right = match_resolution(normal(2, 8, 3, 5), normal(2, 4, 6, 1))
    assert (left.shape, right.shape) == ((2, 4, 3, 5), (2, 4, 3, 1))


def test_features_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match=r"expected feature maps \[B,H,W,D\]"):
        match_resolution(normal(2, 8), normal(2, 4, 4, 1))


def test_attention_transfer_by_hand():
    teacher = np.array([[[[3**0.5, 0.0], [0.0, 2.0]]]], np.float32)
    np.testing.assert_allclose(numpy_of(spatial_attention(teacher)), [[[3, 4]]], rtol=1e-6)
    np.testing.assert_allclose(numpy_of(attention_map(teacher)), [[0.6, 0.8]], rtol=1e-6)
    student = np.array([[[[5.0], [0.0]]]], np.float32)
    loss = numpy_of(attention_transfer(teacher, student))
    np.testing.assert_allclose(loss, [(0.4**2 + 0.8**2) / 2], rtol=1e-5)


def test_attention_transfer_ignores_scale_and_channels_and_is_bounded():
    teacher, student = normal(4, 6, 6, 3), normal(4, 6, 6, 5)
    loss = numpy_of(attention_transfer(teacher, student))
    moved = numpy_of(attention_transfer(7 * teacher[..., ::-1], 0.1 * student[..., [2, 0, 1, 4, 3]]))
    np.testing.assert_allclose(moved, loss, rtol=1e-4)
    assert (loss <= 2 / 36).all()


def test_attention_transfer_at_unequal_resolution_and_from_stored_maps():
    teacher, student = normal(4, 8, 8, 3), normal(4, 4, 4, 5)
    same = numpy_of(attention_transfer(enlarged(student, 2), student))
    np.testing.assert_allclose(same, 0, atol=1e-7)
    live = numpy_of(attention_transfer(teacher, student))
    stored = numpy_of(attention_transfer(numpy_of(spatial_attention(teacher)), student))
    np.testing.assert_allclose(stored, live, rtol=1e-6)
    assert np.isfinite(numpy_of(attention_transfer(normal(4, 5, 7, 3), student))).all()


def test_distances_by_hand():
    teacher, student = np.array([[0.0], [1], [3]], np.float32), np.array([[0.0], [1], [2]], np.float32)
    expected = np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0]]) / 2
    np.testing.assert_allclose(numpy_of(pairwise_distances(teacher)), expected, rtol=1e-6)
    # the student's are 0.75, 0.75 and 1.5: two of three pairs are off by 0.25
    loss = relational_distance(teacher, student, distance=9.0, angle=0.0)
    np.testing.assert_allclose(numpy_of(loss), 4 * 0.5 * 0.25**2, rtol=1e-5)


def test_angles_by_hand():
    corner = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
    angles = numpy_of(pairwise_angles(corner))
    np.testing.assert_allclose(angles[0], [[0, 0, 0], [0, 1, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(angles[1, 0, 2], 0.5**0.5, rtol=1e-5)
    line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], np.float32)
    # two entries at each vertex: 0 against 1, √½ against -1 (beyond Huber's δ), √½ against 1
    half = 0.5**0.5
    expected = 2 * (0.5 + (1 + half - 0.5) + (1 - half) ** 2 / 2) / 27
    loss = relational_distance(corner, line, distance=0.0, angle=2.0)
    np.testing.assert_allclose(numpy_of(loss), 2 * expected, rtol=1e-5)


def test_relations_ignore_scale_shift_rotation_and_dimensions():
    teacher, student = normal(7, 5), normal(7, 3)
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0][:3].astype(np.float32)
    moved = 3 * student @ rotation + normal(5)
    for weights in ({"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 1.0}):
        loss = numpy_of(relational_distance(teacher, student, **weights))
        np.testing.assert_allclose(numpy_of(relational_distance(teacher, moved, **weights)), loss, rtol=1e-3)
        np.testing.assert_allclose(numpy_of(relational_distance(student, moved, **weights)), 0, atol=1e-6)


def test_relations_of_maps_are_those_of_their_means():
    teacher, student = normal(5, 4, 4, 3), normal(5, 3)
    loss = relational_distance(teacher, student, distance=25.0, angle=50.0)
    pooled = relational_distance(teacher.mean((1, 2)), student, distance=25.0, angle=50.0)
    np.testing.assert_allclose(numpy_of(loss), numpy_of(pooled), rtol=1e-4)


def test_similarities_by_hand():
    teacher, student = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32), np.eye(2, dtype=np.float32)
    # inner products 1 1, 1 2, each row by its norm, against the identity
    expected = ((0.5**0.5 - 1) ** 2 + 0.5 + 0.2 + (2 / 5**0.5 - 1) ** 2) / 4
    np.testing.assert_allclose(numpy_of(similarity_distance(teacher, student)), expected, rtol=1e-5)
    # maps count position by position: only where both examples are positive are they similar
    apart = np.array([[[[1.0], [0.0]]], [[[0.0], [1.0]]]], np.float32)
    np.testing.assert_allclose(numpy_of(similarity_distance(apart, student)), 0, atol=1e-7)


def test_neighborhoods_by_hand():
    teacher, student = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32), np.eye(2, dtype=np.float32)
    # cosines 0.7071 and 0 become 0.8536 and 0.5, beside 1 of each with itself; rows then sum to 1
    near = (1 + 0.5**0.5) / 2
    p, q = np.array([1, near]) / (1 + near), np.array([2, 1]) / 3
    expected = (p * np.log(p / q)).sum() / 2
    np.testing.assert_allclose(expected, 0.017317, rtol=1e-4)
    np.testing.assert_allclose(numpy_of(probabilistic_distance(teacher, student)), expected, rtol=1e-4)
    maps = teacher[:, None, None].repeat(2, axis=2) + np.array([[[[1.0], [-1.0]]]], np.float32)
    np.testing.assert_allclose(numpy_of(probabilistic_distance(maps, student)), expected, rtol=1e-4)


def test_flow_by_hand():
    first = np.array([[[[1.0], [3.0]]]], np.float32)
    second = np.array([[[[2.0, 0.0], [4.0, 1.0]]]], np.float32)
    np.testing.assert_allclose(numpy_of(flow_matrix(first, second)), [[[7, 1.5]]])
    loss = flow_distance((first, second), (first, 2 * second))
    np.testing.assert_allclose(numpy_of(loss), [(7**2 + 1.5**2) / 2], rtol=1e-6)


def test_flow_ignores_positions_and_resolution():
    first, second = normal(3, 4, 4, 2), normal(3, 2, 2, 5)
    turned = (first[:, ::-1], second[:, ::-1])
    np.testing.assert_allclose(numpy_of(flow_distance((first, second), turned)), 0, atol=1e-10)
    larger = (enlarged(first, 2), enlarged(second, 2))
    np.testing.assert_allclose(numpy_of(flow_distance((first, second), larger)), 0, atol=1e-10)


def test_flow_needs_equal_channels():
    with pytest.raises(ValueError, match=r"equal channels, got \[2, 5\] of the teacher and \[2, 4\]"):
        flow_distance((normal(3, 4, 4, 2), normal(3, 4, 4, 5)), (normal(3, 4, 4, 2), normal(3, 4, 4, 4)))


def test_directions_by_hand():
    teacher = np.array([[[[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]]], np.float32)
    student = np.array([[[[30.0, 40.0], [1.0, 1.0], [0.0, 0.0], [-2.0, 0.0]]]], np.float32)
    # cosines 1, √½, both zero, -1
    np.testing.assert_allclose(numpy_of(direction_distance(teacher, student)), [(1 - 0.5**0.5 + 2) / 4], rtol=1e-5)
    coarse = np.array([[[[1.0, 0.0]]]], np.float32)
    fine = np.array([[[[3.0, 0.0], [1.0, 4.0]]]], np.float32)  # their mean is [2, 2]
    np.testing.assert_allclose(numpy_of(direction_distance(coarse, fine)), [1 - 0.5**0.5], rtol=1e-5)


def test_relations_of_all_pairs_of_layers_by_hand():
    up, down = np.array([-1.0, 1.0], np.float32), np.array([1.0, -1.0], np.float32)
    teacher = [one.reshape(1, 1, 2, 1) for one in (5 * up + 7, up, 3 * down)]
    student = [one.reshape(1, 1, 2, 1) for one in (up, 2 * up, 2 * up)]
    # correlations of the pairs 01, 02, 12: 1, -1, -1 of the teacher, 1, 1, 1 of the student
    np.testing.assert_allclose(numpy_of(dense_flow_distance(teacher, student)), [8 / 3], rtol=1e-4)
    adjacent = dense_flow_distance(teacher, student, pairs="adjacent")
    np.testing.assert_allclose(numpy_of(adjacent), [4 / 2], rtol=1e-4)
    first = dense_flow_distance(teacher[:2], student[:2])
    np.testing.assert_allclose(numpy_of(first), [0], atol=1e-6)


def test_structure_is_the_weighted_sum_behind_projectors():
    teacher = [normal(2, 4, 4, 3), normal(2, 2, 2, 5)]
    student = [normal(2, 4, 4, 2), normal(2, 4, 4, 2)]
    skt = SKT(["a", "b"], ["c", "d"], intra=0.5, inter=3.0)
    skt.build([x.shape for x in teacher], [x.shape for x in student])
    kernels = [normal(1, 1, 2, 3), normal(1, 1, 2, 5)]
    for layer, kernel in zip(skt.extra_layer.convolutions, kernels, strict=True):
        layer.set_weights([kernel, np.zeros(kernel.shape[-1])])
    projected = [x @ kernel[0, 0] for x, kernel in zip(student, kernels, strict=True)]
    directions = sum(numpy_of(direction_distance(t, s)) for t, s in zip(teacher, projected, strict=True)) / 2
    expected = 0.5 * directions + 3 * numpy_of(dense_flow_distance(teacher, projected))
    np.testing.assert_allclose(numpy_of(skt.per_example(teacher, student)), expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"built for channels \[\(2, 3\), \(2, 5\)\]"):
        skt.build([(None, 4, 4, 3), (None, 2, 2, 4)], [x.shape for x in student])
    with pytest.raises(ValueError, match=r"skt needs features \[B,H,W,D\]"):
        SKT(["a", "b"], ["c", "d"]).build([(None, 4), (None, 4)], [(None, 4), (None, 4)])


def test_adaptive_average_pools_cover_the_map():
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None, None], (1, 5, 4, 1))
    means = numpy_of(adaptive_average_pool(ramp, 2))
    # rows 0 to 2 and 2 to 4, since two windows of 2.5 rows are widened to whole ones
    np.testing.assert_allclose(means[0, :, :, 0], [[1, 1], [3, 3]], rtol=1e-6)
    np.testing.assert_allclose(numpy_of(adaptive_average_pool(normal(2, 4, 4, 3), 4)).shape, (2, 4, 4, 3))


def test_context_distance_by_hand():
    teacher = np.zeros((1, 3, 3, 1), np.float32)
    student = np.zeros((1, 3, 3, 1), np.float32)
    student[0, 0, 0, 0] = 6.0
    # the map: 36 / 9; 2x2 windows: 6 / 4 in one of four, at ½; the mean: 6 / 9, at ¼; 4x4 windows are left out
    expected = (4 + 0.5 * 1.5**2 / 4 + 0.25 * (2 / 3) ** 2) / 1.75
    np.testing.assert_allclose(numpy_of(context_distance(teacher, student)), [expected], rtol=1e-5)
    one = np.full((1, 1, 1, 2), 3.0, np.float32)
    np.testing.assert_allclose(numpy_of(context_distance(one, 0 * one)), [9], rtol=1e-6)


def test_review_by_hand():
    """Two levels and the pooled one, each kernel a number, of networks with one channel."""
    review = ReviewKD(["a", "b"], ["c", "d"])
    review.build([(None, 4, 4, 1), (None, 2, 2, 1)], [(None, 4, 4, 1), (None, 2, 2, 1)])
    for level, scale in zip(review.extra_layer.levels, (2.0, 3.0, 5.0), strict=True):
        level.first.kernel.assign(np.full((1, 1, 1, 1), scale))
        last = np.zeros((3, 3, 1, 1))
        last[1, 1] = 1.0
        level.last.kernel.assign(last)
        if level.attention is not None:
            # sigmoid(0) = ½ of the level itself, sigmoid(log 3) = ¾ of the deeper one
            level.attention.set_weights([np.zeros((1, 1, 2, 2)), np.array([0.0, np.log(3.0)])])
    shallow, deep = normal(2, 4, 4, 1), normal(2, 2, 2, 1)
    pooled = 5 * deep.mean((1, 2), keepdims=True)
    middle = 0.5 * 3 * deep + 0.75 * pooled
    top = 0.5 * 2 * shallow + 0.75 * enlarged(middle, 2)
    compared = review.project([shallow, deep], training=False)
    for found, expected in zip(compared, (top, middle, pooled), strict=True):
        np.testing.assert_allclose(numpy_of(found), expected, rtol=1e-3, atol=1e-4)  # the moving variance is 1
    teacher = [normal(2, 4, 4, 1), normal(2, 2, 2, 1)]
    levels = [*teacher, teacher[1].mean((1, 2), keepdims=True)]
    loss = sum(numpy_of(context_distance(t, s)) for t, s in zip(levels, compared, strict=True))
    np.testing.assert_allclose(numpy_of(review.per_example(teacher, compared)), loss, rtol=1e-5)
    alone = ReviewKD(["a", "b"], ["c", "d"], fuse=False)
    alone.build([(None, 4, 4, 1), (None, 2, 2, 1)], [(None, 4, 4, 1), (None, 2, 2, 1)])
    assert all(level.attention is None for level in alone.extra_layer.levels)
    with pytest.raises(ValueError, match="reviewkd needs features"):
        alone.build([(None, 4), (None, 2)], [(None, 4), (None, 2)])


def test_the_normalization_of_a_review_learns_in_training_alone():
    review = ReviewKD(["a", "b"], ["c", "d"])
    review.build([(None, 4, 4, 3), (None, 2, 2, 5)], [(None, 4, 4, 2), (None, 2, 2, 4)])
    student = [normal(6, 4, 4, 2), normal(6, 2, 2, 4)]
    before = review.extra_layer.levels[0].first_norm.moving_mean.numpy()
    review.project(student, training=False)
    np.testing.assert_array_equal(review.extra_layer.levels[0].first_norm.moving_mean, before)
    compared = review.project(student, training=True)
    assert (review.extra_layer.levels[0].first_norm.moving_mean.numpy() != before).all()
    assert [x.shape for x in compared] == [(6, 4, 4, 3), (6, 2, 2, 5), (6, 1, 1, 5)]
    np.testing.assert_allclose(numpy_of(compared[0]).mean((0, 1, 2)), 0, atol=1e-5)


def test_hint_by_hand():
    teacher, student = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32), np.array([[3.0], [4.0]], np.float32)
    np.testing.assert_allclose(numpy_of(hint_distance(teacher, np.zeros((2, 2)))), [2.5, 0])
    hint = Hint("student", "teacher")
    hint.build([(None, 2)], [(None, 1)])
    hint.extra_layer.set_weights([np.array([[1.0, 0.5]]), np.array([0.0, 1.0])])
    # projected to [3, 2.5] and [4, 3]
    np.testing.assert_allclose(numpy_of(hint.per_example(teacher, student)), [(4 + 0.25) / 2, (16 + 9) / 2], rtol=1e-6)


def test_hint_learns_a_linear_teacher_of_another_resolution():
    """Train with the projector's variables, as the docstring of `Hint` describes."""
    import tensorflow as tf

    student = normal(16, 4, 4, 3)
    teacher = enlarged(student @ normal(3, 6), 2)
    hint = Hint("student", "teacher")
    hint.build([teacher.shape], [student.shape])
    assert isinstance(hint.extra_layer, keras.layers.Conv2D)
    optimizer = keras.optimizers.Adam(0.1)
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = hint.compute_loss(teacher, student)
        variables = hint.extra_layer.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
    assert numpy_of(loss) < 0.01 * np.square(teacher).mean()


def test_an_impossible_projector_is_refused():
    hint = Hint("student", "teacher")
    with pytest.raises(ValueError, match="projector is not built"):
        hint.per_example(normal(2, 3), normal(2, 3))
    with pytest.raises(ValueError, match="of both teacher and student"):
        hint.build([(None, 8, 8, 3)], [(None, 3)])
    with pytest.raises(ValueError, match=r"one tap of each network: build\(\[teacher_shape\], \[student_shape\]\)"):
        hint.build((None, 8, 8, 6), (None, 4, 4, 3))
    hint.build([(None, 8, 8, 6)], [(None, 4, 4, 3)])
    projector = hint.extra_layer
    hint.build([(None, 4, 4, 6)], [(None, 8, 8, 3)])
    assert hint.extra_layer is projector
    with pytest.raises(ValueError, match="built for 3 to 6 channels"):
        hint.build([(None, 8, 8, 6)], [(None, 4, 4, 5)])

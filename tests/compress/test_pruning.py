"""Magnitude pruning: schedule and masks checked by hand, and zeros that stay zero during training."""

import itertools

import keras
import numpy as np
import pytest

from tfigkd.compress.pruning import MagnitudePruning, magnitude_mask, polynomial_sparsity, prunable_kernels, sparsity
from tfigkd.training.distiller import Distiller

IMAGES = np.random.default_rng(0).random((64, 6, 6, 3)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 4, 64)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.DepthwiseConv2D(3)(inputs)
    x = keras.layers.Conv2D(10, 3, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def test_the_schedule_by_hand():
    assert polynomial_sparsity(0, 0.8, end=10) == 0
    assert polynomial_sparsity(5, 0.8, end=10) == pytest.approx(0.8 * 0.875)
    assert polynomial_sparsity(10, 0.8, end=10) == polynomial_sparsity(99, 0.8, end=10) == 0.8


def test_the_mask_cuts_the_smallest_and_exactly_so_many():
    kernel = np.array([[0.1, -3.0], [0.2, -0.15]], np.float32)
    assert magnitude_mask(kernel, 0.5).tolist() == [[0, 1], [1, 0]]
    assert magnitude_mask(np.ones((10, 10), np.float32), 0.37).sum() == 63


def test_sparsity_counts_all_weights_and_the_prunable_ones():
    model = network()
    conv, dense = prunable_kernels(model)
    assert (conv.shape, dense.shape) == ((3, 3, 3, 10), (10, 4))
    conv.assign(conv * magnitude_mask(np.asarray(conv), 0.5))
    counts, parameters = sparsity(model), 27 + 3 + 270 + 20 + 44
    assert counts["prunable_sparsity"] == pytest.approx(135 / 310)
    assert counts["sparsity"] == pytest.approx(135 / parameters)
    assert counts["nonzero_parameters"] == parameters - 135


def test_a_network_without_kernels_to_prune():
    """It has zeros nowhere, and a callback that could do nothing says so."""
    layers = [keras.layers.SeparableConv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((6, 6, 3)), *layers])
    assert sparsity(model) == {"sparsity": 0.0, "prunable_sparsity": 0.0, "nonzero_parameters": 43}
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="has nothing to prune: no Conv2D or Dense layer that trains"):
        model.fit(IMAGES, LABELS, verbose=0, callbacks=[MagnitudePruning(0.5, end=4)])


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("optimizer", [{"class_name": "Adam"}, {"class_name": "SGD", "config": {"momentum": 0.9}}])
def test_zeros_stay_after_every_step_and_reach_the_target(distilled, optimizer):
    student = network()
    model = Distiller(student) if distilled else student
    loss = {} if distilled else {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(keras.optimizers.get({"config": {}, **optimizer}), jit_compile=False, **loss)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([np.asarray(kernel) == 0 for kernel in prunable_kernels(student)])

    pruning = MagnitudePruning(0.75, end=12, frequency=4)
    model.fit(IMAGES, LABELS, batch_size=16, epochs=5, callbacks=[pruning, Watch()], verbose=0)
    shares = [np.mean(zeros[0]) for zeros in seen]
    assert shares[:3] == [0, 0, 0]
    assert shares[3] == pytest.approx(polynomial_sparsity(4, 0.75, end=12), abs=1 / 270)
    assert shares[11:] == pytest.approx([round(0.75 * 270) / 270] * 9)
    for before, after in itertools.pairwise(seen):  # a zero weight stays zero
        assert all((a | ~b).all() for b, a in zip(before, after, strict=True))
    assert not (np.asarray(student.layers[1].kernel) == 0).any()


@pytest.mark.parametrize(("sparsity", "end"), [(0.9, 0), (0.2, 4)])
def test_zeros_that_are_there_stay_where_none_or_fewer_are_wanted(sparsity, end):
    model = network()
    conv, _ = prunable_kernels(model)
    mask = magnitude_mask(np.asarray(conv), 0.3)
    conv.assign(conv * mask)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    pruning = MagnitudePruning(sparsity, end=end, frequency=1)
    model.fit(IMAGES, LABELS, batch_size=16, callbacks=[pruning], verbose=0)
    np.testing.assert_array_equal(np.asarray(conv) == 0, mask == 0)


@pytest.mark.parametrize(
    ("compiled", "optimizer", "expected"),
    [
        ({}, {}, [0, 0, 0, 4, 4, 6, 6, 6]),  # at steps 4 and 6, of 8 in two epochs
        ({"steps_per_execution": 3}, {}, [0, 4, 6, 6]),  # after 3, 4, 7 and 8 steps
        ({}, {"gradient_accumulation_steps": 2}, [0, 0, 0, 0, 0, 0, 0, 4]),  # 4 updates in 8 batches
    ],
)
def test_the_steps_are_those_of_the_optimizer(compiled, optimizer, expected):
    """A selection every 4 steps and at step 6; expected is the step whose sparsity the kernel has."""
    model, seen = network(), []
    conv, _ = prunable_kernels(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, **optimizer), loss, jit_compile=False, **compiled)
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(np.mean(np.asarray(conv) == 0))
    )
    pruning = MagnitudePruning(0.8, end=6, frequency=4)
    for _ in range(2):  # a second call goes on where the first one ended
        model.fit(IMAGES, LABELS, batch_size=16, callbacks=[pruning, watch], verbose=0)
    wanted = [polynomial_sparsity(step, 0.8, end=6) for step in expected]
    assert seen == pytest.approx(wanted, abs=1 / 270)


def test_steps_are_counted_from_the_first_training_with_the_callback():
    """Of an optimizer that has trained before; a number counts from there, as a resumed run has to."""
    for begin, expected in ((None, [0, 4, 6]), (4, [6, 6, 6]), (10, [0, 0, 4])):
        model, seen = network(), []
        conv, _ = prunable_kernels(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        model.fit(IMAGES, LABELS, batch_size=8, verbose=0)
        assert int(model.optimizer.iterations) == 8
        watch = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, conv=conv, seen=seen: seen.append(np.mean(np.asarray(conv) == 0))
        )
        pruning = MagnitudePruning(0.8, end=6, frequency=4, begin=begin)
        for epochs in (1, 2):  # a second call goes on where the first one ended
            model.fit(IMAGES[:16], LABELS[:16], batch_size=8, epochs=epochs, callbacks=[pruning, watch], verbose=0)
        wanted = [polynomial_sparsity(step, 0.8, end=6) for step in expected]
        assert seen == pytest.approx(wanted, abs=1 / 270), begin


@pytest.mark.parametrize("scaled", [False, True])
def test_averaged_weights_are_as_sparse(scaled):
    """Keras puts them in the place of the weights at the end of `fit`; those of an optimizer inside another one too."""
    model = network()
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    shares = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            (average,) = (one for one in inner._model_variables_moving_average if one.shape == (3, 3, 3, 10))
            shares.append(np.mean(np.asarray(average) == 0))

    pruning = MagnitudePruning(0.5, end=8, frequency=4)
    model.fit(IMAGES, LABELS, batch_size=16, epochs=3, callbacks=[pruning, Watch()], verbose=0)
    assert shares[1:] == [0.5, 0.5]
    assert sparsity(model)["prunable_sparsity"] == 0.5


def test_a_step_before_the_first_one_is_refused():
    with pytest.raises(ValueError, match="begin must be a step of the optimizer, counted from 0, or None; got -1"):
        MagnitudePruning(0.5, end=3, begin=-1)


@pytest.mark.parametrize("bad", [{"sparsity": 1.0, "end": 3}, {"sparsity": 0.5, "end": -1}])
def test_wrong_arguments(bad):
    with pytest.raises(ValueError, match="Expected 0 < sparsity < 1"):
        MagnitudePruning(**bad)

"""Chains of tensors: by hand, by the papers' sizes, files of kernels, what decays, and whom the tensor loss pairs."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import OPDF, KLDivergence, tensor_distance
from tfigkd.models.batch_norm import with_fused_batch_norm, with_stock_batch_norm
from tfigkd.models.chain import ChainConv2D, ChainDense, contract, decompose, split, taught_tensors
from tfigkd.models.copies import copy_layer_state
from tfigkd.models.cost import trained_parameters
from tfigkd.runtime.errors import UserError
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import make_optimizer

RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, 8, 8, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, 16)
TARGETS = {"label": LABELS, "teacher_logits": np.eye(4, dtype=np.float32)[LABELS]}
LAYERS = {
    "convolution": lambda **options: ChainConv2D(4, 3, **options),
    "dense": lambda **options: ChainDense(4, use_bias=False, **options),
}


def network(widths=(8, 8, 8), seed=0, name="student"):
    """Convolutions of 3x3, of which all but the first have one shape, and a dense layer."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 3))
    for index, width in enumerate(widths):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv_{index}")(x)
    logits = keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, logits, name=name)


def distiller(student, weight=0.5, **options):
    losses = {"kd": KLDivergence(), **options.pop("losses", {})}
    model = Distiller(
        student, losses=losses, loss_weights={"kd": 0.5, **dict.fromkeys({*losses} - {"kd"}, weight)}, **options
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=False)
    return model


def trained(student, steps=3, **options):
    model = distiller(student, **options)
    for _ in range(steps):
        model.train_on_batch(IMAGES, TARGETS)
    return model.student


def test_tensors_by_hand():
    """A Kronecker product is one outer product of its factors, so the center has a single value."""
    left, right = np.array([[1.0, 2.0], [-2.0, 4.0]]), np.array([[0.0, 3.0], [4.0, 0.0]])
    first, center, last = decompose(np.kron(left, right), 3)
    np.testing.assert_allclose(first[:, 0], [0.2, 0.4, -0.4, 0.8], atol=1e-12)
    np.testing.assert_allclose(np.diag(center), [25.0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(last[0], [0.0, 0.6, 0.8, 0.0], atol=1e-12)
    assert [split(size) for size in (1, 7, 12, 36, 768)] == [(1, 1), (7, 1), (4, 3), (6, 6), (32, 24)]


@pytest.mark.parametrize(("shape", "tensors", "entries"), [((768, 768), 7, 2_580_480), ((1, 1, 96, 576), 3, 129_024)])
def test_sizes_are_those_of_the_authors_code(shape, tensors, entries):
    found = decompose(RNG.normal(size=shape), tensors)
    assert sum(one.size for one in found) == entries
    ends = found[0].T @ found[0], found[-1] @ found[-1].T
    for product in ends:
        np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-10)


@pytest.mark.parametrize("tensors", [3, 5])
@pytest.mark.parametrize("shape", [(3, 3, 3, 16), (2, 2, 5, 7), (10, 6)])
def test_the_product_is_the_kernel(shape, tensors):
    kernel = RNG.normal(size=shape)
    product = contract([one.astype(np.float32) for one in decompose(kernel, tensors)], shape)
    np.testing.assert_allclose(product, kernel, atol=1e-5)


def test_the_gradient_of_a_tensor_is_that_of_the_kernel_between_its_neighbors():
    """For W = A·C·B of a matrix with one row and column factor: dC = Aᵀ·dW·Bᵀ."""
    import tensorflow as tf

    shape, given = (4, 9), RNG.normal(size=(4, 9))
    tensors = [tf.Variable(one) for one in decompose(RNG.normal(size=shape), 3)]
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(given * contract(tensors, shape))
    first, center, last = tape.gradient(value, tensors)
    a, c, b = (one.numpy() for one in tensors)
    flat = given.reshape(2, 2, 3, 3).transpose(0, 2, 1, 3).reshape(6, 6)
    np.testing.assert_allclose(first, flat @ (c @ b).T, atol=1e-10)
    np.testing.assert_allclose(center, a.T @ flat @ b.T, atol=1e-10)
    np.testing.assert_allclose(last, (a @ c).T @ flat, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_starts_as_the_plain_one_and_reopens_to_the_same_function(name, tmp_path):
    inputs = keras.Input((6,) if name == "dense" else (8, 8, 3))
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, LAYERS[name](tensors=3)(inputs))
    layer = model.layers[-1]
    config = {key: value for key, value in layer.get_config().items() if key != "tensors"}
    keras.utils.set_random_seed(0)
    plain = layer.plain.from_config(config)
    plain.build(inputs.shape)
    np.testing.assert_allclose(layer.kernel, plain.kernel, atol=1e-6)
    assert sum(variable.name == "auxiliary" for variable in layer.trainable_variables) == 2
    assert len(layer.variables) == 3 + layer.use_bias
    for variable in layer.chain:  # no longer in the form in which a kernel is decomposed
        variable.assign(variable + 0.1)
    x = RNG.random((2, *inputs.shape[1:])).astype(np.float32)
    expected = model(x).numpy()
    for path in (tmp_path / "model.keras", tmp_path / "again.keras"):
        model.save(path)
        model = keras.saving.load_model(path)
        assert type(model.layers[-1]) is type(layer)
        np.testing.assert_allclose(model(x), expected, atol=1e-5)
    twin = keras.Model(inputs, layer.plain.from_config(config)(inputs))
    copy_layer_state(model.layers[-1], twin.layers[-1])
    np.testing.assert_allclose(twin(x), expected, atol=1e-5)


def test_a_student_trains_its_tensors_and_is_written_as_a_plain_model(tmp_path):
    keras.utils.set_random_seed(0)
    start = models.mobilenet_v2(4, 17, input_shape=(8, 8, 3), width=0.25)
    student = models.with_precision(models.with_chain(with_fused_batch_norm(start), 5), "mixed_bfloat16")
    chained = [layer for layer in student.layers if hasattr(layer, "chain")]
    assert {type(layer) for layer in chained} == {ChainConv2D, ChainDense}
    assert all(variable.dtype == "float32" for layer in chained for variable in layer.chain)
    student = models.with_precision(student, "float32")
    np.testing.assert_allclose(student(IMAGES), start(IMAGES), atol=1e-5)
    before = [[one.numpy() for one in layer.chain] for layer in student.layers if hasattr(layer, "chain")]
    after = trained(student)
    for layer, values in zip((layer for layer in after.layers if hasattr(layer, "chain")), before, strict=True):
        assert all((one.numpy() != value).any() for one, value in zip(layer.chain, values, strict=True)), layer.name
    plain = with_stock_batch_norm(models.with_plain_kernels(after))
    assert not any(type(layer).__module__.startswith("tfigkd") for layer in plain.layers)
    assert plain.count_params() == start.count_params() < student.count_params()
    np.testing.assert_allclose(plain(IMAGES), after(IMAGES), atol=1e-5)
    plain.save(tmp_path / "student.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "student.keras")(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_shrinks_the_kernel_as_it_does_a_plain_one(optimizer):
    recipe = TrainingConfig(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1, momentum=0.0)
    student = models.with_chain(network(), 5)
    kernels = [layer.kernel.numpy() for layer in student.layers if hasattr(layer, "chain")]
    made = make_optimizer(recipe, 10)
    made.build(student.trainable_variables)
    made._apply_weight_decay(student.trainable_variables)
    for kernel, layer in zip(kernels, (one for one in student.layers if hasattr(one, "chain")), strict=True):
        np.testing.assert_allclose(layer.kernel, 0.95 * kernel, atol=1e-6)


def test_without_tensors_it_is_the_plain_student_and_at_weight_zero_the_chain_alone():
    start = network()
    assert models.with_chain(start, 0) is start
    # kernels [27,8], [72,8] twice and [8,4] as 36x6, 36x16 and 8x4: the sides, the centers, less the kernels
    added = (36 * 6 + 36 + 36 - 216) + 2 * (36 * 16 + 256 + 256 - 576) + (8 * 4 + 16 + 16 - 32)
    assert trained_parameters(models.with_chain(start, 3)) == start.count_params() + added
    teacher = network((4,), seed=1, name="teacher")
    alone = trained(models.with_chain(network((4,)), 3))
    off = trained(models.with_chain(network((4,)), 3), losses={"opdf": OPDF()}, weight=0.0, teacher=teacher)
    on = trained(models.with_chain(network((4,)), 3), losses={"opdf": OPDF()}, weight=10.0, teacher=teacher)
    for a, b, c in zip(alone.get_weights(), off.get_weights(), on.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_distance_by_hand_and_what_is_compared():
    ours, theirs = [[np.zeros((2, 2)), np.ones(2)], [np.ones(3)]], [[np.ones((2, 2)), np.ones(2)], [3 * np.ones(3)]]
    np.testing.assert_allclose(tensor_distance(theirs, ours), (1 + 0 + 4) / 2)
    student, teacher = models.with_chain(network(), 5), network(seed=1, name="teacher")
    model = distiller(student, losses={"opdf": OPDF()}, teacher=teacher)
    terms, _ = model.compute_terms(IMAGES, TARGETS, training=True)
    values = []
    for layer in teacher.layers:
        if hasattr(layer, "kernel"):
            pair = decompose(layer.kernel.numpy(), 5), decompose(student.get_layer(layer.name).kernel.numpy(), 5)
            values.append(sum(np.square(pair[0][index] - pair[1][index]).mean() for index in (0, 1, 3, 4)))
    np.testing.assert_allclose(terms["opdf_loss"], np.mean(values), rtol=1e-4)
    loaded = Distiller.from_config(model.get_config())
    with pytest.raises(ValueError, match="loss 'opdf' needs a teacher"):
        loaded.compute_terms(IMAGES, TARGETS, training=True)


def test_the_center_is_left_free():
    """The loss pulls all tensors but the center; with the hard label off nothing else moves."""
    student = models.with_chain(network(), 3)
    model = Distiller(
        student,
        losses={"opdf": OPDF()},
        loss_weights={"opdf": 1.0},
        hard_weight=0.0,
        teacher=network(seed=1, name="teacher"),
    )
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    before = [[one.numpy() for one in layer.chain] for layer in student.layers if hasattr(layer, "chain")]
    model.train_on_batch(IMAGES, LABELS)
    for layer, values in zip((one for one in student.layers if hasattr(one, "chain")), before, strict=True):
        moved = [not np.array_equal(one.numpy(), value) for one, value in zip(layer.chain, values, strict=True)]
        assert moved == [True, False, True]


def paired(student, teacher, **options):
    """Return the teacher's layer for each of the student's."""
    names = {}
    for layer, tensors in taught_tensors(models.with_chain(student, 3), teacher, **options):
        for one in teacher.layers:
            same = hasattr(one, "kernel") and one.kernel.shape == layer.kernel.shape
            if same and np.array_equal(decompose(one.kernel.numpy(), 3)[0].astype(np.float32), tensors[0]):
                names[layer.name] = one.name
    return names


def test_layers_are_paired_by_name_or_spread_evenly():
    deep = network((8,) * 7, seed=1, name="teacher")
    assert paired(network((8,) * 3), deep) == {name: name for name in ("conv_0", "conv_1", "conv_2", "logits")}
    other = network((8,) * 4)
    for layer in other.layers:
        layer.name = f"other_{layer.name}"
    found = {name.removeprefix("other_"): there for name, there in paired(other, deep).items()}
    # three of the six of one shape: the authors pair layer i of twelve layers with 2i + 1
    assert found == {"conv_0": "conv_0", "conv_1": "conv_2", "conv_2": "conv_4", "conv_3": "conv_6", "logits": "logits"}


def test_the_placebo_has_no_layer_of_its_own():
    student, teacher = network(), network(seed=1, name="teacher")
    own = {layer.name: tensors for layer, tensors in taught_tensors(models.with_chain(student, 3), teacher)}
    permuted = taught_tensors(models.with_chain(student, 3), teacher, permuted=True)
    assert {layer.name for layer, _ in permuted} == own.keys()
    for layer, tensors in permuted:
        assert not any(np.allclose(a, b) for a, b in zip(tensors, own[layer.name], strict=True))
    assert paired(student, teacher, permuted=True) == {"conv_1": "conv_2", "conv_2": "conv_1"}


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no kernel of the student 'student' has the shape of one") as caught:
        distiller(
            models.with_chain(network((4, 4)), 3), losses={"opdf": OPDF()}, teacher=network((6, 6), name="teacher")
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"the student has no chains of tensors; set training\.chain"):
        distiller(network(), losses={"opdf": OPDF()}, teacher=network(seed=1, name="teacher"))
    with pytest.raises(ValueError, match="tensors must be odd and at least 3, got 4"):
        ChainDense(2, tensors=4)
    inputs = keras.Input((8,))
    decayed = keras.Model(inputs, keras.layers.Dense(2, kernel_regularizer="l2", name="decayed")(inputs))
    with pytest.raises(UserError, match="the kernel of decayed has a regularizer or a constraint"):
        models.with_chain(decayed, 3)

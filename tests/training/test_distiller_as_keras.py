"""What users of Keras and of its own Distiller expect: compile, fit, evaluate, export, several replicas."""

from functools import partial

import keras
import numpy as np
import pytest

from tests.children import run
from tfigkd.losses import AttentionTransfer, KLDivergence
from tfigkd.training.distiller import Distiller
from tfigkd.training.optimizers import TwoMomenta

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype(np.float32)
Y = RNG.integers(0, 5, 32)
LOGITS = RNG.normal(size=(32, 5)).astype(np.float32)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(seed=0, regularizer=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(5, kernel_regularizer=regularizer)(inputs))


def distiller(student=None, weight=0.5, compile=True, **options):
    losses = {"kd": KLDivergence(2.0)}
    model = Distiller(student or net(), losses=losses, loss_weights={"kd": weight}, **options)
    if compile:
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return model


def largest_difference(left, right):
    return max(np.abs(a - b).max() for a, b in zip(left.get_weights(), right.get_weights(), strict=True))


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4 for 5 classes, got 5\.\.5"):
        distiller(weight=0.0).fit(X, {"label": np.full(32, 5), "teacher_logits": LOGITS}, verbose=0)


@pytest.mark.parametrize("wrong", [5, -1])
def test_labels_of_a_data_set_that_are_no_class_end_the_training(wrong):
    import tensorflow as tf

    labels = np.where(np.arange(32) == 20, wrong, Y)
    sound, *broken = (
        tf.data.Dataset.from_tensor_slices((X, targets)).batch(8)
        for targets in (Y, labels, labels[:, None], {"label": labels})
    )

    def fit(data, **options):
        model = distiller(weight=0.0, teacher=net(1))
        return model.fit(data, shuffle=False, verbose=0, **options).history["loss"]

    for use in (*(partial(fit, data) for data in broken), partial(fit, sound, validation_data=broken[0])):
        with pytest.raises(ValueError, match=r"^labels must be in 0\.\.4 for 5 classes, got -?\d\.\.\d$"):
            use()
    found = [*labels[16:24]]
    with pytest.raises(ValueError, match=f"got {min(found)}..{max(found)}$"):
        distiller(weight=0.0, teacher=net(1)).evaluate(broken[0], verbose=0)
    hot = tf.data.Dataset.from_tensor_slices((X, np.eye(5, dtype=np.float32)[Y])).batch(8)
    truth = tf.data.Dataset.from_tensor_slices((X, Y > 2)).batch(8)
    assert all(np.isfinite(fit(data)).all() for data in (sound, hot, truth))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full(32, 5.0, np.float32), r"in 0\.\.4 for 5 classes, got 5\.\.5"),
        (np.full((32, 1), 5), r"in 0\.\.4 for 5 classes, got 5\.\.5"),
        (keras.ops.convert_to_tensor(np.full(32, -1)), r"got -1\.\.-1"),
        (Y + 0.5, "whole numbers"),
        (np.eye(6)[Y], "6 columns, expected one for each of 5 classes"),
        (np.array(list("abcde"))[Y], r"numbers from 0 to 4, got '\w'; .*return_inverse"),
    ],
)
def test_labels_of_any_kind_are_looked_at_wherever_they_are_given(labels, said):
    model = distiller(weight=0.0, teacher=net(1))
    for use in (
        lambda: model.fit(X, labels, verbose=0),
        lambda: model.fit(X, Y, validation_data=(X, labels), verbose=0),
        lambda: model.evaluate(X, labels, verbose=0),
    ):
        with pytest.raises(ValueError, match=said):
            use()


def test_labels_of_any_number_type_are_classes():
    losses = []
    for labels in (Y, Y[:, None], Y.astype(np.float32), keras.ops.convert_to_tensor(Y), np.eye(5, dtype=int)[Y]):
        losses += distiller(weight=0.5, teacher=net(1)).fit(X, labels, shuffle=False, verbose=0).history["hard_loss"]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


ONE_HOT = np.eye(5, dtype=np.float32)[Y]
LOSSES = keras.losses


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (LOSSES.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"), Y),
        (LOSSES.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"), Y),
        (LOSSES.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0), Y),
        (LOSSES.CategoricalFocalCrossentropy(from_logits=True), ONE_HOT),
        (LOSSES.MeanSquaredError(), ONE_HOT),
        ([LOSSES.MeanSquaredError()], ONE_HOT),
        (lambda labels, outputs: keras.ops.mean(keras.ops.square(labels - outputs), axis=-1), ONE_HOT),
    ],
)
def test_a_given_loss_has_the_value_that_keras_gives_it(loss, labels):
    """Its own reduction and masks included, with sample weights too."""
    plain, given = net(), distiller(weight=0.0, compile=False)
    plain.compile("sgd", loss)
    given.compile("sgd", loss=loss, jit_compile=False)
    weights = np.linspace(0.5, 2, 32).astype(np.float32)
    for options in ({}, {"sample_weight": weights}):
        expected = plain.evaluate(X, labels, verbose=0, **options)
        targets = {"label": labels, "teacher_logits": LOGITS}
        found = given.evaluate(X, targets, verbose=0, return_dict=True, **options)["hard_loss"]
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [None, "binary_crossentropy", LOSSES.BinaryCrossentropy()])
def test_one_sigmoid_takes_any_loss_and_any_form_of_its_two_labels(loss):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    student = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    two = (Y > 2).astype(int)
    student.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    expected = student.evaluate(X, two, verbose=0, return_dict=True)
    for labels in (two, two[:, None], np.eye(2)[two]):
        model = Distiller(student)
        model.compile("sgd", loss=loss, metrics=["accuracy"], jit_compile=False)
        found = model.evaluate(X, labels, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["accuracy"] == expected["accuracy"]


def test_a_teacher_must_not_share_weights_that_train():
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(8, name="shared")
    teacher, student = (keras.Model(inputs, keras.layers.Dense(5)(shared(inputs))) for _ in range(2))
    for one in (teacher, student):
        with pytest.raises(ValueError, match=r"share the weights \S+, .*clone_model and set_weights"):
            distiller(student, teacher=one)
    shared.trainable = False  # a frozen backbone does not change
    before = [weights.copy() for weights in teacher.get_weights()]
    distiller(student, teacher=teacher).fit(X, Y, verbose=0)
    assert all(np.array_equal(*pair) for pair in zip(before, teacher.get_weights(), strict=True))


def named_outputs():
    inputs = keras.Input((6,))
    return keras.Model(inputs, {"logits": keras.layers.Dense(5)(inputs)})


def unflattened():
    return keras.Sequential([keras.Input((6,)), keras.layers.Reshape((1, 6)), keras.layers.Dense(5)])


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: distiller(compile=False).compile(loss_weights=[2.0]), "hard_weight is that of this loss"),
        (lambda: distiller(compile=False).compile(loss=["mse", "mse"]), "takes one loss, got 2"),
        (lambda: distiller(weight=float("nan")), "must not be negative or NaN"),
        (lambda: distiller(teacher="teacher.keras"), "got str; keras.saving.load_model"),
        (lambda: distiller(teacher=[net(), net(1)]), "got list; several teachers become one"),
        (lambda: distiller(named_outputs()), r"the student '\w+' has 1 outputs in a dict"),
        (
            lambda: distiller(unflattened()),
            r"gives outputs \(None, 1, 5\), expected logits \[B,C\]; add a Flatten layer",
        ),
        (lambda: distiller(teacher=named_outputs()), r"the teacher '\w+' has 1 outputs in a dict"),
        (lambda: Distiller(net(), losses=[KLDivergence()], loss_weights=[0.5]), "losses must be a dictionary"),
        (lambda: distiller(teacher=net(1)).fit(X, Y, class_weight=[1, 1]), "dictionary of class number to weight"),
        (lambda: distiller(teacher=net(1)).fit(X, Y, class_weight={"a": 1}), "dictionary of class number to weight"),
        (lambda: distiller(teacher=net(1)).fit(X, Y, class_weight={0: float("nan")}), "finite and not negative"),
        (lambda: distiller(teacher=net(1)).fit(X, Y, class_weight={0: -1.0}), "finite and not negative"),
        (lambda: distiller(teacher=net(1)).fit(X, verbose=0), "no labels; give y"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(use, said):
    with pytest.raises(ValueError, match=said):
        use()


def test_a_frozen_student_is_refused_and_an_unbuilt_one_is_not():
    frozen = net()
    frozen.trainable = False
    with pytest.raises(ValueError, match="no weights that train"):
        distiller(frozen, teacher=net(1)).fit(X, Y, verbose=0)
    history = distiller(keras.Sequential([keras.layers.Dense(5)]), teacher=net(1)).fit(X, Y, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, "sparse_categorical_crossentropy"])
def test_a_given_cross_entropy_trains_as_the_default_and_as_plain_keras(loss):
    plain, given, default = net(), distiller(weight=0.0, compile=False), distiller(weight=0.0)
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    given.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=False)
    plain.fit(X, Y, epochs=3, batch_size=12, shuffle=False, verbose=0)
    for model in (given, default):
        targets = {"label": Y, "teacher_logits": LOGITS}
        model.fit(X, targets, epochs=3, batch_size=12, shuffle=False, verbose=0)
        assert largest_difference(plain, model.student) < 1e-6


def test_a_given_loss_replaces_the_hard_label_loss_and_is_saved(tmp_path):
    @keras.saving.register_keras_serializable("test_distiller_as_keras")
    def brier(labels, logits):
        hot = keras.ops.one_hot(keras.ops.cast(labels, "int32"), 5)
        return keras.ops.mean((keras.ops.softmax(logits) - hot) ** 2, -1)

    model = distiller(compile=False)
    model.compile(keras.optimizers.SGD(0.1), loss=brier, jit_compile=False)
    logits = model.predict(X, verbose=0)
    powers = np.exp(logits)
    expected = np.mean((powers / powers.sum(1, keepdims=True) - np.eye(5)[Y]) ** 2)
    result = model.evaluate(X, Y, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["hard_loss"], expected, rtol=1e-5)
    model.save(tmp_path / "distiller.keras")
    again = keras.saving.load_model(tmp_path / "distiller.keras").evaluate(X, Y, verbose=0, return_dict=True)
    np.testing.assert_allclose(again["hard_loss"], expected, rtol=1e-5)


def test_names_that_would_overwrite_a_log_are_refused():
    for name in ("hard", "loss"):
        with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
            Distiller(net(), losses={name: KLDivergence()}, loss_weights={name: 0.5})
    model = distiller(compile=False)
    with pytest.raises(ValueError, match="'hard_loss', which is a term of the loss"):
        model.compile("sgd", metrics=[keras.metrics.SparseCategoricalAccuracy(name="hard_loss")])


def test_loss_means_the_same_in_evaluation_live_cached_and_alone():
    """It is the loss of plain Keras on the same weights, regularization included."""
    regularizer = keras.regularizers.L2(0.1)
    plain = net(regularizer=regularizer)
    plain.compile("sgd", CROSS_ENTROPY)
    expected = plain.evaluate(X, Y, verbose=0)
    live = distiller(net(regularizer=regularizer), teacher=net(1)).evaluate(X, Y, verbose=0, return_dict=True)
    student = distiller(net(regularizer=regularizer))
    cached = student.evaluate(X, {"label": Y, "teacher_logits": LOGITS}, verbose=0, return_dict=True)
    alone = student.evaluate(X, Y, verbose=0, return_dict=True)
    for result in (live, cached, alone):
        np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)
    assert "kd_loss" in live and "kd_loss" in cached and "kd_loss" not in alone


def test_a_weight_of_the_hard_label_of_its_own():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 9\.0.*hard_weight"):
        distiller(weight=9.0)
    model = distiller(weight=9.0, hard_weight=0.1)
    targets = {"label": Y, "teacher_logits": LOGITS}
    result = model.train_on_batch(X, targets, return_dict=True)
    np.testing.assert_allclose(result["loss"], 0.1 * result["hard_loss"] + 9.0 * result["kd_loss"], rtol=1e-5)
    assert Distiller.from_config(model.get_config()).hard_weight == 0.1


class SquaredDifference(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.mean((teacher_outputs - student_outputs) ** 2)


def test_losses_of_keras_and_of_users_are_taken():
    """One step of each, against `keras.distillation.Distiller` with the same loss and weights."""
    for loss in (SquaredDifference(), keras.distillation.LogitsDistillation(2.0)):
        ours = Distiller(net(), losses={"kd": loss}, loss_weights={"kd": 0.3}, teacher=net(1))
        ours.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        ours.train_on_batch(X, Y)
        theirs = keras.distillation.Distiller(net(1), net(), loss, student_loss_weight=0.7)
        theirs.compile(keras.optimizers.SGD(0.1), loss=CROSS_ENTROPY, jit_compile=False)
        theirs.train_on_batch(X, Y)
        assert largest_difference(ours.student, theirs.student) < 1e-6
    with pytest.raises(ValueError, match=r"keras\.distillation\.DistillationLoss, got 'kl'"):
        Distiller(net(), losses={"kd": "kl"}, loss_weights={"kd": 0.5})


def convolutional():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="c")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))


def test_feature_distillation_of_keras_looks_at_its_layers():
    images = RNG.random((8, 8, 8, 3)).astype(np.float32)
    loss = keras.distillation.FeatureDistillation("mse", teacher_layer_name="c", student_layer_name="c")
    student, teacher = convolutional(), convolutional()
    model = Distiller(student, losses={"f": loss}, loss_weights={"f": 1.0}, teacher=teacher)
    features = [keras.Model(m.input, m.get_layer("c").output)(images) for m in (student, teacher)]
    terms, _ = model.compute_terms(images, Y[:8], training=False)
    expected = np.mean((np.array(features[0]) - np.array(features[1])) ** 2)
    np.testing.assert_allclose(terms["f_loss"], expected, rtol=1e-5)


def test_a_layer_may_be_compared_with_the_output_of_the_other_model():
    inputs = keras.Input((8, 8, 3))
    student = keras.Model(inputs, keras.layers.Dense(5, name="last")(keras.layers.Flatten()(inputs)))
    loss = keras.distillation.FeatureDistillation("mse", teacher_layer_name="d", student_layer_name=None)
    x = keras.layers.Dense(5, name="d")(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(5)(x))
    model = Distiller(student, losses={"f": loss}, loss_weights={"f": 1.0}, teacher=teacher)
    images = RNG.random((8, 8, 8, 3)).astype(np.float32)
    terms, _ = model.compute_terms(images, Y[:8], training=False)
    features = keras.Model(inputs, x)(images)
    np.testing.assert_allclose(terms["f_loss"], np.mean((student(images) - features) ** 2), rtol=1e-5)


def test_class_weight_trains_as_in_plain_keras_and_with_cached_knowledge():
    weights = {0: 3.0, 2: 0.5}
    plain = net()
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    plain.fit(X, Y, epochs=2, batch_size=16, shuffle=False, class_weight=weights, verbose=0)
    import tensorflow as tf

    targets = {"label": Y, "teacher_logits": LOGITS}
    arrays, batches = distiller(weight=0.0), distiller(weight=0.0)
    arrays.fit(X, targets, epochs=2, batch_size=16, shuffle=False, class_weight=weights, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((X, targets)).batch(16)
    batches.fit(data, epochs=2, shuffle=False, class_weight=weights, verbose=0)
    assert largest_difference(plain, arrays.student) < 1e-6
    assert largest_difference(plain, batches.student) < 1e-6
    hot = distiller(weight=0.0, teacher=net(1))
    hot.fit(X, np.eye(5)[Y], epochs=2, batch_size=16, shuffle=False, class_weight=weights, verbose=0)
    assert largest_difference(plain, hot.student) < 1e-6
    columns = distiller(weight=0.0)  # with weights [B,1] of the examples besides
    ones = tf.data.Dataset.from_tensor_slices((X, targets, np.ones((32, 1), np.float32))).batch(16)
    columns.fit(ones, epochs=2, shuffle=False, class_weight=weights, verbose=0)
    assert largest_difference(plain, columns.student) < 1e-6


def test_class_weight_leaves_a_validation_split_alone_as_in_plain_keras():
    plain, ours = net(), distiller(weight=0.0, teacher=net(1))
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    options = {"batch_size": 8, "shuffle": False, "class_weight": {0: 10.0, 2: 0.5}, "verbose": 0}
    expected = plain.fit(X, Y, validation_split=0.3, **options).history["val_loss"]
    assert ours.fit(X, Y, validation_split=0.3, **options).history["val_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_fractions_in_a_data_set_are_no_classes_but_for_a_given_loss_of_one_output(shape):
    """Binary cross-entropy of shares, as plain Keras computes it on the same data set."""
    import tensorflow as tf

    shares = RNG.random(32).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((X, shares.reshape(shape))).batch(16)
    keras.utils.set_random_seed(0)
    single = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, activation="sigmoid")])
    model = Distiller(single)
    model.compile("sgd", jit_compile=False)
    for call in (model.evaluate, partial(model.fit, shuffle=False)):
        with pytest.raises(ValueError, match=r"labels must be whole numbers, got 0\.\d+; round them"):
            call(data, verbose=0)
    model.compile("sgd", loss="binary_crossentropy", jit_compile=False)
    plain = keras.models.clone_model(single)
    plain.set_weights(single.get_weights())
    plain.compile("sgd", loss="binary_crossentropy")
    expected = plain.evaluate(X, shares[:, None], verbose=0)
    for given in ((data,), (X, shares.reshape(shape))):
        found = model.evaluate(*given, verbose=0, return_dict=True)["loss"]
        assert found == pytest.approx(expected, rel=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(5)

    def call(self, inputs, training=None):
        return self.dense(inputs)


def test_subclassed_models_distil_by_their_logits():
    student, teacher = Subclassed(), Subclassed()
    student(X), teacher(X)
    model = Distiller(student, losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=teacher)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    first, last = model.fit(X, Y, epochs=5, verbose=0).history["loss"][::4]
    assert last < first


def test_export_after_fit_is_the_student(tmp_path):
    model = distiller(teacher=net(1))
    model.fit(X, Y, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(X), model.student(X), atol=1e-6)


def test_what_is_exported_takes_the_pixels_that_predict_takes(tmp_path):
    """Both give what the network gives for pixels from 0 to 255, which its layers show that it takes."""
    import tensorflow as tf

    plain = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(5)])
    student = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Rescaling(1 / 255), plain])
    images = RNG.random((8, 4, 4, 3)).astype(np.float32)
    expected = np.asarray(plain(images))
    for span, seen in (((0, 1), images), ((-1, 1), 2 * images - 1), ((0, 255), 255 * images)):
        model = distiller(student, input_range=span)
        model.export(tmp_path / f"{span}", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / f"{span}"))
        np.testing.assert_allclose(model.predict(seen, verbose=0), expected, atol=1e-5)
        np.testing.assert_allclose(loaded.serve(seen), expected, atol=1e-5)


def test_weights_of_terms_are_not_changed_behind_traced_steps():
    model = distiller(weight=0.25, teacher=net(1))
    with pytest.raises(TypeError, match="does not support item assignment"):
        model.distillation_weights["kd"] = 0.75
    assert model.term_weights == {"hard": 0.75, "kd": 0.25}
    assert Distiller.from_config(model.get_config()).distillation_weights == {"kd": 0.25}
    assert keras.models.clone_model(model).distillation_weights == {"kd": 0.25}


def test_a_student_in_float16_has_its_loss_scaled(tmp_path):
    """As plain Keras does it, also where the policy of the process is another one; and once only."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu", dtype="mixed_float16")(inputs)
    student = keras.Model(inputs, keras.layers.Dense(5, dtype="float32")(hidden))
    scaling = keras.optimizers.LossScaleOptimizer

    def compiled(optimizer, **options):
        model = distiller(student, weight=0.0, compile=False, teacher=net(1))
        model.compile(optimizer, jit_compile=False, **options)
        return model

    model = compiled(keras.optimizers.SGD(0.1))
    assert isinstance(model.optimizer, scaling) and isinstance(compiled("adam").optimizer, scaling)
    given = scaling(keras.optimizers.SGD(0.1))
    assert compiled(given).optimizer is given
    assert not isinstance(compiled("sgd", auto_scale_loss=False).optimizer, scaling)
    assert not isinstance(distiller().optimizer, scaling)
    plain = keras.models.clone_model(student)
    plain.set_weights(student.get_weights())
    plain.compile(scaling(keras.optimizers.SGD(0.1)), CROSS_ENTROPY)
    for one in (plain, model):
        one.fit(X, Y, epochs=3, batch_size=16, shuffle=False, verbose=0)
    assert largest_difference(plain, student) < 1e-6
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert isinstance(loaded, scaling) and not isinstance(loaded.inner_optimizer, scaling)
    with pytest.raises(ValueError, match="TwoMomenta does not scale the loss"):
        compiled(TwoMomenta(0.1, momentum=0.9))


def test_a_distributed_data_set_is_taken_as_it_is():
    """It has no `map`, so its labels are not checked; the result is that of the data set itself."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    spread = strategy.experimental_distribute_dataset(data)
    expected = distiller(weight=0.0, teacher=net(1)).evaluate(data, verbose=0)
    with strategy.scope():
        model = distiller(weight=0.0, teacher=net(1))
    assert model.evaluate(spread, verbose=0) == pytest.approx(expected, rel=1e-6)
    model.fit(spread, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match=r"class_weight needs arrays or a tf\.data\.Dataset"):
        model.fit(spread, class_weight={0: 2.0}, shuffle=False, verbose=0)


REPLICAS = """
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.training.test_distiller_as_keras import X, Y, distiller, net
for regularizer in (None, keras.regularizers.L2(0.1)):
    students = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        with tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice()).scope():
            model = distiller(net(regularizer=regularizer), teacher=net(1))
        model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        students.append(model.student.get_weights())
    for one, two in zip(*students, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
"""


def test_two_replicas_train_as_one(tmp_path):
    (tmp_path / "replicas.py").write_text(REPLICAS)
    done = run(tmp_path, "replicas")
    assert done.returncode == 0, done.stderr[-2000:]


def test_taps_are_checked_before_training():
    with pytest.raises(ValueError, match="no layer 'd'"):
        Distiller(
            convolutional(),
            losses={"at": AttentionTransfer("d", "c")},
            loss_weights={"at": 1.0},
            teacher=convolutional(),
        )

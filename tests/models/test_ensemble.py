"""Several teachers as one model: the stated mean, the members' own weights, a file that plain Keras opens."""

import keras
import numpy as np
import pytest

from tfigkd import models


@pytest.fixture(scope="module")
def members():
    keras.utils.set_random_seed(0)
    return [
        models.mobilenet_v2(10, 16, input_shape=(8, 8, 3), width=0.25),
        models.resnet(20, 10, input_shape=(8, 8, 3)),
    ]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


def logits_of(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def constant(logits):
    """A model that answers the same whatever it sees."""
    inputs = keras.Input((4, 4, 3))
    flat = keras.layers.GlobalAveragePooling2D()(inputs)
    dense = keras.layers.Dense(len(logits), kernel_initializer="zeros")
    model = keras.Model(inputs, dense(flat))
    dense.set_weights([np.zeros((3, len(logits)), np.float32), np.array(logits, np.float32)])
    return model


def test_the_mean_is_of_logits(members, images):
    expected = np.mean([logits_of(member, images) for member in members], axis=0)
    np.testing.assert_allclose(logits_of(models.ensemble(members), images), expected, atol=1e-5)


def test_the_sure_teacher_counts_more_by_its_entropy():
    """Worked by hand: entropies ln 2 and 0.325083 give the weights 0.409009 and 0.590991."""
    sure, unsure = constant([np.log(9.0), 0.0]), constant([0.0, 0.0])
    images = np.zeros((1, 4, 4, 3), np.float32)
    combined = logits_of(models.ensemble([unsure, sure], weighting="confidence"), images)
    np.testing.assert_allclose(combined, [[0.590991 * np.log(9.0), 0.0]], atol=1e-5)


@pytest.mark.parametrize("weighting", ["mean", "confidence"])
def test_one_teacher_is_itself(members, images, weighting):
    single = models.ensemble(members[:1], weighting=weighting)
    np.testing.assert_allclose(logits_of(single, images), logits_of(members[0], images), atol=1e-5)


@pytest.mark.parametrize("weighting", ["mean", "confidence"])
def test_it_is_a_teacher_like_any_other(members, images, weighting, tmp_path):
    """Folded for the store, saved and opened in safe mode, with every member's batch normalization folded."""
    model = models.ensemble(members, weighting=weighting)
    expected = logits_of(model, images)
    folded = models.fold_batch_norm(model)
    np.testing.assert_allclose(logits_of(folded, images), expected, atol=1e-4)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded._flatten_layers())
    model.save(tmp_path / "teachers.keras")
    opened = models.build(str(tmp_path / "teachers.keras"), num_classes=10, input_shape=(8, 8, 3))
    np.testing.assert_allclose(logits_of(opened, images), expected, atol=1e-5)


def softmax_of(logits):
    """A Sequential model of constant probabilities."""
    return keras.Sequential([keras.Input((4, 4, 3)), constant(logits), keras.layers.Softmax()])


@pytest.mark.parametrize("weighting", ["mean", "confidence"])
def test_a_member_that_gives_probabilities_counts_by_their_logarithms(weighting, tmp_path):
    """By hand: the mean of the logits [ln 9, 0] and [0, 0] has the probabilities [3/4, 1/4], of softmax too.

    By confidence the weights are 0.590991 and 0.409009, so the shares are to each other as 9 ** 0.590991 to one.
    """
    images = np.zeros((1, 4, 4, 3), np.float32)
    odds = 3.0 if weighting == "mean" else 9**0.590991
    for members in (
        [softmax_of([np.log(9.0), 0.0]), softmax_of([0.0, 0.0])],
        [softmax_of([np.log(9.0), 0.0]), constant([0.0, 0.0])],
    ):
        model = models.ensemble(members, weighting=weighting)
        shares = keras.ops.convert_to_numpy(keras.ops.softmax(model(images)))
        np.testing.assert_allclose(shares, [[odds / (odds + 1), 1 / (odds + 1)]], atol=1e-5)
        model.save(tmp_path / "teachers.keras")
        opened = models.build(str(tmp_path / "teachers.keras"), num_classes=2, input_shape=(4, 4, 3))
        np.testing.assert_allclose(logits_of(opened, images), logits_of(model, images), atol=1e-5)


def test_members_keep_sharing_their_weights(tmp_path):
    inside = constant([np.log(9.0), 0.0])
    sequential = keras.Sequential([keras.Input((4, 4, 3)), inside, keras.layers.Softmax()])
    model, images = models.ensemble([sequential, constant([0.0, 0.0])]), np.zeros((1, 4, 4, 3), np.float32)
    inside.layers[-1].bias.assign([np.log(81.0), 0.0])  # the mean has the odds 9 to 1
    np.testing.assert_allclose(keras.ops.softmax(model(images)), [[0.9, 0.1]], atol=1e-5)
    np.testing.assert_allclose(keras.ops.softmax(inside(images)), [[81 / 82, 1 / 82]], atol=1e-5)


def test_one_output_counts_as_two_classes():
    """By hand: the sigmoid of ln 9 is 0.9 for the second class; with [0, 0] the mean has the odds 3 to 1."""
    single = keras.Sequential([keras.Input((4, 4, 3)), constant([np.log(9.0)]), keras.layers.Activation("sigmoid")])
    model = models.ensemble([single, constant([0.0, 0.0])])
    shares = keras.ops.softmax(model(np.zeros((1, 4, 4, 3), np.float32)))
    np.testing.assert_allclose(shares, [[0.25, 0.75]], atol=1e-5)


def test_members_of_different_ranges_of_pixels_are_refused(images):
    def net(*head):
        body = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((8, 8, 3)), *head, *body])

    of_bytes, plain = net(keras.layers.Rescaling(1 / 255)), net()
    with pytest.raises(
        ValueError, match=r"same range of pixels, got 0 to 1, 0 to 255; give tfigkd.models.as_cl"
    ) as said:
        models.ensemble([of_bytes, plain])
    assert "\n" not in str(said.value)
    expected = (logits_of(of_bytes, 255 * images) + logits_of(plain, images)) / 2
    joined = models.ensemble([models.as_classifier(of_bytes), plain])
    np.testing.assert_allclose(logits_of(joined, images), expected, atol=1e-5)
    expected = logits_of(of_bytes, 255 * images)
    np.testing.assert_allclose(logits_of(models.ensemble([of_bytes, of_bytes]), 255 * images), expected, atol=1e-5)


def test_what_cannot_be_joined(members):
    with pytest.raises(ValueError, match="at least one"):
        models.ensemble([])
    with pytest.raises(ValueError, match="same images and classes"):
        models.ensemble([members[0], constant([0.0, 0.0])])
    with pytest.raises(ValueError, match="weighting"):
        models.ensemble(members, weighting="median")

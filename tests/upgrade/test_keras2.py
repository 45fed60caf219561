"""Files of Keras 2: each is compared with the outputs that tf_keras, the last Keras 2, gave when it saved the model."""

import json
import resource
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tests.children import run
from tfigkd import models
from tfigkd.models.keras_file import METADATA, is_hdf5, keras_version
from tfigkd.runtime.errors import UserError
from tfigkd.upgrade.keras2 import upgrade

tf_keras = pytest.importorskip("tf_keras")
layers = tf_keras.layers
pytestmark = pytest.mark.filterwarnings("ignore")  # tf_keras and TensorFlow warn when they are imported and save

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype("float32")
FORMATS = (".h5", ".keras", "_saved")


def ending(features):
    return layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(features))


def conv(images, **options):
    return layers.Conv2D(6, 3, **options)(images)


def attention(images):
    words = layers.Reshape((64, 12))(images / 255.0)
    return layers.Dense(5)(layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(words, words)))


def gated(images):
    features = conv(images / 255.0)
    gate = layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(features))
    return ending(features * layers.Reshape((1, 1, 6))(gate))


def functions(images):
    import tensorflow as tf

    features = [conv(images / 255.0) for _ in range(4)]
    joined = tf.concat([tf.nn.relu6(features[0] + 3.0) * 0.5, 1.0 - tf.square(features[1])], -1)
    joined = joined + tf.concat([tf.nn.swish(features[2]), tf.nn.leaky_relu(features[3])], -1)
    return layers.Dense(5)(tf.reduce_mean(tf.pad(joined, [[0, 0], [1, 1], [0, 0], [0, 0]]), [1, 2]))


def shared(images):
    layer = layers.Conv2D(3, 3, padding="same")
    return ending(layer(layers.ReLU()(layer(images / 255.0))))


def nested(images):
    inner = tf_keras.Sequential([layers.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()])
    inner.trainable = False
    return ending(inner(images / 127.5 - 1.0, training=False))


NETWORKS = {
    "hard_sigmoid": lambda x: ending(conv(x / 255.0, activation="hard_sigmoid")),
    "hard_sigmoid_layer": lambda x: ending(layers.Activation("hard_sigmoid")(conv(x / 255.0))),
    "leaky": lambda x: ending(layers.LeakyReLU(0.1)(conv(x / 255.0))),
    "thresholded": lambda x: ending(layers.ThresholdedReLU(0.3)(conv(x / 255.0))),
    "depthwise": lambda x: ending(layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(x / 255.0)),
    "separable": lambda x: ending(layers.SeparableConv2D(6, 3, depth_multiplier=2)(layers.Rescaling(1 / 255)(x))),
    "normalized": lambda x: ending(conv(layers.Normalization(mean=[9.0, 20, 30], variance=[99.0, 200, 300])(x))),
    "batch_norm": lambda x: ending(layers.BatchNormalization(name="a/b", scale=False)(conv(x / 255.0))),
    "augmented": lambda x: ending(conv(layers.RandomRotation(0.1)(layers.RandomFlip()(x)) / 255.0)),
    "dropped": lambda x: ending(layers.SpatialDropout2D(0.3)(layers.GaussianNoise(0.1)(conv(x / 255.0)))),
    "caffe": lambda x: ending(conv(tf_keras.applications.resnet50.preprocess_input(x))),
    "recurrent": lambda x: layers.Dense(5)(layers.Bidirectional(layers.LSTM(4))(layers.Reshape((16, 48))(x / 255.0))),
    "attention": attention,
    "gated": gated,
    "functions": functions,
    "shared": shared,
    "nested": nested,
}


def old_model(network, shape=(16, 16, 3), dtype="float32"):
    images = layers.Input(shape, dtype=dtype)
    return drawn(tf_keras.Model(images, network(images)))


def drawn(model):
    """Give a model weights of which none is neutral, so that a lost one is seen."""
    draw = np.random.default_rng(1)
    for variable in model.weights:
        if variable.dtype.is_floating:
            values = draw.normal(0.0, 0.3, variable.shape)
            variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    return model


def saved(model, folder, form=".h5"):
    path = folder / f"old{form}"
    model.save(path)
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_of_keras_2_gives_the_outputs_that_it_gave_there(network, tmp_path):
    old = old_model(NETWORKS[network])
    expected = old.predict(IMAGES, verbose=0)
    upgraded = upgrade(saved(old, tmp_path))
    model = upgraded.model
    assert upgraded.difference < 1e-5 and not upgraded.notes
    model.save(tmp_path / "new.keras")
    again = keras.saving.load_model(tmp_path / "new.keras", compile=False)  # plain Keras 3
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), expected, atol=1e-5 * np.abs(expected).max())
    assert model.count_params() == old.count_params()
    assert [tuple(one.shape) for one in model.trainable_variables] == [
        tuple(one.shape) for one in old.trainable_variables
    ]


@pytest.mark.parametrize("network", ["MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"])
def test_networks_of_applications(network, tmp_path):
    """Operations on tensors, an initializer of TensorFlow, and layers that belong to one network."""
    options = {"weights": None, "classes": 5, "classifier_activation": None}
    old = getattr(tf_keras.applications, network)(input_shape=(32, 32, 3), **options)
    for variable in old.weights:
        if "gamma" in variable.name:  # ConvNeXt scales each block by 1e-6
            variable.assign(np.random.default_rng(1).normal(0.5, 0.2, variable.shape))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    model = upgrade(saved(old, tmp_path)).model
    expected = old.predict(images, verbose=0)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_keras_2_are_known_and_the_remedy_works(form, tmp_path):
    """What every other command says of such a file is the command that makes one of Keras 3 of it."""
    old = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(4)])
    path = saved(old, tmp_path, form)
    assert keras_version(path).startswith("2")
    with pytest.raises(UserError, match=r"python -m tfigkd\.upgrade .* --output ") as refused:
        models.load_classifier(path)
    command = str(refused.value).partition("python -m ")[2].split()
    output = run(tmp_path, *command).stdout
    assert "466 parameters in 4 layers; each gives on random images what it gave in Keras 2" in output.replace(
        "\n", " "
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("uint8")
    plain = models.ReferenceClassifier(command[-1], input_range=(0.0, 255.0))
    np.testing.assert_allclose(plain.logits(images), old.predict(images.astype("float32"), verbose=0), rtol=1e-4)


def test_integers_gray_images_open_sizes_and_several_outputs(tmp_path):
    import tensorflow as tf

    for number, (shape, dtype) in enumerate(
        [((16, 16, 3), "uint8"), ((16, 16, 1), "float32"), ((None, None, 3), "float32")]
    ):
        old = old_model(lambda x: ending(conv(tf.cast(x, "float32") / 255.0)), shape, dtype)
        (tmp_path / str(number)).mkdir()
        model = upgrade(saved(old, tmp_path / str(number))).model
        images = IMAGES[..., : shape[2]].astype(dtype)
        assert (model.input_shape[1:], model.input.dtype) == (shape, dtype)
        np.testing.assert_allclose(model.predict(images, verbose=0), old.predict(images, verbose=0), atol=1e-6)
    inputs = layers.Input((16, 16, 3))
    two = tf_keras.Model(inputs, [ending(conv(inputs)), ending(inputs)])
    model = upgrade(saved(two, tmp_path)).model
    for one, other in zip(model.predict(IMAGES, verbose=0), two.predict(IMAGES, verbose=0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Own(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_what_cannot_be_carried_over_is_refused_in_one_line(tmp_path):
    import tensorflow as tf

    def refusal(model, form=".h5"):
        with pytest.raises(UserError) as refused:
            upgrade(saved(model, tmp_path, form))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "holds a Lambda layer" in refusal(old_model(lambda x: ending(layers.Lambda(lambda y: y / 2)(x))))
    assert "asks for the class 'Own', which is none of Keras 3" in refusal(old_model(lambda x: ending(Own()(x))))
    assert "holds the operation 'math.cumsum'" in refusal(old_model(lambda x: ending(tf.cumsum(x))))
    model = Subclassed()
    model(np.zeros((1, 3), "float32"))
    assert "asks for the class 'Subclassed'" in refusal(model, "_saved")
    behind = layers.TimeDistributed(layers.Dense(4, activation="hard_sigmoid"))
    assert "a hard sigmoid inside of" in refusal(old_model(lambda x: ending(behind(x))))
    with pytest.raises(UserError, match="no model file"):
        upgrade(tmp_path / "missing.h5")
    weights = tmp_path / "bare.weights.h5"
    old_model(ending).save_weights(weights)
    with pytest.raises(UserError, match=r"is not a \.keras file but only weights"):
        upgrade(weights)
    new = tmp_path / "new.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(new)
    with pytest.raises(UserError, match="needs no upgrade"):
        upgrade(new)


def lambda_inside(images):
    features = layers.TimeDistributed(layers.Lambda(lambda rows: rows / 2))(images)
    return ending(features)


@pytest.mark.parametrize("form", FORMATS)
def test_code_is_refused_before_anything_is_built(form, tmp_path, monkeypatch):
    """tf_keras would unpack the code in an HDF5 file, whatever safe mode says."""
    path = saved(old_model(lambda_inside), tmp_path, form)
    monkeypatch.setattr(layers.Lambda, "from_config", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match="holds a Lambda layer, which could run any code"):
        upgrade(path)


FUNCTION = {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "LayerScale"}
CALLED = {"name": "x", "inbound_nodes": [[["_CONSTANT_VALUE", -1, "raise SystemExit", {}]]]}


@pytest.mark.parametrize(
    "layer",
    [
        FUNCTION | CALLED,
        {"module": "keras", "class_name": "layers.Lambda", "config": {}, "registered_name": None} | CALLED,
        {"module": "os", "class_name": "Dense", "config": {}, "registered_name": None} | CALLED,
        {"class_name": ["Dense"], "config": {}} | CALLED,
    ],
)
def test_a_description_that_asks_for_other_code_is_refused(layer, tmp_path):
    def added(text):
        config = json.loads(text)
        config["config"]["layers"].append(layer)
        return json.dumps(config)

    path = saved(old_model(ending), tmp_path, ".keras")
    rewrite(path, added)
    with pytest.raises(UserError, match=r"asks for (the class|code of) "):
        upgrade(path)


@pytest.mark.parametrize("form", [*FORMATS, ".h5 of Keras 3"])
def test_more_values_than_the_file_holds_are_refused_before_they_are_allocated(form, tmp_path):
    """A layer of 10^9 units would take 12 GB."""
    if form == ".h5 of Keras 3":
        path = tmp_path / "new.h5"
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(7)]).save(path)
    else:
        path = saved(old_model(lambda x: layers.Dense(7)(layers.Flatten()(x))), tmp_path, form)
    rewrite(path, lambda text: text.replace('"units": 7', '"units": 1000000000'))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"its layers have more values than the [\d,]+ bytes of its weights can hold"):
        upgrade(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def rewrite(path, change):
    """Change the text of the description in a model that Keras saved."""
    from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

    if path.is_dir():
        metadata = path / METADATA
        nodes = SavedMetadata.FromString(metadata.read_bytes())
        for node in nodes.nodes:
            node.metadata = change(node.metadata)
        metadata.write_bytes(nodes.SerializeToString())
    elif is_hdf5(path):
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = change(file.attrs["model_config"])
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["config.json"] = change(members["config.json"].decode()).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


def test_two_files_in_one_are_refused(tmp_path):
    path, other = saved(old_model(ending), tmp_path), saved(old_model(ending), tmp_path, ".keras")
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(UserError, match="HDF5 and a zip file at once"):
        upgrade(path)


def test_the_version_of_old_hdf5_files_is_read_as_they_say_it(tmp_path):
    """Keras wrote bytes before version 2.4; not to know them would leave the file to Keras 3."""
    old = old_model(NETWORKS["hard_sigmoid"])
    path = saved(old, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = np.bytes_("2.2.4")
    assert keras_version(path) == "2.2.4"
    np.testing.assert_allclose(
        upgrade(path).model.predict(IMAGES, verbose=0), old.predict(IMAGES, verbose=0), atol=1e-6
    )
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    assert keras_version(path) == "2" and upgrade(path).difference is not None


def test_what_matters_in_training_is_kept_or_said(tmp_path):
    options = {"kernel_regularizer": "l2", "activity_regularizer": "l1", "kernel_constraint": "max_norm"}

    def network(images):
        features = layers.RandomFlip("vertical")(layers.GaussianNoise(0.3)(images / 255.0))
        features = layers.BatchNormalization(momentum=0.7, epsilon=0.02)(layers.Conv2D(4, 3, **options)(features))
        return ending(layers.SpatialDropout2D(0.4)(layers.Dropout(0.2)(features)))

    old = old_model(network)
    upgraded = upgrade(saved(old, tmp_path))
    model = upgraded.model
    named = {type(layer).__name__: layer for layer in model.layers}
    assert named["RandomFlip"].mode == "vertical" and named["GaussianNoise"].stddev == 0.3
    assert (named["Dropout"].rate, named["SpatialDropout2D"].rate) == (0.2, 0.4)
    assert (named["BatchNormalization"].momentum, named["BatchNormalization"].epsilon) == (0.7, 0.02)
    assert isinstance(named["Conv2D"].kernel_constraint, keras.constraints.MaxNorm)
    model(IMAGES, training=False), old(IMAGES, training=False)
    assert sum(map(float, model.losses)) == pytest.approx(sum(map(float, old.losses)), rel=1e-4)
    assert not upgraded.notes

    base = tf_keras.Sequential([layers.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.Dropout(0.5)], name="base")
    fixed = old_model(lambda images: ending(base(images, training=False)))
    (note,) = upgrade(saved(fixed, tmp_path)).notes
    assert note == "Keras 2 ran base with training=False, Keras 3 trains all of it alike"


def test_outputs_of_zero_are_the_same_and_nan_are_refused(tmp_path):
    old = old_model(ending)
    old.layers[-1].activation = tf_keras.activations.linear
    old.set_weights([0 * values for values in old.get_weights()])
    assert upgrade(saved(old, tmp_path)).difference == 0.0
    old.set_weights([np.nan * values for values in old.get_weights()])
    with pytest.raises(UserError, match="are all NaN or infinite"):
        upgrade(saved(old, tmp_path))


def test_a_layer_that_computes_something_else_is_named(tmp_path):
    """The hard sigmoid inside a recurrent layer is another one in Keras 3, and is not carried over."""
    old = old_model(
        lambda x: layers.Dense(5)(
            layers.LSTM(4, recurrent_activation="hard_sigmoid", name="gates")(layers.Reshape((16, 48))(x / 255.0))
        )
    )
    with pytest.raises(UserError, match="has other outputs, first in layer 'gates'"):
        upgrade(saved(old, tmp_path))


def test_an_hdf5_file_of_keras_3_is_opened_by_keras_3(tmp_path):
    new = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    new.save(tmp_path / "new.h5")
    upgraded = upgrade(tmp_path / "new.h5")
    assert upgraded.difference is None
    images = IMAGES[:, :8, :8]
    np.testing.assert_array_equal(upgraded.model.predict(images, verbose=0), new.predict(images, verbose=0))

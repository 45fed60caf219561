"""A user's own teacher and student in a run: as they are or afresh, in their own pixels, refused at chance."""

import keras
import numpy as np
import pytest

from tfigkd.config.experiment import Config, override, to_mapping
from tfigkd.config.flags import with_flags
from tfigkd.evaluate import main as evaluate
from tfigkd.measure.metrics import predict_logits
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages import distill, teacher
from tfigkd.stages.data import dataset
from tfigkd.stages.preflight import check_networks
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir

SIZE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures whose class is the brighter of two colors, and teachers that are right without training."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = generator.integers(0, 100, (80, SIZE, SIZE, 3))
    images[np.arange(80), ..., labels] += 100
    parts = {"x_train": images[:60], "y_train": labels[:60], "x_test": images[60:], "y_test": labels[60:]}
    names = {"class_names": np.array(["red", "green"])}
    np.savez(folder / "data.npz", **{name: part.astype("uint8") for name, part in parts.items()}, **names)
    # the red mean against the green one; the first adds a bias that pixels in [0,1] never overcome
    kernels = {"signed": [[1, 0], [0, 1], [0, 0]], "turned": [[0, 1], [1, 0], [0, 0]]}
    for name, scale, bias in (("signed", 0.2, 5.0), ("turned", 30.0, 0.0)):
        dense = keras.layers.Dense(2, activation="softmax")
        model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.GlobalAveragePooling2D(), dense])
        dense.set_weights([scale * np.array(kernels[name], float), np.array([bias, 0.0])])
        model.save(folder / f"{name}.keras")
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(inputs))
    keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))).save(folder / "small.keras")
    return folder


def config_of(folder, **changes):
    base = {"data.name": str(folder / "data.npz"), "teacher.model": str(folder / "signed.keras")}
    base |= {"teacher.normalization": "none", "losses.kd.weight": 0.5, "tensorboard.pictures": 0}
    return override(Config(), base | {name.replace("__", "."): value for name, value in changes.items()})


def test_a_teacher_at_chance_is_refused_with_what_helps(folder, tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    with pytest.raises(UserError, match=r"signed\.keras has .* of 50\.0 % .* about what guessing gives") as caught:
        teacher.train_teacher(config_of(folder), workdir)
    said = str(caught.value)
    assert "with --teacher.input_range 0 255 its balanced accuracy on the same images is 100.0 %" in said
    assert "\n" not in said
    accepted = config_of(folder, teacher__accept_chance=True)
    teacher.train_teacher(accepted, workdir)
    right = config_of(folder, teacher__input_range=[0.0, 255.0])
    teacher.train_teacher(right, workdir)
    data = dataset(right.data)
    plain = keras.saving.load_model(folder / "signed.keras")(data.test.images.astype("float32"))
    logits = predict_logits(teacher.load_teacher(right, workdir), data.test.images)
    assert (np.argmax(plain, 1) == data.test.labels).all()
    np.testing.assert_allclose(keras.ops.softmax(logits), plain, atol=1e-4)


def test_a_teacher_that_is_clearly_better_in_another_range_is_refused(tmp_path):
    """Gray levels 0, 0.3 and 1 by thresholds on [-1, 1]: right on two of three where [0, 1] is assumed."""
    labels = np.arange(90) % 3
    noise = np.random.default_rng(0).integers(0, 8, (90, 8, 8, 3))
    pixels = (np.array([0, 76, 240])[labels][:, None, None, None] + noise).astype("uint8")
    np.savez(tmp_path / "data.npz", x_train=pixels, y_train=labels, x_test=pixels[:30, ::-1], y_test=labels[:30])
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))
    model.set_weights([np.array([[0, 1, 2]] * 3) / 3, np.array([0, 0.5, 0])])
    model.save(tmp_path / "signed.keras")
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    with pytest.raises(UserError, match=r"66\.7 %.*; with --teacher\.input_range -1 1 .* is 100\.0 %"):
        teacher.train_teacher(config_of(tmp_path), workdir)
    for given in ([-1.0, 1.0], [0.0, 1.0]):  # the user has said so
        teacher.train_teacher(config_of(tmp_path, teacher__input_range=given), workdir)


def test_a_teacher_of_bytes_is_taken_and_measured(tmp_path, capsys):
    """It takes no other range; right on seven of eight images, so that others are tried."""
    labels = np.arange(80) % 2
    pixels = np.full((80, 8, 8, 3), 40, np.uint8)
    pixels[labels == 1] = 200
    labels = np.where(np.arange(80) % 8 == 0, 1 - labels, labels)
    np.savez(tmp_path / "data.npz", x_train=pixels, y_train=labels, x_test=pixels[:40] + 1, y_test=labels[:40])
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.set_weights([np.array([[0.0, 1.0]] * 3), np.array([1.5, 0.0])])
    model.save(tmp_path / "bytes.keras")
    config = config_of(tmp_path, teacher__model=str(tmp_path / "bytes.keras"))
    teacher.train_teacher(config, Workdir(tmp_path / "run", tmp_path / "teachers"))
    assert evaluate([str(tmp_path / "bytes.keras"), "--data", str(tmp_path / "data.npz")]) == 0
    assert "accuracy 87.50 %" in capsys.readouterr().out


def test_classes_in_another_order_are_named(folder, tmp_path):
    config = config_of(folder, teacher__model=str(folder / "turned.keras"))
    with pytest.raises(UserError, match=r"outputs seem to be in the order green, red .*: rename the class folders"):
        teacher.train_teacher(config, Workdir(tmp_path / "run", tmp_path / "teachers"))


def test_an_order_of_many_classes_is_named(tmp_path, capsys):
    """Of 300 classes 256 images show a part; a network whose outputs are in an order of its own, by nearest colors."""
    random, classes = np.random.default_rng(0), 300
    colors = random.integers(0, 256, (classes, 4, 4, 3), np.uint8)
    labels = np.repeat(np.arange(classes), 8)
    pixels = np.repeat(colors, 8, axis=0)
    pixels[:, 0, 0, 0] = np.tile(np.arange(8), classes)  # no two images are alike
    splits = {"x_train": pixels[::2], "y_train": labels[::2], "x_test": pixels[1::2], "y_test": labels[1::2]}
    np.savez(tmp_path / "data.npz", **splits)
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(classes)])
    centers = colors.reshape(classes, -1)[random.permutation(classes)] / 255
    model.set_weights([2 * centers.T, -(centers**2).sum(axis=1)])
    model.save(tmp_path / "own.keras")
    config = config_of(tmp_path, teacher__model=str(tmp_path / "own.keras"))
    with pytest.raises(UserError, match=r"seem to be in the order .* and 290 more \(balanced accuracy .*: 100\.0 %\)"):
        teacher.train_teacher(config, Workdir(tmp_path / "run", tmp_path / "teachers"))
    assert evaluate([str(tmp_path / "own.keras"), "--data", str(tmp_path / "data.npz")]) == 0
    assert "its outputs seem to be in the order" in "".join(capsys.readouterr())


def test_what_cannot_train_is_refused_before_anything_is_trained(folder, tmp_path):
    frozen = keras.saving.load_model(folder / "small.keras")
    frozen.trainable = False
    path = str(tmp_path / "frozen.keras")
    frozen.save(path)
    small = str(folder / "small.keras")
    for changes in (
        {"student__model": path},
        {"student__model": path, "student__init": "file"},
        {"student__model": small, "teacher__model": path, "teacher__train": True},
    ):
        with pytest.raises(UserError, match=r"frozen.keras has no weights that train, all its layers are frozen; save"):
            check_networks(config_of(folder, **changes))
    check_networks(config_of(folder, student__model=small, teacher__model=path))  # a teacher that is taken as it is
    with pytest.raises(UserError, match=r"at most the size of the images \(8x8\), else many crops are empty, got 9"):
        config = config_of(folder, student__model=small, augment__crop_padding=9)
        run(Run("own", config, Workdir(tmp_path / "run", tmp_path / "teachers"), preview=False), dry_run=True)


def test_a_file_is_taken_as_it_is_unless_training_is_asked_for(folder):
    named, own = Config().teacher, config_of(folder).teacher
    assert (named.train, named.trained) == (None, True)
    assert (own.train, own.trained) == (None, False)
    assert config_of(folder, teacher__train=True).teacher.trained
    # an old config says it with true and false, under the same fingerprints
    assert fingerprint(override(Config(), {"teacher.train": True})) == fingerprint(Config())
    assert fingerprint(config_of(folder, teacher__train=False)) == fingerprint(config_of(folder))
    for flags, expected in (
        (["--teacher.no_train"], False),
        (["--teacher.train"], True),
        (["--teacher.train", "false"], False),
        (["--teacher.train=True"], True),
        (["--teacher.train", "none"], None),
    ):
        for before in (None, True, False):  # what the file says
            assert with_flags(config_of(folder, teacher__train=before), flags).teacher.train is expected
    assert with_flags(config_of(folder), ["--input-range", "0", "255"]).teacher.input_range == (0.0, 255.0)
    assert to_mapping(config_of(folder, teacher__input_range=[0, 255]))["teacher"]["input_range"] == [0.0, 255.0]


def test_settings_of_the_experiments_own_network_do_not_apply_to_a_file(folder):
    plain, other = config_of(folder), config_of(folder, teacher__width=0.25, teacher__normalization="cifar10")
    assert teacher.teacher_fingerprint(plain) == teacher.teacher_fingerprint(other)
    assert teacher.build_teacher(other, dataset(other.data)).output_shape == (None, 2)
    with pytest.raises(UserError, match="resnet20 has no drop_blocks"):
        teacher.build_teacher(config_of(folder, teacher__model="resnet20", teacher__drop_blocks=3), dataset(plain.data))


def test_a_student_of_a_file_begins_afresh_with_each_seed(folder, tmp_path, capsys):
    path = str(folder / "small.keras")
    kernels = {}
    for init, seed in (("random", 0), ("random", 1), ("file", 0), ("file", 1)):
        config = config_of(folder, student__model=path, student__init=init)
        workdir = Workdir(tmp_path, tmp_path, seed)
        keras.utils.set_random_seed(seed)
        student = distill._initial(config, workdir, dataset(config.data))
        kernels[init, seed] = next(layer for layer in student.layers if layer.name.startswith("conv")).get_weights()[0]
    said = capsys.readouterr().out
    assert "fresh weights of seed 1" in said and "for every seed" in said
    stored = keras.saving.load_model(path).layers[2].get_weights()[0]
    np.testing.assert_array_equal(kernels["file", 0], stored)
    np.testing.assert_array_equal(kernels["file", 1], stored)
    assert not np.allclose(kernels["random", 0], stored)
    assert not np.allclose(kernels["random", 0], kernels["random", 1])


def test_evaluate_says_what_helps(folder, capsys):
    options = ["--data", str(folder / "data.npz")]
    assert evaluate([str(folder / "signed.keras"), *options]) == 0
    said = capsys.readouterr().out
    assert "accuracy 50.00 %" in said
    assert "with --input-range 0 255 its balanced accuracy on the same images is 100.0 %" in said
    assert evaluate([str(folder / "signed.keras"), *options, "--input-range", "0", "255"]) == 0
    assert "accuracy 100.00 %" in capsys.readouterr().out

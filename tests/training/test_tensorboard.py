"""What a training leaves for TensorBoard: every point once, the same examples, real PNGs, and no weight moved by it."""

import io
import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tfigkd.batches.augment import overlay
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config
from tfigkd.config.measure_fields import TensorBoardConfig
from tfigkd.config.reading import from_mapping
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import load
from tfigkd.runtime.errors import UserError
from tfigkd.training import panels
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
from tfigkd.training.tensorboard import Board, EventFile, Watched, model_graph

EPOCHS, STEPS = 4, 4


@pytest.fixture(scope="module")
def data():
    return load("digits", limit=64)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="block_00_conv")(inputs)
    x = keras.layers.BatchNormalization(name="block_00_bn")(x)
    x = keras.layers.ReLU(name="block_00")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="block_01_conv")(x)
    x = keras.layers.Dropout(0.3)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))


def watched(data, **settings):
    maps = data.validation.images[: settings.get("examples", 8), ..., 0]
    return Watched(data.validation, True, data.class_names, TensorBoardConfig(**settings), teacher_maps=maps)


def train(data, folder, *, look=None, epochs=EPOCHS):
    """Train a small student."""
    recipe = TrainingConfig(epochs=epochs, batch_size=16)
    stream = TrainingBatches(data.train, recipe, AugmentConfig(1), seed=0)
    folder.mkdir(exist_ok=True)

    model = Distiller(network())
    options = {"examples": STEPS * 16, "config": recipe, "folder": folder}
    training = Training(
        model,
        stream,
        fingerprint="f",
        tensorboard=folder / "tb",
        title="test",
        validation=data.validation,
        watched=look,
        **options,
    )
    training.run()
    return model.student.get_weights()


def read(folder):
    """All points of a folder as TensorBoard reads them: tag to steps, and the accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    steps = {tag: [event.step for event in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    steps |= {tag: [event.step for event in accumulator.Images(tag)] for tag in tags["images"]}
    return steps, accumulator


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(data, folder, look=watched(data, pictures=2)), *read(folder / "tb")


def test_each_point_stands_once_over_the_optimizer_s_steps(whole):
    _, steps, accumulator = whole
    every = [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    for tag in ("train/loss", "train/hard_loss", "train/accuracy", "validation/accuracy", "train/learning_rate"):
        assert steps[tag] == every
    assert steps["examples"] == steps["confusion"] == [every[1], every[3]]
    assert [event.value for event in accumulator.Scalars("train/epoch")] == [1, 2, 3, 4]
    for speed, pace in zip(
        *map(accumulator.Scalars, ("train/images_per_second", "train/step_milliseconds")), strict=True
    ):
        assert speed.value * pace.value == pytest.approx(1e3 * 16, rel=1e-3)


def test_looking_changes_no_weight(whole, data, tmp_path):
    for a, b in zip(whole[0], train(data, tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)
    steps, _ = read(tmp_path / "tb")
    assert "examples" not in steps and "train/loss" in steps


def test_a_resumed_run_takes_back_what_the_killed_one_wrote_too_much(whole, data, tmp_path, monkeypatch):
    from tfigkd.training import checkpoint

    save, calls = checkpoint.save, itertools.count(1)

    def killed(*arguments):  # the points of the third epoch are written, its checkpoint is not
        if next(calls) == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, "save", killed)
        train(data, tmp_path, look=watched(data, pictures=4))
    assert read(tmp_path / "tb")[0]["train/loss"] == [4, 8, 12]
    weights = train(data, tmp_path, look=watched(data, pictures=4))
    steps, _ = read(tmp_path / "tb")
    assert steps["train/loss"] == steps["validation/loss"] == steps["examples"] == [4, 8, 12, 16]
    for a, b in zip(whole[0], weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pictures_are_drawn_evenly_and_after_the_last_epoch(data):
    def drawn(pictures, epochs):
        look = watched(data, pictures=pictures)
        return [epoch + 1 for epoch in range(epochs) if look.due(epoch, epochs)]

    assert drawn(5, 100) == [20, 40, 60, 80, 100]
    assert drawn(3, 10) == [4, 7, 10]
    assert drawn(5, 2) == [1, 2]
    assert drawn(0, 9) == []


def test_the_pictures_are_those_of_the_first_validation_examples(whole, data):
    accumulator = whole[2]
    first, last = (
        np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in accumulator.Images("examples")
    )
    assert first.shape == last.shape
    picture = np.kron(data.validation.images[0], np.ones((12, 12, 1), np.uint8))
    place = find(first, picture)
    assert place is not None and place == find(last, picture)
    maps = panels.heat(data.validation.images[:1, ..., 0])[0]
    assert find(first, np.kron(maps, np.ones((12, 12, 1), np.uint8))) is not None
    laid = overlay(data.validation.images[:1] / np.float32(255), data.validation.images[:1, ..., 0], np.ones(1))[0]
    assert find(first, np.kron(np.round(255 * laid).astype(np.uint8), np.ones((12, 12, 1), np.uint8))) is not None


def find(canvas, picture):
    """Where a picture stands on a canvas, or None."""
    height, width, _ = picture.shape
    for top, left in np.argwhere((canvas[: -height + 1, : -width + 1] == picture[0, 0]).all(axis=-1)):
        if (canvas[top : top + height, left : left + width] == picture).all():
            return int(top), int(left)
    return None


def test_heat_goes_from_black_over_red_and_yellow_to_white():
    maps = np.array([[[0, 1], [2, 3]]]) * 1e-9
    expected = [[[0, 0, 0], [255, 0, 0]], [[255, 255, 0], [255, 255, 255]]]
    np.testing.assert_array_equal(panels.heat(maps)[0], expected)
    np.testing.assert_array_equal(panels.heat(np.zeros((1, 2, 2))), np.zeros((1, 2, 2, 3)))


@pytest.mark.parametrize("classes", [2, 20, 21, 1000])
def test_a_confusion_matrix_is_dark_where_the_counts_are(classes):
    png = panels.confusion(7 * np.eye(classes, dtype=int)[::-1], [f"class {index}" for index in range(classes)])
    image = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    assert max(image.shape) < 1200
    blue = (image == [50, 115, 215]).all(axis=-1)
    columns = np.flatnonzero(blue.any(axis=0))
    left, right = (np.flatnonzero(blue[:, column]).mean() for column in (columns[0], columns[-1]))
    assert left > right  # the class that is listed last is predicted as the first


def test_class_names_in_any_script_are_legible_or_numbers():
    def drawn(*names):
        return panels.confusion(np.eye(2, dtype=int), names)

    # Cyrillic and umlauts are in a font that matplotlib brings along; two names must not become the same boxes
    assert drawn("Äpfel", "Жук") != drawn("Öpfel", "Лук")
    assert panels.drawable_name("Äpfel", 0) == "Äpfel"
    # no font has a private-use character, and of scripts of which no font is installed the number is shown
    assert panels.drawable_name("\U0010fffd", 3) == "class 3"
    cat = panels.drawable_name("猫", 0)
    assert cat == "class 0" if panels.font_for("猫") is None else cat == "猫"
    assert drawn("猫", "犬") != drawn("x", "y")


def test_large_pictures_are_shown_smaller(data):
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 600, 3), dtype=np.uint8)
    png = panels.gallery(images, images[..., 0], ["a", "b"])
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width < 400 and picture.height < 300


def test_the_graph_has_every_layer_and_its_sources(whole):
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    accumulator = whole[2]
    graph = GraphDef.FromString(accumulator.Graph().SerializeToString())
    nodes = {node.name: node for node in graph.node}
    assert list(nodes["block_00/bn"].input) == ["block_00/conv"]
    assert list(nodes["block_01/conv"].input) == ["block_00/output"]
    assert nodes["block_00/conv"].op == "Conv2D" and nodes["block_00/conv"].attr["parameters"].i == 4 * 27 + 4
    assert [size.size for size in nodes["logits"].attr["_output_shapes"].list.shape[0].dim] == [-1, 10]
    inputs = keras.Input((4,), name="x")
    joined = keras.Model(inputs, keras.layers.Dense(4, name="dense")(inputs) + inputs)
    nodes = {node.name: node for node in model_graph(joined, GraphDef()).node}
    assert sorted(next(node for name, node in nodes.items() if name.startswith("add")).input) == ["dense", "x"]


def test_the_graph_of_nested_shared_and_sequential_models():
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="inside")], name="inner")
    nodes = {node.name: node for node in model_graph(inner, GraphDef()).node}
    assert nodes["inside"].attr["parameters"].i == 20
    inputs, shared = keras.Input((4,), name="x"), keras.layers.Dense(4, name="shared")
    outputs = keras.layers.Add(name="sum")([shared(inputs), shared(inner(inputs))])
    nodes = {node.name: node for node in model_graph(keras.Model(inputs, outputs), GraphDef()).node}
    assert set(nodes["shared"].input) == {"x", "inner"} and list(nodes["sum"].input) == ["shared"]


def test_the_profiler_records_the_steps_asked_for(data, tmp_path, capsys):
    train(data, tmp_path, look=watched(data, pictures=0, profile_steps=(2, 3)), epochs=1)
    assert "profile: " in capsys.readouterr().out
    (trace,) = (tmp_path / "tb").glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.parametrize(
    "settings",
    [{"pictures": -1}, {"examples": 0}, {"profile_steps": (3,)}, {"profile_steps": (5, 4)}, {"profile_steps": (0, 4)}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=r"tensorboard\."):
        from_mapping(Config, {"tensorboard": settings})


def test_without_the_package_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tfigkd.training.tensorboard._protocol", lambda: None)
    train(data, tmp_path, look=watched(data), epochs=1)
    assert not (tmp_path / "tb").exists()


def test_a_full_disk_is_met_where_it_can_be_told(tmp_path):
    board = Board(tmp_path, examples=1, steps=1, epochs=1, done=0)
    board.writer = EventFile(tmp_path)
    board.writer.path = Path("/dev/full")
    board.on_epoch_begin(0)
    board.on_train_batch_end(0)
    with pytest.raises(OSError, match=r"No space left on device.*/dev/full"):
        board.write_epoch(0, {})

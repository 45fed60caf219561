"""What compress and export refuse is said before the first step of training, and a teacher's file blocks no student."""

from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd.config.training_fields import TrainingConfig
from tfigkd.edge.litert import float_tensors
from tfigkd.run import main, parse
from tfigkd.runtime.files import read_manifest
from tfigkd.stages.preflight import early_remarks, long_warmup, slow_averages

L = keras.layers
SHORT = [
    "--experiment",
    "quickstart",
    "--augment.crop_padding",
    "0",
    "--training.epochs",
    "1",
    "--training.batch_size",
    "16",
    "--training.warmup_epochs",
    "0",
    "--attribution.n_steps",
    "2",
    "--attribution.tolerance",
    "10",
    "--evaluation.attribution_examples",
    "2",
    "--evaluation.gallery_examples",
    "2",
    "--tensorboard.pictures",
    "0",
    "--benchmark.runs",
    "3",
    "--benchmark.warmup",
    "1",
    "--export.min_int8_agreement",
    "0",
    "--teacher.train",
    "False",
    "--teacher.width",
    "1",
    "--teacher.drop_blocks",
    "0",
    "--teacher.normalization",
    "none",
    "--student.width",
    "1",
    "--student.drop_blocks",
    "0",
    "--compress.steps",
    "2",
    "--compress.batch_size",
    "8",
]
TEACHERS = ("plain", "norm", "nested")


def teach(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
    """Train a network until it knows the classes; one at chance is refused as a teacher."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    pixels = images / np.float32(255)
    model.fit(pixels, labels, epochs=40, batch_size=20, verbose=0)
    assert model.evaluate(pixels, labels, verbose=0)[1] > 0.7


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set and models, some of which int8 does not suit."""
    folder = tmp_path_factory.mktemp("early")
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 120, (60, 12, 12, 3)).astype("uint8")
    for image, label in zip(images, labels, strict=True):
        image[..., label] += 100
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:30] + 1, y_test=labels[:30])
    keras.utils.set_random_seed(0)
    inner = [L.Conv2D(16, 3), L.BatchNormalization(momentum=0.5), L.ReLU(), L.Conv2D(8, 1)]
    stacks = {
        "plain": [L.ReLU()],
        "swish": [L.Activation("swish"), L.Rescaling(0.5)],
        "norm": [L.LayerNormalization(name="odd")],
        "loose": [L.ReLU(), L.BatchNormalization(1, name="loose", momentum=0.5), L.Conv2D(8, 1)],
        "separable": [L.SeparableConv2D(8, 3, name="two")],
        "nested": [keras.Sequential(inner)],
    }
    for name, stack in stacks.items():
        head = [L.GlobalAveragePooling2D(), L.Dense(3)]
        model = keras.Sequential([keras.Input((12, 12, 3)), L.Conv2D(8, 3), *stack, *head])
        if name in TEACHERS:
            teach(model, images, labels)
        model.save(folder / f"{name}.keras")
    return folder


def go(files: Path, workdir: Path, teacher: str, student: str, *arguments: str) -> int:
    places = ["--data.name", files / "data.npz", "--workdir", workdir / "run", "--teachers", workdir / "teachers"]
    models = ["--teacher.model", files / f"{teacher}.keras", "--student.model", files / f"{student}.keras"]
    return main([*SHORT, *map(str, [*places, *models]), *arguments])


@pytest.mark.parametrize(
    ("student", "arguments", "message"),
    [
        ("norm", ["--compress.method", "qat"], "layer 'odd': LayerNormalization is not a supported layer type"),
        ("loose", ["--compress.method", "qat"], "layer 'loose': it cannot be folded"),
        ("separable", ["--compress.method", "qat"], "layer 'two': SeparableConv2D is not a supported layer type"),
        ("norm", [], "cannot be converted to int8: NEG would stay in floats"),
        ("plain", ["--compress.method", "prune_channels"], "has no channels to cut"),
        ("swish", ["--compress.method", "qat_tfmot"], "tfmot does not support Activation"),
        ("plain", ["--compress.method", "cluster", "--compress.losses.rkd.weight", "1"], None),
        (
            "plain",
            ["--compress.method", "prune_tfmot", "--compress.losses.ig_match.weight", "1"],
            "tfmot methods can distill only from logits",
        ),
    ],
)
def test_refusals_come_before_anything_is_trained(files, tmp_path, capsys, student, arguments, message):
    status = go(files, tmp_path, "plain", student, *arguments, *([] if message else ["--dry_run"]))
    error = capsys.readouterr().err
    if message is None:
        assert status == 0, error
        return
    assert status == 1 and message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("**/*.keras"))  # neither teacher nor student has been made


def test_averages_that_training_does_not_reach_are_said_before_the_first_step(files, tmp_path, capsys):
    """60 pictures of which 54 train, in batches of 16 for 10 epochs: 40 steps; Keras's momentum is 0.99."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((12, 12, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.GlobalAveragePooling2D(), L.Dense(3)]
    keras.Sequential(layers).save(tmp_path / "slow.keras")
    places = ["--data.name", files / "data.npz", "--workdir", tmp_path / "run", "--teachers", tmp_path / "teachers"]
    given = [*SHORT, *map(str, places), "--teacher.model", str(files / "plain.keras"), "--training.epochs", "10"]
    student = ["--student.model", str(tmp_path / "slow.keras")]
    assert main([*given, *student, "--dry_run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    share = 0.99**40
    assert f"momentum 0.99: after 40 steps {100 * share:.2f} % of its averages are still the initial ones." in said
    for change in (["--training.ema", "0.99"], ["--student.init", "file"], ["--training.epochs", "100"]):
        remarks = early_remarks(parse([*given, *student, *change])[1].config)
        assert not any("still the initial ones" in remark.text for remark in remarks)
    assert slow_averages(keras.Sequential([keras.Input((3,)), L.Dense(2)]), 1) == []


def test_a_warm_up_that_does_not_end_is_said(capsys):
    given = ["--experiment", "ig_kd", "--data.name", "digits", "--teacher.training.precision", "float32"]
    for epochs, remarks in (
        ("2", ["teacher.training.warmup_epochs = 2 is no shorter than the training of 2 epochs"]),
        ("3", []),
    ):
        config = parse([*given, "--teacher.training.epochs", epochs])[1].config
        assert [one.text.split(":")[0] for one in early_remarks(config) if one.kind == "long warm-up"] == remarks
    (one,) = long_warmup(TrainingConfig(epochs=1, warmup_epochs=1.5, learning_rate=0.1), "training")
    assert one.sentence == (
        "training.warmup_epochs = 1.5 is no shorter than the training of 1 epoch: the learning rate never reaches 0.1. "
        "Change: --training.warmup_epochs, --training.epochs."
    )


def test_a_teacher_that_int8_does_not_suit_blocks_nothing(files, tmp_path, capsys):
    assert go(files, tmp_path, "norm", "swish") == 0, capsys.readouterr().err
    assert "teacher.int8.tflite: not written, the run goes on without it" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "run" / "export")
    written = {name for name in manifest["files"] if name.endswith(".tflite")}
    assert written == {"student.float32.tflite", "student.int8.tflite", "teacher.float32.tflite"}
    assert "would stay in floats" in manifest["left_out"]["teacher.int8.tflite"]
    assert not (tmp_path / "run" / "export" / "teacher.int8.tflite").exists()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(("student", "method"), [("nested", "prune_channels"), ("swish", "qat"), ("nested", "qat")])
def test_users_networks_are_compressed(files, capsys, student, method):
    """Both methods go on from the same student."""
    workdir, stages = files / f"with {student}", ["--stages", "data,teacher,overlays,distill,compress,export"]
    given = ["--compress.method", method, "--export.formats", "int8", *stages]
    assert go(files, workdir, "plain", student, *given) == 0, capsys.readouterr().err
    assert read_manifest(workdir / "run" / "compress")["method"] == method
    assert float_tensors(workdir / "run" / "export" / "compressed.int8.tflite") == []


def test_a_student_can_begin_as_the_first_blocks_of_any_teacher(files, tmp_path, capsys):
    places = ["--data.name", files / "data.npz", "--workdir", tmp_path / "run", "--teachers", tmp_path / "teachers"]
    begun = ["--student.init", "teacher", "--student.drop_blocks", "1", "--teacher.model", files / "nested.keras"]
    stages = ["--stages", "data,teacher,overlays,distill", "--training.learning_rate=1e-9"]
    assert main([*SHORT, *map(str, [*places, *begun, *stages])]) == 0, capsys.readouterr().err
    student = keras.saving.load_model(tmp_path / "run" / "distill" / "student.keras")
    teacher = keras.saving.load_model(files / "nested.keras")
    first = next(layer for layer in teacher.layers if isinstance(layer, L.Conv2D))
    np.testing.assert_allclose(student.get_layer(first.name).kernel, first.kernel, atol=1e-5)
    places[3] = tmp_path / "other"  # the same with more blocks dropped than there are
    assert main([*SHORT, *map(str, [*places, *begun]), "--student.drop_blocks", "7"]) == 1
    said = capsys.readouterr().err
    assert "student.init = teacher: drop_blocks must be in 0.." in said and "choose one of these" in said

"""Metrics against values computed by hand."""

import csv
import os
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tfigkd.config.experiment import override, read_experiment
from tfigkd.data import Examples, to_model_input
from tfigkd.edge.convert import convert
from tfigkd.edge.litert import litert_predictor
from tfigkd.measure.map_metrics import similarity_metrics
from tfigkd.measure.metrics import (
    accuracy,
    calibration_error,
    comparison,
    disagreement,
    measure,
    metrics,
    mirrored_accuracy,
    per_class,
    predict_logits,
)
from tfigkd.runtime import provenance
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, read_manifest
from tfigkd.runtime.provenance import hardware, versions
from tfigkd.runtime.rows import append_row, require_columns
from tfigkd.stages.data import dataset
from tfigkd.stages.evaluate import evaluate
from tfigkd.stages.export import export
from tfigkd.stages.report import report
from tfigkd.stages.runner import Run, run
from tfigkd.stages.workdir import Workdir

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], np.float32))


def test_accuracy_and_nll_by_hand():
    labels = np.array([0, 2, 2])
    values = dict(metrics(LOGITS, labels))
    assert accuracy(LOGITS, labels) == values["accuracy"] == pytest.approx(2 / 3)
    assert values["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.4]).mean())


def test_labels_in_a_column_are_the_same_labels():
    labels = np.array([0, 2, 2])
    column = labels[:, None]
    assert accuracy(LOGITS, column) == pytest.approx(2 / 3)
    assert dict(metrics(LOGITS, column)) == dict(metrics(LOGITS, labels))
    assert calibration_error(LOGITS, column) == calibration_error(LOGITS, labels)
    assert per_class(LOGITS, column, 3) == per_class(LOGITS, labels, 3)
    assert disagreement(LOGITS, -LOGITS, column) == disagreement(LOGITS, -LOGITS, labels)


@pytest.mark.parametrize("labels", [np.array([0, 2]), np.array([1]), np.eye(3, dtype=int), np.zeros((3, 1, 1), int)])
def test_labels_of_another_shape_are_refused(labels):
    uses = (accuracy, calibration_error, partial(per_class, num_classes=3), lambda *both: dict(metrics(*both)))
    for use in uses:
        with pytest.raises(
            ValueError, match=r"labels must be integers \[N\] or \[N,1\] for logits \(3, 3\), got shape"
        ):
            use(LOGITS, labels)


@pytest.mark.parametrize("label", [3, -1])
def test_metrics_of_labels_that_are_no_class_are_refused(label):
    with pytest.raises(UserError, match=f"label {label} belongs to none of the model's 3 classes"):
        dict(metrics(LOGITS, np.array([0, label, 2])))


def one_hot(predicted, classes):
    """Return the logits of a model that is confident in its predictions."""
    return np.float32(50 * np.eye(classes)[predicted])


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_the_model_does_not_have_are_refused(label):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    examples = Examples(np.arange(4).astype(str), images, np.array([0, 1, 2, label]), np.arange(4).astype(str))
    with pytest.raises(
        UserError, match=f"label {label} belongs to none of the model's 3 classes; expected labels 0 to 2"
    ):
        measure(lambda pictures: np.zeros((len(pictures), 3), np.float32), examples)
    known, _ = measure(lambda pictures: np.eye(3, dtype=np.float32)[[0, 1, 2]], examples.take(slice(3)))
    assert known["accuracy"] == 1


def test_kappa_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    for classes, share in ((2, 0.9), (7, 0.3), (40, 0.0)):
        labels = random.integers(0, classes, 300)
        predicted = np.where(random.random(300) < share, labels, random.integers(0, classes + 2, 300))
        found = dict(metrics(np.eye(classes + 2)[predicted], labels))["kappa"]
        assert found == pytest.approx(cohen_kappa_score(labels, predicted), abs=1e-12)


def test_balanced_accuracy_and_kappa_by_hand():
    labels = np.array([0] * 6 + [1] * 2 + [3] * 2)
    predicted = np.array([0] * 6 + [1, 0] + [2, 2])
    values = dict(metrics(one_hot(predicted, 5), labels))
    assert values["accuracy"] == pytest.approx(0.7)
    assert values["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 0) / 3)  # classes 2 and 4 do not occur
    chance = (6 * 7 + 2 * 1) / 100
    assert values["kappa"] == pytest.approx((0.7 - chance) / (1 - chance))


@pytest.mark.parametrize(("predicted", "expected"), [(2, 1), (0, 0)])
def test_a_split_of_one_class(predicted, expected):
    labels = np.full(4, 2)
    values = dict(metrics(one_hot(np.full(4, predicted), 3), labels))
    assert (values["accuracy"], values["balanced_accuracy"], values["kappa"]) == (expected, expected, 0)
    assert all(np.isfinite(list(values.values())))


@pytest.mark.parametrize("classes", [10, 11, 100])
def test_top_5_is_given_for_more_than_ten_classes_and_is_that_of_keras(classes):
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(300, classes)).astype(np.float32), rng.integers(0, classes, 300)
    logits[np.arange(300), labels] += 1
    found = dict(metrics(logits, labels))
    top5 = keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k=5)
    assert found.get("top5_accuracy") == (None if classes == 10 else pytest.approx(float(np.mean(top5))))


def test_calibration_error_by_hand():
    # five bins: 0.55 and 0.6 share (0.4, 0.6], 0.9 and 1 share (0.8, 1]
    top = np.array([0.55, 0.6 - 1e-9, 0.75, 0.9, 1 - 1e-9])
    logits, labels = np.log(np.stack([top, 1 - top], axis=1)), np.array([0, 1, 1, 0, 0])
    expected = (abs(1 - 1.15) + abs(0 - 0.75) + abs(2 - 1.9)) / 5
    assert calibration_error(logits, labels, bins=5) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(abs(3 - top.sum()) / 5, abs=1e-6)


def test_calibration_error_has_fifteen_bins_closed_above():
    top = np.array([7.5 / 15, 8 / 15 - 1e-9, 8 / 15 + 1e-9])
    logits, labels = np.log(np.stack([top, 1 - top], axis=1)), np.array([0, 1, 0])
    expected = (abs(1 - top[:2].sum()) + 1 - top[2]) / 3
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_calibrated_predictions():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((20_000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    assert calibration_error(logits, labels) < 0.02
    assert calibration_error(3 * logits, labels) > 0.05
    assert calibration_error(one_hot(labels, 3), labels) == pytest.approx(0, abs=1e-12)
    assert calibration_error(one_hot((labels + 1) % 3, 3), labels) == pytest.approx(1)


def test_per_class_by_hand():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 2, 2, 1])
    assert per_class(one_hot(predicted, 4), labels, 4) == [
        {"examples": 4, "recall": 0.75, "precision": 1.0},
        {"examples": 2, "recall": 0.5, "precision": 1.0},
        {"examples": 0, "recall": None, "precision": 0.0},
        {"examples": 0, "recall": None, "precision": None},
    ]


def test_comparison_by_hand():
    other = LOGITS[[0, 2, 2]]
    values = dict(comparison(other, LOGITS))
    reference, actual = np.exp(LOGITS[1]), np.exp(LOGITS[2])
    assert values["agreement"] == pytest.approx(2 / 3)
    assert values["kl"] == pytest.approx((reference * np.log(reference / actual)).sum() / 3)
    assert values["max_difference"] == pytest.approx(np.log(3))
    equal = dict(comparison(LOGITS + 5, LOGITS))
    assert (equal["agreement"], equal["kl"]) == (1, pytest.approx(0, abs=1e-9))


def test_mirror_images_are_averaged_in_logits():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[0, :, 0], images[1, :, 1], images[2, :, 1] = 4, 4, 1

    def predict(images):  # class 1 by what is on the left, class 0 by a constant
        left = images[:, 0, 0, 0].astype(np.float32)
        return np.stack([np.full(len(left), 1.5, np.float32), left], axis=1)

    labels = np.array([1, 1, 1])
    assert accuracy(predict(images), labels) == pytest.approx(1 / 3)
    # the sums over both sides are 3 against 4, 4 and 1
    assert mirrored_accuracy(predict, images, predict(images), labels) == pytest.approx(2 / 3)


def test_a_model_that_gives_nan_is_one_line():
    ids = np.arange(20).astype("U2")
    examples = Examples(ids, np.zeros((20, 2, 2, 3), np.uint8), np.arange(20), ids)
    with pytest.raises(UserError, match="the model gives NaN or infinity"):
        measure(lambda images: np.full((len(images), 20), np.nan), examples)


def test_huge_logits_stay_finite():
    assert np.isfinite(dict(metrics(np.array([[1e30, -1e30]], np.float32), np.array([1])))["nll"])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_predictions_do_not_depend_on_the_batch_size(count):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(hidden)))
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    whole = keras.ops.convert_to_numpy(model(images.astype(np.float32) / 255, training=False))
    logits = predict_logits(model, images, batch_size=8)
    assert logits.shape == (count, 3)
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_rows_are_appended_and_other_columns_refused(tmp_path):
    path = tmp_path / "rows.csv"
    append_row(path, {"a": 1, "b": "x, y"})
    append_row(path, {"a": 2, "b": "z"})
    with open(path, newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z"}]
    with pytest.raises(UserError, match="columns"):
        append_row(path, {"a": 3})


def test_rows_of_processes_that_begin_a_table_together(tmp_path):
    code = "import sys; from pathlib import Path; from tfigkd.runtime.rows import append_row\n" + (
        "for one in range(200): append_row(Path(sys.argv[1]) / f'{one}.csv', {'a': 1, 'b': 2})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"a,b\n" + 3 * "1,2\n"}


def test_a_row_is_not_appended_to_half_a_row(tmp_path):
    path = tmp_path / "rows.csv"
    append_row(path, {"a": 1, "b": "x"})
    path.write_text(path.read_text().removesuffix("\n"))
    for check in (lambda: append_row(path, {"a": 2, "b": "y"}), lambda: require_columns(path, ["a", "b"])):
        with pytest.raises(UserError, match="the last line has no end"):
            check()
    path.write_text("")
    require_columns(path, ["a", "b"])
    append_row(path, {"a": 2, "b": "y"})
    assert path.read_text() == "a,b\n2,y\n"


def test_provenance_names_what_affects_the_results():
    assert "tensorflow 2.21" in versions()
    assert hardware().endswith("cores")


@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_hardware_names_the_accelerator_of_the_backend_and_imports_nothing(monkeypatch, backend):
    gpu = SimpleNamespace(platform="gpu", device_kind="A GPU")
    details = SimpleNamespace(get_device_details=lambda device: {"device_name": device.device_kind})
    config = SimpleNamespace(list_physical_devices=lambda kind: [gpu], experimental=details)
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(backend=SimpleNamespace(backend=lambda: backend)))
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert hardware().endswith("cores")
    fake = SimpleNamespace(devices=lambda: [gpu], config=config)
    monkeypatch.setitem(sys.modules, backend, fake)
    assert hardware().endswith("cores, A GPU")
    gpu.platform, config.list_physical_devices = "cpu", lambda kind: []
    assert hardware().endswith("cores")


def test_a_copy_without_git_gets_its_commit_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "tfigkd").mkdir()
    shutil.copy(provenance.__file__, tmp_path / "tfigkd")
    code = "import provenance; print(provenance.commit())"
    command = [sys.executable, "-c", code]

    def said(**environment):
        folder = {"PYTHONPATH": str(tmp_path / "tfigkd")}
        return subprocess.check_output(command, env=os.environ | folder | environment, text=True).strip()

    assert said() == ""
    assert said(TFIGKD_COMMIT="0123456789ab+changes") == "0123456789ab+changes"
    monkeypatch.setenv("TFIGKD_COMMIT", "0123456789ab")
    assert provenance.commit() == "0123456789ab"  # a copy may lie in a repository that is at another commit


TINY = {
    "data.name": "digits",
    "teacher.training.precision": "float32",
    "data.limit": 96,
    "tensorboard.pictures": 0,
    "teacher.drop_blocks": 14,
    "teacher.width": 0.25,
    "teacher.training.epochs": 1,
    "student.drop_blocks": 16,
    "student.width": 0.25,
    "training.epochs": 1,
    "attribution.max_steps": 4,
    "evaluation.attribution_examples": 5,
    "evaluation.curve_steps": 4,
    "export.min_int8_agreement": 0.0,
}
OF_LOGITS = {"accuracy", "balanced_accuracy", "kappa", "nll", "ece"}
OF_TWO = {"agreement", "kl", "max_difference", "mean_difference"}
OF_A_MAP = {"attribution_insertion", "attribution_deletion"}
OF_TWO_MAPS = {
    f"attribution_{name}{pair}" for name in ("rank_correlation", "cosine", "top_overlap") for pair in ("", "_chance")
}
OF_A_NETWORK = {"parameters", "multiply_adds"}


def trained(name, folder):
    """Return config and workdir of a small experiment whose student is trained."""
    config = override(read_experiment(name)[1], TINY)
    stages = ("data", "teacher", "overlays", "distill")
    run(Run(name, config, Workdir(folder / "run", folder / "teachers"), stages))
    return config, Workdir(folder / "run", folder / "teachers")


def evaluated(config, workdir):
    evaluate(config, workdir)
    return read_manifest(workdir.stage("evaluate"))


def test_the_stage_measures_teacher_student_and_files_alike(tmp_path):
    config, workdir = trained("kd", tmp_path)
    before = checksum(workdir.stage("distill") / "student.keras")
    results = evaluated(config, workdir)["results"]
    assert results["teacher"].keys() == OF_LOGITS | OF_A_MAP | OF_A_NETWORK
    assert results["student"].keys() == OF_LOGITS | OF_A_MAP | OF_A_NETWORK | OF_TWO | OF_TWO_MAPS
    assert checksum(workdir.stage("distill") / "student.keras") == before

    export(config, workdir)
    manifest = evaluated(config, workdir)
    files = {f"{role}.{format}.tflite" for role in ("teacher", "student") for format in ("float32", "int8")}
    assert manifest["results"].keys() == {"teacher", "student"} | files
    for role in ("teacher", "student"):
        model, file = manifest["results"][role], manifest["results"][f"{role}.float32.tflite"]
        assert model == results[role]
        assert file.keys() == OF_LOGITS | OF_TWO | OF_A_MAP
        for name in file.keys() & model.keys():
            assert file[name] == pytest.approx(model[name], abs=1e-3), name
    assert [entry["examples"] for entry in manifest["per_class"]["student"]] == [
        int((dataset(config.data).test.labels == label).sum()) for label in range(10)
    ]

    report(config, workdir)
    (row,) = csv.DictReader((workdir.run / "rows.csv").read_text().splitlines())
    assert float(row["student_int8_accuracy"]) == manifest["results"]["student.int8.tflite"]["accuracy"]
    assert float(row["student_attribution_cosine"]) == results["student"]["attribution_cosine"]
    page = (workdir.run / "report.md").read_text()
    for title in ("balanced accuracy", "ECE", "KL to", "rank / cosine", "insertion / deletion", "int8 test accuracy"):
        assert title in page

    evaluated(override(config, {"attribution.batch_size": 7}), workdir)  # done before
    assert read_manifest(workdir.stage("evaluate")) == manifest
    other = evaluated(override(config, {"export.calibration_examples": 8}), workdir)
    assert other["results"].keys() == {"teacher", "student"}  # the existing files belong to another config


def test_a_student_without_a_teacher_is_not_compared(tmp_path):
    config, workdir = trained("student", tmp_path)
    results = evaluated(config, workdir)["results"]
    assert {name: values.keys() for name, values in results.items()} == {
        "student": OF_LOGITS | OF_A_MAP | OF_A_NETWORK,
    }
    without = evaluated(override(config, {"evaluation.attribution_examples": 0}), workdir)["results"]
    assert without["student"] == {name: value for name, value in results["student"].items() if name not in OF_A_MAP}
    mirrored = evaluated(override(config, {"evaluation.mirrored": True}), workdir)["results"]["student"]
    test, model = dataset(config.data).test, keras.saving.load_model(workdir.stage("distill") / "student.keras")
    logits = [np.asarray(model(images / np.float32(255))) for images in (test.images, test.images[:, :, ::-1])]
    assert mirrored.pop("mirrored_accuracy") == np.mean(sum(logits).argmax(axis=1) == test.labels)
    assert mirrored == results["student"]


def test_similarity_comes_with_that_to_another_images_map():
    maps = np.random.default_rng(0).random((5, 6, 6))
    values = dict(similarity_metrics(maps, maps, top_fraction=0.1))
    assert values.keys() == OF_TWO_MAPS
    for name in (name for name in values if not name.endswith("_chance")):
        assert values[name] == pytest.approx(1)
        assert values[f"{name}_chance"] < 0.9
    shifted = dict(similarity_metrics(np.roll(maps, 1, axis=0), maps, top_fraction=0.1))
    assert shifted["attribution_cosine_chance"] == pytest.approx(1)


@pytest.mark.parametrize(("count", "compiled"), [(32, False), (40, True), (100, True)])
def test_only_small_batches_of_few_pixels_are_not_compiled(count, compiled, monkeypatch):
    """Otherwise the outputs of all layers would be in memory together."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    sizes, predict = [], model.predict_on_batch
    monkeypatch.setattr(model, "predict_on_batch", lambda batch: sizes.append(len(batch)) or predict(batch))
    logits = predict_logits(model, images, batch_size=64)
    np.testing.assert_allclose(logits, model(to_model_input(images)), atol=1e-4)
    assert sizes == ([min(count, 64)] * -(-count // 64) if compiled else [])


def test_one_function_measures_a_model_and_its_file(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(model, "float32"))
    data = dataset(override(read_experiment("quickstart")[1], {"data.limit": 40}).data)
    values, logits = measure(partial(predict_logits, model), data.test)
    of_file, same = measure(litert_predictor(path), data.test, logits)
    np.testing.assert_allclose(same, logits, atol=1e-5)
    assert of_file["agreement"] == 1
    assert {name: of_file[name] for name in values} == pytest.approx(values, abs=1e-4)

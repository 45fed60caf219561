"""Stage `compress` in a run: resumed, repeated, redone with other settings, and seen by the stages behind it."""

import csv
import json
import shlex

import pytest

from tfigkd.compress import finetune
from tfigkd.run import main
from tfigkd.runtime.files import read_manifest
from tfigkd.training import checkpoint

TINY = shlex.split("""
    --experiment quickstart --data.limit 160 --teacher.width 0.25 --teacher.drop_blocks 14 --teacher.training.epochs 10
    --teacher.training.learning_rate=0.01 --teacher.training.batch_size 32 --training.epochs 8 --training.batch_size 16
    --training.learning_rate=0.01 --student.width 0.25
    --student.drop_blocks 16 --attribution.n_steps 4 --export.min_int8_agreement 0.5 --evaluation.attribution_examples 4
    --benchmark.runs 5 --benchmark.warmup 1
    --compress.steps 20 --compress.batch_size 16
""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that has ended with an int8 student."""
    folder = tmp_path_factory.mktemp("stage")
    assert go(folder, "--compress.method", "qat") == 0
    return folder


def go(folder, *arguments):
    return main([*TINY, "--workdir", str(folder / "run"), "--teachers", str(folder / "teachers"), *arguments])


def test_every_later_stage_has_student_and_compressed_student(folder):
    run = folder / "run"
    files = {name for name in read_manifest(run / "export")["files"] if name.endswith(".tflite")}
    both = {f"{role}.{format}.tflite" for role in ("teacher", "student") for format in ("float32", "int8")}
    assert files == both | {"compressed.int8.tflite"}
    results = read_manifest(run / "evaluate")["results"]
    assert {"teacher", "student", "compressed", "compressed.int8.tflite"} <= results.keys()
    assert "attribution_cosine" in results["compressed"]
    timed = read_manifest(run / "benchmark")
    assert "compressed.int8.tflite" in timed["results"]
    profiles = timed["profiles"]
    assert {*profiles} == {"student.int8.tflite", "compressed.int8.tflite"}
    for name, profile in profiles.items():
        products = sum(operation["multiply_adds"] for operation in profile["operations"])
        assert products == timed["results"][name]["multiply_adds"] > 0
        # LiteRT counts whole microseconds, and this network needs fewer
        assert all(one["milliseconds"] is not None for one in profile["operations"] if one["multiply_adds"])
        assert sum(operation["share"] or 0 for operation in profile["operations"]) <= 1.001
        assert "ms an image with 1 thread" in profile["times"][0]
    student = profiles["student.int8.tflite"]
    assert student["images"] == 32 and all(one["cosine"] > 0.5 for one in student["operations"] if one["cosine"])
    assert profiles["compressed.int8.tflite"]["layers"] == []  # it has no float32 file
    assert "Inside the int8 file" in (run / "report.html").read_text()
    assert "| teacher | student | compressed |" in (run / "report.md").read_text()
    (row,) = csv.DictReader((run / "rows.csv").read_text().splitlines())
    assert row["compressed_method"] == "qat" and row["compressed_sparsity"] == "0.0"
    assert float(row["compressed_int8_accuracy"]) > 0.3 and "student_int8_accuracy" in row
    manifest = read_manifest(run / "compress")
    assert manifest["validation_accuracy"] >= manifest["validation_accuracy_before"] - 0.15
    assert sorted(path.name for path in (run / "compress").iterdir()) == ["compressed.keras", "manifest.json"]


def test_repeating_the_command_does_nothing_and_other_settings_only_this_stage(folder, capsys):
    before = read_manifest(folder / "run" / "distill")
    assert go(folder, "--compress.method", "qat", "--stages", "distill,compress") == 0
    assert capsys.readouterr().out.count("already done") == 2
    settings = ["--compress.teacher", "teacher", "--compress.sparsity", "0.6", "--stages", "distill,compress"]
    assert go(folder, "--compress.method", "prune", *settings) == 0
    assert capsys.readouterr().out.count("already done") == 1
    manifest = read_manifest(folder / "run" / "compress")
    assert manifest["method"] == "prune" and manifest["prunable_sparsity"] == pytest.approx(0.6, abs=0.01)
    assert read_manifest(folder / "run" / "distill") == before


def test_a_row_has_the_commit_of_its_training_and_figures_of_these_settings_alone(folder, monkeypatch, capsys):
    settings = ["--compress.method", "qat", "--stages", "compress,evaluate,report"]
    monkeypatch.setenv("TFIGKD_COMMIT", "a later one")
    assert go(folder, *settings) == 0
    (row,) = csv.DictReader((folder / "run/rows.csv").read_text().splitlines())
    assert row["commit"] == read_manifest(folder / "run/distill")["origin"]["commit"] != "a later one"
    assert row["hardware"] and row["versions"].startswith("python")
    assert go(folder, "--compress.method", "prune", "--compress.sparsity", "0.5", "--stages", "evaluate,report") == 1
    assert "compressed.keras was made with other settings" in capsys.readouterr().err
    assert go(folder, *settings) == 0  # nothing is lost


def test_an_interrupted_stage_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "CHECKPOINT_STEPS", 10)
    arguments = ["--compress.method", "prune_qat", "--stages", "compress"]
    assert go(folder, *arguments) == 0
    whole = read_manifest(folder / "run" / "compress")["weights"]
    assert go(folder, "--compress.method", "qat", "--stages", "compress") == 0
    save = checkpoint.save

    def dies(*positional):
        save(*positional)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        assert go(folder, *arguments) == 130
    capsys.readouterr()
    assert go(folder, *arguments) == 0
    assert "going on after epoch 1 of 2" in capsys.readouterr().out
    assert read_manifest(folder / "run" / "compress")["weights"] == whole


def test_without_a_method_there_is_no_such_stage(tmp_path, capsys):
    arguments = [
        "--data.limit",
        "60",
        "--training.epochs",
        "1",
        "--student.drop_blocks",
        "17",
        "--student.width",
        "0.25",
    ]
    stages = ["--stages", "data,distill,compress,report"]
    code = main(["--experiment", "student", "--data.name", "digits", "--workdir", str(tmp_path), *arguments, *stages])
    said = capsys.readouterr()
    assert code == 1 and "stage 'evaluate' has not run" in said.err
    assert "compress" not in said.out.partition("stages: ")[2] and not (tmp_path / "compress").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "student", "--compress.method", "qat", "--compress.teacher", "teacher"], "with a teacher"),
        (["--experiment", "quickstart", "--compress.method", "pqat", "--compress.sparsity", "1"], "compress.sparsity"),
        (["--experiment", "quickstart", "--compress.method", "qatt"], "qatt"),
    ],
)
def test_wrong_settings_are_one_line(arguments, message, capsys, tmp_path):
    assert main([*arguments, "--workdir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_a_config_of_an_older_version_has_no_compression(folder):
    """The field's default is none, so runs from before the field are repeated as they are."""
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["config"].pop("compress")
    from tfigkd.config.experiment import Config
    from tfigkd.config.reading import from_mapping

    assert from_mapping(Config, config["config"]).compress.method == "none"

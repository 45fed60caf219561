"""`python -m tfigkd.pack`: the package of a run, checked by sha256sum, Hugging Face's own reader and `predict`."""

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.children import run, smoke_run
from tfigkd.config.experiment import Config
from tfigkd.config.reading import from_mapping
from tfigkd.data import load
from tfigkd.data.catalog import about
from tfigkd.edge.package import SUMS, model_file, write_package
from tfigkd.pack.__main__ import main
from tfigkd.pack.content import read_facts
from tfigkd.pack.model_card import model_card
from tfigkd.predict import main as predict
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, outputs_of, read_manifest, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.runtime.rows import as_csv, read_rows, sealed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return smoke_run(tmp_path_factory) / "runs/quickstart-smoke/0"


@pytest.fixture(scope="module")
def package(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "student.zip"
    assert main([str(finished), "--output", str(path), "--license", "apache-2.0"]) == 0
    return path


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def refusal(capsys, entry, *arguments):
    capsys.readouterr()
    assert entry([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error)
    return error


def test_every_file_is_the_runs_own_and_has_its_checksum(finished, package, tmp_path):
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(["sha256sum", "--strict", "--check", SUMS], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    names = {path.name for path in tmp_path.iterdir()}
    litert = {f"student.{format}.{suffix}" for format in ("float32", "int8") for suffix in ("tflite", "json")}
    own = {"config.json", "rows.csv", "report.html", "student.keras"}
    assert names == litert | own | {"labels.txt", "README.md", SUMS}
    for name in litert | own:
        folder = {".html": ".", ".csv": ".", ".keras": "distill"}.get(f".{name.rsplit('.', 1)[1]}", "export")
        source = finished / ("." if name == "config.json" else folder) / name
        assert (tmp_path / name).read_bytes() == source.read_bytes()
    assert (tmp_path / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]


def test_the_card_has_the_metadata_of_hugging_face_and_the_figures_of_the_row(finished, package):
    with zipfile.ZipFile(package) as archive:
        text = archive.read("README.md").decode()
    card = ModelCard(text).data
    assert (card.license, card.pipeline_tag, card.datasets) == ("apache-2.0", "image-classification", ["digits"])
    found = {one.metric_name.removeprefix("accuracy of "): one.metric_value for one in card.eval_results}
    with open(finished / "rows.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    expected = {f"student.{format}.tflite": float(row[f"student_{format}_accuracy"]) for format in ("float32", "int8")}
    assert found == expected | {"student.keras": float(row["student_accuracy"])}
    assert {(one.dataset_name, one.dataset_split, one.task_type) for one in card.eval_results} == {
        ("digits", "test", "image-classification")
    }
    assert "smoke run" in text and row["commit"] in text
    assert read_manifest(finished / "data")["data"] in text
    assert "`python -m tfigkd.run --experiment quickstart --seed 0 --smoke" in text


def test_the_same_run_gives_the_same_package(finished, package, tmp_path):
    again = tmp_path / "student.zip"
    assert main([str(finished), "--output", str(again), "--license", "apache-2.0"]) == 0
    assert again.read_bytes() == package.read_bytes()


@pytest.mark.parametrize(("file", "chosen"), [(None, "int8"), ("student.float32.tflite", "float32")])
def test_predict_reads_it_as_it_reads_the_file(finished, package, tmp_path, capsys, file, chosen):
    Image.fromarray(load("digits").test.images[0]).save(tmp_path / "digit.png")
    picture, seen = str(tmp_path / "digit.png"), []
    alone = str(finished / "export" / f"student.{chosen}.tflite")
    for arguments in ([str(package), picture, *(["--file", file] if file else [])], [alone, picture]):
        assert predict(arguments) == 0
        seen.append(re.sub(r"\(.* ms\)", "", capsys.readouterr().out))
    assert seen[0] == seen[1] and "%" in seen[0]


def test_a_report_with_pictures_can_be_left_out(finished, tmp_path, capsys):
    assert main([str(finished), "--output", str(tmp_path / "a.zip"), "--no-report"]) == 0
    assert "no license is named" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert "report.html" not in archive.namelist()
        assert ModelCard(archive.read("README.md").decode()).data.license == "unknown"


def test_an_experiment_of_the_users_own_is_in_it(copied, tmp_path):
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"experiment": "my étude"}))
    assert main([str(copied)]) == 0
    with zipfile.ZipFile(copied / "student.zip") as archive:
        assert "[training]" in archive.read("my étude_as_run.toml").decode()
        assert "--experiment 'my étude_as_run.toml'" in archive.read("README.md").decode()
    with model_file(copied / "student.zip") as model:
        assert model.name == "student.int8.tflite"


def test_signs_of_markdown_in_names_are_shown_as_they_are(copied):
    facts = read_facts(copied)
    facts.data["class_names"][0] = "<b>`a|b`"
    assert r"\<b\>\`a\|b\`, 1, 2" in model_card(facts, "student.zip", {})


def test_the_command_of_the_card_can_be_pasted(copied):
    """A package with a space in its name."""
    facts = read_facts(copied)
    assert "tfigkd.predict 'my model.zip' PICTURE.png" in model_card(facts, "my model.zip", {})
    assert "tfigkd.predict student.zip PICTURE.png" in model_card(facts, "student.zip", {})


def test_a_run_that_is_not_finished_is_refused(copied, tmp_path, capsys):
    assert "no run in" in refusal(capsys, main, tmp_path)
    assert "must end in .zip" in refusal(capsys, main, copied, "--output", "x.tar")
    (copied / "verdict.json").unlink()
    assert "stage 'report' has not run" in refusal(capsys, main, copied)
    (copied / "export" / "student.int8.tflite").write_bytes(b"other")
    assert "student.int8.tflite is corrupt" in refusal(capsys, main, copied)
    shutil.rmtree(copied / "export")
    assert "stage 'export' has not run" in refusal(capsys, main, copied)


def test_files_that_were_exported_anew_are_not_given_the_old_figures(copied, capsys):
    manifest = read_manifest(copied / "evaluate")
    files = {name: "0" * 64 for name in manifest["exported"]}
    outputs = outputs_of(manifest)
    write_manifest(
        copied / "evaluate", manifest["fingerprint"], files=manifest["files"], **outputs | {"exported": files}
    )
    assert "not those that were measured" in refusal(capsys, main, copied)


def test_files_that_were_exported_anew_are_not_given_the_old_latency(copied):
    manifest = read_manifest(copied / "benchmark")
    exported = read_manifest(copied / "export")["files"]
    assert manifest["exported"] == {name: sum for name, sum in exported.items() if name.endswith(".tflite")}
    outputs = outputs_of(manifest)
    outputs["exported"] |= {"student.int8.tflite": "0" * 64}
    write_manifest(copied / "benchmark", manifest["fingerprint"], files=manifest["files"], **outputs)
    facts = read_facts(copied)
    assert "student.int8.tflite" not in facts.timed["results"] and "student.float32.tflite" in facts.timed["results"]
    assert "int8_ms" not in facts.roles["student"] and facts.roles["student"]["float32_ms"] > 0


def test_settings_of_a_later_call_are_not_packed(copied, capsys):
    """As after `--evaluation.gallery_examples 3 --stages evaluate`, without the report."""
    settings = json.loads((copied / "config.json").read_text())
    settings["config"]["evaluation"]["gallery_examples"] += 1
    (copied / "config.json").write_text(json.dumps(settings))
    assert re.search(r"config\.json is of a later call than rows\.csv, .* report again", refusal(capsys, main, copied))


def test_a_damaged_student_is_not_packed(copied, capsys):
    (copied / "distill" / "student.keras").write_bytes(b"other")
    assert "student.keras is corrupt" in refusal(capsys, main, copied)


def test_a_student_that_was_trained_again_is_not_packed_with_files_of_the_one_before(copied, capsys):
    manifest = read_manifest(copied / "distill")
    (copied / "distill" / "student.keras").write_bytes(b"another student")
    files = manifest["files"] | {"student.keras": checksum(copied / "distill" / "student.keras")}
    write_manifest(copied / "distill", manifest["fingerprint"], files=files, **outputs_of(manifest))
    assert "student.keras was made anew after it was measured" in refusal(capsys, main, copied)


def test_the_card_names_no_folder_of_the_users_own_data(copied):
    settings = json.loads((copied / "config.json").read_text())
    settings["config"]["data"]["name"] = "/home/ann/xray"
    (copied / "config.json").write_text(json.dumps(settings))
    row = read_rows(copied / "rows.csv")[0]
    row["config"] = fingerprint(from_mapping(Config, settings["config"]))
    (copied / "rows.csv").write_text(as_csv([sealed({name: row[name] for name in row if name != "checksum"})]))
    facts = read_facts(copied)
    text = model_card(replace(facts, command=""), "student.zip", {"student.keras": 1})
    assert "/home" not in text and "Data set: xray" in text
    assert ModelCard(text).data.datasets is None


def test_damaged_rows_and_settings_are_refused(copied, capsys):
    rows = copied / "rows.csv"
    whole = rows.read_text()
    for damaged in (whole.replace("digits", "digit").replace("0.", "1.", 1), whole.splitlines()[0], "", "\0"):
        rows.write_text(damaged)
        assert "damaged" in refusal(capsys, main, copied)
    rows.write_text(whole)
    (copied / "config.json").write_text("{}")
    assert "damaged" in refusal(capsys, main, copied)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def test_what_is_no_package_is_refused(package, tmp_path, capsys):
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    empty = tmp_path / "empty.zip"
    write_package(empty, {"README.md": b""})
    cut = tmp_path / "cut.zip"
    cut.write_bytes(package.read_bytes()[:-200])
    flipped, content = tmp_path / "flipped.zip", bytearray(package.read_bytes())
    content[content.index(b"student.int8.tflite") + 1000] ^= 1
    flipped.write_bytes(content)
    wrong = zipped(tmp_path / "wrong.zip", a__tflite=b"x", SHA256SUMS="0" * 64 + "  a.tflite\n")
    outside = zipped(tmp_path / "outside.zip", SHA256SUMS="0" * 64 + "  ../a.tflite\n")
    absent = zipped(tmp_path / "absent.zip", SHA256SUMS="0" * 64 + "  a.tflite\n")
    for path, message in (
        (tmp_path / "none.zip", "no file"),
        (cut, "no readable .zip file"),
        (flipped, "damaged|no readable"),
        (zipped(tmp_path / "other.zip", a="b"), "no package of tfigkd.pack"),
        (empty, "no .tflite file"),
        (wrong, "a.tflite does not fit SHA256SUMS"),
        (outside, "a line that is no checksum"),
        (absent, "no readable .zip file"),
    ):
        assert re.search(message, refusal(capsys, predict, path, picture))
    assert "it has student.int8.tflite" in refusal(capsys, predict, package, picture, "--file", "teacher.tflite")
    assert "does not end in .zip" in refusal(capsys, predict, tmp_path / "a.tflite", picture, "--file", "x")


def test_a_package_is_read_without_tensorflow(package, tmp_path):
    done = run(tmp_path, "tfigkd.predict", "--help")
    assert done.returncode == 0
    program = f"""
import sys
from pathlib import Path
from tfigkd.edge.package import model_file
with model_file(Path({str(package)!r})) as path:
    assert path.name == "student.int8.tflite" and path.with_suffix(".json").is_file()
assert not path.exists()
assert not {{"tensorflow", "keras", "rich", "tyro"}} & {{*sys.modules}}
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "bomb.zip", SHA256SUMS=f"{'0' * 64}  a.tflite\n", a__tflite=b"0" * 2000)
    monkeypatch.setattr("tfigkd.edge.package.LARGEST", 1000)
    with pytest.raises(UserError, match="more than 2 GiB"), model_file(path):
        pass


def test_where_data_come_from(tmp_path):
    folder = tmp_path / "flowers" / "1.2.0"
    folder.mkdir(parents=True)
    info = {"citation": "@misc{x}", "location": {"urls": ["https://example.org/flowers", "gone"]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert about("flowers", str(tmp_path)) == {
        "version": "1.2.0",
        "urls": ["https://example.org/flowers"],
        "citation": "@misc{x}",
    }
    assert about("pictures/of mine", str(tmp_path)) == {"version": "", "urls": [], "citation": ""}
    assert about("digits", None)["urls"]

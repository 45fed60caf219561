"""The command line: what it shows, what it runs, what it writes; all in processes of their own."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tfigkd import tfrecord
from tfigkd.workdir import checksum, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {path.stem: path for path in (ROOT / "experiments").glob("*.toml")}
STAGES = ("data", "teacher", "overlays", "distill", "evaluate", "export", "benchmark", "report")
TINY = (
    "--teacher.width",
    "0.25",
    "--teacher.drop_blocks",
    "14",
    "--student.width",
    "0.25",
    "--student.drop_blocks",
    "16",
)


def call(folder, *arguments, module="tfigkd.run", interpreter=(), **environment):
    """Run a module of the package in a folder and wait for its end."""
    return subprocess.run(
        [sys.executable, *interpreter, "-m", module, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*arguments, **options):
    """As `call`, for what must end well and leave standard error empty; returns standard output."""
    done = call(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def printed_config(output):
    """The resolved config as it is printed before anything runs, a line for each table, unset fields left out."""
    lines = itertools.takewhile(lambda line: ", seed " not in line, output.splitlines())
    return tomllib.loads(re.sub(r"  (?=\w+ = )", "\n", "\n".join(lines)))


def without_none(table):
    return {
        name: without_none(value) if isinstance(value, dict) else value
        for name, value in table.items()
        if value is not None
    }


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """An empty directory in which `--smoke` of quickstart has run, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, succeed(folder, "--experiment", "quickstart", "--smoke")


def test_list_shows_each_experiment_on_one_line(tmp_path):
    lines = succeed(tmp_path, "--list").splitlines()
    assert [line.split()[0] for line in lines] == sorted(EXPERIMENTS)
    assert {"quickstart", "ig_kd", "student"} <= set(EXPERIMENTS)
    assert all(len(line.split()) > 3 for line in lines)
    assert not list(tmp_path.iterdir())


def test_help_is_readable_and_fast(tmp_path):
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import rich, tyro"], check=True)
    imports = time.monotonic() - began
    began = time.monotonic()
    text = succeed(tmp_path, "--help")
    assert time.monotonic() - began < 10 * imports + 1
    assert text.startswith("usage: python -m tfigkd.run ")
    for flag in ("--experiment", "--workdir", "--stages", "--smoke", "--seed", "--list", "--losses.kd.temperature"):
        assert re.search(rf"{re.escape(flag)}\b", text)
    assert max(map(len, text.splitlines())) < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--help",), ("--list",), ("--experiment", "none"), ()], ids=str)
def test_what_runs_nothing_imports_no_heavy_package(tmp_path, arguments):
    times = call(tmp_path, *arguments, interpreter=("-X", "importtime")).stderr
    packages = set(re.findall(r"\| +([a-z_0-9]+)\b", times))
    assert {"tfigkd", "tyro"} <= packages
    assert packages.isdisjoint({"tensorflow", "keras", "jax", "sklearn", "scipy", "matplotlib", "numpy"})


def test_help_shows_the_defaults_of_the_experiment(tmp_path):
    text = succeed(tmp_path, "--experiment", "ig_kd", "--help")
    for flag, default in (("--losses.kd.weight", "0.01"), ("--overlay.probability", "0.1")):
        assert re.search(rf"{re.escape(flag)} .*?\(default: (\S+)\)", text, re.DOTALL)[1] == default


def test_smoke_runs_all_stages_and_is_marked(smoke):
    folder, output = smoke
    assert re.findall(r"^\[\d/8\] (\w+)$", output, re.MULTILINE) == list(STAGES)
    assert re.search(
        r"^stages: data, .*, report; about (\d+ days?, )?\d+:\d\d:\d\d on this machine$", output, re.MULTILINE
    )
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
    assert {path.name for path in (folder / "runs").iterdir()} == {"quickstart-smoke", "teachers"}

    run = folder / "runs/quickstart-smoke/0"
    saved = json.loads((run / "config.json").read_text())
    assert (saved["experiment"], saved["seed"], saved["smoke"]) == ("quickstart", 0, True)
    printed = printed_config(output)
    assert {name: printed.get(name, {}) for name in saved["config"]} == without_none(saved["config"])
    (row,) = csv.DictReader((run / "rows.csv").read_text().splitlines())
    assert (row["experiment"], row["seed"], row["smoke"]) == ("quickstart", "0", "True")
    assert 0 <= float(row["student_accuracy"]) <= 1
    assert int(row["teacher_parameters"]) > int(row["student_parameters"]) > 0
    report = (run / "report.md").read_text()
    assert "SMOKE RUN" in report
    assert re.search(r"\| parameters \|.*\d", report)
    for file in ("student.int8.tflite", "student.float32.tflite", "teacher.int8.tflite", "teacher.float32.tflite"):
        assert (run / "export" / file).stat().st_size > 1000
    assert list(run.glob("tensorboard/events.*"))


def test_chosen_stages_and_overrides(tmp_path):
    """A file outside the checkout with a shipped base; stages one after another in separate processes."""
    (tmp_path / "mine.toml").write_text('base = "quickstart"\ndescription = "mine"\n[training]\nepochs = 7\n')
    common = ("--experiment", "mine.toml", "--smoke", "--workdir", "here", "--teachers", "there", "--seed", "3", *TINY)
    common += ("--losses.kd.temperature", "4", "--teacher.training.learning_rate=0.01", "--data.limit", "64")
    common += ("--attribution.n_steps", "4")
    output = succeed(tmp_path, *common, "--stages", "teacher,data")
    assert re.findall(r"^\[\d/2\] (\w+)$", output, re.MULTILINE) == ["data", "teacher"]
    config = printed_config(output)
    assert config["losses"]["kd"] == {**config["losses"]["kd"], "temperature": 4.0, "weight": 0.5}
    assert config["teacher"]["training"]["learning_rate"] == 0.01
    assert (config["teacher"]["width"], config["attribution"]["n_steps"]) == (0.25, 4)
    assert (config["data"]["limit"], config["training"]["epochs"]) == (64, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "mine.toml", "there"]
    assert not (tmp_path / "here/distill").exists()

    output = succeed(tmp_path, *common, "--stages", "overlays,distill,evaluate,report")
    assert "[4/4] report" in output
    (row,) = csv.DictReader((tmp_path / "here/rows.csv").read_text().splitlines())
    assert (row["experiment"], row["seed"]) == ("mine", "3")
    assert "student_int8_bytes" not in row  # nothing was exported
    assert not (tmp_path / "here/export").exists()


def test_verify_recomputes_what_a_store_says(smoke):
    """Two maps exchanged, all checksums mended: only the images can tell."""
    folder, _ = smoke
    (store,) = folder.glob("runs/teachers/*/overlays/*")
    relative = store.relative_to(folder)
    quiet = {"module": "tfigkd.overlays", "TF_CPP_MIN_LOG_LEVEL": "3"}
    output = succeed(folder, relative, "--sample", "8", **quiet)
    assert "every record belongs to its image" in output
    found = re.search(r"logits (\S+), maps (\S+) of", output)
    assert float(found[1]) < 1e-3 and float(found[2]) < 1e-2

    manifest = read_manifest(store)
    shard = store / min(manifest["files"])
    records = [tfrecord.decode_example(record) for record in tfrecord.read_records(shard)]
    usable = [index for index, record in enumerate(records) if record["usable"][0]]
    first, second = usable[:2]
    assert not np.array_equal(records[first]["map"], records[second]["map"])
    for field in ("map", "map_scale"):
        records[first][field], records[second][field] = records[second][field], records[first][field]
    before = {path: path.read_bytes() for path in store.iterdir()}
    tfrecord.write_records(shard, [tfrecord.encode_example(record) for record in records])
    content = {name: value for name, value in manifest.items() if name not in ("fingerprint", "files")}
    write_manifest(store, manifest["fingerprint"], files={**manifest["files"], shard.name: checksum(shard)}, **content)
    try:
        done = call(folder, relative, "--sample", manifest["examples"], **quiet)
    finally:
        for path, old in before.items():
            path.write_bytes(old)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: overlay store: recomputed records deviate (logits ")
    assert "do not belong to their images" in line


@pytest.mark.parametrize("place", ["nothing", "file"])
def test_verify_of_what_is_no_store(tmp_path, place):
    (tmp_path / "file").write_text("")
    done = call(tmp_path, place, module="tfigkd.overlays")
    assert done.returncode == 1
    assert re.fullmatch(rf"error: no finished overlay store in {place}\b.*\n", done.stderr)


@pytest.mark.slow
def test_smoke_of_the_main_job_on_cifar10(tmp_path, cifar10_dir):
    began = time.monotonic()
    output = succeed(tmp_path, "--experiment", "ig_kd", "--smoke", TFDS_DATA_DIR=str(cifar10_dir))
    assert time.monotonic() - began < 360
    assert re.findall(r"^\[\d/8\] (\w+)$", output, re.MULTILINE) == list(STAGES)
    (row,) = csv.DictReader((tmp_path / "runs/ig_kd-smoke/0/rows.csv").read_text().splitlines())
    assert row["smoke"] == "True"
    assert (row["teacher_parameters"], row["student_parameters"]) == ("2236682", "543498")

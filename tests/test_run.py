"""The command line: what it shows, what it runs, what it writes; all in processes of their own."""

import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.children import run, smoke_run
from tfigkd.config.experiment import Config, to_mapping
from tfigkd.config.reading import differences, dotted_names, value_at
from tfigkd.data import load
from tfigkd.run import parse
from tfigkd.runtime import tfrecord
from tfigkd.runtime.files import checksum, outputs_of, read_manifest, write_manifest
from tfigkd.stages.runner import STAGES, changed_settings

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {path.stem: path for path in (ROOT / "experiments").glob("*.toml")}
TINY = shlex.split("""
    --teacher.width 0.25 --teacher.drop_blocks 14 --teacher.training.epochs 10 --teacher.training.learning_rate=0.01
    --teacher.training.batch_size 32 --student.width 0.25 --student.drop_blocks 16 --losses.kd.temperature 4
    --data.limit 160 --attribution.n_steps 4
""")


def call(folder, *arguments, module="tfigkd.run", fresh=False, interpreter=(), **environment):
    """Run a module of the package in a folder and wait for its end; `fresh` for a new interpreter, not a forked one."""
    if not fresh:
        return run(folder, module, *arguments, environment={"COLUMNS": "100", **environment})
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
    """The resolved config as it is printed before anything runs, a line for each table that is in use."""
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
    """A directory in which only `--smoke` of quickstart has run, and what it printed."""
    folder = smoke_run(tmp_path_factory)
    return folder, (folder.parent / "smoke.txt").read_text()


def test_the_commands_are_listed(tmp_path):
    for arguments in ((), ("--help",)):
        lines = succeed(tmp_path, *arguments, module="tfigkd", fresh=True).splitlines()
        listed = {line.split()[0] for line in lines if line.startswith("  ")}
        modules = {path.stem for path in (ROOT / "tfigkd").glob("*.py")} - {"__init__", "__main__"}
        packages = {path.parent.name for path in (ROOT / "tfigkd").glob("*/__main__.py")}
        assert listed == modules | packages
        assert max(map(len, lines)) < 120
    done = call(tmp_path, "run", "--experiment", "kd", module="tfigkd")
    assert done.returncode == 1 and "got 'run'; python -m tfigkd.run" in done.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path):
    widths = ("--teacher.width", "0.25", "--student.width", "1")
    output = succeed(tmp_path, "--experiment", "quickstart", "--dry-run", *widths, "--data.limit", "60")
    assert "The student is not smaller than its teacher" in output and "--student.width" in output
    assert "There are only 60 validation images: an accuracy of" in output
    assert "stages: data, teacher, overlays, distill, export, evaluate, benchmark, report; about " in output
    assert not list(tmp_path.iterdir())


def test_a_worthless_run_says_so_and_strict_makes_it_the_exit_status(tmp_path):
    stages = "data,teacher,overlays,distill,evaluate,report"
    short = (
        "--data.limit",
        "60",
        "--teacher.training.epochs",
        "1",
        "--training.epochs",
        "1",
        "--attribution.n_steps=2",
    )
    small = ("--teacher.drop_blocks", "16", "--student.drop_blocks", "17", "--evaluation.attribution_examples", "0")
    done = call(tmp_path, "--experiment", "quickstart", "--stages", stages, "--strict", *short, *small)
    assert done.returncode == 2 and done.stderr == ""
    said = [line for line in done.stdout.splitlines() if line.startswith("verdict: ")]
    assert any("The student is at chance" in line and "--training.epochs" in line for line in said)
    folder = tmp_path / "runs/quickstart/0"
    kinds = [one["kind"] for one in json.loads((folder / "verdict.json").read_text())]
    assert "at chance" in kinds and len(kinds) == len(said)
    for name in ("report.md", "report.html"):
        assert "The student is at chance" in (folder / name).read_text(encoding="utf-8")
    refused = call(tmp_path, "--experiment", "quickstart", "--stages", "data", "--strict")
    assert "error: --strict needs the verdict of stage report, got --stages data; add report" in refused.stderr


def test_a_run_stops_after_its_minutes_and_goes_on(tmp_path):
    arguments = ("--experiment", "quickstart", "--stages", "data,teacher", "--teacher.training.epochs", "4000")
    arguments += ("--data.limit", "60", "--teacher.drop_blocks", "17")
    for minutes in (0.1, 0.2, 0.4, 0.8):  # a busy machine needs longer until the first epoch has ended
        done = call(tmp_path, *arguments, "--minutes", minutes)
        assert done.returncode == 130 and "stopped; nothing finished is lost. Go on with: " in done.stderr
        kept = sorted(tmp_path.glob("runs/teachers/*/checkpoint-*.ckpt"))
        if kept:
            break
    epoch = int(kept[-1].stem.removeprefix("checkpoint-"))
    again = call(tmp_path, *arguments, "--minutes", minutes)
    assert again.returncode == 130 and f"going on after epoch {epoch} of 4000" in again.stdout
    refused = call(tmp_path, *arguments, "--minutes=-1").stderr
    assert "--minutes must be positive and below 10,000,000, got -1" in refused


def test_list_shows_each_experiment_on_one_line(tmp_path):
    lines = succeed(tmp_path, "--list", fresh=True).splitlines()
    assert [line.split()[0] for line in lines] == sorted(EXPERIMENTS)
    assert {"quickstart", "ig_kd", "student"} <= set(EXPERIMENTS)
    assert all(len(line.split()) > 3 for line in lines)
    assert not list(tmp_path.iterdir())


def test_help_is_readable(tmp_path):
    text = succeed(tmp_path, "--help", fresh=True)
    assert text.startswith("usage: python -m tfigkd.run ")
    for flag in ("--experiment", "--workdir", "--stages", "--smoke", "--seed", "--list"):
        assert re.search(rf"{re.escape(flag)}\b", text)
    lines = text.splitlines()
    assert max(map(len, lines)) < 200 and len(lines) < 60
    tables = next(line for line in lines if line.startswith("data, "))
    assert "losses" in tables.split(", ") and "--losses.kd.temperature" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--help",), ("--list",), ("--experiment", "none"), ()], ids=str)
def test_what_runs_nothing_imports_no_heavy_package(tmp_path, arguments):
    times = call(tmp_path, *arguments, fresh=True, interpreter=("-X", "importtime")).stderr
    packages = set(re.findall(r"\| +([a-z_0-9]+)\b", times))
    assert {"tfigkd", "tyro"} <= packages
    assert packages.isdisjoint({"tensorflow", "keras", "jax", "sklearn", "scipy", "matplotlib", "numpy"})


def test_help_shows_the_defaults_of_the_experiment(tmp_path):
    for flag, default in (("--losses.kd.weight", "0.01"), ("--overlay.probability", "0.1")):
        table = flag.removeprefix("--").partition(".")[0]
        text = succeed(tmp_path, "--experiment", "ig_kd", "--help", table)
        assert re.search(rf"{re.escape(flag)} .*?\(default: (\S+)\)", text, re.DOTALL)[1] == default
        assert set(re.findall(r"^│ --(\w+)", text, re.MULTILINE)) == {table}
    assert "did you mean 'losses'" in call(tmp_path, "--help", "loses").stderr


def test_smoke_runs_all_stages_and_is_marked(smoke):
    folder, output = smoke
    assert re.findall(r"^\[\d/8\] (\w+)$", output, re.MULTILINE) == [stage for stage in STAGES if stage != "compress"]
    assert re.search(
        r"^stages: data, .*, report; about (\d+ days?, )?\d+:\d\d:\d\d on this machine$", output, re.MULTILINE
    )
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
    assert {path.name for path in (folder / "runs").iterdir()} == {"quickstart-smoke", "teachers"}

    run = folder / "runs/quickstart-smoke/0"
    saved = json.loads((run / "config.json").read_text())
    assert (saved["experiment"], saved["seed"], saved["smoke"]) == ("quickstart", 0, True)
    # only what differs from the defaults is printed
    defaults, changed = to_mapping(Config()), {}
    for field in differences(defaults, saved["config"]):
        if not field.startswith("compress."):
            changed[field] = value_at(saved["config"], field)
    printed = printed_config(output)
    assert {name: value_at(printed, name) for name in dotted_names(printed)} == changed
    assert 15 < len(changed) < len(dotted_names(defaults)) / 3
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
    # one logdir shows the teacher's curves as well: the very events of its training
    (events,) = run.glob("tensorboard/teacher/events.*")
    (trained,) = (folder / "runs/teachers").glob("*/tensorboard/events.*")
    assert events.name == trained.name and events.read_bytes() == trained.read_bytes()


@pytest.mark.parametrize("value", ["False", "false", "=False", "=false"])
def test_a_switch_takes_true_and_false_as_in_toml(value):
    words = [f"--augment.flip{value}"] if value.startswith("=") else ["--augment.flip", value]
    command, _ = parse(["--experiment", "ig_kd", *words, "--losses.kd.standardize", "True", "--seed", "2"])
    assert (command.config.augment.flip, command.config.losses.kd.standardize, command.seed) == (False, True, 2)
    command, _ = parse(["--experiment", "quickstart", "--augment.flip", "--teacher.weights", "true"])
    assert (command.config.augment.flip, command.config.teacher.weights) == (True, "true")


def test_stages_may_be_separated_by_commas_and_blanks():
    _, chosen = parse(["--experiment", "quickstart", "--stages", "data, teacher"])
    assert chosen.stages == ("data", "teacher")


@pytest.fixture(scope="module")
def teacher_alone(tmp_path_factory):
    """A folder where an experiment of one's own went as far as the overlays, the command, and what it printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.toml").write_text('base = "quickstart"\ndescription = "mine"\n[training]\nepochs = 2\n')
    command = ("--experiment", "mine.toml", "--workdir", "here", "--teachers", "there", "--seed", "3", *TINY)
    return folder, command, succeed(folder, *command, "--stages", "overlays,teacher,data")


def test_overrides_reach_the_config(teacher_alone):
    folder, _, output = teacher_alone
    assert re.findall(r"^\[\d/3\] (\w+)$", output, re.MULTILINE) == ["data", "teacher", "overlays"]
    config = printed_config(output)
    assert (config["losses"]["kd"]["temperature"], config["losses"]["kd"]["weight"]) == (4.0, 0.5)
    assert (config["teacher"]["width"], config["teacher"]["training"]["learning_rate"]) == (0.25, 0.01)
    assert (config["data"]["limit"], config["training"]["epochs"], config["description"]) == (160, 2, "mine")
    assert sorted(path.name for path in folder.iterdir()) == ["here", "mine.toml", "there"]
    assert sorted(path.name for path in (folder / "here").iterdir()) == [".lock", "config.json", "data"]


def test_stages_one_after_another(teacher_alone):
    """What was exported is in the row; what was left out of --stages is not."""
    folder, command, _ = teacher_alone
    output = succeed(folder, *command, "--stages", "distill,evaluate,report")
    assert "[3/3] report" in output
    (row,) = csv.DictReader((folder / "here/rows.csv").read_text().splitlines())
    assert (row["experiment"], row["seed"], row["smoke"]) == ("mine", "3", "False")
    assert "student_int8_bytes" not in row
    assert not (folder / "here/export").exists()


def test_verify_recomputes_what_a_store_says(teacher_alone):
    """Two maps exchanged, all checksums mended: only the images can tell."""
    folder, _, _ = teacher_alone
    (store,) = folder.glob("there/*/overlays/*")
    verify = {"module": "tfigkd.verify"}
    output = call(folder, store, "--sample", "8", **verify).stdout
    assert "every record belongs to its image" in output
    found = re.search(r"logits (\S+), maps (\S+) of", output)
    assert float(found[1]) < 1e-3 and float(found[2]) < 1e-2

    manifest = read_manifest(store)
    shard = store / min(manifest["files"])
    first, second, *others = (tfrecord.decode_example(record) for record in tfrecord.read_records(shard))
    for field in ("map", "scale"):
        assert not np.array_equal(first[field], second[field])
        first[field], second[field] = second[field], first[field]
    tfrecord.write_records(shard, [tfrecord.encode_example(record) for record in (first, second, *others)])
    content = outputs_of(manifest)
    write_manifest(store, manifest["fingerprint"], files={**manifest["files"], shard.name: checksum(shard)}, **content)
    done = call(folder, store, "--sample", manifest["examples"], **verify)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: overlay store: recomputed records deviate (logits 0")
    assert "do not belong to their images" in line


@pytest.mark.parametrize("place", ["nothing", "file"])
def test_verify_of_what_is_no_store(tmp_path, place):
    (tmp_path / "file").write_text("")
    done = call(tmp_path, place, module="tfigkd.verify")
    assert done.returncode == 1
    assert re.fullmatch(rf"error: no finished .*store in {place}\b.*\n", done.stderr)


@pytest.mark.parametrize(("trained", "refused"), [("digits", []), ("others", ["data.name"]), (None, ["data.name"])])
def test_a_run_goes_on_where_its_data_have_another_name(tmp_path, trained, refused):
    fingerprints = {"digits": load("digits").fingerprint, "others": "0123456789abcdef"}
    outputs = {"data": fingerprints[trained]} if trained else {}  # a student of an earlier version has no such note
    (tmp_path / "distill").mkdir()
    write_manifest(tmp_path / "distill", "1", **outputs)
    before, _ = parse(["--experiment", "quickstart", "--data.name", "/elsewhere/digits.npz"])
    settings = {"experiment": "quickstart", "seed": 0, "smoke": False, "config": to_mapping(before.config)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    _, chosen = parse(["--experiment", "quickstart"])
    assert changed_settings(tmp_path / "config.json", chosen) == refused
    _, chosen = parse(["--experiment", "quickstart", "--data.limit", "300"])
    assert changed_settings(tmp_path / "config.json", chosen) == ["data.limit", "data.name"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ig_kd", "ig_kd_shuffled", "kd_at"])
def test_smoke_of_the_main_job_and_two_arms_on_cifar10(tmp_path, cifar10_dir, name):
    output = succeed(tmp_path, "--experiment", name, "--smoke", TFDS_DATA_DIR=str(cifar10_dir))
    assert re.findall(r"^\[\d/8\] (\w+)$", output, re.MULTILINE) == [stage for stage in STAGES if stage != "compress"]
    (row,) = csv.DictReader((tmp_path / f"runs/{name}-smoke/0/rows.csv").read_text().splitlines())
    assert row["smoke"] == "True"
    assert (row["teacher_parameters"], row["student_parameters"]) == ("2236682", "543498")

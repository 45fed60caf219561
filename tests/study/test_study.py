"""Studies: their plan, that no row is lost or written twice, and the tables made from rows."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from tests import children
from tfigkd.config.experiment import experiments_folder, override, read_experiment, to_mapping
from tfigkd.report.charts import labels
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import (
    checksum,
    locked,
    make_folder,
    read_manifest,
    verify_files,
    write_manifest,
    write_signed,
)
from tfigkd.runtime.rows import read_rows
from tfigkd.study import collect as collecting
from tfigkd.study.__main__ import main as study_command
from tfigkd.study.collect import collect, finished_runs, merge_rows, save_student, table_of
from tfigkd.study.commands import command_of
from tfigkd.study.page import page, size_chart
from tfigkd.study.plan import Options, Study, plan, read_study
from tfigkd.study.protocol import protocol_of
from tfigkd.study.quality import quality_lines
from tfigkd.study.report import BEGIN, END
from tfigkd.study.runs import is_finished, job_record
from tfigkd.study.tables import (
    arms_lines,
    arms_table,
    compare,
    comparisons_lines,
    done_runs,
    provenance,
    runs_of,
    section,
    sentences,
)
from tfigkd.study.verdict import study_verdict

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(path.stem for path in (experiments_folder() / "studies").glob("*.toml"))
TINY = """
[data]
name = "digits"
limit = 80

[augment]
crop_padding = 1
flip = false

[student]
drop_blocks = 16
width = 0.25

[evaluation]
attribution_examples = 0
gallery_examples = 0

[training]
epochs = 12
batch_size = 16
"""
STUDY = """
description = "two arms"
seeds = 2
stages = "data,distill,evaluate,report"
comparisons = [["fast", "slow"]]

[arms]
slow = "tiny.toml"
fast = "faster.toml"
"""


def write(path, text):
    path.write_text(text)
    return str(path)


def write_tiny(folder):
    (folder / "tiny.toml").write_text(TINY)
    (folder / "faster.toml").write_text(TINY.replace("epochs = 12", "epochs = 12\nlearning_rate = 5e-3"))
    (folder / "pair.toml").write_text(STUDY)


def start(folder, *arguments):
    return children.fork(folder, "tfigkd.study", *arguments, environment={"COLUMNS": "160"}, merged=True)


def succeed(folder, *arguments):
    process = start(folder, *arguments)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def rows(folder):
    """Return path to row of each finished run."""
    found = {}
    for path in sorted((folder / "runs").glob("studies/pair/*/*/rows.csv")):
        with open(path, newline="") as file:
            (found[str(path.parent.relative_to(folder))],) = csv.DictReader(file)
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_can_be_planned(name):
    study = read_study(name)
    jobs = plan(study, Options(name))
    assert len(jobs) == study.seeds * len(study.arms) * len(study.sizes)
    assert len({job.folder for job in jobs}) == len(jobs)
    # seed 0 of every arm comes before seed 1 of any
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    lines = ((experiments_folder() / "studies") / f"{name}.toml").read_text().splitlines()
    assert len(lines) - len(study.arms) <= 35  # beside the arms, of which each has a line


def test_the_compression_study_is_the_papers_sweep():
    dropped = {job.size: job.run.config.student.drop_blocks for job in plan(read_study("compression"), Options("x"))}
    assert dropped["4.12x"] == 5
    assert sorted(dropped.values()) == [3, 5, 7, 9, 11, 13, 15, 17]


def test_the_monte_carlo_study_draws_a_subset_a_seed_for_all_arms_alike():
    jobs = plan(read_study("monte_carlo"), Options("x", seeds=3))
    assert {(job.seed, job.run.config.data.subset_seed) for job in jobs} == {(0, 0), (1, 1), (2, 2)}
    assert {job.run.config.data.train_fraction for job in jobs} == {0.8}
    assert len({job.arm for job in jobs}) == 5


def test_the_lowdata_arms_differ_in_their_treatment_alone():
    configs = {job.arm: job.run.config for job in plan(read_study("lowdata"), Options("x", seeds=1))}
    same = ("data", "augment", "teacher", "student", "training", "attribution", "evaluation")
    for config in configs.values():
        assert all(getattr(config, part) == getattr(configs["ig_kd"], part) for part in same)
    kinds = {arm: config.view.kind for arm, config in configs.items()}
    assert kinds == dict.fromkeys(kinds, "views") | dict.fromkeys(("kd_plain", "student"), "plain")  # of any crop
    weights = {arm: config.losses.kd.weight for arm, config in configs.items()}
    assert weights == dict.fromkeys(weights, 0.9) | {"student": 0}
    assert configs["ig_kd_shuffled"].control.maps == "shuffled"
    assert configs["kd_shuffled"].control.logits == "shuffled"


def test_flags_reach_every_arm():
    jobs = plan(
        read_study("lowdata"), Options("x", seeds=1), ["--teacher.weights", "own.npz", "--training.epochs", "3"]
    )
    assert {(job.run.config.teacher.weights, job.run.config.training.epochs) for job in jobs} == {("own.npz", 3)}


def test_stages_are_read_as_those_of_run():
    (first, *_) = plan(read_study("lowdata"), Options("x", seeds=1, stages="data, teacher"), [])
    assert first.run.stages == ("data", "teacher")
    with pytest.raises(UserError, match="unknown stage 'distil'; did you mean 'distill'"):
        plan(read_study("lowdata"), Options("x", seeds=1, stages="data,distil"), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seedz = 2"), "unknown field 'seedz'; did you mean 'seeds'"),
        (("seeds = 2", "seeds = 0"), "at least one arm, one size and one seed"),
        (("[arms]", "[sizes]\n[arms]"), "at least one arm, one size and one seed"),
        (('["fast", "slow"]', '["fast", "fast"]'), "expected comparisons of two of its arms"),
        (('["fast", "slow"]', '["fast", "slow"], ["slow", "fast"]'), "expected each comparison once"),
        (('["fast", "slow"]', '["fast", "fats"]'), "expected comparisons of two of its arms"),
        (("seeds = 2", "seeds = "), "Invalid value"),
    ],
)
def test_a_broken_study_is_one_line(change, message, tmp_path):
    (tmp_path / "broken.toml").write_text(STUDY.replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        read_study(str(tmp_path / "broken.toml"))
    assert "\n" not in str(caught.value)


def test_a_study_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "half.toml").write_text('base = "methods"\nseeds = 1\n[overrides]\ndata.train_fraction = 0.5\n')
    half, methods = read_study(str(tmp_path / "half.toml")), read_study("methods")
    assert (half.name, half.seeds, half.overrides) == ("half", 1, {"data": {"train_fraction": 0.5}})
    assert (half.arms, half.comparisons, half.stages) == (methods.arms, methods.comparisons, methods.stages)
    assert {job.run.config.data.train_fraction for job in plan(half, Options("half"))} == {0.5}
    (tmp_path / "short.toml").write_text('base = "sparsity"\n[overrides]\ntraining.epochs = 5\ncompress.steps = 9\n')
    short = read_study(str(tmp_path / "short.toml"))  # whose base has overrides, too
    assert short.overrides == {"training": {"epochs": 5}, "compress": {"method": "prune", "steps": 9}}
    for base, message in (("method", "did you mean 'methods'"), ("methods_tenth", "one level is the most")):
        (tmp_path / "broken.toml").write_text(f'base = "{base}"\n')
        with pytest.raises(UserError, match=message) as caught:
            read_study(str(tmp_path / "broken.toml"))
        assert "\n" not in str(caught.value)


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match="unknown study 'ablaton'; did you mean 'ablation'"):
        read_study("ablaton")
    with pytest.raises(UserError, match="unknown arm 'ik_kd'; did you mean 'ig_kd'"):
        plan(read_study("ablation"), Options("ablation", arms="ik_kd"))


def test_a_machine_may_begin_with_a_later_seed():
    study = read_study("lowdata")
    jobs = plan(study, Options("lowdata", seeds=5, first_seed=2, arms="kd,student"))
    assert [(job.seed, job.arm) for job in jobs] == [(seed, arm) for seed in (2, 3, 4) for arm in ("kd", "student")]
    for first in (-1, 5):
        with pytest.raises(UserError, match=f"--first_seed must be from 0 to 4, got {first}"):
            plan(study, Options("lowdata", seeds=5, first_seed=first))
    for count in (0, -1):
        with pytest.raises(UserError, match=f"--seeds must be at least 1, got {count}"):
            plan(study, Options("lowdata", seeds=count))


def test_a_kill_loses_no_row_and_repeats_none_and_collecting_moves_each_once(tmp_path):
    write_tiny(tmp_path)
    process = start(tmp_path, "--experiment", "pair.toml", "--workdir", "runs/studies", "--processes", "1")
    second = tmp_path / "runs/studies/pair/fast/0/distill"
    children.wait_for(process, lambda: list(second.glob("checkpoint-*.ckpt")))
    runs = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for victim in (process.pid, *map(int, runs.split())):
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
    before = rows(tmp_path)
    assert "runs/studies/pair/slow/0" in before
    assert len(before) < 4

    # two calls at the same time, each with two processes: no run is done twice
    calls = [start(tmp_path, "--experiment", "pair.toml", "--processes", "2") for _ in range(2)]
    outputs = [call.communicate()[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outputs
    after = rows(tmp_path)
    assert f"{len(before)} of 4 runs were finished before" in outputs[0]
    assert len(after) == 4
    logs = {name: (tmp_path / name / "run.log").read_text() for name in after}
    assert all(text.count("done in") == 1 for text in logs.values())
    assert {name: after[name] for name in before} == before  # including the time of writing
    assert "going on after epoch" in logs["runs/studies/pair/fast/0"]

    assert "4 of 4 runs were finished before" in succeed(tmp_path, "--experiment", "pair.toml")
    assert rows(tmp_path) == after

    checkout = tmp_path / "checkout"
    arguments = ("collect", "--into", checkout, "--models", "tiny")
    assert "4 finished runs, 4 new" in succeed(tmp_path, *arguments)
    table = read_rows(checkout / "experiments/results/pair.csv")
    assert [(row["arm"], row["seed"], row["experiment"]) for row in table] == [
        ("fast", "0", "faster"), ("slow", "0", "tiny"), ("fast", "1", "faster"), ("slow", "1", "tiny"),
    ]  # fmt: skip
    exported = checkout / "saved_models/tiny/0/student.int8.tflite"  # made of the saved student, afterwards
    exported.write_bytes(b"a file")
    listed = {**read_manifest(exported.parent)["files"], exported.name: checksum(exported)}
    about = {name: value for name, value in read_manifest(exported.parent).items() if name != "files"}
    write_manifest(exported.parent, about.pop("fingerprint"), files=listed, **about)
    assert "4 finished runs, 0 new" in succeed(tmp_path, *arguments)
    assert read_rows(checkout / "experiments/results/pair.csv") == table
    assert read_manifest(exported.parent)["files"] == listed

    # a saved student gives the same accuracy
    saved = checkout / "saved_models/tiny/1"
    manifest = read_manifest(saved)
    verify_files(saved, manifest)
    command = ["--experiment", "tiny.toml", "--seed", "1", "--workdir", str(saved), "--stages", "evaluate"]
    children.run(tmp_path, "tfigkd.run", *command).check_returncode()
    measured = read_manifest(saved / "evaluate")["results"]["student"]["accuracy"]
    assert measured == pytest.approx(float(after["runs/studies/pair/slow/1"]["student_accuracy"]), abs=1e-12)

    # of a finished run, the last stages alone are done again
    one = ("--arms", "fast", "--seeds", "1")
    succeed(tmp_path, "--experiment", "pair.toml", *one, "--evaluation.top_fraction", "0.2")
    again = (tmp_path / "runs/studies/pair/fast/0/run.log").read_text()
    assert again.count("done in") == 2 and "already done: runs/studies/pair/fast/0/distill" in again


def test_a_run_in_other_hands_is_left_to_them(tmp_path):
    write_tiny(tmp_path)
    with locked(tmp_path / "runs/studies/pair/slow/0/claim", wait=False):
        output = succeed(tmp_path, "--experiment", "pair.toml", "--seeds", "1", "--arms", "slow")
    assert "1 busy" in output
    assert rows(tmp_path) == {}


def test_a_smoke_run_is_never_collected(tmp_path):
    for seed, smoke in ((0, "False"), (1, "True")):
        folder = tmp_path / "pair/slow" / str(seed)
        folder.mkdir(parents=True)
        merge_rows(folder / "rows.csv", [row("slow", seed, 70) | {"smoke": smoke}])
        (folder / "job.json").write_text('{"study": "pair", "arm": "slow", "size": "", "command": "none"}')
    assert [line["seed"] for _, line in finished_runs(tmp_path)] == ["0"]


def brought_run(folder, seed, **trained):
    """Write a finished run of `slow` as if from another machine with its data in another folder; return its folder."""
    run = folder / "runs/studies/pair/slow" / str(seed)
    (run / "distill").mkdir(parents=True)
    merge_rows(run / "rows.csv", [row("slow", seed, 70)])
    write_signed(run / "job.json", {"study": "pair", "arm": "slow", "size": "", "command": "none"})
    config = to_mapping(read_experiment("kd")[1])
    config["data"]["name"] = "/elsewhere/cifar10.npz"
    (run / "config.json").write_text(json.dumps({"experiment": "slow", "seed": seed, "smoke": False, "config": config}))
    (run / "distill/student.keras").write_text(f"student {seed}")
    named = {"student.keras": checksum(run / "distill/student.keras")}
    write_manifest(run / "distill", "1", files=named, **trained)
    return run


def test_a_row_without_its_label_is_said_to_be_passed_over(tmp_path, capsys):
    runs = [brought_run(tmp_path, seed) for seed in range(3)]
    for run in runs[1:]:
        (run / "job.json").unlink()
    assert [path for path, _ in finished_runs(tmp_path / "runs/studies")] == runs[:1]
    assert capsys.readouterr().out.startswith("2 rows skipped, without a job.json that names the study: ")


def test_models_from_another_machine_are_collected_without_its_data(tmp_path, capsys):
    teacher = tmp_path / "runs/teachers/2"
    teacher.mkdir(parents=True)
    (teacher / "teacher.keras").write_text("teacher")
    write_manifest(teacher, "2", files={"teacher.keras": checksum(teacher / "teacher.keras")})
    brought_run(tmp_path, 0, teacher="2")
    (brought_run(tmp_path, 1, teacher="2") / "distill/student.keras").unlink()
    places = {"workdir": tmp_path / "runs/studies", "teachers": teacher.parent, "into": tmp_path / "checkout"}
    collect(collecting.Options(**places, models="slow"))
    saved = tmp_path / "checkout/saved_models"
    assert {str(path.relative_to(saved)) for path in saved.rglob("*.keras")} == {
        "slow/0/student.keras", "teachers/mobilenet_v2/teacher.keras",
    }  # fmt: skip
    assert len(read_rows(tmp_path / "checkout/experiments/results/pair.csv")) == 2
    assert "slow, seed 1: skipped, its student is not in" in capsys.readouterr().out
    manifest = saved / "teachers/mobilenet_v2/manifest.json"
    before = manifest.stat().st_mtime_ns
    write_manifest(teacher, "2", files={"teacher.keras": checksum(teacher / "teacher.keras")}, trained_here=False)
    collect(collecting.Options(**places, models="slow"))
    assert manifest.stat().st_mtime_ns == before  # a teacher that was taken from there is not copied back


def test_a_file_is_saved_with_its_contract_and_goes_with_its_student(tmp_path):
    places = {"workdir": tmp_path / "runs/studies", "teachers": tmp_path, "into": tmp_path / "checkout"}
    run, saved = brought_run(tmp_path, 0, teacher="2"), tmp_path / "checkout/saved_models/slow/0"
    (run / "export").mkdir()
    names = ("student.int8.tflite", "student.int8.json")
    for name in names:
        (run / "export" / name).write_text(f"its {name}")
    write_manifest(run / "export", "1", files={name: checksum(run / "export" / name) for name in names})
    write_signed(run / "precision.json", {})
    collect(collecting.Options(**places, models="slow"))
    assert {*read_manifest(saved)["files"]} == {"student.keras", *names}
    assert (saved / names[1]).read_text() == "its student.int8.json" and (saved / "precision.json").is_file()
    # another student, which was not exported
    shutil.rmtree(run)
    (brought_run(tmp_path, 0, teacher="2") / "distill/student.keras").write_text("another")
    named = {"student.keras": checksum(run / "distill/student.keras")}
    write_manifest(run / "distill", "1", files=named, teacher="2")
    collect(collecting.Options(**places, models="slow"))
    assert {path.name for path in saved.iterdir()} == {"student.keras", "config.json", "manifest.json"}


def test_two_arms_with_experiments_of_one_name_do_not_overwrite_each_others_students(tmp_path):
    run = brought_run(tmp_path, 0, teacher="2")
    save_student(run, row("slow", 0, 70), tmp_path / "saved")
    with pytest.raises(UserError, match="has the student of arm slow, not of fast; give another --into"):
        save_student(run, row("slow", 0, 70) | {"arm": "fast"}, tmp_path / "saved")


def test_a_student_is_never_saved_in_the_place_of_another_studys(tmp_path, capsys):
    run = brought_run(tmp_path, 0, teacher="2")
    other = tmp_path / "runs/studies/tenth/slow/0"
    shutil.copytree(run, other)
    write_signed(other / "job.json", {"study": "tenth", "arm": "slow", "size": "", "command": "none"})
    places = {"workdir": tmp_path / "runs/studies", "teachers": tmp_path, "into": tmp_path / "checkout"}
    with pytest.raises(UserError, match="slow is an arm of pair and tenth; name one of them with --experiment"):
        collect(collecting.Options(**places, models="slow"))
    collect(collecting.Options(**places, models="slow", experiment="pair"))
    with pytest.raises(UserError, match="saved_models/slow/0 has the student of study pair, not of tenth"):
        collect(collecting.Options(**places, models="slow", experiment="tenth"))
    shutil.move(other, tmp_path / "runs/studies/tenth/slow-half/0")
    label = {"study": "tenth", "arm": "slow", "size": "half", "command": "none"}
    write_signed(tmp_path / "runs/studies/tenth/slow-half/0/job.json", label)
    capsys.readouterr()
    collect(collecting.Options(**places, models="slow", experiment="tenth"))
    assert "  slow: its runs of a size are skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_smoke_of_all_arms_of_the_ablation(tmp_path, cifar10_dir):
    arguments = ("--experiment", "ablation", "--smoke", "--processes", "2", "--data.dir", cifar10_dir)
    output = succeed(tmp_path, *arguments, "--student.drop_blocks", "13", "--losses.at.student_layer", "block_04")
    assert "14 done" in output


def row(arm, seed, accuracy, *, size="", n_train="5000", study="pair"):
    return {
        "study": study, "experiment": arm, "arm": arm, "size": size, "seed": str(seed), "smoke": "False",
        "student_accuracy": str(accuracy / 100), "n_train": n_train, "train_seconds": "60", "hardware": "a machine",
        "commit": "0123456789ab", "versions": "python 3", "teacher_saw_validation": "True",
    }  # fmt: skip


def test_rows_are_merged_by_run_and_never_doubled(tmp_path):
    path = tmp_path / "pair.csv"
    assert merge_rows(path, [row("slow", 10, 70), row("slow", 9, 71)]) == 2
    assert merge_rows(path, [row("slow", 9, 71)]) == 0
    assert merge_rows(path, [row("fast", 9, 75), row("slow", 9, 72) | {"new": "column"}]) == 2
    table = read_rows(path)
    assert [(line["seed"], line["arm"], line["new"]) for line in table] == [
        ("9", "fast", ""), ("9", "slow", "column"), ("10", "slow", ""),
    ]  # fmt: skip


def test_a_study_that_chooses_is_judged_on_validation():
    study = Study("pair", arms={"slow": "kd", "fast": "kd"}, comparisons=(("fast", "slow"),), judged_on="validation")
    rows = [
        row(arm, seed, 50) | {"validation_accuracy": str((mean + seed) / 100)}
        for arm, mean in (("slow", 70), ("fast", 72.5))
        for seed in range(3)
    ]
    header, lines, _ = arms_lines(study, rows, [])
    assert [header[2], *(line[2].strip("*") for line in lines)] == ["validation accuracy, %", "71.00", "73.50"]
    (one,) = compare(study, runs_of(rows, study.judged_on))
    assert one.leading.difference == pytest.approx(2.5)
    shown = page(study, rows, [])
    assert "Validation accuracy by arm" in shown and "Differences of mean validation accuracy" in shown


def test_rows_of_two_protocols_are_not_averaged():
    # the papers' Monte Carlo sample was such a mixture
    with pytest.raises(UserError, match="runs of slow trained on 40000, 50000 examples"):
        runs_of([row("slow", 0, 90, n_train="40000"), row("slow", 1, 92, n_train="50000")])


def test_rows_of_two_configs_are_refused_by_name():
    rows = [row("slow", seed, 70) | {"config": config} for seed, config in ((0, "aaaa"), (1, "aaaa"), (2, "bbbb"))]
    message = r"pair: expected one config per arm and size, got several of slow \(aaaa: seeds 0, 1; bbbb: seed 2\)"
    with pytest.raises(UserError, match=message):
        runs_of(rows)
    # another arm, or another size, may have another config
    runs_of([rows[0], rows[2] | {"arm": "fast"}, rows[2] | {"size": "2x"}])
    # configs that differ only in the seed or in places are of one protocol
    runs_of([one | {"protocol": "cccc"} for one in rows])
    with pytest.raises(UserError, match="two rows of slow, seed 0, differ"):
        runs_of([row("slow", 0, 70), row("slow", 0, 71)])


def test_a_row_of_another_config_is_not_merged_silently(tmp_path):
    path = tmp_path / "pair.csv"
    merge_rows(path, [row("kd", seed, 67) | {"config": "aaaa"} for seed in range(2)])
    before = path.read_text()
    for seed in (0, 2):  # in place of a row, and beside the rows
        with pytest.raises(UserError, match=r"kd \(aaaa: seed.*bbbb: seed"):
            merge_rows(path, [row("kd", seed, 10) | {"config": "bbbb"}])
    assert path.read_text() == before
    merge_rows(path, [row("kd", 2, 68) | {"config": "bbbb"}], replace=True)
    assert [(line["seed"], line["config"]) for line in read_rows(path)] == [("2", "bbbb")]


def test_runs_of_several_commits_and_teachers_are_named():
    rows = [row("kd", seed, 67) | {"teacher_accuracy": "0.9339"} for seed in range(3)]
    assert "The runs of" not in provenance(rows)
    mixed = [rows[0], rows[1], rows[2] | {"commit": "ffff", "teacher_accuracy": "0.91"}]
    assert "The runs of kd are of 2 commits (0123456789ab: seeds 0, 1; ffff: seed 2)." in provenance(mixed)
    assert "2 teachers, of test accuracy (91.00 %: seed 2; 93.39 %: seeds 0, 1)." in provenance(mixed)


def settings(folder, config, **trained):
    """Write what `protocol_of` reads of a finished run."""
    (folder / "distill").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": "kd", "config": to_mapping(config)}))
    write_manifest(folder / "distill", "1", **trained)
    return folder


def test_a_protocol_is_what_decides_the_training_apart_from_the_seed(tmp_path):
    config = read_experiment("kd")[1]
    here = protocol_of(settings(tmp_path / "here", config, data="d1", teacher="t1"))
    # another machine: the same data and teacher by other names, other pictures for TensorBoard
    moved = {"data.name": "/elsewhere/cifar10.npz", "data.dir": "/there", "teacher.weights": "/there/w.npz"}
    moved |= {"tensorboard.examples": 2}
    assert protocol_of(settings(tmp_path / "moved", override(config, moved), data="d1", teacher="t1")) == here
    changes = [
        ({"training.epochs": 3}, {}),
        ({"losses.kd.weight": 0.1}, {}),
        ({"training.class_weight": {"cat": 2.0}}, {}),
        ({}, {"data": "d2"}),
        ({}, {"teacher": "t2"}),
    ]
    for number, (fields, trained) in enumerate(changes):
        known = {"data": "d1", "teacher": "t1"} | trained
        assert protocol_of(settings(tmp_path / str(number), override(config, fields), **known)) != here
    # fields that the study sets to the seed do not count
    seeds = []
    for seed in range(2):
        run = settings(tmp_path / f"s{seed}", override(config, {"data.subset_seed": seed}), data="d1")
        seeds.append(protocol_of(run, ["data.subset_seed"]))
    assert seeds[0] == seeds[1]
    assert protocol_of(tmp_path / "s1") != seeds[1]
    # a precision that was left to the machine is the one that it chose
    explicit = override(config, {"training.precision": "mixed_bfloat16"})
    wanted = protocol_of(settings(tmp_path / "explicit", explicit, data="d1", teacher="t1"))
    for number, chosen in enumerate(("mixed_bfloat16", "float32")):
        left = override(config, {"training.precision": "auto"})
        run = settings(tmp_path / f"auto{number}", left, data="d1", teacher="t1")
        measured = {"student": {"precision": chosen}, "teacher": {"precision": "float32"}}
        write_signed(run / "precision.json", measured)
        assert (protocol_of(run) == wanted) == (chosen == "mixed_bfloat16")
    # the teacher of unbalanced data is trained on the subset of the student, one for each seed
    few = override(config, {"data.imbalance": 10.0})
    for seed in range(2):
        run = settings(tmp_path / f"u{seed}", override(few, {"data.subset_seed": seed}), data="d1", teacher=f"t{seed}")
        seeds.append(protocol_of(run, ["data.subset_seed"]))
    assert seeds[2] == seeds[3] != seeds[0]


@pytest.fixture
def pair(tmp_path):
    write_tiny(tmp_path)
    return read_study(str(tmp_path / "pair.toml"))


def test_the_table_crowns_nobody_inside_the_noise(pair):
    near = [row("slow", seed, 70 + seed) for seed in range(3)] + [row("fast", seed, 70.5 + seed) for seed in range(3)]
    table = "\n".join(arms_table(pair, near, []))
    assert "**" not in table
    assert "No winner: the highest mean, fast, cannot be told from slow." in table
    far = near[:3] + [row("fast", seed, 90 + seed) for seed in range(3)]
    assert "**fast**" in "\n".join(arms_table(pair, far, []))


def test_one_run_per_arm_gives_no_statement(pair):
    (one,) = compare(pair, runs_of([row("slow", 0, 70), row("fast", 0, 90)]))
    assert math.isnan(one.adjusted)
    assert "one run per arm cannot tell" in sentences([one])[1]


def finished(folder, rows):
    """Write rows as finished runs of the study `pair`."""
    for one in rows:
        run = folder / "pair" / one["arm"] / one["seed"]
        run.mkdir(parents=True)
        merge_rows(run / "rows.csv", [one])
        write_signed(run / "job.json", {"study": "pair", "arm": one["arm"], "size": "", "command": "none"})


def test_a_user_provided_study_is_reported_where_it_lies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    lines = [row(arm, seed, mean + seed) for arm, mean in (("slow", 70), ("fast", 71)) for seed in range(2)]
    finished(tmp_path / "runs/studies", [one | {"student_kappa": "0.01"} for one in lines])
    assert study_command(["report", "--experiment", "pair.toml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "70.50" in said and "71.50" in said and "two runs per arm cannot tell" in said
    assert "verdict: slow is at chance: 70.50 %, kappa 0.01." in said  # the words are those of the rows
    assert "written" not in said and "report: runs/studies/pair/report.html" in said
    page = (tmp_path / "runs/studies/pair/report.html").read_text(encoding="utf-8")
    assert "python -m tfigkd.study --experiment pair.toml" in page
    assert "python -m tfigkd.study report --experiment pair.toml" in page
    # collected without a checkout: beside the runs, and nothing in the package
    assert study_command(["collect", "--experiment", "pair.toml"]) == 0
    assert len(read_rows(tmp_path / "runs/studies/pair/results.csv")) == 4
    assert not (experiments_folder() / "results/pair.csv").exists()
    assert table_of("lowdata", Path("w")) == experiments_folder() / "results/lowdata.csv"
    assert study_command(["report", "--experiment", "lowdata"]) == 1
    assert "no finished run of lowdata in runs/studies/lowdata" in capsys.readouterr().err


def test_arms_and_bases_lie_beside_the_file_that_names_them(tmp_path, monkeypatch):
    study, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    study.mkdir(), elsewhere.mkdir()
    write_tiny(study)
    (study / "faster.toml").write_text('base = "tiny.toml"\n[training]\nlearning_rate = 5e-3\n')
    (elsewhere / "tiny.toml").write_text(TINY.replace("epochs = 12", "epochs = 99"))
    monkeypatch.chdir(elsewhere)
    jobs = plan(read_study("../studies/pair.toml"), Options("x", seeds=1))
    assert {job.arm: job.run.experiment for job in jobs} == {"slow": "tiny", "fast": "faster"}
    trained = {job.arm: job.run.config.training for job in jobs}
    assert (trained["slow"].epochs, trained["fast"].epochs) == (12, 12)  # not the file in the current folder
    assert trained["fast"].learning_rate == 5e-3
    (study / "faster.toml").write_text('base = "tyni"\n')
    with pytest.raises(UserError, match=r"faster\.toml: no base 'tyni' beside it or shipped; did you mean 'tiny'\?"):
        plan(read_study("../studies/pair.toml"), Options("x", seeds=1))


def test_the_label_of_a_run_names_the_study_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    (job, *_) = plan(read_study(str(tmp_path / "pair.toml")), Options("x"))
    words = shlex.split(job_record(job)["command"])
    assert read_study(words[words.index("--experiment") + 1]).name == "pair"
    (job, *_) = plan(read_study("lowdata"), Options("x"))
    assert "--experiment lowdata " in job_record(job)["command"]


def test_two_runs_per_arm_say_that_they_cannot_tell(pair):
    (one,) = compare(
        pair, runs_of([row(arm, seed, mean + seed) for arm, mean in (("slow", 70), ("fast", 90)) for seed in range(2)])
    )
    assert "+20.00 points (2 and 2): two runs per arm cannot tell; 3 or more give an interval." in sentences([one])[1]
    (line,) = comparisons_lines([one])[1]
    assert line[2:4] == ["–", "–"] and line[-2:] == ["–", "–"]


@pytest.mark.parametrize(
    "table, first, second",
    [(table, "ig_kd", "ig_kd_shuffled") for table in ("cifar10", "cifar10_weak_teacher", "lowdata")]
    + [("cifar10", "kd", "student")],
)
def test_the_readmes_differences_are_the_paired_intervals_of_the_rows(table, first, second):
    rows = read_rows(experiments_folder() / "results" / f"{table}.csv")
    study = read_study("lowdata" if table == "lowdata" else "cifar10")  # their planned comparisons
    (one,) = [one for one in compare(study, runs_of(rows)) if (one.first, one.second) == (first, second)]
    by_seed = [
        {row["seed"]: float(row["student_accuracy"]) for row in rows if row["arm"] == arm} for arm in (first, second)
    ]
    shared = sorted(by_seed[0].keys() & by_seed[1].keys())
    test = stats.ttest_rel(*([values[seed] for seed in shared] for values in by_seed))
    low, high = (100 * end for end in test.confidence_interval(0.95))
    assert (one.leading.low, one.leading.high, one.leading.p) == pytest.approx((low, high, test.pvalue))
    assert one.leading.n == (len(shared), len(shared))
    difference, low, high = (f"{value:+.2f}".replace("-", "−") for value in (one.leading.difference, low, high))
    p = f"{test.pvalue:.{3 if test.pvalue < 0.01 else 2}f}"
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.escape(f"{difference} points ({len(shared)} seeds, ") + "[^)]*" + re.escape(f"{low} to {high}, p = {p})")
    assert re.search(said, text), said


def test_what_was_planned_counts_before_it_has_runs(pair):
    """Holm's correction is over all planned comparisons, and no arm is the best of a study that is not complete."""
    far = [row(arm, seed, mean + seed / 10) for arm, mean in (("slow", 70), ("fast", 90)) for seed in range(3)]
    for one in far[:3]:
        one["student_accuracy"] = str(float(one["student_accuracy"]) + 0.001 * (int(one["seed"]) % 2))
    more = replace(pair, arms={**pair.arms, "third": "kd"}, comparisons=[*pair.comparisons, ("third", "slow")])
    (alone,), (planned,) = compare(pair, runs_of(far)), compare(more, runs_of(far))
    assert (alone.planned, planned.planned) == (len(pair.comparisons), len(pair.comparisons) + 1)
    assert planned.adjusted == pytest.approx(planned.planned * planned.leading.p) and planned.adjusted > alone.adjusted
    assert "**" in "".join(arms_table(pair, far, [])) and "**" not in "".join(arms_table(more, far, []))
    assert f"over the {planned.planned} that were planned" in sentences([planned])[0]


def test_pairs_are_those_of_one_seed(pair):
    runs = [row("slow", seed, 70 + 3 * seed) for seed in range(4)] + [
        row("fast", s, 71 + 3 * s + s % 2) for s in (0, 1, 3)
    ]
    (one,) = compare(pair, runs_of(runs))
    assert one.leading.by_pairs and one.leading.n == (3, 3)
    assert one.leading.difference == pytest.approx((1 + 2 + 2) / 3)
    assert one.welch.difference == pytest.approx((71 + 75 + 81) / 3 - 74.5)
    assert one.adjusted == one.leading.p < one.welch.p  # a single comparison


def test_the_papers_mean_stands_beside_rows_of_as_many_examples_only(pair):
    study = read_study("ablation")
    papers = read_rows(experiments_folder() / "results" / "papers.csv")
    for n_train, shown in (("50000", True), ("45000", False)):
        lines = arms_table(study, [row("ig_kd", 0, 92, n_train=n_train, study="ablation")], papers)
        assert ("92.02 (0.34, 10)" in lines[2]) is shown


def test_the_report_is_written_between_its_markers(tmp_path):
    folder = tmp_path / "experiments"
    (folder / "results").mkdir(parents=True)
    (folder / "studies").mkdir()
    (folder / "studies/pair.toml").write_text(STUDY)
    lines = [row(arm, seed, mean + seed) for arm, mean in (("slow", 70), ("fast", 71)) for seed in range(3)]
    lines[-1] |= {"student_accuracy": "0.74"}  # differences of 1, 1 and 2 points
    merge_rows(folder / "results/pair.csv", lines)
    (folder / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        succeed(tmp_path, "report", "--into", tmp_path)
    text = (folder / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    assert "fast − slow" in text
    assert "| slow | 3 | 71.00 | 1.00 |" in text
    assert (folder / "results/pair.svg").is_file()
    (folder / "README.md").write_text("no markers\n")
    process = start(tmp_path, "report", "--into", tmp_path)
    assert "expected the lines" in process.communicate()[0]


def test_what_a_method_costs_is_shown_where_rows_tell_it():
    study = Study("pair", arms={"slow": "kd", "fast": "kd"})
    rows = [row(arm, seed, 70) for arm in ("slow", "fast") for seed in range(2)]
    plain, _, _ = arms_lines(study, rows, [])
    rows[0] |= {"extra_parameters": "1500", "step_ms": "20.0"}
    rows[1] |= {"extra_parameters": "1500", "step_ms": "30.0"}
    header, lines, _ = arms_lines(study, rows, [])
    assert header == [*plain, "parameters that training adds", "training step, ms"]
    assert [line[-2:] for line in lines] == [["1,500", "25.0"], ["–", "–"]]


def test_what_changes_besides_accuracy_is_a_table_of_the_evaluated_runs():
    study = Study("pair", arms={"slow": "kd", "fast": "kd", "late": "kd"})
    rows = [row(arm, seed, 70) for arm in ("slow", "fast") for seed in range(2)]
    assert quality_lines(study, rows) is None
    rows[0] |= {"student_nll": "0.25", "student_attribution_rank_correlation": "0.5"}
    rows[0] |= {"student_attribution_rank_correlation_chance": "-0.125"}
    rows[1] |= {"student_nll": "0.75", "student_ece": "0.125"}
    header, lines = quality_lines(study, rows)
    assert [title.split(" (")[0] for title in header] == [
        "arm", "n", "negative log-likelihood", "calibration error", "rank correlation with the teacher's maps"
    ]  # fmt: skip
    assert lines == [
        ["slow", "2", "0.500 ± 0.354", "12.5, n = 1", "0.500, n = 1 (−0.125)"], ["fast", "2", "–", "–", "–"]
    ]  # fmt: skip
    rows[0] |= {"student_attribution_insertion": "0.5", "evaluation": "16 steps"}
    rows[1] |= {"student_attribution_insertion": "0.9", "evaluation": "2 steps", "student_attribution_deletion": "0.6"}
    assert quality_lines(study, rows)[1][0][-2:] == ["measured in several ways"] * 2
    rows[1]["evaluation"] = "16 steps"
    assert quality_lines(study, rows)[1][0][-4:] == [
        "0.500, n = 1 (−0.125)", "0.700 ± 0.283", "0.600, n = 1", "0.300, n = 1"
    ]  # fmt: skip
    rows[2] |= {"student_attribution_insertion": "0.8", "evaluation": "2 steps"}  # of the other arm
    assert [line[-3] for line in quality_lines(study, rows)[1]] == ["measured in several ways"] * 2
    assert "| slow | 2 | 0.500 ± 0.354 | 12.5, n = 1 |" in "\n".join(section(study, rows, []))
    assert "0.500 ± 0.354" in page(study, rows, [])


def test_arms_without_spread_are_not_compared():
    study = Study("pair", arms={"slow": "kd", "fast": "kd"}, comparisons=(("fast", "slow"),))
    rows = [row(arm, seed, 100 * right / 450) for arm, right in (("slow", 99), ("fast", 100)) for seed in range(3)]
    (one,) = compare(study, runs_of(rows))
    assert not one.leading.tested and one.leading.difference == pytest.approx(100 / 450)
    assert "the runs have no spread, so no test" in "".join(sentences([one]))
    lines = arms_table(study, rows, [])
    assert not any("**" in line for line in lines)


def test_each_arm_has_its_own_parameters_at_a_size_and_long_names_their_own_line():
    study = Study("pair", arms={"plain": "kd", "narrow": "kd"}, sizes={"small": {}, "large": {}})
    sizes = {("small", "plain"): 1000, ("small", "narrow"): 250, ("large", "plain"): 8000, ("large", "narrow"): 2000}
    rows = [row(arm, 0, 70, size=size) | {"student_parameters": str(n)} for (size, arm), n in sizes.items()]
    chart = size_chart(study, rows)
    assert [line[1] for line in chart.table[1]] == ["1,000", "8,000", "250", "2,000"]
    assert (chart.says["least"], chart.says["most"]) == (250, 8000)
    assert size_chart(study, [one | {"student_parameters": "1000"} for one in rows]) is None
    assert labels(["a" * 30, "b", "a" * 31]) == [f"{'a' * 27}… (1)", "b", f"{'a' * 27}… (3)"]


def test_arms_of_different_data_are_named():
    study = Study("pair", arms={"slow": "kd", "fast": "kd"})
    rows = [row(arm, 0, 70) | {"data_fingerprint": data} for arm, data in (("slow", "aa"), ("fast", "bb"))]
    (said,) = (line for line in study_verdict(study, rows) if "2 different data sets" in line)
    assert "aa (slow); bb (fast)" in said
    assert not any("data sets" in line for line in study_verdict(study, [row("slow", 0, 70), rows[1]]))


def test_arms_that_ran_with_other_flags_are_named():
    study, command = Study("pair", arms={"slow": "kd", "fast": "kd"}), "python -m tfigkd.study --arms {} --seeds 1"
    alike = [row(arm, 0, 70) | {"command": f"{command.format(arm)} --a.b 1 2 --c.d='x y'"} for arm in ("slow", "fast")]
    assert command_of(study, rows=alike) == f"{command_of(study)} --a.b 1 2 --c.d 'x y'"
    turned = alike[1] | {"command": f"{command.format('fast')} --c.d='x y' --data.cache here --a.b 1 2"}
    assert not any("flags" in line for line in study_verdict(study, alike))
    assert not any("flags" in line for line in study_verdict(study, [alike[0], turned]))  # of no effect, other order
    short = [one | {"command": f"{one['command']} --data photos --image-size 48"} for one in alike]
    assert command_of(study, rows=short).endswith("--data.name photos --data.image_size 48")
    assert any("flags" in line for line in study_verdict(study, [alike[0], short[1]]))
    (said,) = (
        line
        for line in study_verdict(study, [alike[0], alike[1] | {"command": command.format("fast")}])
        if "different flags" in line
    )
    assert "--a.b 1 2, --c.d 'x y' (slow); none (fast)" in said
    spelled = alike[1] | {"command": f"{command.format('fast')} --a.b=3 --a.b 1 2 --c.d 'x y'"}
    assert not any("flags" in line for line in study_verdict(study, [alike[0], spelled]))


def test_runs_that_were_not_planned_are_not_counted_as_done():
    study = Study("pair", arms={"slow": "kd", "fast": "kd"}, seeds=2)
    rows = [row("slow", seed, 70) | {"command": "python -m tfigkd.study --training.epochs 9"} for seed in range(4)]
    assert done_runs(study, rows) == 2
    shown = page(study, rows, [])
    assert "2 of 4" in shown and "2 runs of other seeds, sizes or arms" in shown and "continues with them" in shown
    assert "python -m tfigkd.study --experiment pair --training.epochs 9" in shown
    later = page(study, rows[2:], [])
    assert "0 of 4" in later and "No run of this study" not in later and "71.00" not in later and "70.00" in later


def test_names_that_cannot_be_folders_of_their_own_are_refused(tmp_path):
    text = 'description = "x"\nseeds = 1\n[arms]\n'
    with pytest.raises(UserError, match="'a/b' cannot name a folder"):
        read_study(write(tmp_path / "slash.toml", text + '"a/b" = "kd"\n'))
    with pytest.raises(UserError, match=r"'\.\.' cannot name a folder"):
        read_study(write(tmp_path / "above.toml", text + '".." = "kd"\n'))
    with pytest.raises(UserError, match="cifar10 is a shipped study, and this file is another one"):
        read_study(write(tmp_path / "cifar10.toml", text + 'kd = "kd"\n'))
    sizes = '[sizes]\ny.student.drop_blocks = 9\n"x-y".student.drop_blocks = 9\n'
    twice = read_study(write(tmp_path / "twice.toml", text + 'kd = "kd"\nkd-x = "kd"\n' + sizes))
    with pytest.raises(UserError, match="two arms with their sizes have the folder kd-x-y"):
        plan(twice, Options("twice"))
    seen = read_study(write(tmp_path / "seen.toml", 'judged_on = "validation"\n' + text + 'kd = "cifar10_kd"\n'))
    with pytest.raises(UserError, match="judged on validation, on which kd would train"):
        plan(seen, Options("seen"))
    whole = read_study(write(tmp_path / "whole.toml", 'judged_on = "compressed"\n' + text + 'kd = "cifar10_kd"\n'))
    with pytest.raises(UserError, match="judged on compressed students, and kd is not compressed"):
        plan(whole, Options("whole"))
    pair = read_study(write(tmp_path / "pair.toml", text + 'kd = "kd"\nig = "ig_kd"\n'))
    assert [job.arm for job in plan(pair, Options("pair", arms="kd, kd"))] == ["kd"]


def test_a_study_of_compression_is_judged_by_the_compressed_student():
    study = read_study("sparsity")
    assert {job.run.config.compress.sparsity for job in plan(study, Options("sparsity"))} == {0.5, 0.75, 0.9}
    zeros = {"compressed_prunable_sparsity": "0.9"}
    rows = [
        row(arm, seed, 90, size="90%", study="sparsity") | zeros | {"compressed_accuracy": str((mean + seed) / 100)}
        for arm, mean in (("power", 80), ("sgd", 77.5))
        for seed in range(3)
    ]
    with pytest.raises(UserError, match="power, seed 0, has no compressed_accuracy"):
        runs_of([row("power", 0, 90, size="90%", study="sparsity")], study.judged_on)
    header, lines, _ = arms_lines(study, rows, [])
    assert header[2] == "compressed accuracy, %" and header[-1] == "zeros in the compressed kernels, %"
    assert [(line[2].strip("*"), line[-1]) for line in lines] == [("81.00", "90.0"), ("78.50", "90.0")]
    (one,) = compare(study, runs_of(rows, study.judged_on))
    assert one.leading.difference == pytest.approx(2.5)
    rows[0] |= {"compressed_method": "prune", "compressed_sparsity": "0.5"}
    rows[1] |= {"compressed_method": "prune", "compressed_sparsity": "0.9"}
    with pytest.raises(UserError, match=r"runs of power 90% are compressed in several ways \(.*prune, 90.0 % zeros"):
        runs_of(rows, study.judged_on)
    for seed, zeros in enumerate(("0.4167972", "0.4167906", "0.4168")):  # one setting, and a zero more or less
        rows[seed] |= {"compressed_method": "prune", "compressed_sparsity": zeros}
    assert len(runs_of(rows, study.judged_on)["90%", "power"]) == 3
    for seed, setting in enumerate(("100 steps", "200 steps", "200 steps")):
        rows[seed]["compressed_settings"] = setting
    with pytest.raises(UserError, match=r"in several ways \(prune, 100 steps; prune, 200 steps\)"):
        runs_of(rows, study.judged_on)


def test_stages_that_are_new_are_done_in_finished_runs_too(tmp_path):
    study = Study("pair", arms={"slow": "student"}, seeds=1, stages="data,distill,report")
    more = replace(study, stages="data,distill,evaluate,report")
    (planned,) = plan(study, Options("pair", workdir=tmp_path))
    (asked,) = plan(study, Options("pair", workdir=tmp_path, stages="benchmark,report"))
    make_folder(planned.folder)
    write(planned.folder / "rows.csv", "seed\n0\n")
    write(planned.folder / "config.json", json.dumps(planned.run.settings))
    assert not is_finished(planned)
    write_manifest(make_folder(planned.folder / "distill"), "1", files={})
    assert is_finished(planned) and not is_finished(asked)
    assert not any(is_finished(job) for job in plan(more, Options("pair", workdir=tmp_path)))
    write_manifest(make_folder(planned.folder / "benchmark"), "1", files={})
    assert is_finished(asked)
    # the command of a run is one that trains its student
    assert "--stages" not in job_record(asked)["command"]
    (first,) = plan(study, Options("pair", workdir=tmp_path / "new", stages="data,distill", seeds=3, first_seed=2))
    assert job_record(first)["command"].endswith("--arms slow --seeds 3 --first_seed 2 --stages data,distill")


def test_collecting_from_several_processes_at_once_loses_no_row(tmp_path):
    program = """
import sys
from pathlib import Path
from tfigkd.study.collect import merge_rows
path, arm, one = Path(sys.argv[1]), sys.argv[2], {"study": "pair", "size": "", "config": "c", "n_train": "9"}
for seed in range(20):
    merge_rows(path, [{**one, "arm": arm, "seed": str(seed), "student_accuracy": "0.5"}])
"""
    table = tmp_path / "results/pair.csv"
    words = [sys.executable, "-c", program, str(table)]
    processes = [subprocess.Popen([*words, arm], cwd=ROOT) for arm in ("slow", "fast", "late")]
    assert [process.wait() for process in processes] == [0] * 3
    assert len(read_rows(table)) == 60


def test_a_command_of_the_page_names_the_folder_and_names_may_have_any_signs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pair.toml", 'seeds = 2\n[arms]\n"kd [t=2]" = "kd"\n"a|b" = "kd"\n')
    study = read_study("pair.toml")
    finished(tmp_path / "other", [row(arm, 0, 70) for arm in study.arms])
    assert study_command(["report", "--experiment", "pair.toml", "--workdir", "other"]) == 0
    assert "kd [t=2]" in capsys.readouterr().out
    text = (tmp_path / "other/pair/report.html").read_text(encoding="utf-8")
    assert "python -m tfigkd.study --experiment pair.toml --workdir other" in text
    assert "| a\\|b | 1 |" in "\n".join(section(study, [row("a|b", 0, 70)], []))
    assert study_command(["report", "--experiment", "pair.toml", "--workdir", "none"]) == 1
    assert "--experiment pair.toml --workdir none runs it" in capsys.readouterr().err
    assert study_command(["collect", "--experiment", "lowdta", "--workdir", "none"]) == 1
    assert "unknown study 'lowdta'; did you mean 'lowdata'" in capsys.readouterr().err
    for wrong, right in (("collct", "collect"), ("repport", "report")):
        assert study_command([wrong]) == 1
        assert f"unknown command {wrong!r}; did you mean {right!r}" in capsys.readouterr().err
    assert study_command(["--experiment", "lowdata", "--minutes", "-3"]) == 1
    assert "--minutes must be positive" in capsys.readouterr().err

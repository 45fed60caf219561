"""Precision "auto": measured once, written down, shared by the runs of one folder of teachers."""

import json
import re
import shlex
import shutil

import keras
import pytest

from tfigkd import models
from tfigkd.config.experiment import override, read_experiment, smoke
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.run import parse
from tfigkd.runtime.errors import UserError
from tfigkd.stages import precision
from tfigkd.stages.distill import student_fingerprint
from tfigkd.stages.runner import changed_settings, run
from tfigkd.stages.teacher import teacher_fingerprint
from tfigkd.stages.workdir import Workdir
from tfigkd.training.speed import choose_precision, compare_precisions

FASTER, SLOWER = {"float32": 1.2, "mixed_bfloat16": 1.0}, {"float32": 1.05, "mixed_bfloat16": 1.0}
AUTO = {"training.precision": "auto", "teacher.training.precision": "auto"}


@pytest.fixture
def config():
    return smoke(read_experiment("quickstart")[1])


@pytest.fixture
def measured(monkeypatch):
    """Counts the measurements, whose result can be set."""
    found = {"count": 0, "seconds": FASTER}

    def compare(network, recipe):
        found["count"] += 1
        return found["seconds"]

    monkeypatch.setattr(precision, "compare_precisions", compare)
    return found


def test_the_command_of_a_report_is_accepted_in_its_folder(measured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--teacher.drop_blocks", "14", "--teacher.width", "0.25", "--student.drop_blocks", "16"]
    small += ["--student.width", "0.25", "--export.formats", "float32", "--evaluation.attribution_examples", "0"]
    small += ["--evaluation.gallery_examples", "0", "--stages", "data,teacher,overlays,distill,export,evaluate,report"]
    _, chosen = parse(["--experiment", "quickstart", "--smoke", "--training.precision", "auto", *small])
    run(chosen)
    folder = chosen.workdir.run
    (command,) = {
        *re.findall(r"python -m tfigkd\.run --experiment quickstart [^`\n]*", (folder / "report.md").read_text())
    }
    _, again = parse(shlex.split(command)[3:])
    assert again.workdir == chosen.workdir and changed_settings(folder / "config.json", again) == []


def test_without_auto_nothing_is_measured_or_written(config, measured, tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    assert precision.resolve(config, workdir) is config
    assert not measured["count"] and not (tmp_path / "run").exists()


def test_a_choice_holds_for_every_start_of_a_run(config, measured, tmp_path):
    auto, workdir = override(config, AUTO), Workdir(tmp_path / "run", tmp_path / "teachers")
    workdir.run.mkdir()
    chosen = precision.resolve(auto, workdir)
    assert (chosen.training.precision, chosen.teacher.training.precision) == ("mixed_bfloat16", "mixed_bfloat16")
    assert measured["count"] == 2  # teacher and student are different networks
    measured["seconds"] = SLOWER
    assert precision.resolve(auto, workdir) == chosen
    again = Workdir(tmp_path / "again", tmp_path / "teachers", 1)
    again.run.mkdir()
    assert precision.resolve(auto, again) == chosen  # another seed of a study
    assert measured["count"] == 2
    alone = Workdir(tmp_path / "alone", tmp_path / "other")
    alone.run.mkdir()
    assert precision.resolve(auto, alone).training.precision == "float32"
    recorded = json.loads((workdir.run / "precision.json").read_text())
    assert recorded["student"]["seconds"] == FASTER and recorded["student"]["hardware"]


def test_a_choice_of_a_run_is_not_measured_again(config, measured, tmp_path):
    auto, workdir = override(config, AUTO), Workdir(tmp_path / "run", tmp_path / "teachers")
    workdir.run.mkdir()
    chosen = precision.resolve(auto, workdir)
    shutil.rmtree(workdir.teachers)
    assert precision.resolve(auto, workdir) == chosen and measured["count"] == 2
    given = precision.resolve(override(auto, {"teacher.training.precision": "float32"}), workdir)
    assert (given.training.precision, given.teacher.training.precision) == ("mixed_bfloat16", "float32")


def test_fingerprints_hold_the_resolved_precision(config, measured, tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    workdir.run.mkdir()
    measured["seconds"] = SLOWER
    chosen = precision.resolve(override(config, AUTO), workdir)
    assert teacher_fingerprint(chosen) == teacher_fingerprint(config)
    bare = {"losses.kd.weight": 0.0, "overlay.probability": 0.0}
    plain, resolved = (student_fingerprint(override(each, bare), workdir) for each in (config, chosen))
    assert plain == resolved
    explicit = override(config, bare | {"training.precision": "mixed_bfloat16"})
    assert student_fingerprint(explicit, workdir) != plain


def test_a_teacher_that_is_not_trained_is_not_measured(config, measured, tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    workdir.run.mkdir()
    bare = {"losses.kd.weight": 0.0, "overlay.probability": 0.0}
    assert precision.resolve(override(config, AUTO | bare), workdir).teacher.training.precision == "float32"
    assert measured["count"] == 1


def test_a_damaged_record_is_refused(config, measured, tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    workdir.run.mkdir()
    precision.resolve(override(config, AUTO), workdir)
    path = workdir.run / "precision.json"
    path.write_text(path.read_text().replace("mixed_bfloat16", "mixed_float16"))
    with pytest.raises(UserError, match="checksum"):
        precision.resolve(override(config, AUTO), workdir)


def test_bfloat16_must_be_faster_by_more_than_noise():
    assert choose_precision(FASTER) == "mixed_bfloat16"
    assert choose_precision(SLOWER) == "float32"


def test_a_measurement_leaves_the_network_as_it_is():
    keras.utils.set_random_seed(0)
    network = models.convnet(3, input_shape=(8, 8, 3), widths=(4,), depth=1)
    before = [weight.copy() for weight in network.get_weights()]
    seconds = compare_precisions(network, TrainingConfig(batch_size=4))
    assert seconds.keys() == FASTER.keys() and min(seconds.values()) > 0
    for old, new in zip(before, network.get_weights(), strict=True):
        assert (old == new).all()

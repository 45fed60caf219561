"""The estimate: seconds of trial steps times what is left to do."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from tfigkd.config.experiment import override, read_experiment
from tfigkd.runtime.files import write_manifest
from tfigkd.stages import estimate as module
from tfigkd.stages.teacher import members
from tfigkd.stages.workdir import Workdir

STAGES = ["teacher", "overlays", "distill"]
TINY = {"teacher.drop_blocks": 14, "teacher.width": 0.25, "student.drop_blocks": 16, "student.width": 0.25}


@pytest.fixture
def config():
    changes = {"teacher.training.epochs": 10, "training.epochs": 20, "attribution.n_steps": 5}
    return override(read_experiment("quickstart")[1], TINY | changes)


def parts(config, folder, monkeypatch):
    """The parts of the estimate where a step takes 2 s, a batch 1 s, a gradient 0.1 s and a forward pass 0.01 s."""
    monkeypatch.setattr(module, "trial_step", lambda *_: "step")
    monkeypatch.setattr(module, "shortest_seconds", lambda runs, **_: [2.0 if runs == ["step"] else 1.0])
    monkeypatch.setattr(module, "_gradient_seconds", lambda *_: 0.1)
    monkeypatch.setattr(module, "_forward_seconds", lambda *_: 0.01)
    monkeypatch.setattr(module, "_with_trial", lambda measure: measure())
    module.dataset(config.data)  # reading it is no part of these
    found = module.seconds_of_stages(config, Workdir(folder / "run", folder / "teachers"), STAGES)
    return {name: seconds - module.STAGE_SECONDS for name, seconds in found.items()}


def test_what_is_measured_is_multiplied_by_what_is_left(config, tmp_path, monkeypatch):
    found = parts(config, tmp_path, monkeypatch)
    examples = len(module.teacher_examples(config))
    steps = -(-examples // 32)
    validation = 0.01 * len(module.dataset(config.data).validation)
    pictures = 5 * (8 * 16 * 0.1 + validation)  # 8 maps of 16 gradients, and a confusion matrix
    assert found["teacher"] == pytest.approx(10 * (steps * 3 + validation) + pictures)
    steps = -(-examples // config.training.batch_size)
    ledger = (1 + 20 * examples // config.training.batch_size // config.ledger.every) * 2 * 2  # two terms
    assert found["distill"] == pytest.approx(20 * (steps * 3 + validation) + pictures + ledger)
    plain = override(config, {"tensorboard.pictures": 0, "ledger.every": 0, "data.train_split": "train+validation"})
    assert parts(plain, tmp_path, monkeypatch)["distill"] == pytest.approx(
        20 * -(-len(module.training_examples(plain.data)) // config.training.batch_size) * 3
    )
    assert found["overlays"] == pytest.approx(5 * 0.1 * len(module.stored_examples(config.data)))


def test_epochs_that_a_checkpoint_has_done_do_not_count(config, tmp_path, monkeypatch):
    config = override(config, {"tensorboard.pictures": 0, "ledger.every": 0})
    whole = parts(config, tmp_path, monkeypatch)
    (tmp_path / "run" / "distill").mkdir(parents=True)
    (tmp_path / "run" / "distill" / "checkpoint-00015.ckpt").touch()
    assert parts(config, tmp_path, monkeypatch)["distill"] == pytest.approx(whole["distill"] / 4)


def test_each_of_several_teachers_counts_its_own_epochs(config, tmp_path, monkeypatch):
    config = override(config, {"tensorboard.pictures": 0, "teacher.count": 3})
    whole = parts(config, tmp_path, monkeypatch)["teacher"]
    assert whole == pytest.approx(3 * parts(override(config, {"teacher.count": 1}), tmp_path, monkeypatch)["teacher"])
    first, second, _ = (module.teacher_folder(one, Workdir(tmp_path, tmp_path / "teachers")) for one in members(config))
    for folder in (first, second):
        folder.mkdir(parents=True)
    write_manifest(first, "1")
    (second / "checkpoint-00005.ckpt").touch()  # of 10 epochs
    assert parts(config, tmp_path, monkeypatch)["teacher"] == pytest.approx(whole / 2)


def test_stored_attention_counts(config, tmp_path, monkeypatch):
    taps = {"losses.at.student_layer": "block_00", "losses.at.teacher_layer": "block_00"}
    views = {"view.kind": "views", "view.views": 4, "view.attention": "views"}
    config = override(config, {"losses.at.weight": 1.0, **taps, **views})
    plain = parts(override(config, {"losses.at.weight": 0.0}), tmp_path, monkeypatch)["overlays"]
    more = 0.01 * 4 * len(module.stored_examples(config.data))
    assert parts(config, tmp_path, monkeypatch)["overlays"] == pytest.approx(plain + more)


def test_only_a_long_run_is_measured(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "seconds_of_stages", lambda *_: {"distill": 1000.0})
    for rough, expected in ((10.0, 10), (10_000.0, 1000)):
        monkeypatch.setattr(module, "_rough_seconds", lambda *_, rough=rough: rough)
        found = module.estimate(config, Workdir(tmp_path / "run", tmp_path / "teachers"), STAGES)
        assert found == timedelta(seconds=expected)


def test_trial_steps_of_small_networks_take_time_and_run(config, tmp_path):
    found = module.seconds_of_stages(config, Workdir(tmp_path / "run", tmp_path / "teachers"), STAGES)
    assert all(seconds > module.STAGE_SECONDS for seconds in found.values())


def test_compilation_counts_by_the_time_that_the_trial_takes(monkeypatch):
    clock = iter([100.0, 107.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert module._with_trial(lambda: 30.0) == 37.0


def test_finished_stages_do_not_count(config, tmp_path):
    workdir, stages = Workdir(tmp_path / "run", tmp_path / "teachers"), ["distill", "export", "evaluate", "report"]
    for stage in stages[:3]:
        workdir.stage(stage).mkdir(parents=True)
        write_manifest(workdir.stage(stage), "1")
    assert module.estimate(config, workdir, stages) == timedelta(seconds=module.STAGE_SECONDS)
    assert module.seconds_of_stages(config, workdir, stages)["evaluate"] == 0


def test_the_first_stage_that_is_left_reads_the_data(config, tmp_path, monkeypatch):
    whole = parts(config, tmp_path, monkeypatch)
    clock = iter([0.0, 50.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    again = parts(config, tmp_path, monkeypatch)
    assert again["teacher"] == pytest.approx(whole["teacher"] + 50)
    assert again["distill"] == pytest.approx(whole["distill"])


def test_limited_teachers_together_take_the_time_of_one(config, tmp_path, monkeypatch):
    one = parts(config, tmp_path, monkeypatch)["teacher"]
    several = override(config, {"teacher.count": 2, "teacher.shards": 2})
    assert parts(several, tmp_path, monkeypatch)["teacher"] == pytest.approx(one, rel=0.1)

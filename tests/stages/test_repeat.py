"""The command that a report gives repeats its run: parsed again, it is the same config."""

import shlex

import pytest

from tfigkd.config.experiment import Config, override, read_experiment, smoke
from tfigkd.run import parse
from tfigkd.stages.repeat import own_file, repeat_command
from tfigkd.stages.workdir import Workdir

CHANGES = {
    "losses.kd.temperature": 4.0,
    "export.formats": ("float32", "int16x8"),
    "teacher.train": False,
    "teacher.weights": "some where/w.npz",
    "data.limit": 100,
    "training.ema": 0.99,
    "training.class_weight": {"none": 2.0, "a class": 0.5},
    "teacher.training.class_weight": "balanced",
    "data.splits.train": "train[:90%]",
    "data.group": "patient",
    "augment.flip": True,  # quickstart has it off
}


@pytest.mark.parametrize("small", [False, True])
def test_the_command_repeats_a_shipped_experiment(small):
    config = read_experiment("quickstart")[1]
    config = override(smoke(config) if small else config, CHANGES)
    text, toml = repeat_command(
        config, {"experiment": "quickstart", "seed": 2, "smoke": small}, Workdir("a b", "runs/teachers")
    )
    assert toml == ""
    words = shlex.split(text)
    assert words[:3] == ["python", "-m", "tfigkd.run"]
    parsed, chosen = parse(words[3:])
    assert (chosen.experiment, parsed.seed, parsed.smoke, str(parsed.workdir)) == ("quickstart", 2, small, "a b")
    assert parsed.config == config


def test_the_command_takes_back_what_an_experiment_sets():
    base = read_experiment("ig_kd")[1]
    config = override(base, {"teacher.dropout": 0.5, "data.dir": None})
    text, _ = repeat_command(config, {"experiment": "ig_kd", "seed": 0, "smoke": False})
    assert parse(shlex.split(text)[3:])[0].config == config
    text, _ = repeat_command(base, {"experiment": "ig_kd", "seed": 0, "smoke": False})
    assert text == "python -m tfigkd.run --experiment ig_kd --seed 0"


@pytest.mark.parametrize("small", [False, True])
def test_a_user_provided_experiment_is_repeated_with_its_overrides_and_leaves_the_users_file(
    small, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('base = "quickstart"\n[training]\nepochs = 7\n')
    given = ["--experiment", "mine.toml", "--losses.kd.temperature", "9", "--training.epochs", "5", "--teachers", "t"]
    given += ["--smoke"] * small
    options, chosen = parse([*given, "--workdir", "a b"])
    text, toml = repeat_command(options.config, chosen.settings, chosen.workdir)
    (tmp_path / "a b").mkdir()
    own_file("mine", chosen.workdir).write_text(toml)  # as stage report does
    assert "mine.toml" not in text and (tmp_path / "mine.toml").read_text().startswith("base")
    again, repeated = parse(shlex.split(text)[3:])
    assert again.config == options.config and again.config.losses.kd.temperature == 9
    assert str(repeated.workdir.teachers) == "t"
    # into another folder, so that the first run keeps its settings; and the repetition repeats itself
    assert repeated.workdir.run != chosen.workdir.run
    once_more, same = repeat_command(again.config, repeated.settings, repeated.workdir)
    assert same.splitlines()[1:] == toml.splitlines()[1:] and "mine_as_run_as_run" not in once_more


def test_one_changed_entry_of_a_table_of_classes_repeats_the_whole_table(monkeypatch):
    base = override(read_experiment("quickstart")[1], {"training.class_weight": {"7": 2.0, "a.b": 0.5}})
    monkeypatch.setattr("tfigkd.stages.repeat.read_experiment", lambda _: ("quickstart", base))
    config = override(base, {"training.class_weight": {"7": 3.0, "a.b": 0.5}})
    text, _ = repeat_command(config, {"experiment": "quickstart", "seed": 0, "smoke": False})
    assert text.endswith("--training.class_weight 7 3.0 a.b 0.5")


def test_values_of_all_kinds_survive_the_file(tmp_path):
    config = override(Config(), CHANGES | {"description": 'with "quotes"'})
    run = {"experiment": "mine", "seed": 0, "smoke": False}
    text, toml = repeat_command(config, run, Workdir(tmp_path, "runs/teachers"))
    own_file("mine", Workdir(tmp_path, tmp_path)).write_text(toml)
    assert parse(shlex.split(text)[3:])[0].config == config

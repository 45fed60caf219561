"""The command that a report gives repeats its run: parsed again, it is the same config."""

import shlex

import pytest

from tfigkd.config.experiment import Config, override, read_experiment, smoke
from tfigkd.run import parse
from tfigkd.stages.repeat import command
from tfigkd.stages.workdir import Workdir

CHANGES = {
    "losses.kd.temperature": 4.0,
    "export.formats": ("float32", "int16x8"),
    "teacher.train": False,
    "teacher.weights": "some where/w.npz",
    "data.limit": 100,
    "training.ema": 0.99,
    "training.class_weight": {"7": 2.0, "a class": 0.5},
    "teacher.training.class_weight": "balanced",
    "data.splits.train": "train[:90%]",
    "data.group": "patient",
    "augment.flip": True,  # quickstart has it off
}


@pytest.mark.parametrize("small", [False, True])
def test_the_command_repeats_a_shipped_experiment(small):
    config = read_experiment("quickstart")[1]
    config = override(smoke(config) if small else config, CHANGES)
    text, toml = command(
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
    text, _ = command(config, {"experiment": "ig_kd", "seed": 0, "smoke": False})
    assert parse(shlex.split(text)[3:])[0].config == config
    text, _ = command(base, {"experiment": "ig_kd", "seed": 0, "smoke": False})
    assert text == "python -m tfigkd.run --experiment ig_kd --seed 0"


def test_an_experiment_of_ones_own_comes_with_its_file(tmp_path, monkeypatch):
    config = override(Config(), CHANGES | {"description": 'with "quotes"'})
    text, toml = command(config, {"experiment": "mine", "seed": 0, "smoke": False})
    (tmp_path / "mine.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    parsed, chosen = parse(shlex.split(text)[3:])
    assert (chosen.experiment, parsed.config) == ("mine", config)

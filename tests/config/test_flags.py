"""The command line: what is misspelled or missing is named in one line, in every command."""

import hashlib
import importlib
from pathlib import Path

import pytest

from tfigkd.models.keras_file import load_model
from tfigkd.run import parse
from tfigkd.runtime.errors import UserError
from tfigkd.stages.networks import content_of, weights_path

COMMANDS = {
    "run": ["--experimnt", "kd"],
    "study.__main__": ["--experimnt", "cifar10"],
    "incremental.__main__": ["--experimnt", "cifar10_foster"],
    "search.__main__": ["--experimnt", "kd"],
    "export": ["model.keras", "--ouput", "file.tflite"],
    "evaluate": ["--outptus", "logits", "model.keras"],
    "verify": ["--smaple", "3"],
    "upgrade.__main__": ["old.h5", "--ouput", "new.keras"],
    "pack.__main__": ["--ouput", "run.zip"],
    "pareto": ["--ouput", "page.html"],
    "predict": ["--tpo", "3"],
    "benchmark": ["--rwos", "rows.csv"],
    "profile": ["--ouput", "profile.csv", "file.tflite"],
    "web.__main__": ["--ouput", "site"],
}
RIGHT = {"--experimnt": "--experiment", "--ouput": "--output", "--tpo": "--top", "--smaple": "--sample"}
RIGHT |= {"--rwos": "--rows", "--outptus": "--outputs"}
MISSING = [
    ("run", [], "--experiment is missing"),
    ("study.__main__", [], "--experiment is missing"),
    ("export", ["model.keras"], "--format and --output are missing"),
    ("export", ["--format", "int8", "--output", "x.tflite"], "MODEL.keras is missing"),
    ("export", ["model.keras", "--format", "int8", "--output"], "--output needs a value"),
    ("run", ["--experiment", "kd", "--training.epochs"], "--training.epochs needs a value"),
    ("verify", [], "STORE is missing"),
    ("upgrade.__main__", ["old.h5"], "--output is missing"),
]


def error_of(command, arguments, capsys):
    """Return what a command that fails prints as its error."""
    assert importlib.import_module(f"tfigkd.{command}").main(arguments) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    return printed[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelled_option_is_named_before_one_that_is_missing(command, capsys):
    arguments = COMMANDS[command]
    (wrong,) = (argument for argument in arguments if argument in RIGHT)
    right = RIGHT[wrong]
    assert error_of(command, arguments, capsys) == f"error: unknown argument {wrong!r}; did you mean {right!r}?"


@pytest.mark.parametrize(("command", "arguments", "message"), MISSING)
def test_what_is_missing_is_named_without_its_help(command, arguments, message, capsys):
    assert error_of(command, arguments, capsys).removeprefix("error: ").partition(";")[0] == message


@pytest.mark.parametrize(
    ("command", "flag", "arguments"),
    [
        ("run", "--workdir", ["--experiment", "quickstart", "--workdir", ""]),
        ("run", "--workdir", ["--experiment", "quickstart", "--workdir="]),
        ("evaluate", "--rows", ["--rows", "", "model.keras"]),
    ],
)
def test_an_empty_path_is_not_the_current_folder(command, flag, arguments, tmp_path, monkeypatch, capsys):
    """As `--workdir "$UNSET"` gives one."""
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"tfigkd.{command}").main(arguments) == 1
    assert capsys.readouterr().err == f"error: {flag} is empty; give a path, . for the current folder\n"
    assert not list(tmp_path.iterdir())


def test_a_path_may_begin_with_the_home_folder_after_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options, _ = parse(["--experiment", "kd", "--workdir=~/runs", "--teachers", "here"])
    assert (options.workdir, options.teachers) == (tmp_path / "runs", Path("here"))
    (tmp_path / "weights.npz").write_bytes(b"content")
    assert weights_path("~/weights.npz") == tmp_path / "weights.npz"
    assert content_of("~/weights.npz") == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(UserError, match=rf"no model file {tmp_path}/none.keras"):
        load_model(Path("~/none.keras"))


@pytest.mark.parametrize("wrong", ["--exp", "-exp", "--experimen"])
def test_the_beginning_of_an_option_is_no_option(wrong, capsys):
    assert error_of("run", [wrong, "kd"], capsys) == f"error: unknown argument {wrong!r}; did you mean '--experiment'?"


def test_an_option_and_a_field_that_are_alike_are_told_apart(capsys):
    assert "did you mean '--stages'" in error_of("run", ["--experiment", "kd", "--stges", "data"], capsys)
    assert "did you mean '--training.epochs'" in error_of("run", ["--experiment", "kd", "--training.epoch=3"], capsys)
    wrong = ["--experiment", "cifar10", "--dry_run", "--porcesses", "2"]
    assert "did you mean '--processes'" in error_of("study.__main__", wrong, capsys)

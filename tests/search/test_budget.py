"""A search within a budget: its text, its space, which students are refused before training, and what it leaves."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import keras_tuner
import pytest

from tests.children import once, run
from tfigkd import models
from tfigkd.config.experiment import override, read_experiment
from tfigkd.models.cost import multiply_adds
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest, read_signed, write_signed
from tfigkd.runtime.rows import read_rows
from tfigkd.search import tuner
from tfigkd.search.__main__ import main
from tfigkd.search.budget import excess, format_budget, largest_share, read_budget
from tfigkd.search.candidates import Candidates
from tfigkd.search.options import Options
from tfigkd.search.oracle import make_oracle, propose_within
from tfigkd.search.outcome import Search, finish
from tfigkd.search.space import OF_ALL, Dimension, neutral_student, student_space, trial_config
from tfigkd.stages.data import dataset
from tfigkd.stages.networks import build_network
from tfigkd.stages.training_setup import untrained_student

TINY = """
[data]
name = "digits"
limit = 80
train_split = "train+validation"

[augment]
crop_padding = 1
flip = false

[training]
epochs = 2
batch_size = 16
"""
# four students, of which the narrow ones have 34 kB and the wide ones more than 1 MB
FEW = ("--vary", "student.model=resnet8", "--vary", "student.width=0.5,4.0")
COMMAND = ("--experiment", "tiny.toml", "--student", "--tuner", "random", *FEW)


def searched(folder, *arguments):
    """Run a search of students in a folder."""
    (folder / "tiny.toml").write_text(TINY)
    return run(folder, "tfigkd.search", *COMMAND, *arguments, environment={"COLUMNS": "160"}, merged=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a search in which a budget of size has left two of four students; what it printed is beside it."""

    def make(folder):
        done = searched(folder, "--budget", "size=50kB,latency=1000s", "--trials", "3")
        assert done.returncode == 0, done.stdout
        (folder.parent / "budget.txt").write_text(done.stdout)

    return once(tmp_path_factory, "budget", make) / "runs/search/tiny-random-budget"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency=0.2ms,size=300kB", {"latency": 0.2, "size": 300e3}),
        (" latency = 200us , multiply_adds=10M", {"latency": 0.2, "multiply_adds": 10e6}),
        ("speedup=10.8x,parameters=90000,size=.5MB", {"speedup": 10.8, "parameters": 90e3, "size": 500e3}),
    ],
)
def test_a_budget_is_read_with_its_units(text, expected):
    assert read_budget(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency=abc", r"--budget latency=abc: .* its unit \(us, ms, s\), such as latency=10ms"),
        ("latency=0.2", "expected a positive number and its unit"),
        ("size=300kb", r"its unit \(B, kB, MB\)"),
        ("size=0kB", "expected a positive number"),
        ("size=-3kB", "expected a positive number"),
        ("latency", "expected a positive number"),
        ("latencey=1ms", "unknown quantity 'latencey'; did you mean 'latency'"),
        ("watts=1", "unknown quantity 'watts'; known: latency, multiply_adds, parameters, size, speedup"),
        ("size=1kB,size=2kB", "size is given twice"),
    ],
)
def test_a_wrong_budget_is_one_line(text, message, capsys):
    assert main(["--experiment", "kd", "--student", "--budget", text]) == 1
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)


def test_several_processes_do_not_measure_beside_one_another(monkeypatch, capsys):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert main(["--experiment", "kd", "--student", "--budget", "size=1kB"]) == 1
    assert "search in one process" in capsys.readouterr().err


def test_what_exceeds_a_budget_by_hand():
    budget = {"latency": 0.2, "speedup": 10.0, "size": 300e3}
    within = {"latency": 0.2, "speedup": 10.0, "size": 300e3, "parameters": 1e9}  # which has no limit
    assert excess(within, budget) == "" and largest_share(within, budget) == 1
    slow = within | {"latency": 0.31, "speedup": 8.0}
    assert excess(slow, budget) == "latency 0.31 ms, at most 0.2 ms; speedup 8 x, at least 10 x"
    assert largest_share(slow, budget) == pytest.approx(1.55)
    assert excess({"parameters": 1.0}, budget) == ""
    assert format_budget(budget) == "latency at most 0.2 ms, speedup at least 10 x, size at most 300 kB"


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"student.model": "convnet", "student.widths": (64, 256)},
        {"student.model": "own.keras", "student.init": "file", "student.input_range": (0.0, 255.0)},
        {"student.model": "keras/MobileNetV3Small", "student.weights": "v3.weights.h5"},
    ],
)
def test_every_student_of_the_space_is_one(changed):
    """Options of one network stay away from the others, which would refuse them."""
    config = neutral_student(override(read_experiment("quickstart")[1], changed))
    space = student_space(config, ())
    oracle = make_oracle(Options(tuner="random"), config, space)
    drawn = [oracle.populate_space(str(number))["values"] for number in range(60)]
    assert {values["student.model"] for values in drawn} == {*space[0].values}
    assert {*OF_ALL} - {"model", "image_size", "normalization"} == set.intersection(
        *({*models.OPTIONS_OF[name]} for name in space[0].values)
    )
    students = {}
    for values in drawn:
        student = trial_config(config, values).student
        students[student.model] = student
        assert (student.drop_blocks > 0) == (student.model == "mobilenet_v2")
        assert (student.stem_stride is None) == (student.model == "convnet") == ("student.depth" in values)
    for student in students.values():
        build_network(replace(student, width=0.25), dataset(config.data))


def test_vary_replaces_and_adds_to_the_space_of_students():
    config = read_experiment("cifar10")[1]
    vary = ("student.model=resnet8,resnet14", "student.width=0.5:2", "training.learning_rate=0.01:0.3:log")
    assert student_space(config, vary) == [
        Dimension("student.model", ("resnet8", "resnet14"), "choice"),
        Dimension("student.width", (0.5, 2.0), "linear"),
        Dimension("student.stem_stride", (1, 2), "choice", ("mobilenet_v2", "resnet8", "resnet14", "resnet20")),
        Dimension("training.learning_rate", (0.01, 0.3), "log"),
    ]


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
@pytest.mark.parametrize("kind", ["random", "bayesian"])
def test_only_what_is_admitted_becomes_a_trial_and_each_once(kind, tmp_path):
    """Of 16 candidates 10 are admitted. A Bayesian oracle guesses from its seventh trial on; it would repeat itself."""
    config = read_experiment("kd")[1]
    space = [Dimension(f"training.{name}", (1, 2, 3, 4), "choice") for name in ("epochs", "batch_size")]
    oracle = make_oracle(Options(tuner=kind, trials=9), config, space)
    oracle._set_project_dir(str(tmp_path), "oracle")
    asked = []

    def admits(values):
        asked.append(values)
        return sum(values.values()) <= 5

    propose_within(oracle, admits, most=20)
    trained = []
    while (trial := oracle.create_trial("tuner0")).status == "RUNNING":
        trained.append(tuple(trial.hyperparameters.values.values()))
        oracle.update_trial(trial.trial_id, {"validation_accuracy": sum(trained[-1]) / 10})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert len({*trained}) == len(trained) == 9
    assert all(sum(values) <= 5 for values in trained)
    assert {sum(values.values()) <= 5 for values in asked} == {True, False}


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_values_that_do_not_go_together_are_refused_and_end_no_search(tmp_path, capsys):
    config = override(read_experiment("kd")[1], {"overlay.probability": 0.1})
    space = [Dimension(f"overlay.{end}_exponent", (0.5, 3.0), "linear") for end in ("min", "max")]
    candidates = SimpleNamespace(measure=lambda tried, values: SimpleNamespace(refused=""))
    made = tuner._tuner(Options(tuner="random", trials=20), "kd", config, space, tmp_path, candidates)
    drawn = [made.oracle.populate_space(str(number))["values"] for number in range(20)]
    assert all(values["overlay.min_exponent"] <= values["overlay.max_exponent"] for values in drawn)
    assert "refused: config: overlay.min_exponent and max_exponent must be 0 < min <= max" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_a_search_ends_after_many_refusals_in_a_row(tmp_path):
    oracle = make_oracle(Options(tuner="random"), read_experiment("kd")[1], [Dimension("a.b", (0.0, 1.0), "linear")])
    asked = []
    propose_within(oracle, lambda values: asked.append(values), most=7)
    assert oracle.populate_space("0")["status"] == "STOPPED"
    assert len(asked) == 7


def test_students_beyond_the_budget_are_refused_before_they_are_trained(finished):
    trained = sorted(path.parent.parent.parent.name for path in finished.glob("trials/*/0/distill/manifest.json"))
    assert trained == [path.name for path in sorted(finished.glob("trials/*"))] == ["0", "1"]
    rows = read_rows(finished / "trials.csv")
    by_outcome = {kind: [row for row in rows if row["outcome"].startswith(kind)] for kind in ("trained", "refused")}
    assert [row["student.width"] for row in by_outcome["refused"]] == ["4.0", "4.0"]
    for row in by_outcome["refused"]:
        assert float(row["size"]) > 1e6 and re.fullmatch(r"refused: size .* kB, at most 50 kB", row["outcome"])
        assert (row["trial"], row["validation_accuracy"], row["train_seconds"]) == ("", "", "")
    scores = [read_manifest(finished / f"trials/{number}/0/distill")["validation_accuracy"] for number in trained]
    whole = [row for row in by_outcome["trained"] if row["outcome"] == "trained"]
    assert [float(row["validation_accuracy"]) for row in whole] == sorted(scores, reverse=True)
    assert {(row["n_train"], row["n_validation"]) for row in whole} == {("80", "80")}
    assert all(float(row["latency"]) > 0 and row["command"].startswith("python -m") for row in rows)
    said = (finished.parents[3] / "budget.txt").read_text()
    assert said.count("refused: size") == 2 and "2 trials, best first, and 2 students that were not trained" in said


def test_a_candidate_is_as_large_as_its_trained_file(finished):
    """Its biases must differ from one another: a file stores equal ones once."""
    rows = read_rows(finished / "trials.csv")
    (file,) = (row for row in rows if row["outcome"] == "trained file: within the budget")
    (candidate,) = (row for row in rows if row["outcome"] == "trained" and row["trial"] == file["trial"])
    assert float(candidate["size"]) == pytest.approx(float(file["size"]), rel=0.005)
    assert float(file["size"]) == (finished / f"trial_{file['trial']}.int8.tflite").stat().st_size
    assert int(file["file_n"].removesuffix(".0")) == 40 and 0 <= float(file["file_accuracy"]) <= 1


def test_the_winner_is_an_experiment_that_runs_as_it_stands(finished, tmp_path):
    best = max(read_rows(finished / "trials.csv"), key=lambda row: float(row["validation_accuracy"] or 0))
    config = read_experiment(str(finished / "tiny_best.toml"))[1]
    assert (config.student.model, config.student.width) == ("resnet8", 0.5)
    assert str(config.student.stem_stride) == best["student.stem_stride"]
    assert config.data.train_split == "train+validation"
    command = ("--experiment", finished / "tiny_best.toml", "--smoke", "--stages", "data,distill")
    done = run(tmp_path, "tfigkd.run", *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("runs/tiny_best-smoke/0/distill/student.keras"))


def test_the_page_says_which_accuracy_it_shows(finished):
    page = (finished / "pareto.html").read_text(encoding="utf-8")
    assert "validation accuracy, %" in page and "test accuracy" not in page
    assert "model resnet8" in page and "Pareto front" in page


def test_a_longer_search_measures_and_trains_nothing_twice(finished, tmp_path):
    shutil.copytree(finished.parents[2], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / finished.relative_to(finished.parents[2])
    state = (folder / "candidates/candidates.json").read_bytes()
    before = [path.stat().st_mtime_ns for path in sorted(folder.glob("trials/*/0/distill/manifest.json"))]
    done = searched(tmp_path, "--budget", "size=50kB,latency=1000s", "--trials", "4")
    assert done.returncode == 0, done.stdout
    assert "measured:" not in done.stdout and "begins" not in done.stdout
    assert (folder / "candidates/candidates.json").read_bytes() == state
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("trials/*/0/distill/manifest.json"))] == before
    other = searched(tmp_path, "--budget", "size=60kB", "--trials", "4")
    assert other.returncode == 1 and "holds another search (budget.latency, budget.size)" in other.stdout


def test_a_budget_that_nothing_meets_names_the_nearest_student(tmp_path):
    done = searched(tmp_path, "--budget", "parameters=1k")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: none of 4 students is within the budget \(parameters at most 1 k\); the nearest is model resnet8  "
        r"width 0\.5  stem_stride [12]: parameters 19\.91 k, at most 1 k; raise --budget, or --vary smaller students",
        done.stdout.splitlines()[-1],
    )
    assert not list(tmp_path.glob("runs/search/*/trials"))


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_a_trained_file_is_held_to_the_budget_again(finished, tmp_path):
    """Latencies vary: here the limit of size is lowered after the training."""
    folder = shutil.copytree(finished, tmp_path / "search")
    config = override(read_experiment(str(finished / "tiny_best.toml"))[1], {"data.train_split": "train"})
    candidates = Candidates(folder, config, {"size": 1e3}, "int8")
    trials = [keras_tuner.engine.trial.Trial.load(str(path)) for path in folder.glob("tuner/trial_*/trial.json")]
    space = [Dimension("student.width", (0.5, 4.0), "choice")]
    search = Search("tiny", Options(tuner="random"), config, space, folder, {"command": ""}, candidates)
    with pytest.raises(UserError, match=r"no trained student is within the budget \(size at most 1 kB\)"):
        finish(search, trials)
    outcomes = [row["outcome"] for row in read_rows(folder / "trials.csv")]
    assert sum(bool(re.fullmatch("trained file: size .* kB, at most 1 kB", one)) for one in outcomes) == 2


def test_a_candidate_is_measured_with_all_that_its_file_depends_on(tmp_path):
    """The fields of the student alone are not enough: images of 32 pixels take 16 times as many operations."""
    plain = {
        "student.model": "resnet8",
        "student.width": 0.25,
        "student.drop_blocks": 0,
        "student.normalization": "none",
    }
    config = override(read_experiment("quickstart")[1], plain)
    cut = {"student.model": "mobilenet_v2", "student.init": "teacher", "student.drop_blocks": 16, "student.width": 1.0}
    cut |= {"teacher.model": "mobilenet_v2", "student.normalization": "none", "teacher.normalization": "none"}
    several = [
        {"data.image_size": 8},
        {"data.image_size": 32},
        {"data.image_size": 8, "export.io": "float32"},
        cut | {"teacher.width": 1.0},
        cut | {"teacher.width": 2.0},
    ]
    candidates = Candidates(tmp_path, config, {"multiply_adds": 1e6}, "int8")
    found = []
    for changes in several:
        given = override(config, changes)
        found.append(candidates.measure(given, changes))
        truth = multiply_adds(untrained_student(given, dataset(given.data)))
        assert found[-1].measured["multiply_adds"] == truth, changes
        assert candidates.measure(given, {}).measured == found[-1].measured
    assert [one.measured["multiply_adds"] for one in found[:3]] == [121504, 1941664, 121504]
    assert len(candidates.all) == len(several)
    assert found[0].measured["size"] != found[2].measured["size"]  # whose ends are converted inside

    # an earlier version has measured with the experiment's own data and ends
    path = tmp_path / "candidates/candidates.json"
    kept = read_signed(path, "")
    kept = {"reference_ms": kept["reference_ms"], "candidates": kept["candidates"][:1]}
    del kept["candidates"][0]["beside"]
    write_signed(path, kept)
    again = Candidates(tmp_path, override(config, several[0]), {"multiply_adds": 1e6}, "int8")
    assert again.measure(override(config, several[0]), {}).measured == found[0].measured
    assert len(again.all) == 1


def test_a_damaged_list_of_candidates_is_one_line(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "search")
    path = folder / "candidates/candidates.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"reference_ms": 1e9}))
    with pytest.raises(UserError, match=r"candidates\.json is damaged .*; delete .*search to search anew"):
        Candidates(folder, read_experiment(str(finished / "tiny_best.toml"))[1], {"size": 1e3}, "int8")

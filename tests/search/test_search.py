"""Search: the search space, the file of the best trial, and that a stop or several processes lose no trial."""

import itertools
import math
import multiprocessing
import os
import signal
import socket
from types import SimpleNamespace

import pytest

from tests.children import fork, wait_for
from tfigkd.config.experiment import Config, experiments_folder, override, read_experiment, to_mapping
from tfigkd.config.reading import from_mapping, value_at
from tfigkd.config.toml import to_toml
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import read_manifest, read_signed, write_signed
from tfigkd.runtime.rows import read_rows
from tfigkd.search import outcome, tuner
from tfigkd.search.__main__ import main
from tfigkd.search.oracle import make_oracle
from tfigkd.search.space import Dimension, dimension, usual_space
from tfigkd.search.tuner import Options, claim, trial_config
from tfigkd.stages.workdir import Workdir

TINY = """
[data]
name = "digits"
limit = 80
train_split = "train+validation"

[augment]
crop_padding = 1
flip = false

[student]
drop_blocks = 16
width = 0.25

[training]
epochs = 4
batch_size = 16
"""
VARIED = ("--vary", "training.learning_rate=1e-3:1e-2:log", "--vary", "training.batch_size=16,32")


def start(folder, *arguments, **environment):
    (folder / "tiny.toml").write_text(TINY)
    environment = {"COLUMNS": "160", **environment}
    command = ("--experiment", "tiny.toml", *arguments)
    return fork(folder, "tfigkd.search", *command, environment=environment, merged=True)


def finish(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_a_seed_draws_the_same_trials_again(tuner):
    config = read_experiment("ig_kd")[1]
    space = [dimension("losses.kd.weight=0.1:0.9", config), dimension("training.batch_size=16,32,64", config)]

    def drawn(seed):
        oracle = make_oracle(Options("ig_kd", tuner=tuner, seed=seed), config, space)
        return [oracle.populate_space(str(number))["values"] for number in range(3)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("losses.kd.weight=0.1:0.9", Dimension("losses.kd.weight", (0.1, 0.9), "linear")),
        ("losses.kd.temperature=1:8:log", Dimension("losses.kd.temperature", (1.0, 8.0), "log")),
        ("training.hard_weight=0:1", Dimension("training.hard_weight", (0.0, 1.0), "linear")),
        ("training.batch_size=16:64", Dimension("training.batch_size", (16, 64), "linear")),
        ("training.schedule=constant,cosine", Dimension("training.schedule", ("constant", "cosine"), "choice")),
        ("losses.kd.standardize=true,false", Dimension("losses.kd.standardize", (True, False), "choice")),
    ],
)
def test_any_field_can_be_varied(text, expected):
    assert dimension(text, Config()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses.kd.wieght=0.1:0.9", "unknown field 'losses.kd.wieght'; did you mean 'losses.kd.weight'"),
        ("xy=1:2", r"unknown field 'xy'; known: attribution.\*, augment"),
        ("losses.kd.weight=0.1:1.5", "losses.kd.weight must be in"),
        ("losses.kd.weight=0.9:0.1", "expected a lower and a higher number"),
        ("losses.kd.weight=0:0.5:log", "both above 0 for a log scale"),
        ("losses.kd.weight=0.1:0.5:lgo", "expected FIELD=LOW:HIGH"),
        ("losses.kd.weight", "expected FIELD=LOW:HIGH"),
        ("training.schedule=constant,linear", "training.schedule must be one of"),
        ("training.batch_size=16.5:64", "training.batch_size must be of type int"),
        ("compress.steps=4,8", r"does not depend on compress\.steps; give one value, --compress\.steps VALUE"),
        ("export.io=integer,float32", r"does not depend on export\.io"),
        ("evaluation.curve_steps=8:16", r"does not depend on evaluation\.curve_steps"),
        ("ledger.every=10,20", r"does not depend on ledger\.every"),
        ("data.dir=a,b", r"does not depend on data\.dir"),
        ("description=a,b", "does not depend on description"),
        ("incremental.memory=10,20", r"does not depend on incremental\.memory"),
        ("training.batch_threads=1,2", r"does not depend on training\.batch_threads"),
        ("data.train_split=train,train+validation", r"different data\.train_split are judged on different images"),
        ("data.limit=100,1000", r"different data\.limit are judged .*; give one value, --data\.limit VALUE"),
        ("data.name=digits,cifar10", r"different data\.name are judged on different images"),
        ("data.splits.train=train,extra", r"different data\.splits\.train are judged on different images"),
        ("data.group=patient,camera", r"different data\.group are judged on different images"),
        ("data.image_size=16,32", r"different data\.image_size are judged .*, or name the validation split, --data"),
        ("data.fit=stretch,crop", r"different data\.fit are judged on different images"),
        ("data.background=white,black", r"different data\.background are judged on different images"),
        ("training.ema=null:0.9", "expected a lower and a higher number"),
    ],
)
def test_what_cannot_be_varied_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        dimension(text, Config())
    assert "\n" not in str(caught.value)


def test_the_image_size_is_varied_where_validation_is_a_split_of_its_own():
    config = override(Config(), {"data.splits.validation": "validation"})
    assert dimension("data.image_size=16,32", config).values == (16, 32)


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_failed_trials_in_a_row_do_not_end_a_search(tmp_path, monkeypatch):
    """KerasTuner gives up after three, for good: neither the others nor the good ones before would ever be reported."""
    trained = itertools.count()

    def try_out(*_):
        if next(trained) in (1, 2, 3, 4, 5):
            raise UserError("the loss became NaN")
        return 0.5

    monkeypatch.setattr(tuner, "try_out", try_out)
    config, options = read_experiment("kd")[1], Options(tuner="random", trials=8)
    space = [dimension("training.learning_rate=1e-4:1e-2:log", config)]
    searching = tuner._tuner(options, "kd", config, space, tmp_path, None)
    tuner._run_trials(searching)
    scores = [trial.score for trial in searching.oracle.trials.values()]
    assert (sum(map(math.isnan, scores)), scores.count(0.5)) == (5, 3)


@pytest.mark.parametrize("more", [(), ("--student",)])
def test_a_field_that_is_varied_twice_is_one_line(more, capsys):
    words = ["--experiment", "kd", "--dry-run", *more]
    assert main([*words, "--vary", "student.width=0.5,1.0", "--vary", "student.width=0.25,0.75"]) == 1
    line = "error: --vary: student.width is given twice; give all its values in one --vary\n"
    assert capsys.readouterr().err == line


def test_the_usual_space_holds_what_the_experiment_switches_on():
    fields = {
        name: {one.field for one in usual_space(read_experiment(name)[1])} for name in ("student", "kd", "ig_kd_at")
    }
    assert fields["student"] == {"training.learning_rate"}
    assert fields["kd"] == {"training.learning_rate", "losses.kd.weight", "losses.kd.temperature"}
    assert fields["ig_kd_at"] - fields["kd"] == {"overlay.probability", "overlay.max_exponent", "losses.at.weight"}


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("augment.flip=true,false", {True, False}),
        ("training.ema=null,0.99", {None, 0.99}),
        ("losses.kd.weight=0,0.5", {0.0, 0.5}),
        ("training.schedule=constant,cosine", {"constant", "cosine"}),
        ("student.drop_blocks=3,5", {3, 5}),
    ],
)
def test_values_of_any_type_are_drawn_and_reach_the_config(text, expected):
    """KerasTuner itself refuses true and false, null, and integers beside floats."""
    config = read_experiment("ig_kd")[1]
    oracle = make_oracle(Options("ig_kd", tuner="random"), config, [dimension(text, config)])
    field, drawn = text.partition("=")[0], set()
    for number in range(40):
        drawn.add(value_at(to_mapping(trial_config(config, oracle.populate_space(str(number))["values"])), field))
        if drawn == expected:
            break
    assert drawn == expected


def test_learning_rates_are_tried_at_the_optimizers_scale():
    config = read_experiment("cifar10_sgd")[1]
    assert (config.training.optimizer, config.training.learning_rate) == ("sgd", 0.1)
    rates = {one.field: one.values for one in usual_space(config)}
    assert rates["training.learning_rate"] == (0.01, 0.3)
    adam = override(config, {"training.optimizer": "adam"})
    assert {one.field: one.values for one in usual_space(adam)}["training.learning_rate"] == (3e-4, 1e-2)


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_no_rung_of_hyperband_is_shorter_than_its_warm_up():
    config = override(read_experiment("ig_kd")[1], {"training.epochs": 90, "training.warmup_epochs": 9.0})
    oracle = make_oracle(Options("ig_kd", tuner="hyperband"), config, [dimension("losses.kd.weight=0.1:0.9", config)])
    rungs = []
    for number in range(5):
        trained = trial_config(config, oracle.populate_space(str(number))["values"]).training
        rungs.append(trained.epochs)
        assert trained.warmup_epochs == pytest.approx(trained.epochs / 10)
    assert min(rungs) < 9  # the warm-up as given would outlast it
    last = override(config, {"training.warmup_epochs": 0.0, "training.finetune_epochs": 30})
    short = trial_config(last, {"tuner/epochs": 9}).training
    assert (short.epochs, short.finetune_epochs) == (9, 3)
    # without hyperband, a searched number of epochs leaves the warm-up as it is
    assert trial_config(config, {"training.epochs": 45}).training.warmup_epochs == 9


def test_a_dry_run_of_a_search_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--experiment", "kd", "--trials", "7", "--seeds", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "losses.kd.weight: 0.01, 0.95 (linear)" in said and "bayesian: 7 trials of 2 students" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_a_failed_trial_is_called_so_and_is_never_the_best(tmp_path, capsys):
    import keras_tuner

    def trial(name, width, score):
        values = keras_tuner.HyperParameters()
        values.Choice("student.width", [0.5, 4.0])
        values.values["student.width"] = width
        made = keras_tuner.engine.trial.Trial(values, name)
        made.score = score
        return made

    space = [Dimension("student.width", (0.5, 4.0), "choice")]
    search = outcome.Search("kd", Options(tuner="random"), read_experiment("kd")[1], space, tmp_path, {"command": ""})
    failed = trial("0", 4.0, math.nan)
    best = outcome.finish(search, [failed, trial("1", 0.5, 0.25)])
    assert read_experiment(str(best))[1].student.width == 0.5
    said = capsys.readouterr().out
    assert "trial 0: failed" in said and "trial 1: 25.00 %" in said and "nan" not in said
    best.unlink()
    with pytest.raises(UserError, match=r"all 1 trials of the search failed; see .*run\.log"):
        outcome.finish(search, [failed])
    assert not best.exists()


def test_a_trial_sets_the_fields_and_hyperbands_epochs():
    values = {"losses.kd.weight": 0.5, "tuner/epochs": 7, "tuner/bracket": 2, "tuner/trial_id": "0003"}
    config = trial_config(read_experiment("kd")[1], values)
    assert (config.losses.kd.weight, config.training.epochs) == (0.5, 7)


@pytest.mark.filterwarnings("ignore")  # warnings of packages that KerasTuner imports
def test_hyperband_does_not_overwrite_epochs_that_are_varied(tmp_path, monkeypatch, capsys):
    """The best experiment would name a number of epochs that was never trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr("tfigkd.search.tuner.try_out", lambda *_: pytest.fail("trained"))
    words = ["--experiment", "tiny.toml", "--vary", "training.epochs=2:4"]
    assert main([*words, "--tuner", "hyperband"]) == 1
    line = "error: hyperband sets training.epochs itself; leave it out of --vary, or choose another --tuner\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in experiments_folder().glob("*.toml")))
def test_an_experiment_survives_being_written(name, tmp_path):
    config = read_experiment(name)[1]
    path = tmp_path / "written.toml"
    path.write_text(to_toml(config, "as read"))
    assert read_experiment(str(path)) == ("written", config)
    changed = override(config, {"losses.fsp.student_layer": ["a", 'b"'], "data.name": "a \\ b", "training.epochs": 7})
    path.write_text(to_toml(changed, "changed"))
    assert read_experiment(str(path))[1] == changed


def test_a_killed_search_goes_on_and_leaves_the_best_as_an_experiment(tmp_path):
    arguments = ("--tuner", "random", "--trials", "2", "--training.epochs", "12", *VARIED)
    folder = tmp_path / "runs/search/tiny-random"
    process = start(tmp_path, *arguments)
    wait_for(process, lambda: list(folder.glob("trials/1/0/distill/checkpoint-*.ckpt")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    first = (folder / "trials/0/0/distill/manifest.json").stat().st_mtime_ns

    output = finish(start(tmp_path, *arguments))
    assert (folder / "trials/0/0/distill/manifest.json").stat().st_mtime_ns == first
    assert "going on after epoch" in (folder / "trials/1/0/run.log").read_text()
    assert "2 trials, best first" in output
    assert "trial 1 begins:  training.learning_rate" in output and "training student 1 of 1" in output
    assert output.splitlines()[-1] == "next: python -m tfigkd.run --experiment runs/search/tiny-random/tiny_best.toml"

    scores = [read_manifest(folder / f"trials/{number}/0/distill")["validation_accuracy"] for number in (0, 1)]
    name, best = read_experiment(str(folder / "tiny_best.toml"))
    assert name == "tiny_best"
    assert f"{100 * max(scores):.2f} %" in best.description
    # trials hold validation out, the final run uses the requested split
    assert best.data.train_split == "train+validation"
    assert 1e-3 <= best.training.learning_rate <= 1e-2
    assert all(read_manifest(folder / f"trials/{number}/0/distill")["n_train"] == 80 for number in (0, 1))

    rows = read_rows(folder / "trials.csv")
    assert [float(row["validation_accuracy"]) for row in rows] == sorted(scores, reverse=True)
    assert {row["trial"] for row in rows} == {"0", "1"}
    assert rows[0]["training.learning_rate"] == str(best.training.learning_rate)
    assert all(float(row["train_seconds"]) > 0 and "--tuner random" in row["command"] for row in rows)

    logged = b"".join(path.read_bytes() for path in folder.glob("tensorboard/*/*.tfevents.*"))
    assert b"_hparams_/session_start_info" in logged
    assert b"training.learning_rate" in logged

    more = finish(start(tmp_path, "--tuner", "random", "--trials", "3", *arguments[4:]))
    assert "3 trials, best first" in more
    assert [(folder / f"trials/{number}").exists() for number in range(4)] == [True] * 3 + [False]
    assert (folder / "trials/0/0/distill/manifest.json").stat().st_mtime_ns == first

    # a version that brings a field, and another place of the data, are no other search
    path = folder / "search.json"
    before = read_signed(path, "")
    del before["config"]["data"]["fit"]
    before["config"]["data"]["cache"] = "elsewhere"
    write_signed(path, before)
    claim(folder, read_signed(path, "") | {"config": to_mapping(from_mapping(Config, before["config"]))})
    old = read_signed(path, "")
    del old["pictures"]  # an earlier version did not write it
    write_signed(path, old)
    claim(folder, before)
    with pytest.raises(UserError, match=r"holds another search \(pictures\)"):
        write_signed(path, before | {"pictures": "others"})
        claim(folder, before)
    write_signed(path, before)
    before["config"]["training"]["epochs"] += 1
    with pytest.raises(UserError, match=r"holds another search \(training.epochs\)"):
        claim(folder, before)

    other = start(tmp_path, *arguments[:-2])
    assert "holds another search (space)" in other.communicate()[0]
    assert other.returncode == 1


@pytest.mark.slow
def test_a_chief_and_two_workers_share_the_trials(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    arguments = ("--tuner", "bayesian", "--trials", "4", *VARIED)
    roles = ("chief", "worker-1", "worker-2")
    processes = {role: start(tmp_path, *arguments, **shared, KERASTUNER_TUNER_ID=role) for role in roles}
    try:
        outputs = {role: finish(process) for role, process in processes.items()}
    finally:  # a worker waits one hour for its chief
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert "4 trials, best first" in outputs["chief"]
    shares = [outputs[role].count("  trial ") for role in roles[1:]]
    assert sum(shares) == 4
    assert min(shares) >= 1
    folder = tmp_path / "runs/search/tiny-bayesian"
    assert read_experiment(str(folder / "tiny_best.toml"))[0] == "tiny_best"


@pytest.mark.slow
def test_hyperband_gives_few_epochs_to_many_and_many_to_few(tmp_path):
    finish(start(tmp_path, "--tuner", "hyperband", *VARIED))
    folder = tmp_path / "runs/search/tiny-hyperband"
    logs = [path.read_text() for path in folder.glob("trials/*/0/run.log")]
    epochs = sorted({text.partition("[training]  epochs = ")[2].split()[0] for text in logs})
    assert len(epochs) > 1
    assert epochs[-1] == "4"
    assert read_experiment(str(folder / "tiny_best.toml"))[1].training.epochs == 4
    assert sorted({row["training.epochs"] for row in read_rows(folder / "trials.csv")}) == epochs


def test_a_trial_whose_process_is_killed_twice_has_failed(tmp_path, monkeypatch):
    """Such as one that needs more memory than there is: to begin it for ever would block the search."""
    from keras_tuner.errors import FatalError

    monkeypatch.setattr(tuner, "CONTEXT", multiprocessing.get_context("fork"))  # in which the next line holds
    monkeypatch.setattr(tuner, "_process", lambda chosen, ended: os._exit(9))
    chosen = SimpleNamespace(workdir=Workdir(tmp_path / "never_made", tmp_path))
    for expected in (FatalError, UserError, UserError):
        with pytest.raises(expected, match=r"ended without a result \(status 9\)"):
            tuner._train(chosen)
    other = SimpleNamespace(workdir=Workdir(tmp_path / "other", tmp_path))
    monkeypatch.setattr(tuner, "_process", lambda chosen, ended: os._exit(130))  # stopped by its scheduler
    for _ in range(2):
        with pytest.raises(FatalError):
            tuner._train(other)

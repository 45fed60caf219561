"""Two processes that train one network: the weights of one process, one writer, and no end without the other."""

import importlib
import os
import signal
import socket
import time

import keras
import numpy as np
import pytest

from tests.children import JAX, fork, run
from tests.test_jax import NEEDS_JAX
from tfigkd import run as command
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.runtime import hosts
from tfigkd.runtime.errors import UserError
from tfigkd.training.ledger import read_ledger

TRAIN = """
import sys
from pathlib import Path
import numpy as np
from tests.training.test_fit import network
from tfigkd.batches.stream import TrainingBatches
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.config.fields import OverlayConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Examples
from tfigkd.losses import KLDivergence
from tfigkd.runtime import hosts
from tfigkd.runtime.errors import UserError
from tfigkd.training.devices import check_devices, device_count, on_devices
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training

COUNT = 48
images = np.random.default_rng(1).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(COUNT)])
examples = Examples(ids, images, np.arange(COUNT) % 4, ids)
ones = np.ones(COUNT, np.float32)
knowledge = Knowledge(np.zeros((COUNT, 4), np.float32), images[..., 0].copy(), ones, 0 * ones, ones > 0)

def train(folder):
    recipe = {"optimizer": "sgd", "weight_decay": 0.01, "learning_rate": 0.1, "mixup": 1.0, "ema": 0.5}
    recipe["checkpoint_steps"] = 2  # of three
    config = TrainingConfig(epochs=2, batch_size=16, devices="all", **recipe)
    options = {"targets": TeacherTargets(knowledge), "overlay": OverlayConfig(probability=0.5)}
    options |= {"view": ViewConfig("live"), "wanted": ("teacher_inputs",), "devices": device_count("all")}
    stream = TrainingBatches(examples, config, AugmentConfig(1), seed=3, **options)
    with on_devices("all"):
        teacher = network(1)
        student = network(0, dropout=0.3)
        student.set_weights([one + hosts.process_index() for one in student.get_weights()])  # the first one's count
        model = Distiller(student, losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5}, teacher=teacher)
        options = {"fingerprint": "f", "tensorboard": folder / "tb", "title": "t"}
        options["validation"] = examples.take(slice(8))
        history = Training(model, stream, examples=COUNT, config=config, folder=folder, **options).run()
    for entry in history:
        del entry["seconds"], entry["step_ms"]
    values = [list(entry.values()) for entry in history]
    np.savez(f"{sys.argv[1]}-{hosts.process_index()}.npz", history=values, *student.get_weights())
    return student.get_weights()

with hosts.joined():
    print(hosts.process_index(), "of", hosts.process_count(), device_count("all"))
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    whole = train(folder)
    hosts.meet("trained")
    if hosts.is_first_process():
        (folder / "checkpoint-00002.ckpt").unlink()
    hosts.meet("removed")
    for one, again in zip(whole, train(folder), strict=True):
        np.testing.assert_array_equal(one, again)
    for wrong in (
        lambda: check_devices(TrainingConfig(batch_size=16), 48),
        lambda: hosts.meet(f"epoch {hosts.process_index()}"),
    ):
        try:
            wrong()
        except UserError as error:
            print(error)
"""


def together(address, number, count=2):
    """Return the environment of one of several processes, all on this machine."""
    return {
        **JAX,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        hosts.ADDRESSES: address,
        hosts.COUNT: str(count),
        hosts.NUMBER: str(number),
    }


def free_address():
    """Return an address of this machine alone, with a port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def start(folder, module, *arguments):
    """Start the two processes of a training."""
    address = free_address()
    return [fork(folder, module, *arguments, environment=together(address, number)) for number in range(2)]


@NEEDS_JAX
def test_two_processes_train_the_weights_of_one(tmp_path):
    (tmp_path / "program.py").write_text(TRAIN)
    children = [*start(tmp_path, "program", "both"), fork(tmp_path, "program", "one", environment=JAX)]
    said = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said
    assert ["0 of 2 2" in said[0][0], "1 of 2 2" in said[1][0], "0 of 1 1" in said[2][0]] == [True] * 3
    first, second, one = (np.load(tmp_path / name) for name in ("both-0.npz", "both-1.npz", "one-0.npz"))
    assert first.files == one.files
    for name in one.files:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], one[name], atol=1e-5, err_msg=name)
    assert "going on after epoch 1 of 2 and step 2 of 3" in said[0][0]
    assert len([*(tmp_path / "both/tb").iterdir()]) == 2  # the second process writes no events, nor anything else
    assert sorted(path.name for path in (tmp_path / "both").glob("*.*")) == [
        "checkpoint-00001-0000002.ckpt",
        "checkpoint-00002.ckpt",
    ]
    assert "training.devices must be all where several hosts train together" in said[1][0]
    assert "process 0 is at 'epoch 0', and process 1 is not" in said[0][0]


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_parts_of_a_batch_are_the_batch(mixup):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)
    ids = np.array([f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}" for index in range(40)])
    examples = Examples(ids, images, np.arange(40) % 4, ids)
    recipe = TrainingConfig(batch_size=12, mixup=mixup)
    options = {"seed": 3, "devices": 2, "class_weights": np.arange(1.0, 5.0)}
    stream = TrainingBatches(examples, recipe, AugmentConfig(2), **options)
    for _, whole, *parts in zip(range(9), stream(0), stream(0, part=(0, 2)), stream(0, part=(1, 2)), strict=False):
        joined = keras.tree.map_structure(lambda *two: np.concatenate(two), *parts)
        keras.tree.map_structure(np.testing.assert_array_equal, joined, whole)
        assert len(parts[0][0]) == len(parts[1][0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, None),
        ({hosts.COUNT: "1", hosts.NUMBER: "0", hosts.ADDRESSES: "10.0.0.1:1234"}, None),
        ({hosts.COUNT: "2"}, f"{hosts.COUNT} given without {hosts.ADDRESSES}"),
        ({hosts.COUNT: "2", hosts.NUMBER: "2", hosts.ADDRESSES: "10.0.0.1:1234"}, "must be from 0 to 1"),
        ({hosts.COUNT: "two", hosts.NUMBER: "0", hosts.ADDRESSES: "10.0.0.1:1234"}, "whole numbers, got 'two'"),
        ({hosts.COUNT: "3", hosts.NUMBER: "0", hosts.ADDRESSES: "a:1,b:1"}, "those of all 3 processes"),
        ({hosts.COUNT: "2", hosts.NUMBER: "0", hosts.ADDRESSES: "10.0.0.1"}, "HOST:PORT"),
    ],
)
def test_variables_that_do_not_fit_are_refused(monkeypatch, given, said):
    for name in (hosts.ADDRESSES, hosts.COUNT, hosts.NUMBER):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if said is None:
        assert not hosts.is_asked()
    else:
        with pytest.raises(UserError, match=said):
            hosts.is_asked()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--training.devices", "all"], "--stages teacher, distill or both, got data,"),
        (["--stages", "distill"], "need training.devices = all, got one"),
        (["--stages", "teacher", "--training.devices", "all"], "need teacher.training.devices = all, got one"),
        (["--stages", "distill", "--training.devices", "all", "--dry-run"], "are for one process"),
        (["--stages", "distill", "--training.devices", "all"], "on JAX only; set KERAS_BACKEND=jax"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(monkeypatch, capsys, options, said):
    monkeypatch.setattr(os, "environ", {**os.environ, **together("127.0.0.1:1", 0), "KERAS_BACKEND": "tensorflow"})
    monkeypatch.setattr("atexit.register", lambda *_: None)  # the process of the tests goes on
    assert command.main(["--experiment", "quickstart", *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("module", ["tfigkd.study.__main__", "tfigkd.search.__main__", "tfigkd.incremental.__main__"])
def test_commands_that_do_not_train_together_say_so(monkeypatch, capsys, module, tmp_path):
    monkeypatch.setattr(os, "environ", {**os.environ, **together("127.0.0.1:1", 1)})
    name = {"tfigkd.study.__main__": "ablation", "tfigkd.incremental.__main__": "cifar10_foster"}.get(module, "ig_kd")
    where = ["--workdir", str(tmp_path / "new")]
    assert importlib.import_module(module).main(["--experiment", name, *where]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: only python -m tfigkd.run trains on several hosts; unset") and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@NEEDS_JAX
def test_a_port_that_is_taken_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = together(f"127.0.0.1:{server.getsockname()[1]}", 0)
        options = ("--experiment", "quickstart", "--training.devices", "all", "--stages", "distill")
        refused = run(tmp_path, "tfigkd.run", *options, environment=environment)
    assert refused.returncode == 1
    assert "another program listens at 127.0.0.1:" in refused.stderr


SMALL = ("--experiment", "quickstart", "--smoke", "--teacher.drop_blocks", "14", "--student.drop_blocks", "16")
SMALL += ("--training.devices", "all", "--teacher.training.devices", "all", "--training.optimizer", "sgd")
SMALL += ("--training.epochs", "6", "--teachers", "teachers")


@NEEDS_JAX
@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_lost_a_process_goes_on_to_the_same_student(tmp_path, lost):
    both = (*SMALL, "--workdir", "both")

    def ended(children):
        said = [child.communicate() for child in children]
        assert [child.returncode for child in children] == [0, 0], said

    ended(start(tmp_path, "tfigkd.run", *both, "--stages", "teacher"))
    stages = ("--workdir", "one", "--stages", "overlays,distill")
    whole = run(tmp_path, "tfigkd.run", *SMALL, *stages, environment=JAX)
    assert whole.returncode == 0, whole.stderr
    children = start(tmp_path, "tfigkd.run", *both, "--stages", "distill")
    while not (tmp_path / "both/distill/checkpoint-00001.ckpt").exists():
        assert [child.poll() for child in children] == [None, None]
        time.sleep(0.05)
    children[lost].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    output, errors = children[1 - lost].communicate()
    assert time.monotonic() - killed < 60
    assert children[1 - lost].returncode not in (0, None), output + errors
    children[lost].communicate()
    assert children[lost].returncode == -signal.SIGKILL
    assert not (tmp_path / "both/distill/student.keras").exists()
    ended(start(tmp_path, "tfigkd.run", *both, "--stages", "distill"))
    entries = [read_ledger(tmp_path / name / "distill/ledger.jsonl") for name in ("one", "both")]
    assert [entry["step"] for entry in entries[0]] == [entry["step"] for entry in entries[1]]
    for one, two in zip(*entries, strict=True):
        for term, figures in one["terms"].items():
            assert figures["share"] == pytest.approx(two["terms"][term]["share"], abs=1e-4)
    students = [keras.saving.load_model(tmp_path / name / "distill/student.keras") for name in ("one", "both")]
    for one, two in zip(*(student.get_weights() for student in students), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)

"""The ledger measures shares of the gradient, changes nothing, and names terms that do nothing."""

import itertools
import json

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import load
from tfigkd.losses import AttentionTransfer, KLDivergence
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training
from tfigkd.training.ledger import gradient_norms, inert_terms, read_ledger


def network(drop_blocks, seed):
    keras.utils.set_random_seed(seed)
    return models.mobilenet_v2(10, drop_blocks, input_shape=(8, 8, 3), width=0.25, dropout=0.3)


def distiller(weight=0.5, at=0.0):
    losses = {"kd": KLDivergence()} | ({"at": AttentionTransfer("block_01", "block_02")} if at else {})
    weights = {"kd": weight} | ({"at": at} if at else {})
    return Distiller(network(16, 0), losses=losses, loss_weights=weights, teacher=network(14, 1))


@pytest.fixture(scope="module")
def stream():
    return TrainingBatches(load("digits", limit=64).train, TrainingConfig(batch_size=16), AugmentConfig(1), seed=0)


def test_looking_changes_no_variable(stream):
    model = distiller()
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    gradient_norms(model, *next(stream(0)))
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable))


def test_norms_are_those_of_the_gradient_and_grow_with_the_weight(stream):
    images, targets = next(stream(0))
    small, large = (gradient_norms(distiller(weight), images, targets) for weight in (0.2, 0.8))
    assert small["kd_loss"][0] == pytest.approx(large["kd_loss"][0], rel=1e-4)
    assert large["kd_loss"][1] == pytest.approx(4 * small["kd_loss"][1], rel=1e-4)
    assert small["hard_loss"][1] == pytest.approx(4 * large["hard_loss"][1], rel=1e-4)


class Tiny(keras.distillation.DistillationLoss):
    teacher_layer_name = student_layer_name = "block_01"

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        teacher_outputs, student_outputs = (keras.ops.cast(x, "float32") for x in (teacher_outputs, student_outputs))
        return 1e-6 * keras.ops.mean(keras.ops.square(teacher_outputs - student_outputs))


def test_norms_in_float16_are_those_in_float32(stream):
    """The gradients of a small term are zero in float16 unless the loss is scaled, as it is in training."""
    images, targets = next(stream(0))
    norms = {}
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            student, teacher = network(16, 0), network(14, 1)
        finally:
            keras.config.set_dtype_policy("float32")
        model = Distiller(student, losses={"tiny": Tiny()}, loss_weights={"tiny": 1e6}, teacher=teacher)
        optimizer = keras.optimizers.SGD(0.1)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**15)
        model.compile(optimizer, jit_compile=False)
        norms[policy] = gradient_norms(model, images, targets)
    for name, (_, norm) in norms["float32"].items():
        assert norm > 0 and norms["mixed_float16"][name][1] == pytest.approx(norm, rel=0.1), name


def run(stream, folder, epochs, at, ledger_steps=3):
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(epochs=epochs, batch_size=16)
    options = {"examples": 64, "config": config, "folder": folder, "tensorboard": folder / "tb", "title": "test"}
    model = distiller(at=at)
    Training(model, stream, fingerprint="f", ledger_steps=ledger_steps, **options).run()
    return model.student.get_weights()


def test_attention_transfer_at_the_papers_weight_is_named_as_inert(stream, tmp_path, capsys):
    run(stream, tmp_path / "a", 2, at=0.8e-3)
    assert "at_loss never had 1% of the gradient" in capsys.readouterr().out
    entries = read_ledger(tmp_path / "a" / "ledger.jsonl")
    assert [entry["step"] for entry in entries] == [1, 3, 6]
    for entry in entries:
        assert sum(term["share"] for term in entry["terms"].values()) == pytest.approx(1)
    assert inert_terms(entries) == ["at_loss"]


def test_the_ledger_leaves_the_training_as_it_is(stream, tmp_path):
    with_ledger, without = run(stream, tmp_path / "a", 2, 0.0), run(stream, tmp_path / "b", 2, 0.0, ledger_steps=0)
    for a, b in zip(with_ledger, without, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "b" / "ledger.jsonl").exists()


def test_a_resumed_run_has_every_step_once(stream, tmp_path):
    run(stream, tmp_path, 2, 0.0)
    path = tmp_path / "ledger.jsonl"
    whole = read_ledger(path)
    late = [{"step": step, "terms": {}} for step in (9, 12)]  # written after the last checkpoint, before a kill
    path.write_text("".join(json.dumps(entry) + "\n" for entry in [*whole, *late]) + '{"step": 15, "te')
    run(stream, tmp_path, 4, 0.0)
    steps = [entry["step"] for entry in read_ledger(path)]
    assert steps == sorted(set(steps)) == [1, 3, 6, 9, 12, 15]


def test_the_probe_does_not_move_the_stream(stream):
    first = [targets["label"] for _, targets in itertools.islice(stream(0), 2)]
    next(stream(0))
    again = [targets["label"] for _, targets in itertools.islice(stream(0), 2)]
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)

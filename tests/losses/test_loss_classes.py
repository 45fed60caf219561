"""The classes: what they declare, their configs, their taps, and their use in Keras's own Distiller."""

import inspect

import keras
import numpy as np
import pytest

from tfigkd.config.experiment import Config, override
from tfigkd.config.loss_fields import LossConfig, LossesConfig, OSAKDConfig
from tfigkd.losses import (
    DIST,
    DKD,
    E2KD,
    FSP,
    LOSSES,
    OPDF,
    OSAKD,
    PKT,
    R2KD,
    RKD,
    RTK,
    SKT,
    SP,
    AttentionTransfer,
    BalancedKL,
    Hint,
    IGMatching,
    KLDivergence,
    LogitRegression,
    Loss,
    PerExampleLoss,
    ReviewKD,
)

EXAMPLES = {
    "kd": KLDivergence(2.0, standardize=True),
    "dkd": DKD(beta=8.0),
    "dist": DIST(inter=1.0, rank=0.5),
    "rkd": RKD("student_tap", "teacher_tap", angle=1.0),
    "sp": SP("student_tap", "teacher_tap"),
    "pkt": PKT("student_tap", "teacher_tap"),
    "at": AttentionTransfer("student_tap", "teacher_tap"),
    "fsp": FSP(["student_tap", "student_late"], ["teacher_tap", "teacher_late"]),
    "hint": Hint("student_tap", "teacher_tap"),
    "skt": SKT(["student_tap", "student_late"], ["teacher_tap", "teacher_late"], inter=2.0, pairs="adjacent"),
    "reviewkd": ReviewKD(["student_tap", "student_late"], ["teacher_tap", "teacher_late"], fuse=False),
    "regression": LogitRegression(),
    "bkd": BalancedKL(3.0, beta=0.9, counts=(4, 2, 0)),
    "r2kd": R2KD(rank=0.5, pruned=0.25),
    "osakd": OSAKD(neighbors=3, queue=8),
    "rtk": RTK(["student_tap", "student_late"], ["teacher_tap", "teacher_late"], keys=1, width=3),
    "opdf": OPDF(permuted=True),
    "e2kd": E2KD("student_late", "teacher_late", shuffled=True),
    "ig_match": IGMatching(times_input=False),
}
COMPARES = {"opdf": "weights", "e2kd": "explanations", "ig_match": "map", "osakd": "labels", "r2kd": "pruned"}
"""What the losses compare that do not compare outputs."""
TABLES = {"explanations": "features", "pruned": "logits", "posteriors": "logits"}
"""What the table of a loss says, where it has another word than the loss: it says what has to be there."""

ALONE = {"training.hard_weight": 1.0, "training.chain": 3}  # what a loss of weight 1, and one of tensors, asks for


def network(name: str, filters: int, strides: int):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(filters, 3, strides=strides, padding="same", name=f"{name}_tap")(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", name=f"{name}_late")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)), name=name)


def distiller(loss):
    keras.utils.set_random_seed(0)
    return keras.distillation.Distiller(
        teacher=network("teacher", 6, 1), student=network("student", 5, 2), distillation_losses=loss
    )


def test_every_loss_has_an_example():
    assert {name: type(loss) for name, loss in EXAMPLES.items()} == LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_what_it_compares(name):
    loss = EXAMPLES[name]
    assert loss.compares == COMPARES.get(name, "outputs")
    assert loss.takes_labels == (name == "dkd")
    assert loss.refuses_mixed_labels == (name in ("dkd", "osakd"))
    assert (
        isinstance(loss, PerExampleLoss)
        == hasattr(loss, "per_example")
        == (name not in ("dist", "rkd", "sp", "pkt", "opdf"))
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_built_as_the_base_class_says(name):
    assert inspect.signature(LOSSES[name].build) == inspect.signature(Loss.build)
    assert EXAMPLES[name].extra_layer is None  # before it is built


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_of_a_loss_says_what_the_loss_needs(name):
    loss, table = RKD() if name == "rkd" else EXAMPLES[name], getattr(LossesConfig(), name)
    outputs = "logits" if loss.student_layer is None else "features"
    assert table.uses == (outputs if loss.compares == "outputs" else TABLES.get(loss.compares, loss.compares))
    assert table.refuses_mixed_labels == loss.refuses_mixed_labels
    live = override(Config(), {f"losses.{name}.weight": 1.0, "view.kind": "live"} | ALONE)
    assert live.needs_live_teacher == (name not in ("ig_match", "osakd"))
    alone = {**ALONE, "losses.r2kd.pruned": 0.0}  # a pruned teacher needs the view of the live one
    plain = override(Config(), {f"losses.{name}.weight": 1.0, "overlay.probability": 0.0} | alone)
    assert plain.needs_teacher == (loss.compares != "labels")
    assert plain.needs_store == plain.needs_single_images == (table.uses in ("logits", "map"))
    assert plain.needs_live_teacher == (table.uses in ("features", "weights"))
    views = override(plain, {"view.kind": "views"})
    assert views.needs_views == (table.uses == "logits")


def test_relations_of_layers_need_the_live_teacher():
    changes = {"losses.rkd.weight": 1.0, "losses.rkd.student_layer": "a", "losses.rkd.teacher_layer": "b"}
    assert override(Config(), changes).needs_live_teacher


@pytest.mark.parametrize("settings", [{}, {"space": "teacher"}])
def test_what_osakd_compares_depends_on_its_space(settings):
    table, loss = OSAKDConfig(**settings), OSAKD(**settings)
    assert table.used == TABLES.get(loss.compares, loss.compares)
    assert table.refuses_mixed_labels and loss.refuses_mixed_labels


def test_a_table_that_does_not_say_it_cannot_be_defined():
    with pytest.raises(TypeError, match="SilentConfig has to declare uses"):

        class SilentConfig(LossConfig):
            pass


@pytest.mark.parametrize("name", LOSSES)
def test_the_config_round_trips(name):
    config = keras.saving.serialize_keras_object(EXAMPLES[name])
    assert config["registered_name"].startswith("tfigkd>")
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is LOSSES[name]
    assert restored.get_config() == EXAMPLES[name].get_config()


@pytest.mark.parametrize("name", ["dist", "r2kd"])
def test_a_config_of_an_earlier_version_has_a_softness(name):
    """Files with these losses were saved when the softness of ranks was an argument."""
    loss = EXAMPLES[name]
    assert type(loss).from_config(loss.get_config() | {"softness": 1.0}).get_config() == loss.get_config()
    with pytest.raises(ValueError, match="the softness of ranks is 1 in this version, got 2"):
        type(loss).from_config(loss.get_config() | {"softness": 2.0})


@pytest.mark.parametrize("name", ["kd", "bkd", "dist", "rkd", "rkd_on_logits", "sp", "pkt", "at", "hint"])
def test_it_trains_in_the_distiller_of_keras(name):
    loss = RKD() if name == "rkd_on_logits" else EXAMPLES[name]
    if name == "hint":
        loss = Hint("student_tap", "teacher_tap")
        with pytest.raises(ValueError, match=r"set distiller\.extra_layer"):
            distiller(loss)
        loss.build([(None, 8, 8, 6)], [(None, 4, 4, 5)])
    model = distiller(loss)
    if name == "hint":
        model.extra_layer = loss.extra_layer
        before = loss.extra_layer.get_weights()[0]
    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    images = np.random.default_rng(0).random((6, 8, 8, 3)).astype(np.float32)
    history = model.fit(images, np.arange(6) % 3, batch_size=6, epochs=2, verbose=0).history
    assert np.isfinite(history["distillation_loss"]).all()
    assert history["distillation_loss"][0] > 0
    if name == "hint":
        assert not np.array_equal(before, loss.extra_layer.get_weights()[0])
        assert not any(variable is loss.extra_layer.kernel for variable in model.student.variables)


@pytest.mark.parametrize("name", ["dkd", "fsp", "skt", "reviewkd", "e2kd", "osakd", "r2kd", "rtk", "opdf", "ig_match"])
def test_losses_that_the_distiller_of_keras_cannot_feed_are_refused_there(name):
    with pytest.raises(ValueError, match=r"use tfigkd\.Distiller"):
        distiller(EXAMPLES[name])


def test_an_unknown_tap_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match="student 'student' has no layer 'student_tip'; its nearest: student_tap"):
        distiller(AttentionTransfer("student_tip", "teacher_tap"))
    with pytest.raises(ValueError, match="teacher 'teacher' has no layer"):
        EXAMPLES["fsp"].check_taps(network("student", 5, 2), keras.Sequential(name="teacher"))
    EXAMPLES["fsp"].check_taps(network("student", 5, 2))


def test_taps_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="both taps or none"):
        RKD(student_layer="student_tap")
    with pytest.raises(ValueError, match="names of two layers as student_layer"):
        FSP("student_tap", ["a", "b"])
    with pytest.raises(ValueError, match="two or more taps"):
        SKT(["student_tap"], ["teacher_tap"])
    with pytest.raises(ValueError, match="as many taps"):
        SKT(["a", "b", "c"], ["a", "b"])
    with pytest.raises(ValueError, match="ReviewKD needs as many taps"):
        ReviewKD(["a", "b", "c"], ["a", "b"])

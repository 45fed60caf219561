"""Stored views: the stored outputs belong to exactly the images that the student gets."""

import itertools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import softmax

from tfigkd import models
from tfigkd.batches.augment import Purpose, example_keys, uniform
from tfigkd.batches.controls import shuffle_views
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.experiment import Config, override
from tfigkd.config.fields import ControlConfig, ViewConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import train_and_validation
from tfigkd.data.knowledge import StoredAttention, TeacherTargets
from tfigkd.losses.attention import attention_transfer, unit_attention
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import tfrecord
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, checksum, finished, read_manifest, write_manifest
from tfigkd.stages.data import dataset, training_examples
from tfigkd.stages.overlays import build_views, load_views, verify, views_folder
from tfigkd.stages.teacher import teacher_folder
from tfigkd.stages.training_setup import training_stream
from tfigkd.stages.workdir import TEACHER_FILE, Workdir

TAP = "block_04"
CONFIG = override(
    Config(),
    {
        "data.name": "digits",
        "data.limit": 60,
        "augment.crop_padding": 2,
        "teacher.drop_blocks": 14,
        "teacher.width": 0.25,
        "losses.kd.weight": 0.5,
        "view.kind": "views",
        "view.views": 5,
    },
)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return models.mobilenet_v2(10, 14, input_shape=(8, 8, 3), width=0.25)


@pytest.fixture(scope="module")
def workdir(teacher, tmp_path_factory):
    """Return a workdir with a trained teacher and its stored views."""
    home = tmp_path_factory.mktemp("views")
    workdir = Workdir(home / "run", home / "teachers")
    folder = teacher_folder(CONFIG, workdir)
    folder.mkdir(parents=True)
    teacher.save(folder / TEACHER_FILE)
    write_manifest(
        folder, folder.name, files={TEACHER_FILE: checksum(folder / TEACHER_FILE)}, weights=weights_fingerprint(teacher)
    )
    build_views(CONFIG, workdir)
    return workdir


def test_the_logits_that_are_looked_up_are_those_that_a_live_teacher_computes(teacher, workdir):
    examples = training_examples(CONFIG.data)
    views = load_views(CONFIG, workdir, examples)
    assert views.shape == (len(examples), 5, 10)
    assert views.dtype == np.float16
    recipe, targets = TrainingConfig(batch_size=16), TeacherTargets(views=views)
    stream = TrainingBatches(examples, recipe, CONFIG.augment, seed=3, targets=targets, view=CONFIG.view)
    scale = np.abs(views).max()
    for images, targets in itertools.islice(stream(0), 8):  # two epochs
        live = keras.ops.convert_to_numpy(teacher(images, training=False))
        np.testing.assert_allclose(targets["teacher_logits"], live, atol=2e-3 * max(1, scale))


def test_a_student_without_a_teacher_gets_the_crops_of_one_with_a_teacher(workdir):
    taught = training_stream(CONFIG, workdir)(0)
    alone = training_stream(override(CONFIG, {"losses.kd.weight": 0.0}), workdir)(0)
    for (images, targets), (own, without) in itertools.islice(zip(taught, alone, strict=True), 8):
        np.testing.assert_array_equal(images, own)
        assert {*targets} - {*without} == {"teacher_logits"}


def test_the_views_of_an_image_differ_and_all_are_used(workdir):
    examples = training_examples(CONFIG.data)
    views = load_views(CONFIG, workdir, examples)
    assert (views[:, 0] != views[:, 1]).any(axis=1).mean() > 0.9
    recipe, targets = TrainingConfig(batch_size=len(examples)), TeacherTargets(views=views)
    stream = TrainingBatches(examples, recipe, CONFIG.augment, seed=0, targets=targets, view=CONFIG.view)
    seen = set()
    for _, targets in itertools.islice(stream(0), 12):
        seen |= {tuple(np.flatnonzero((views == row).all(axis=2).any(axis=0))) for row in targets["teacher_logits"][:5]}
    assert {view for views_ in seen for view in views_} == set(range(5))


def test_the_largest_logits_stand_for_all(workdir):
    examples = training_examples(CONFIG.data)
    views = load_views(CONFIG, workdir, examples)
    for count in (10, 3):
        config = override(CONFIG, {"view.top_logits": count})
        build_views(config, workdir)
        assert verify(views_folder(config, workdir), sample=8)["logits"] < 1e-3
        largest = load_views(config, workdir, examples)
        assert largest.packed.nbytes == views.nbytes * (2 * count + 2) / 10
        if count == 10:
            np.testing.assert_array_equal(largest[:], views)
    _, targets = next(training_stream(config, workdir)(0))
    _, expected = next(training_stream(CONFIG, workdir)(0))
    got, full = targets["teacher_logits"], expected["teacher_logits"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(np.sort(got, axis=1)[:, -3:], np.sort(full, axis=1)[:, -3:])
    np.testing.assert_allclose(softmax(got, axis=1).max(axis=1), softmax(full, axis=1).max(axis=1), rtol=2e-3)
    shuffled = shuffle_views(largest, ControlConfig(logits="shuffled"))
    assert (shuffled[:] != largest[:]).any(axis=(1, 2)).all()


def test_a_store_of_other_views_is_another_store(workdir):
    for change in ({"view.views": 6}, {"view.seed": 1}):
        assert views_folder(override(CONFIG, change), workdir) != views_folder(CONFIG, workdir)
    with pytest.raises(UserError, match="no finished store"):
        load_views(override(CONFIG, {"view.seed": 1}), workdir, training_examples(CONFIG.data))


def test_a_resumed_store_is_the_same(workdir):
    folder = views_folder(CONFIG, workdir)
    before = finished(folder, folder.name)["files"]
    (folder / MANIFEST).unlink()
    next(folder.glob("*.tfrecord")).unlink()
    build_views(CONFIG, workdir)
    assert finished(folder, folder.name)["files"] == before


def test_the_control_permutes_views_across_images(workdir):
    views = load_views(CONFIG, workdir, dataset(CONFIG.data).train)
    shuffled = shuffle_views(views, ControlConfig(logits="shuffled"))
    assert (shuffled != views).any(axis=(1, 2)).all()
    assert shuffle_views(views, ControlConfig()) is views


def test_drawing_a_view_does_not_change_the_draws_of_other_arms():
    """Check that arms with the same seed have the same order of examples with every kind of view."""
    examples = training_examples(CONFIG.data)
    given = examples, TrainingConfig(batch_size=16), AugmentConfig(2)
    stored = TeacherTargets(views=np.zeros((len(examples), 4, 10), np.float16))
    plain = TrainingBatches(*given, seed=1)(0)
    viewed = TrainingBatches(*given, seed=1, targets=stored, view=ViewConfig("views", views=4))(0)
    for (_, left), (_, right) in itertools.islice(zip(plain, viewed, strict=True), 4):
        np.testing.assert_array_equal(left["label"], right["label"])


@pytest.fixture(scope="module")
def attention(workdir):
    """Return a config that stores the attention of every view, and the stored attention."""
    config = override(CONFIG, {"view.attention": "views", "losses.at.weight": 1.0, "losses.at.teacher_layer": TAP})
    build_views(config, workdir, TAP)
    return config, load_views(config, workdir, training_examples(config.data), TAP)


def live_attention(teacher, images):
    tapped = keras.Model(teacher.input, teacher.get_layer(TAP).output)
    return keras.ops.convert_to_numpy(unit_attention(tapped(images, training=False)))


def test_stored_attention_is_that_of_a_live_teacher(teacher, attention):
    config, maps = attention
    examples = training_examples(config.data)
    assert maps.shape == (len(examples), 5, 4, 4)
    recipe, stored = TrainingConfig(batch_size=20), TeacherTargets(attention=StoredAttention(TAP, maps))
    stream = TrainingBatches(examples, recipe, config.augment, seed=3, targets=stored, view=config.view)
    for images, targets in itertools.islice(stream(0), 6):
        live = live_attention(teacher, images)
        np.testing.assert_allclose(targets["teacher_features"][TAP], live, atol=2e-3)


def test_moved_attention_is_exact_without_geometry_and_nearer_than_unmoved(teacher, workdir):
    config = override(CONFIG, {"view.attention": "moved", "losses.at.weight": 1.0, "losses.at.teacher_layer": TAP})
    build_views(config, workdir, TAP)
    examples = training_examples(config.data)
    maps = load_views(config, workdir, examples, TAP)
    assert maps.shape == (len(examples), 1, 4, 4)
    stored = TeacherTargets(attention=StoredAttention(TAP, maps))
    still = AugmentConfig(crop_padding=0, flip=False)
    options = {"seed": 3, "targets": stored, "view": ViewConfig(attention="moved")}
    recipe = TrainingConfig(batch_size=len(examples))
    images, targets = next(TrainingBatches(examples, recipe, still, **options)(0))
    np.testing.assert_allclose(targets["teacher_features"][TAP], live_attention(teacher, images), atol=2e-3)

    images, targets = next(TrainingBatches(examples, recipe, AugmentConfig(2), **options)(0))
    live = live_attention(teacher, images)
    order = np.argsort(uniform(example_keys(examples.ids), seed=3, epoch=0, purpose=Purpose.ORDER), kind="stable")
    moved = np.mean(attention_transfer(targets["teacher_features"][TAP], live[..., None]))
    unmoved = np.mean(attention_transfer(maps[order, 0].astype("float32"), live[..., None]))
    assert moved < 0.8 * unmoved


def test_the_attention_of_another_tap_is_another_store(workdir, attention):
    config, _ = attention
    folders = {views_folder(config, workdir, tap) for tap in (None, TAP, "block_01")}
    assert len(folders) == 3
    with pytest.raises(UserError, match="no layer 'block_77'"):
        build_views(config, workdir, "block_77")


@pytest.mark.parametrize(("tap", "kind"), [(None, "logits"), (TAP, "attention")])
def test_verify_tells_exchanged_views_from_those_of_their_images(workdir, attention, tap, kind, monkeypatch):
    folder = views_folder(attention[0], workdir, tap)
    checked = verify(folder, sample=8)
    assert checked.keys() == {kind, "flat", "recomputed"} and checked["recomputed"] == 8
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        assert verify(Path("."), sample=1).keys() == {kind, "flat", "recomputed"}
    for wrong in ({"sample": 0}, {"seed": -1}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))} must be"):
            verify(folder, **wrong)
    assert verify(folder, sample=8)[kind] < 1e-3
    path = next(folder.glob("*.tfrecord"))
    whole, manifest = path.read_bytes(), (folder / MANIFEST).read_text()
    first, second, *others = (tfrecord.decode_example(raw) for raw in tfrecord.read_records(path))
    first["view_values"], second["view_values"] = second["view_values"], first["view_values"]
    content = {name: value for name, value in read_manifest(folder).items() if name not in ("files", "fingerprint")}
    try:
        tfrecord.write_records(path, (tfrecord.encode_example(record) for record in (first, second, *others)))
        write_manifest(folder, folder.name, files={path.name: checksum(path)}, **content)
        with pytest.raises(UserError, match="do not belong to their images or teacher"):
            verify(folder, sample=60)
        del content["source"]  # as versions before wrote it
        write_manifest(folder, folder.name, files={path.name: checksum(path)}, **content)
        with pytest.raises(UserError, match="does not say where its images are; to verify it, delete the folder"):
            verify(folder)
    finally:
        path.write_bytes(whole)
        (folder / MANIFEST).write_text(manifest)


def test_nan_in_a_stored_view_is_refused_before_any_training(workdir, attention):
    config, _ = attention
    folder = views_folder(config, workdir, TAP)
    path = next(folder.glob("*.tfrecord"))
    whole, manifest = path.read_bytes(), (folder / MANIFEST).read_text()
    records = [tfrecord.decode_example(raw) for raw in tfrecord.read_records(path)]
    values = np.frombuffer(records[0]["view_values"][0], "<f2").copy()
    values[3] = np.nan
    records[0]["view_values"] = [values.tobytes()]
    try:
        tfrecord.write_records(path, (tfrecord.encode_example(record) for record in records))
        found = json.loads(manifest)
        write_manifest(folder, folder.name, files={path.name: checksum(path)}, identity=found["identity"], examples=60)
        with pytest.raises(UserError, match="1 records hold NaN"):
            load_views(config, workdir, train_and_validation(dataset(config.data)), TAP)
    finally:
        path.write_bytes(whole)
        (folder / MANIFEST).write_text(manifest)


def test_the_placebo_of_a_live_teacher_is_another_image_of_the_batch(workdir):
    examples = training_examples(CONFIG.data)
    options = {"seed": 1, "view": ViewConfig("live"), "control": ControlConfig(logits="shuffled")}
    recipe, wanted = TrainingConfig(batch_size=16), ("teacher_inputs",)
    stream = TrainingBatches(examples, recipe, CONFIG.augment, wanted=wanted, **options)
    for images, targets in itertools.islice(stream(0), 3):
        np.testing.assert_array_equal(targets["teacher_inputs"], np.roll(images, 1, axis=0))
        assert (targets["teacher_inputs"] != images).any(axis=(1, 2, 3)).all()


def test_stored_attention_of_views_needs_the_views(workdir):
    with pytest.raises(UserError, match=r"view\.kind = views"):
        override(Config(), {"view.attention": "views"})
    examples = training_examples(CONFIG.data)
    views = np.zeros((len(examples), 4, 10), np.float16)
    for stored in (TeacherTargets(views=views), TeacherTargets(attention=StoredAttention(TAP, views))):
        with pytest.raises(ValueError, match=r"view\.kind = views, got plain"):
            TrainingBatches(examples, CONFIG.training, CONFIG.augment, seed=0, targets=stored)

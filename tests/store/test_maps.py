"""The overlay store: maps are verified to belong to their images, and other stores are refused."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest

from tfigkd import models, verify
from tfigkd.attribution import attribute, saliency_map
from tfigkd.attribution.examples import baseline_color
from tfigkd.batches.controls import apply_control
from tfigkd.config.fields import AttributionConfig, ControlConfig
from tfigkd.data import Dataset, concatenate, load, to_model_input, train_and_validation
from tfigkd.models.fingerprints import weights_fingerprint
from tfigkd.runtime import tfrecord
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import MANIFEST, checksum, make_folder, read_manifest, write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages.overlays import verify as verify_store
from tfigkd.stages.workdir import TEACHER_FILE
from tfigkd.store import maps as overlays
from tfigkd.store.maps import read_store, store_identity, write_store

SETTINGS = AttributionConfig(baseline="mean", max_steps=32, batch_size=64, shard_size=32)
SOURCE = {"name": "digits", "limit": 90}


def teacher(seed=0):
    keras.utils.set_random_seed(seed)
    return models.mobilenet_v2(10, 16, input_shape=(8, 8, 3), width=0.25)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("digits", limit=90)


def write(folder, data, settings, identity, examples=None):
    """Write a store of train and validation, or of the examples."""
    color = baseline_color(settings, data.train)
    write_store(folder, teacher(), examples or train_and_validation(data), color, settings, identity, SOURCE)


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    """Return a finished store in a teacher's folder, and the store's identity."""
    model = teacher()
    identity = store_identity(weights_fingerprint(model), data.fingerprint, SETTINGS)
    home = tmp_path_factory.mktemp("teacher")
    folder = make_folder(home / "overlays" / fingerprint(identity))
    write(folder, data, SETTINGS, identity)
    model.save(home / TEACHER_FILE)
    return folder, identity


@pytest.fixture
def copy(store, tmp_path):
    """Return a copy of the store that a test may damage, and its identity."""
    folder, identity = store
    shutil.copytree(folder.parents[1], tmp_path / "teacher")
    return tmp_path / "teacher" / "overlays" / folder.name, identity


def rewrite(folder, change):
    """Pass all records through `change` and sign the store again, as a faulty writer would."""
    manifest = read_manifest(folder)
    records = [
        tfrecord.decode_example(raw) for name in manifest["files"] for raw in tfrecord.read_records(folder / name)
    ]
    records = change([{k: v[0] if isinstance(v, list) else v for k, v in record.items()} for record in records])
    for name in manifest["files"]:
        (folder / name).unlink()
    name = "overlays-00000-of-00001.tfrecord"
    tfrecord.write_records(folder / name, map(tfrecord.encode_example, records))
    content = {key: value for key, value in manifest.items() if key not in ("files", "fingerprint")}
    write_manifest(folder, manifest["fingerprint"], files={name: checksum(folder / name)}, **content)


def test_the_largest_logits_of_a_store_stand_for_all(store, data, tmp_path):
    few = data.train.take(slice(12))
    knowledge = read_store(store[0], few, store[1])
    settings = dataclasses.replace(SETTINGS, n_steps=2)
    for count in (10, 2):
        identity = store_identity("weights", data.fingerprint, settings, top_logits=count)
        folder = make_folder(tmp_path / "overlays" / fingerprint(identity))
        write(folder, data, settings, identity, few)
        largest = read_store(folder, few, identity)
        got = largest.logits[:].astype(np.float32)
        scale = np.abs(knowledge.logits).max()
        if count == 10:
            np.testing.assert_allclose(got, knowledge.logits, atol=5e-4 * scale)
        assert (got.argmax(axis=1) == knowledge.logits.argmax(axis=1)).all()
    assert apply_control(largest, ControlConfig(logits="shuffled")).logits.shape == (12, 10)


def test_every_record_is_that_of_its_image(store, data):
    """Check that maps and logits found by id equal those computed from the image with this id."""
    folder, identity = store
    examples = concatenate([data.train, data.validation])
    knowledge = read_store(folder, examples, identity)
    images = to_model_input(examples.images)
    mean_color = data.train.images.mean(axis=(0, 1, 2)) / 255
    direct = attribute(teacher(), images, examples.labels, baseline=mean_color, max_steps=32)
    maps = saliency_map(direct.attributions)
    np.testing.assert_allclose(knowledge.logits, direct.logits, atol=1e-4)
    np.testing.assert_allclose(
        knowledge.maps / 255 * knowledge.scales[:, None, None], maps, atol=float(maps.max()) / 255
    )
    others = np.abs(knowledge.maps / 255 * knowledge.scales[:, None, None] - np.roll(maps, 1, axis=0))
    assert others.max() > 0.2 * maps.max()  # another image's map would not have passed
    assert (knowledge.usable == (knowledge.errors <= SETTINGS.tolerance)).all()


def test_the_reader_joins_by_id_in_any_order(store, data):
    folder, identity = store
    order = np.random.default_rng(0).permutation(len(data.train))
    straight, shuffled = read_store(folder, data.train, identity), read_store(folder, data.train.take(order), identity)
    for field in dataclasses.fields(straight):
        np.testing.assert_array_equal(getattr(straight, field.name)[order], getattr(shuffled, field.name))


def test_a_store_written_in_another_order_gives_the_same_knowledge(store, copy, data):
    folder, identity = store
    rewrite(copy[0], lambda records: records[::-1])
    left, right = read_store(folder, data.train, identity), read_store(copy[0], data.train, identity)
    for field in dataclasses.fields(left):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


def test_a_resumed_store_equals_an_uninterrupted_one(store, copy, data):
    folder, identity = copy
    before = read_manifest(store[0])["files"]
    (folder / MANIFEST).unlink()
    shards = sorted(folder.glob("*.tfrecord"))
    kept = shards[0].stat().st_mtime_ns
    shards[1].write_bytes(shards[1].read_bytes()[:-20])  # cut off by a crash
    shards[2].unlink()
    write(folder, data, SETTINGS, identity)
    assert read_manifest(folder)["files"] == before
    assert shards[0].stat().st_mtime_ns == kept


def test_permuted_ids_are_refused_by_their_labels(copy, data):
    def permute(records):
        ids = [record["id"] for record in records]
        return [record | {"id": other} for record, other in zip(records, ids[1:] + ids[:1], strict=True)]

    rewrite(copy[0], permute)
    with pytest.raises(UserError, match="ids are permuted; delete the folder"):
        read_store(copy[0], data.train, copy[1])


def test_ids_permuted_within_a_class_are_found_by_recomputing(copy, data):
    def permute(records):
        """Exchange the maps of two images of one class, the smallest form of the published defect."""
        by_label: dict[int, list] = {}
        for record in records:
            by_label.setdefault(int(record["label"][0]), []).append(record)
        for group in by_label.values():
            maps = [record["map"] for record in group]
            for record, other in zip(group, maps[1:] + maps[:1], strict=True):
                record["map"] = other
        return records

    assert verify_store(copy[0], sample=20)["maps"] < 1e-2
    rewrite(copy[0], permute)
    read_store(copy[0], data.train, copy[1])  # the records themselves do not show it
    with pytest.raises(UserError, match="do not belong to their images"):
        verify_store(copy[0], sample=20)


@pytest.mark.parametrize(
    ("part", "message"), [("teacher", "its teacher is"), ("data", "its data is"), ("attribution", "its attribution is")]
)
def test_a_store_of_another_teacher_data_set_or_setting_is_refused(store, data, part, message):
    folder, identity = store
    with pytest.raises(UserError, match=f"{message}.*--stages overlays") as caught:
        read_store(folder, data.train, identity | {part: "other"})
    assert "\n" not in str(caught.value)


def test_missing_ids_are_refused(copy, data):
    rewrite(copy[0], lambda records: records[5:])
    with pytest.raises(UserError, match="5 ids are missing"):
        read_store(copy[0], concatenate([data.train, data.validation]), copy[1])


@pytest.mark.parametrize("field", ["logits", "error"])
def test_nan_is_refused_before_any_training(copy, data, field):
    rewrite(copy[0], lambda records: [record | {field: record[field] * np.float32(np.nan)} for record in records])
    with pytest.raises(UserError, match="NaN or infinity"):
        read_store(copy[0], data.train, copy[1])


def test_records_of_another_store_are_refused(copy, data):
    rewrite(copy[0], lambda records: [record | {"store": "other"} for record in records])
    with pytest.raises(UserError, match="belongs to store other"):
        read_store(copy[0], data.train, copy[1])


def test_every_kind_of_damage_gives_one_line(copy, data):
    folder, identity = copy
    shard = next(folder.glob("*.tfrecord"))
    good = shard.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 40):
        for bad in (good[:position], good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :]):
            shard.write_bytes(bad)
            with pytest.raises(UserError, match=r"corrupt|truncated") as caught:
                read_store(folder, data.train, identity)
            assert "\n" not in str(caught.value)


def test_verify_refuses_another_teacher(copy):
    teacher(seed=1).save(copy[0].parents[1] / TEACHER_FILE)
    with pytest.raises(UserError, match="another teacher"):
        verify_store(copy[0])


def test_verify_on_the_command_line(store, capsys):
    assert verify.main([str(store[0]), "--sample", "5"]) == 0
    assert "every record belongs to its image" in capsys.readouterr().out
    assert verify.main([str(store[0].parent)]) == 1
    assert capsys.readouterr().err.startswith("error: no finished store")


@pytest.mark.parametrize("shape", [(3, 5), (4, 4)])
def test_a_record_keeps_the_shape_of_its_map_and_one_of_an_earlier_version_is_read(shape):
    stored = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    features = {"logits": np.zeros(2, np.float32), "map": [stored.tobytes()], **overlays._shape(stored)}
    now = overlays.parse_record(features | {"scale": [2.0], "error": [0.25], "steps": [16]})
    earlier = {"map_shape": shape, "map_scale": [2.0], "completeness_error": [0.25], "n_steps": [16], "usable": [1]}
    before = overlays.parse_record(features | earlier)
    for record in (now, before):
        np.testing.assert_array_equal(record["map"], stored)
        assert (record["scale"], record["error"], record["n_steps"]) == (2.0, 0.25, 16)

"""Fields of maps, overlays, controls and losses reach their stages, with the values that their texts say."""

from dataclasses import fields

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tfigkd.attribution import attribute
from tfigkd.batches.augment import example_keys
from tfigkd.batches.controls import derangement
from tfigkd.config.experiment import override, read_experiment
from tfigkd.config.loss_fields import LossesConfig
from tfigkd.data import to_model_input
from tfigkd.models.fold import fold_batch_norm
from tfigkd.runtime.files import read_manifest
from tfigkd.stages import overlays, teacher, training_setup
from tfigkd.stages.data import stored_examples, training_examples
from tfigkd.stages.workdir import Workdir

TINY = {
    "data.limit": 40,
    "augment.crop_padding": 0,
    "teacher.model": "convnet",
    "teacher.drop_blocks": 0,
    "teacher.width": 1.0,
    "teacher.widths": (24,),  # as many as the whitening has, which the partial identity lets through
    "teacher.training.epochs": 1,
    "training.batch_size": 40,
    "tensorboard.pictures": 0,
    "attribution.rule": "left",
    "attribution.n_steps": 3,
    "attribution.baseline": "blur",
    "attribution.tolerance": 0.2,
}


@pytest.fixture(scope="module")
def config():
    return override(read_experiment("quickstart")[1], TINY)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    found = Workdir(folder / "run", folder / "teachers", seed=3)
    teacher.train_teacher(config, found)
    overlays.build_overlays(config, found)
    return found


def test_maps_are_of_the_rule_steps_and_baseline_of_the_config(config, workdir):
    examples = stored_examples(config.data)
    model = fold_batch_norm(teacher.load_teacher(config, workdir))
    images = to_model_input(examples.images)
    blurred = gaussian_filter(images, sigma=(0, 1, 1, 0), mode="reflect")  # 1/8 of 8 pixels
    result = attribute(model, images, examples.labels, baseline=blurred, rule="left", n_steps=3)
    maps = np.abs(result.attributions).sum(axis=-1)
    known = overlays.load_knowledge(config, workdir, examples)
    np.testing.assert_allclose(known.scales, maps.max(axis=(1, 2)), rtol=1e-3)
    np.testing.assert_array_equal(known.usable, known.errors <= 0.2)


def test_steps_are_doubled_up_to_the_most_that_are_allowed(config, workdir):
    changes = {"attribution.n_steps": None, "attribution.tolerance": 1e-9, "attribution.max_steps": 8}
    strict = override(config, changes)
    overlays.build_overlays(strict, workdir)
    manifest = read_manifest(overlays.store_folder(strict, workdir))
    assert manifest["flagged"] > 0.9 * manifest["examples"]
    few = overlays.load_knowledge(strict, workdir, stored_examples(config.data))
    exact = override(strict, {"attribution.n_steps": 8, "attribution.tolerance": 0.2})
    overlays.build_overlays(exact, workdir)
    same = overlays.load_knowledge(exact, workdir, stored_examples(config.data))
    flagged = ~few.usable
    np.testing.assert_allclose(few.scales[flagged], same.scales[flagged], rtol=1e-4)


def batch_of(config, workdir):
    """Return the first batch, which holds all examples, and the row of each of its images among the examples."""
    images, targets = next(training_setup.training_stream(config, workdir)(0))
    examples = training_examples(config.data)
    keys = example_keys(examples.ids)
    assert len({*keys.tolist()}) == len(keys) == len(images)
    return images, targets, examples


def rows_of(targets, known):
    """Return the row of each target's logits among known logits."""
    distances = np.abs(targets["teacher_logits"][:, None] - known[None]).max(axis=-1)
    assert distances.min(axis=1).max() < 1e-6
    return distances.argmin(axis=1)


def test_overlays_have_the_exponents_of_the_config(config, workdir):
    changes = {"overlay.probability": 1.0, "overlay.min_exponent": 3.0, "overlay.max_exponent": 3.0}
    images, targets, examples = batch_of(override(config, changes), workdir)
    known = overlays.load_knowledge(config, workdir, examples)
    plain = to_model_input(examples.images)
    for image, row in zip(images, rows_of(targets, known.logits), strict=True):
        powered = (known.maps[row] / 255.0) ** 3
        scaled = (powered - powered.min()) / (powered.max() - powered.min())
        expected = 0.5 * plain[row] + 0.5 * scaled[..., None] if known.usable[row] else plain[row]
        np.testing.assert_allclose(image, expected, atol=1e-5)


def test_the_seed_of_a_control_draws_its_permutation(config, workdir):
    base = {"overlay.probability": 1.0, "overlay.min_exponent": 1.0, "overlay.max_exponent": 1.0}
    shuffled = override(config, base | {"control.maps": "shuffled", "control.logits": "shuffled", "control.seed": 5})
    images, targets, examples = batch_of(shuffled, workdir)
    known = overlays.load_knowledge(config, workdir, examples)
    order, plain = derangement(len(examples), 5), to_model_input(examples.images)
    for image, label, row in zip(images, targets["label"], rows_of(targets, known.logits[order]), strict=True):
        other = order[row]
        maps = known.maps[other] / 255.0
        scaled = (maps - maps.min()) / (maps.max() - maps.min())
        expected = 0.5 * plain[row] + 0.5 * scaled[..., None] if known.usable[other] else plain[row]
        np.testing.assert_allclose(image, expected, atol=1e-5)
        assert label == examples.labels[row]


VALUES = {
    "temperature": 3.25,
    "standardize": True,
    "alpha": 0.75,
    "beta": 1.5,
    "inter": 0.5,
    "intra": 0.25,
    "rank": 0.125,
    "distance": 7.0,
    "angle": 9.0,
    "times_input": False,
    "grid": 2,
    "pairs": "adjacent",
    "fuse": False,
    "neighbors": 5,
    "keys": 1,
    "width": 5,
    "uniform": True,
    "value": 0.5,
    "pruned": 0.6,
    "second": 0.75,
    "queue": 77,
    "space": "teacher",
    "permuted": True,
}
BETA_OF_BALANCE = 0.5  # a share, where that of dkd is a weight
TAPS = {
    **dict.fromkeys(("at", "hint", "rkd", "sp", "pkt", "e2kd"), "block_01"),
    "fsp": ("block_00", "block_01"),
    **dict.fromkeys(("skt", "reviewkd", "rtk"), ("block_00", "block_01")),
}


@pytest.mark.parametrize("name", [field.name for field in fields(LossesConfig)])
def test_every_setting_of_a_loss_reaches_its_term(name, config):
    table = getattr(LossesConfig(), name)
    names = {field.name for field in fields(table)}
    values = {field: VALUES[field] for field in names if field in VALUES}
    values |= {"beta": BETA_OF_BALANCE} if name == "bkd" else {}
    values |= {f"{side}_layer": TAPS[name] for side in ("student", "teacher") if name in TAPS}
    assert values.keys() | {"weight"} == names
    assert all(getattr(table, field) != value for field, value in values.items())
    changes = {f"losses.{name}.{field}": value for field, value in values.items()} | {f"losses.{name}.weight": 0.375}
    view = {"view.kind": "live"} if name == "r2kd" else {}
    view |= {"training.chain": 3} if name == "opdf" else {}
    terms, weights = training_setup.losses_of(override(config, {"losses.kd.weight": 0.0} | view | changes))
    assert weights == {name: 0.375}
    (term,) = terms.values()
    for field, value in values.items():
        found = getattr(term, field)
        assert (tuple(found) if isinstance(found, list) else found) == value, field

"""Published PyTorch weights give the logits that PyTorch gives, and files that do not fit are refused whole."""

from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.runtime.errors import UserError

IMAGENET = (models.IMAGENET_MEAN, models.IMAGENET_STD)
NETWORKS = {
    "student_drop5_student": lambda: models.mobilenet_v2(drop_blocks=5),
    "student_drop5_at": lambda: models.mobilenet_v2(drop_blocks=5),
    "resnet20": lambda: models.resnet(20, normalization=IMAGENET),
    "resnet56": lambda: models.resnet(56, normalization=IMAGENET),
}


@pytest.fixture(scope="module")
def reference(weights_dir: Path) -> dict[str, np.ndarray]:
    with np.load(weights_dir / "reference_logits.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def images(reference: dict[str, np.ndarray], cifar10_dir: Path) -> np.ndarray:
    """The reference's 256 test images [256,32,32,3] in [0,1], found by their ids."""
    import tensorflow_datasets as tfds

    (directory,) = (cifar10_dir / "cifar10").glob("3.*")
    rows = {name: row for row, name in enumerate(reference["id"])}
    found = np.full((len(rows), 32, 32, 3), np.nan, np.float32)
    for example in tfds.builder_from_directory(directory).as_dataset(split="test").as_numpy_iterator():
        row = rows.get(example["id"].decode())
        if row is not None:
            assert example["label"] == reference["label"][row]
            found[row] = example["image"] / np.float32(255)
    assert np.isfinite(found).all()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_pytorchs(
    name: str, weights_dir: Path, reference: dict[str, np.ndarray], images: np.ndarray
) -> None:
    model = NETWORKS[name]()
    models.load_torch_weights(model, weights_dir / f"{name}.npz")
    parts = np.split(images, 8)  # a call that is not compiled keeps the outputs of all layers
    logits = np.concatenate([model(part, training=False) for part in parts])
    np.testing.assert_allclose(logits, reference[name], atol=1e-3)
    assert (logits.argmax(-1) == reference["label"]).mean() > 0.88
    folded = models.fold_batch_norm(model)
    folded = np.concatenate([folded(part) for part in parts])
    np.testing.assert_allclose(folded, logits, atol=1e-5 * np.abs(logits).max())


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """A PyTorch state dict of the two-block student, with values that tell the axes apart."""
    generator = np.random.default_rng(0)
    shapes = {"features.0.0.weight": (32, 3, 3, 3), "features.1.conv.0.0.weight": (32, 1, 3, 3)}
    shapes |= {"features.1.conv.1.weight": (16, 32, 1, 1), "classifier.1.weight": (10, 16)}
    shapes["classifier.1.bias"] = (10,)
    for norm, channels in (("features.0.1", 32), ("features.1.conv.0.1", 32), ("features.1.conv.2", 16)):
        shapes |= {f"{norm}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {name: generator.random(shape, np.float32) for name, shape in shapes.items()}


def _refusal(tmp_path: Path, state: dict[str, np.ndarray]) -> str:
    """The one line that refuses these arrays, after checking that no weight moved."""
    model = models.mobilenet_v2(drop_blocks=17)
    before = model.get_weights()
    np.savez(tmp_path / "weights.npz", **state)
    with pytest.raises(UserError) as caught:
        models.load_torch_weights(model, tmp_path / "weights.npz")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layouts(tmp_path: Path, state: dict[str, np.ndarray]) -> None:
    model = models.mobilenet_v2(drop_blocks=17, normalization=IMAGENET)
    counters = {"features.0.1.num_batches_tracked": np.int64(7)}
    np.savez(tmp_path / "weights.npz", **{f"module.{name}": value for name, value in (state | counters).items()})
    models.load_torch_weights(model, tmp_path / "weights.npz")
    stem, depthwise = model.get_layer("block_00_conv").kernel, model.get_layer("block_01_depthwise").kernel
    assert stem[1, 2, 0, 5] == state["features.0.0.weight"][5, 0, 1, 2]
    assert depthwise[1, 2, 5, 0] == state["features.1.conv.0.0.weight"][5, 0, 1, 2]
    assert model.get_layer("logits").kernel[3, 7] == state["classifier.1.weight"][7, 3]
    assert model.get_layer("block_01_project_bn").moving_variance[2] == state["features.1.conv.2.running_var"][2]
    np.testing.assert_allclose(model.get_layer("normalization").kernel[0, 0, 0, 0], 1 / 0.229, rtol=1e-6)


def test_what_does_not_fit_is_named(tmp_path: Path, state: dict[str, np.ndarray]) -> None:
    missing = {name: value for name, value in state.items() if name != "classifier.1.bias"}
    assert "classifier.1.bias is missing" in _refusal(tmp_path, missing)
    assert "features.2.x is left over" in _refusal(tmp_path, state | {"features.2.x": np.zeros(3)})
    wrong = state | {"classifier.1.weight": np.zeros((100, 16), np.float32)}
    assert "classifier.1.weight has shape (100, 16), expected (10, 16)" in _refusal(tmp_path, wrong)
    broken = state | {"features.0.1.bias": np.full(32, np.nan, np.float32)}
    assert "features.0.1.bias has values that are not finite floats" in _refusal(tmp_path, broken)
    message = _refusal(tmp_path, {"conv1.weight": np.zeros(3, np.float32)})
    assert message.count(" is missing") == 5 and "and 13 more" in message


def test_another_architectures_file(tmp_path: Path, state: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "weights.npz", **state)
    with pytest.raises(UserError, match="does not fit resnet8"):
        models.load_torch_weights(models.resnet(8), tmp_path / "weights.npz")


def test_unreadable_files(tmp_path: Path, state: dict[str, np.ndarray]) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(UserError, match="no weights file"):
        models.load_torch_weights(model, tmp_path / "absent.npz")
    np.savez(tmp_path / "whole.npz", **state)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", weights=np.array([{}], object))
    contents = {
        "text.npz": b"not an archive",
        "cut.npz": whole[:3000],
        "flipped.npz": whole[:400] + bytes(64) + whole[464:],
        "empty.npz": b"",
        "single.npz": (tmp_path / "single.npy").read_bytes(),
        "pickle.npz": (tmp_path / "pickle.npz").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*fetch it anew"):
            models.load_torch_weights(model, tmp_path / name)

"""A sweep over other people's networks: every operation gives the function that plain Keras opens, or one line.

The networks are those of keras.applications, with random weights and statistics as after training, and some built by
hand. In each operation a network either has Keras's own outputs, or is refused by an error of one line with a reason.
Each network has a process of its own, which gives its memory back.

python -m pytest -p no:xdist -m slow -rP tests/slow/test_sweep.py
python tests/slow/test_sweep.py NETWORK FOLDER
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd import Distiller, OverlayStore, integrated_gradients, models
from tfigkd.compress.channels import cut_channels
from tfigkd.compress.quantization import fake_quantized
from tfigkd.config.export_fields import ExportConfig
from tfigkd.edge.litert import litert_predictor
from tfigkd.edge.parity import export_file
from tfigkd.losses import KLDivergence
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.models.fake_quant import without_rounding
from tfigkd.runtime.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

L = keras.layers
CLASSES = 5
GENERATOR = np.random.default_rng(0)

NETWORKS = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "VGG16": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "ConvNeXtTiny": 32,
    "NASNetMobile": 32,
}
"""Name to image size."""


def application(name: str) -> keras.Model:
    size, build = NETWORKS[name], getattr(keras.applications, name)
    return build(weights=None, input_shape=(size, size, 3), classes=CLASSES)


def _pooled(x, classes: int = CLASSES) -> keras.KerasTensor:
    return L.Dense(classes)(L.GlobalAveragePooling2D()(x))


def _block(x, filters: int = 16, activation: str = "relu"):
    return L.Activation(activation)(L.BatchNormalization()(L.Conv2D(filters, 3, use_bias=False)(x)))


def adapted() -> keras.Model:
    images = keras.Input((16, 16, 3))
    norm = L.Normalization()
    norm.adapt(GENERATOR.normal(0.45, 0.2, (40, 16, 16, 3)))
    return keras.Model(images, _pooled(_block(norm(images))))


def half() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        images = keras.Input((16, 16, 3))
        logits = L.Dense(CLASSES, dtype="float32")(L.GlobalAveragePooling2D()(_block(images)))
        return keras.Model(images, logits)
    finally:
        keras.config.set_dtype_policy("float32")


def nested() -> keras.Model:
    inner = keras.Input((16, 16, 3))
    x = _block(inner, 16, "swish")
    gate = L.Conv2D(16, 1, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
    backbone = keras.Model(inner, L.Conv2D(8, 1)(L.Multiply()([x, gate])), name="backbone")
    backbone.trainable = False
    images = keras.Input((16, 16, 3))
    return keras.Model(images, _pooled(backbone(L.Rescaling(2.0, offset=-1.0)(images), training=False)))


def wrapped() -> keras.Model:
    inner = keras.Sequential([keras.Input((16, 16, 3)), L.Conv2D(8, 3), L.ReLU(), L.Flatten(), L.Dense(CLASSES)])
    inner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inner.fit(255 * GENERATOR.random((8, 16, 16, 3)), np.arange(8) % CLASSES, verbose=0)
    return keras.Sequential([keras.Input((16, 16, 3)), L.Rescaling(255.0), inner, L.Softmax()])


def sigmoid() -> keras.Model:
    images = keras.Input((16, 16, 3))
    x = L.GlobalAveragePooling2D()(_block(images))
    return keras.Model(images, L.Dense(1, activation="sigmoid")(x))


def rescalings() -> keras.Model:
    images = keras.Input((16, 16, 3))
    x = L.Rescaling(1 / 127.5, offset=-1.0)(L.Rescaling(255.0)(images))
    x = L.Rescaling([1.0, 2.0, 3.0], offset=[0.1, 0.0, -0.1])(x)
    return keras.Model(images, _pooled(_block(x, 16)))


BY_HAND: dict[str, Callable[[], keras.Model]] = {
    "Normalization adapted": adapted,
    "mixed_float16": half,
    "nested, frozen, gated": nested,
    "wrapped compiled": wrapped,
    "sigmoid": sigmoid,
    "several Rescaling": rescalings,
}
OPERATIONS = ("load", "fold", "stock", "attribute", "store", "distill", "float32", "int8", "qat", "channels")
COUNTS: Counter[str] = Counter()
"""How often an operation gave Keras's function ("OPERATION same") or one line ("OPERATION refused")."""
REASONS: dict[str, str] = {}


def shaken(model: keras.Model, white: float = 1.0) -> keras.Model:
    """The model with statistics of normalization as after training, so that its logits depend on the image.

    They are those of random images, each moved a little, so that folding them is no identity.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.set_weights([GENERATOR.uniform(0.7, 1.3, weight.shape) for weight in layer.get_weights()])
        layer.momentum = 0.0
    model(white * GENERATOR.random((16, *model.input_shape[1:])).astype("float32"), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.set_weights([weight * GENERATOR.uniform(0.9, 1.1, weight.shape) for weight in layer.get_weights()])
        layer.momentum = momentum
        if isinstance(layer, L.Normalization) and len(layer.get_weights()) == 3 and not np.any(layer.get_weights()[0]):
            channels = layer.get_weights()[0].shape
            layer.set_weights([np.full(channels, 0.45), np.full(channels, 0.05), np.array(1)])
            layer.finalize_state()
    return model


def close(found, expected, tolerance: float) -> None:
    found, expected = np.asarray(found, "float64"), np.asarray(expected, "float64")
    assert np.abs(found - expected).max() <= tolerance * max(1e-6, np.abs(expected).max())


def sweep(name: str, model: keras.Model, folder: Path) -> Counter[str]:
    """Take a network through every operation; return how many gave Keras's function and how many refused it."""
    path, seen = folder / "model.keras", Counter()
    white = 255.0 if name.startswith(("MobileNetV3", "Efficient", "ConvNeXt")) else 1.0  # what they are made for
    shaken(model, white).save(path)
    size = model.input_shape[1]
    pixels = GENERATOR.integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    classes = max(2, model.output_shape[-1])  # one output is two classes
    images, labels = pixels / np.float32(255), np.arange(8) % classes
    plain = keras.saving.load_model(path, compile=False)
    stated = np.asarray(plain(white * images, training=False), "float64")
    tolerance = 2e-2 if name == "mixed_float16" else 2e-3

    def operation(which: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except (UserError, ValueError) as error:
            assert "\n" not in str(error), str(error)
            REASONS[f"{name}: {which}"] = str(error)
            seen[f"{which} refused"] += 1
            return False
        seen[f"{which} same"] += 1
        return True

    own: list[keras.Model] = []
    if not operation("load", lambda: own.append(models.load_classifier(path))):
        return seen
    (loaded,) = own
    logits = np.asarray(models.ReferenceClassifier(path)(images), "float64")
    probabilities = bool(np.allclose(stated.sum(axis=1), 1, atol=1e-3) and (stated >= 0).all())
    found = np.asarray(keras.ops.softmax(logits)) if probabilities or name == "sigmoid" else logits
    found = found[:, 1:] if name == "sigmoid" else found
    close(found, stated, tolerance)  # the logits are those under the softmax of the file
    close(loaded(images, training=False), logits, tolerance)

    def fold() -> None:
        close(models.fold_batch_norm(loaded)(images), logits, tolerance)

    def stock() -> None:
        with_stock_batch_norm(loaded).save(folder / "stock.keras")
        close(keras.saving.load_model(folder / "stock.keras", compile=False)(images), logits, tolerance)

    def attribute() -> None:
        # the sum of a map and its error are the difference of Keras's logits between the image and black
        maps, off = integrated_gradients(loaded, images[:2], labels[:2], n_steps=8)
        black = np.asarray(models.ReferenceClassifier(path)(np.zeros_like(images[:1]), training=False))
        expected = logits[np.arange(2), labels[:2]] - black[0, labels[:2]]
        sums = np.asarray(maps, "float64").reshape(2, -1).sum(axis=1)
        close(sums - np.asarray(off), expected, 1e-2)

    def store() -> None:
        built = OverlayStore.build(folder / "store", loaded, (pixels, labels), n_steps=2, tolerance=1e6)
        rows = [built._row(image, int(label)) for image, label in zip(pixels, labels, strict=True)]
        close(built.knowledge.logits[rows], logits, tolerance)

    def distill() -> None:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((size, size, 3))
        student = keras.Model(inputs, _pooled(L.Conv2D(4, 3, activation="relu")(inputs), classes))
        teacher = models.fold_batch_norm(loaded)
        distiller = Distiller(student, losses={"kd": KLDivergence(2.0)}, loss_weights={"kd": 0.5}, teacher=teacher)
        distiller.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
        soft, hard = (np.asarray(keras.ops.log_softmax(values / 2)) for values in (logits, student(images)))
        expected = 4 * (np.exp(soft) * (soft - hard)).sum(axis=1).mean()
        history = distiller.fit(images, labels, epochs=3, batch_size=8, shuffle=False, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        close(history["kd_loss"][0], expected, 1e-2)  # the first step's term, from Keras's logits by hand

    def file(format: str) -> Callable[[], None]:
        def act() -> None:
            target = folder / f"model.{format}.tflite"
            export_file(
                target, with_stock_batch_norm(loaded), "float32" if format == "float32" else "int8", data(), BOUNDS
            )
            given = litert_predictor(target)(pixels)
            if format == "float32":
                close(given, logits, tolerance)
            else:
                assert np.isfinite(given).all()
                # eight bits, calibrated by four images, are coarse for a network of random weights and swish; still,
                # these are no logits of another function
                assert np.corrcoef(given.ravel(), logits.ravel())[0, 1] > (0.4 if "Efficient" in name else 0.8)

        return act

    def data():
        from tfigkd.data import Dataset, identify

        examples = identify(pixels, labels)
        names = tuple(map(str, range(classes)))
        return Dataset("sweep", examples, examples, examples, class_names=names, fingerprint="sweep")

    def qat() -> None:
        quantized = fake_quantized(with_stock_batch_norm(loaded))
        with without_rounding():
            close(quantized(images), logits, tolerance)

    def channels() -> None:
        assert cut_channels(with_stock_batch_norm(loaded), 0.5).count_params() < loaded.count_params()

    acts = [fold, stock, attribute, store, distill, file("float32"), file("int8"), qat, channels]
    for which, act in zip(OPERATIONS[1:], acts, strict=True):
        operation(which, act)
    return seen


BOUNDS = ExportConfig(calibration_examples=4, min_int8_agreement=0.0, max_float32_difference=5e-3)
REFUSED = {  # what cannot be done, by network; everything else must be the same function
    "nested, frozen, gated": {"channels"},  # the gate's one convolution reads and writes the same channels
    "wrapped compiled": {"channels"},  # flattened before the head
    "ConvNeXtTiny": {"int8", "qat", "channels"},
    "Xception": {"qat"},
    "NASNetMobile": {"qat", "channels"},
}


def take(name: str, folder: Path) -> dict[str, dict]:
    """Build a network by its name and take it through every operation; return counts, and the reasons of refusals."""
    keras.utils.set_random_seed(0)
    model = BY_HAND[name]() if name in BY_HAND else application(name)
    return {"seen": sweep(name, model, folder), "reasons": REASONS}


@pytest.mark.parametrize("name", [*BY_HAND, *NETWORKS])
def test_every_door_gives_keras_own_function_or_one_line(name: str, tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, __file__, name, str(tmp_path)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    found = json.loads(process.stdout.splitlines()[-1])
    COUNTS.update(found["seen"])
    refused = {key.split()[0] for key in found["seen"] if key.endswith("refused")}
    reasons = found["reasons"]
    print(f"{name}: {len(OPERATIONS) - len(refused)} operations of {len(OPERATIONS)} same; {reasons or 'none refused'}")
    assert len(found["seen"]) == len(OPERATIONS)
    assert refused == REFUSED.get(name, set()), reasons


def test_counts_of_the_sweep() -> None:
    """Runs last: all networks have gone through every operation."""
    if len(os.environ.get("PYTEST_XDIST_WORKER", "")) or COUNTS["load same"] + COUNTS["load refused"] < 20:
        pytest.skip("NEEDS THE WHOLE SWEEP in one process: pytest -p no:xdist -m slow tests/slow/test_sweep.py")
    same = sum(count for key, count in COUNTS.items() if key.endswith("same"))
    refused = sum(count for key, count in COUNTS.items() if key.endswith("refused"))
    print(f"{same} operations gave Keras's function, {refused} refused in one line: {dict(sorted(COUNTS.items()))}")
    assert COUNTS["load same"] == len(BY_HAND) + len(NETWORKS) == 20
    assert refused == sum(map(len, REFUSED.values())) and same == 20 * len(OPERATIONS) - refused


if __name__ == "__main__":
    print(json.dumps(take(sys.argv[1], Path(sys.argv[2]))))

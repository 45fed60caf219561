"""LiteRT files of the published networks keep the accuracy on the CIFAR-10 test images."""

from functools import partial

import pytest

from tfigkd import data, models
from tfigkd.config.export_fields import ExportConfig
from tfigkd.edge.litert import float_tensors, litert_predictor
from tfigkd.edge.parity import export_file
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm

IMAGENET = (models.IMAGENET_MEAN, models.IMAGENET_STD)
NETWORKS = {
    "student_drop5_student": (partial(models.mobilenet_v2, drop_blocks=5), 0.9073),
    "resnet20": (partial(models.resnet, 20, normalization=IMAGENET), 0.9173),
    "resnet56": (partial(models.resnet, 56, normalization=IMAGENET), 0.9339),
}


@pytest.fixture(scope="module")
def cifar10(cifar10_dir):
    return data.load("cifar10", directory=str(cifar10_dir), download=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_accuracy_survives_the_formats(name, weights_dir, cifar10, tmp_path):
    build, stated = NETWORKS[name]
    model = build()
    models.load_torch_weights(model, weights_dir / f"{name}.npz")
    model, images, labels = with_stock_batch_norm(model), cifar10.test.images, cifar10.test.labels
    expected = accuracy(predict_logits(model, images), labels)
    assert expected == pytest.approx(stated, abs=5e-5)
    for format, points in {"float32": 0.02, "float16": 0.1, "int8": 0.5}.items():
        path = tmp_path / f"{format}.tflite"
        report = export_file(path, model, format, cifar10, ExportConfig())
        assert accuracy(litert_predictor(path)(images), labels) > expected - points / 100, format
        assert report["agreement"] > (0.97 if format == "int8" else 0.999)
    assert float_tensors(tmp_path / "int8.tflite") == []

"""A small trained student, and the inputs that its fine-tuning needs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.batches.stream import TrainingBatches
from tfigkd.compress.finetune import FineTuning
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import Dataset, load
from tfigkd.losses import KLDivergence
from tfigkd.measure.metrics import predict_logits
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.training.distiller import Distiller


@dataclass(frozen=True)
class Case:
    """Data, a trained student of stock layers, and its logits on validation [N,K]."""

    data: Dataset
    student: keras.Model
    logits: np.ndarray

    @cached_property
    def by_image(self) -> dict[bytes, np.ndarray]:
        """Training image to the student's logits."""
        stored = predict_logits(self.student, self.data.train.images)
        return {image.tobytes(): row for image, row in zip(self.data.train.images, stored, strict=True)}

    def tuning(self, folder: Path, *, cached: bool = False, fingerprint: str = "test") -> FineTuning:
        """Return tuning from the student's own logits, computed live or stored in the targets."""
        teacher = None if cached else models.fold_batch_norm(self.student)
        moved = AugmentConfig(0 if cached else 1, False)
        stream = TrainingBatches(self.data.train, TrainingConfig(batch_size=32), moved, seed=0)

        def with_logits(epoch: int):
            for images, targets in stream(epoch):
                pixels = np.round(images * 255).astype(np.uint8)
                known = [self.by_image[one.tobytes()] for one in pixels]
                yield images, {**targets, "teacher_logits": np.stack(known)}

        def distiller(model: keras.Model) -> Distiller:
            return Distiller(model, losses={"kd": KLDivergence(4.0)}, loss_weights={"kd": 0.9}, teacher=teacher)

        return FineTuning(distiller, with_logits if cached else stream, folder, fingerprint, folder / "tensorboard")


def trained(model: keras.Model, data: Dataset, epochs: int) -> keras.Model:
    """Train a model for a few epochs and return it with stock layers."""
    distiller = Distiller(model)
    distiller.compile(keras.optimizers.Adam(5e-3), jit_compile=False)
    distiller.fit(data.train.images / np.float32(255), data.train.labels, epochs=epochs, batch_size=32, verbose=0)
    return with_stock_batch_norm(model)


@pytest.fixture(scope="session")
def case() -> Case:
    """Return a small MobileNet-V2 trained on 8x8 digits, with inverted residuals with and without shortcut."""
    data = load("digits", limit=400)
    keras.utils.set_random_seed(0)
    student = trained(models.mobilenet_v2(10, 15, input_shape=(8, 8, 3), width=0.5), data, 12)
    return Case(data, student, predict_logits(student, data.validation.images))


@pytest.fixture(scope="session")
def resnet() -> keras.Model:
    """Return a trained ResNet-8, whose option-A shortcuts pad channels."""
    data = load("digits", limit=400)
    keras.utils.set_random_seed(0)
    return trained(models.resnet(8, input_shape=(8, 8, 3)), data, 8)

"""A real teacher on real pictures: its logits improve the student, logits of other pictures do not."""

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.batches.controls import apply_control
from tfigkd.batches.stream import TrainingBatches
from tfigkd.config.fields import ControlConfig
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import load
from tfigkd.data.knowledge import Knowledge, TeacherTargets
from tfigkd.losses import KLDivergence
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.training.distiller import Distiller

COUNT, BATCH, EPOCHS = 2000, 64, 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def pictures(cifar10_dir):
    data = load("cifar10", directory=str(cifar10_dir), download=False)
    return data.train.take(slice(COUNT)), data.validation.take(slice(1000))


@pytest.fixture(scope="module")
def knowledge(pictures, weights_dir):
    """Return the logits of the published ResNet-56 for the training pictures as knowledge."""
    teacher = models.resnet(56, normalization=(models.IMAGENET_MEAN, models.IMAGENET_STD))
    models.load_torch_weights(teacher, weights_dir / "resnet56.npz")
    logits = predict_logits(models.fold_batch_norm(teacher), pictures[0].images)
    blank = np.zeros((COUNT, 32, 32), np.uint8)
    return Knowledge(logits, blank, np.ones(COUNT, np.float32), np.zeros(COUNT, np.float32), np.ones(COUNT, bool))


def validation_accuracy(pictures, knowledge, control):
    """Return the validation accuracy of a ResNet-20 after a few epochs with `losses.kd.weight` 0.5."""
    train, validation = pictures
    keras.utils.set_random_seed(0)
    student = models.resnet(20)
    distiller = Distiller(student, losses={"kd": KLDivergence(4.0)}, loss_weights={"kd": 0.5})
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True), jit_compile=False)
    given = TeacherTargets(apply_control(knowledge, control))
    stream = TrainingBatches(train, TrainingConfig(batch_size=BATCH), AugmentConfig(), seed=0, targets=given)
    steps = -(-COUNT // BATCH)
    distiller.fit(stream(0), steps_per_epoch=steps, epochs=EPOCHS, shuffle=False, verbose=0)
    return accuracy(predict_logits(student, validation.images), validation.labels)


def test_kd_beats_kd_with_shuffled_logits(pictures, knowledge):
    own = validation_accuracy(pictures, knowledge, ControlConfig())
    shuffled = validation_accuracy(pictures, knowledge, ControlConfig(logits="shuffled"))
    print(f"validation accuracy: kd {100 * own:.1f} %, kd_shuffled {100 * shuffled:.1f} %")
    assert own > shuffled + 0.03

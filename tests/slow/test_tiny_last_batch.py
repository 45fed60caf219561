"""A last batch of two of 1,442 digits: a network with batch normalization learns as with any other batch size."""

from pathlib import Path

import pytest

from tfigkd.config.experiment import override, read_experiment
from tfigkd.measure.metrics import accuracy, predict_logits
from tfigkd.stages.data import all_training_examples, dataset
from tfigkd.stages.teacher import load_teacher, train_teacher
from tfigkd.stages.workdir import Workdir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_digits_that_would_leave_a_last_batch_of_two(tmp_path: Path) -> None:
    config = override(read_experiment("quickstart")[1], {"data.train_split": "train+validation"})
    assert len(all_training_examples(config.data)) % config.teacher.training.batch_size == 2
    workdir = Workdir(tmp_path, tmp_path)
    train_teacher(config, workdir)
    test = dataset(config.data).test
    assert accuracy(predict_logits(load_teacher(config, workdir), test.images), test.labels) > 0.95

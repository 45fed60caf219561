"""The last batch of an epoch is large enough for batch normalization; where it always was, batches are as before."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfigkd.batches.stream import TrainingBatches, batch_sizes, evens_out
from tfigkd.config.training_fields import AugmentConfig, TrainingConfig
from tfigkd.data import identify


@pytest.mark.parametrize(
    ("examples", "batch_size", "expected"),
    [
        (1442, 32, [32] * 16 + [31] * 30),  # 45 batches of 32 would leave 2
        (33, 32, [17, 16]),
        (5, 2, [2, 2, 1]),  # one alone cannot be helped with batches of two
        (2, 64, [2]),  # all there is
        (64, 64, [64]),
        (5000, 128, [128] * 39 + [8]),  # what study lowdata trained on
        (50_000, 128, [128] * 390 + [80]),
        (50_000, 1000, [1000] * 50),
        (45_000, 128, [128] * 351 + [72]),
    ],
)
def test_sizes_of_batches(examples, batch_size, expected):
    assert batch_sizes(examples, batch_size) == expected


@given(st.integers(1, 3000), st.integers(1, 300))
def test_all_examples_in_as_many_steps_of_at_most_two_sizes(examples, batch_size):
    sizes = batch_sizes(examples, batch_size)
    assert sum(sizes) == examples and max(sizes) <= batch_size
    assert len(sizes) == -(-examples // batch_size)
    assert len(set(sizes)) <= 2 and sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= min(examples, 8, batch_size / 2)
    full = [batch_size] * (examples // batch_size) + ([examples % batch_size] if examples % batch_size else [])
    assert evens_out(examples, batch_size) == (sizes != full)


@pytest.mark.parametrize(("examples", "sizes"), [(35, [12, 12, 11]), (44, [16, 16, 12])])
def test_an_epoch_of_the_stream_has_every_example_once(examples, sizes):
    images = np.random.default_rng(0).integers(0, 256, (examples, 4, 4, 3), dtype=np.uint8)
    given = identify(images, np.arange(examples))
    stream = TrainingBatches(given, TrainingConfig(batch_size=16), AugmentConfig(0, False), seed=0)
    for epoch in (0, 3):
        batches = [np.asarray(batch[1]["label"]) for batch in islice(stream(epoch), 2 * len(sizes))]
        assert [len(labels) for labels in batches] == 2 * sizes
        for half in (batches[: len(sizes)], batches[len(sizes) :]):
            assert sorted(np.concatenate(half)) == list(range(examples))

"""What a run costs: times by hand, sizes as real stores have them, and the table of the documents."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import imagenet_cost
from experiments.benchmarks.imagenet_cost import Rates, seconds_by_rates
from tests.children import ROOT, run
from tests.stages.test_parts import OPTIONS, alone
from tfigkd.run import parse
from tfigkd.runtime import tfrecord
from tfigkd.runtime.errors import UserError
from tfigkd.stages import cost
from tfigkd.stages.cost import Job, costs, duration, size
from tfigkd.store.views import view_record

JOB = Job(
    train=1000,
    stored=1000,
    pixels=100,
    teacher=(1e6, 500),
    student=(1e5, 50),
    teacher_epochs=3,
    epochs=20,
    gradients=35,
    views=4,
    cells=100,
    image_logits=40,
    view_logits=20,
)
RATES = Rates(teacher=1e7, student=1e6, pictures=1e9, batches=1e9, devices=2)


def test_times_are_work_over_rate():
    found = seconds_by_rates(JOB, RATES, machines=4)
    assert found["teacher"] == pytest.approx(3 * 1e6 * 1000 * 3 / 2e7)  # on the two devices of one machine
    assert found["overlays"] == pytest.approx((2 * 35 + 4) * 1e6 * 1000 / 8e7)
    assert found["distill"] == pytest.approx(3 * 1e5 * 1000 * 20 / 2e6)
    live = seconds_by_rates(dataclasses.replace(JOB, live=True), RATES, machines=1)["distill"]
    assert live == pytest.approx(1000 * 20 * (3e5 / 1e6 + 1e6 / 1e7) / 2)
    slow = dataclasses.replace(RATES, batches=2)  # one thread makes the batches of a training, whatever the devices
    assert seconds_by_rates(JOB, slow, machines=4)["distill"] == pytest.approx(20 * 1000 / 2)
    several = dataclasses.replace(slow, threads=2)
    assert seconds_by_rates(JOB, several, machines=4)["distill"] == pytest.approx(20 * 1000 / 4)
    assert seconds_by_rates(JOB, several, machines=4)["overlays"] == pytest.approx(4 * 1000 / (4 * 8) + 2 * 35e9 / 8e7)


def test_only_machines_that_share_a_disk_use_the_network():
    seconds = {"teacher": 1.0, "overlays": 2.0, "distill": 3.0}
    assert [each.network for each in costs(JOB, seconds).values()] == [0, 0, 0]
    several = costs(JOB, seconds, machines=2)
    assert several["overlays"].network == 2 * 3 * 100 * 1000 + several["overlays"].disk + 2 * 4 * 500
    assert several["overlays"].disk == JOB.map_bytes + JOB.view_bytes


def test_batches_that_threads_hold_count_as_memory():
    plain = costs(JOB, {"distill": 1.0})["distill"].memory
    ahead = dataclasses.replace(JOB, ahead=3 * 64)
    assert costs(ahead, {"distill": 1.0})["distill"].memory - plain == 3 * 64 * 100 * 3 * 4
    options = ("--experiment", "quickstart", "--training.batch_size", "32", "--training.batch_threads")
    assert [cost.job_of(parse([*options, count])[1].config).ahead for count in ("1", "2")] == [0, 3 * 32]


def test_sizes_are_those_of_real_stores(tmp_path_factory):
    folder = alone(tmp_path_factory)
    (manifest,) = (path for path in folder.glob("teachers/*/overlays/*/manifest.json"))
    real = sum((manifest.parent / name).stat().st_size for name in json.loads(manifest.read_text())["files"])
    options = ("--experiment", str(folder / "tiny.toml"), *OPTIONS[2:])
    job = cost.job_of(parse(options)[1].config)
    assert job.map_bytes == pytest.approx(real, rel=0.2)
    outputs = np.random.default_rng(0).normal(size=(16, 1000)).astype(np.float32)
    for top, logits in ((None, 2000), (20, 84)):
        about = {"store": "0" * 16, "id": "0" * 16, "label": [1]}
        record = len(tfrecord.encode_example({**about, **view_record(outputs, top)})) + 16  # the framing
        each = dataclasses.replace(job, stored=1, views=16, view_logits=logits)
        assert each.view_bytes == pytest.approx(record, rel=0.2)


def test_words():
    assert [duration(one) for one in (3, 125, 7260, 200_000)] == ["3 s", "2 min 5 s", "2 h 1 min", "2 d 7 h"]
    assert [size(one) for one in (0, 900, 5.5e6, 1.234e9, 2e12)] == ["", "1 kB", "5.5 MB", "1.23 GB", "2 TB"]


def test_the_table_of_imagenet_is_that_of_the_documents():
    document = (Path(ROOT) / "experiments/README.md").read_text()
    for row in imagenet_cost.rows():
        assert f"| {' | '.join(row)} |" in document


@pytest.mark.slow
def test_the_command_prints_a_line_a_stage(tmp_path):
    options = ("--experiment", "quickstart", "--smoke", "--teacher.drop_blocks", "14", "--student.drop_blocks", "16")
    done = run(tmp_path, "tfigkd.run", *options, "--estimate", "--workers", "2", "--stages", "teacher,overlays,distill")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["stage", "teacher", "overlays", "distill", "2"]
    assert not list(tmp_path.iterdir())


def test_workers_belong_to_an_estimate():
    with pytest.raises(UserError, match="--workers must be at least 1 and needs --estimate, got 2"):
        parse(["--experiment", "quickstart", "--workers", "2"])

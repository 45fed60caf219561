"""The benchmark harness: turns, ratios, rows and the table, and the subjects at tiny size without their peers."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import (
    disk_pictures,
    distillation_step,
    input_pipeline,
    large_pictures,
    overlay_store,
    pictures,
    precision_step,
    processes_step,
    run_cost,
    small_step,
    table,
    training_step,
)
from experiments.benchmarks.harness import Options, faster, record, take_turns
from tests.stages.test_cluster import NEEDS_RAY


@pytest.fixture
def options(tmp_path):
    return Options(Path("no data"), Path("no weights"), None, pairs=1, tiny=True, results=tmp_path / "rows.csv")


def rows_of(options):
    with open(options.results, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sides_take_turns_and_the_first_round_does_not_count():
    ran = []

    def block(name, seconds):
        def work():
            ran.append(name)
            return seconds + len(ran)

        return work

    seconds = take_turns({"a": block("a", 0), "b": block("b", 100)}, pairs=2)
    assert ran == ["a", "b"] * 3
    assert seconds["a"].tolist() == [3, 5] and seconds["b"].tolist() == [104, 106]


def test_a_ratio_is_the_median_of_the_rounds(options):
    seconds = {"ours": np.array([1.0, 2.0, 1.0]), "theirs": np.array([2.0, 8.0, 3.0])}
    row = faster(options, "step", "theirs", seconds, work=10, unit="images/s", at_least=3.0)
    assert (row["ratio"], row["lowest"], row["highest"], row["n"]) == ("3.000", "2.000", "4.000", 3)
    assert (row["ours"], row["theirs"], row["met"]) == ("10", "3.333", "yes")


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({"at_least": 2.1}, "no"),
        ({"at_least": 2.0}, "yes"),
        ({"at_most": 1.9}, "no"),
        ({"at_most": 2.0}, "yes"),
        ({"at_most": 2.0, "holds": False}, "no"),
        ({}, ""),
    ],
)
def test_a_target_is_met_or_not(options, bounds, met):
    assert record(options, "a", "b", np.array([2.0]), ours=1, theirs=2, unit="s", **bounds)["met"] == met


def test_the_table_shows_the_newest_row_of_each_comparison(options, tmp_path):
    for ratio in (1.0, 2.0):
        record(options, "step", "peer", np.array([ratio]), ours=1, theirs=2, unit="s", at_least=3.0, note="said")
    record(options, "step", "another", np.array([4.0]), ours=1, theirs=2, unit="s")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    for _ in range(2):  # what is made from the rows does not pile up
        table.main(options.results, readme)
    text = readme.read_text(encoding="utf-8")
    assert text.count("| step | peer |") == 1 and "| step | peer | 2 (2 to 2, 1) | ≥ 3.0 **missed** |" in text
    assert "| step | another | 4" in text and "- step, against peer: said." in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text


def test_a_table_needs_its_place():
    with pytest.raises(ValueError, match="Expected the lines"):
        table.insert("no place", "table")


def test_the_cost_of_pictures_is_measured(options):
    pictures.run(options)
    (row,) = rows_of(options)
    assert row["subject"] == "TensorBoard's pictures, 5 times in 100 epochs"
    assert float(row["ours"]) > 0 and float(row["theirs"]) > 0


def test_pictures_on_disk_are_measured(options):
    disk_pictures.run(options)
    rows = rows_of(options)
    assert [row["target"] for row in rows] == [">= 1.6", ">= 0.9", "<= 0.5", "<= 0.5", ">= 0.9"]
    assert all(float(row["ours"]) > 0 for row in rows)
    assert sum(row["subject"].endswith("60 JPEG pictures of 8 pixels on disk") for row in rows) == 4


@pytest.mark.slow
def test_stages_over_many_pictures_are_measured(options):
    large_pictures.run(options)
    rows = rows_of(options)
    assert [row["subject"].split(",")[0] for row in rows] == [
        f"peak memory of {stages}" for stages in ("data", "teacher", "overlays", "distill", "evaluate")
    ]
    assert all(100 < float(row["ours"]) < 2500 and row["met"] == "yes" for row in rows)


@NEEDS_RAY
@pytest.mark.slow
def test_a_run_is_measured_beside_its_estimate(options):
    run_cost.run(options)
    *times, together = rows_of(options)
    assert [row["target"] for row in times] == ["<= 1.2"] * 5 and together["target"] == "<= 0.6"
    assert all(float(row["ours"]) > 0 and float(row["theirs"]) > 0 for row in times)


def test_the_input_pipeline_is_measured(options):
    input_pipeline.run(options)
    pipeline, overlays, processor = rows_of(options)
    assert float(pipeline["ratio"]) > 1 and pipeline["target"] == ">= 20"
    assert all(float(row["ours"]) > 0 and row["target"] == "<= 1.05" for row in (overlays, processor))


@pytest.mark.slow
def test_training_and_distillation_run_at_tiny_size(options):
    for subject in (training_step, precision_step, processes_step, distillation_step, small_step):
        subject.run(options)
    rows = rows_of(options)
    named = {training_step.STOCK, "our float32", processes_step.ONE, distillation_step.KERAS, small_step.SINGLE}
    assert {row["against"] for row in rows} >= named
    assert all(float(row["ours"]) > 0 and float(row["theirs"]) > 0 for row in rows)


def test_the_store_is_weighed_and_its_memory_measured(options):
    found = overlay_store.child(40, 8)
    data = (40 + 20) * 8 * 8 * 3
    assert found["data"] == data and found["peak"] > data
    assert 64 + 40 < found["bytes"] < 1000  # the map and the logits at least

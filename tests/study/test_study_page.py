"""The page of a study: its numbers are those of the rows, and it lists the missing runs."""

import json
import re
from html.parser import HTMLParser

import pytest

from tfigkd.config.experiment import experiments_folder
from tfigkd.measure.statistics import summarize
from tfigkd.runtime.rows import read_rows
from tfigkd.study.__main__ import main
from tfigkd.study.collect import merge_rows
from tfigkd.study.page import forest_chart, page
from tfigkd.study.plan import Study, read_study
from tfigkd.study.report import BEGIN, END
from tfigkd.study.tables import compare, runs_of

PAPERS = read_rows(experiments_folder() / "results" / "papers.csv")
PAIR = Study(
    "pair",
    "two <b>arms</b>",
    arms={"slow": "a.toml", "fast": "b.toml"},
    seeds=3,
    sizes={"2x": {}, "4x": {}},
    comparisons=(("fast", "slow"),),
)


def row(arm, size, seed, accuracy):
    parameters = {"2x": "5000", "4x": "2500"}[size]
    return {
        "study": "pair", "experiment": arm, "arm": arm, "size": size, "seed": str(seed), "smoke": "False",
        "student_accuracy": str(accuracy / 100), "student_parameters": parameters, "n_train": "500",
        "train_seconds": "60", "hardware": "a <machine>", "commit": "0123456789ab", "versions": "python 3",
        "command": f"python -m tfigkd.study --experiment pair --arms {arm}",
    }  # fmt: skip


ROWS = [
    row(arm, size, seed, mean + spread * seed)
    for arm, size, mean, spread in (("slow", "2x", 70, 1), ("fast", "2x", 80, 0.5), ("slow", "4x", 60, 1))
    for seed in range(3)
] + [row("fast", "4x", 0, 61.5)]


def data_of(text, name):
    """Return the traces of a figure by name."""
    content = json.loads(re.search(rf'id="{name}-data">(.*?)</script>', text)[1])
    return {trace.get("name"): trace for trace in content["data"]}


def words(text):
    """Return the page's text without scripts and style."""
    kept = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    found = []
    reader = HTMLParser()
    reader.handle_data = found.append
    reader.feed(kept)
    return " ".join(" ".join(found).split())


@pytest.fixture(scope="module")
def text():
    return page(PAIR, ROWS, PAPERS)


def test_equal_rows_give_an_equal_page_that_loads_nothing(text):
    assert page(PAIR, ROWS, PAPERS) == text
    assert not re.search(r'\b(?:src|href)="(?!#|data:)', text)
    assert "two <b>arms</b>." in words(text) and "a <machine>" in words(text)


def test_dots_are_the_rows_and_marks_their_means(text):
    arms = data_of(text, "arms")
    dots = list(zip(arms["one run"]["y"], arms["one run"]["x"], strict=True))
    assert sorted(dots) == sorted((f"{one['arm']} {one['size']}", 100 * float(one["student_accuracy"])) for one in ROWS)
    means = dict(zip(arms["mean, 95 % interval"]["y"], arms["mean, 95 % interval"]["x"], strict=True))
    assert means == pytest.approx({"slow 2x": 71, "fast 2x": 80.5, "slow 4x": 61, "fast 4x": 61.5})
    halves = arms["mean, 95 % interval"]["error_x"]["array"]
    summary = summarize([70, 71, 72])
    assert halves[0] == pytest.approx(summary.high - summary.mean)
    assert halves[3] == 0  # a single run
    assert "61.50 % (n = 1)" in text
    sizes = data_of(text, "size")
    assert sizes["fast"]["x"] == [2500, 5000] and sizes["fast"]["y"] == pytest.approx([61.5, 80.5])


def test_the_forest_has_tested_comparisons_only(text):
    (marks,) = data_of(text, "forest").values()
    (one, single) = compare(PAIR, runs_of(ROWS))
    assert marks["y"] == ["fast − slow, 2x"] and marks["x"] == pytest.approx([9.5])
    assert marks["error_x"]["array"] == pytest.approx([one.leading.high - 9.5])
    assert one.leading.by_pairs and one.leading.high < one.welch.high
    assert marks["marker"]["symbol"] == ["circle"] and one.adjusted < 0.05
    assert forest_chart([single]) is None
    assert "one run per arm cannot tell" in words(text)


def test_two_runs_of_an_arm_claim_no_more_than_they_know():
    """Two runs have a mean and a deviation, but no interval, no test and no number of seeds that are needed."""
    study = Study("pair", "", arms=PAIR.arms, seeds=2, sizes={"2x": {}}, comparisons=PAIR.comparisons)
    rows = [row(arm, "2x", seed, 60 + 30 * seed) for arm in ("slow", "fast") for seed in range(2)]
    said = words(page(study, [one | {"train_seconds": "15"} for one in rows], []))
    assert "two runs per arm cannot tell; 3 or more give an interval" in said
    assert "178" not in said and "0.00 to 100.00" not in said and "needs" not in said.split("cannot tell")[1]
    assert "4 runs, 1 minute of training" in said
    means = data_of(page(study, rows, []), "arms")["mean, 95 % interval"]
    assert means["x"] == [75, 75] and means["error_x"]["array"] == means["error_x"]["arrayminus"] == [0, 0]


def test_an_interval_ends_where_accuracies_end():
    study = Study("pair", "", arms=PAIR.arms, seeds=3, sizes={"2x": {}}, comparisons=PAIR.comparisons)
    said = words(page(study, [row("slow", "2x", seed, one) for seed, one in enumerate((50, 99, 100))], []))
    assert "12.00 to 100.00" in said  # 83 − 4.302653 × 28.583212 ÷ √3 = 11.995


def test_arms_and_sizes_without_a_run_are_left_out():
    some = [one for one in ROWS if one["arm"] == "slow"]
    assert {*data_of(page(PAIR, some, PAPERS), "size")} == {"slow"}
    renamed = [{**one, "arm": f"old {one['arm']}"} for one in ROWS]
    assert "arms-data" not in page(PAIR, renamed, PAPERS)


def test_what_is_left_is_counted(text):
    assert "10 of 12" in words(text)
    assert "2 of 12 runs. This command continues with them:" in words(text)
    assert "python -m tfigkd.study --experiment pair" in words(text)
    assert "Every planned run is finished." in words(page(PAIR, [*ROWS, *ROWS[-1:] * 2], []))


def test_figures_of_the_papers_are_named_as_theirs():
    text = page(read_study("ablation"), [], PAPERS)
    assert "No run of this study is finished." in words(text)
    assert "These figures were not measured here" in words(text)
    means = data_of(text, "published-arms")["mean, 95 % interval"]
    row = next(one for one in PAPERS if one["study"] == "ablation" and one["arm"] == "ig_kd")
    assert dict(zip(means["y"], means["x"], strict=True))["ig_kd"] == pytest.approx(float(row["mean"]), abs=0.01)


def test_the_command_writes_a_page_of_each_study_that_is_known_of(tmp_path):
    folder = tmp_path / "experiments"
    (folder / "results").mkdir(parents=True)
    (folder / "studies").mkdir()
    for name in ("pair", "empty"):
        (folder / f"studies/{name}.toml").write_text(
            'description = "x"\n[sizes]\n"2x" = {}\n"4x" = {}\n[arms]\nslow = "a.toml"\nfast = "b.toml"\n'
        )
    merge_rows(folder / "results/pair.csv", ROWS)
    (folder / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert main(["report", "--into", str(tmp_path)]) == 0
    assert [path.parent.name for path in (tmp_path / "runs/studies").glob("*/report.html")] == ["pair"]
    assert "<title>Study: pair</title>" in (tmp_path / "runs/studies/pair/report.html").read_text(encoding="utf-8")

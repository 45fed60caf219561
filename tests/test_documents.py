"""The documents agree with the tree: subpackages have their lines, links their targets, named modules exist."""

import csv
import dataclasses
import re
import statistics
from pathlib import Path

import pytest

from tfigkd import __version__
from tfigkd.run import parse
from tfigkd.stages.runner import changed_settings
from tfigkd.stages.workdir import read_settings
from tfigkd.study.plan import Options, plan, read_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "experiments/README.md",
    "experiments/tutorial/README.md",
    "experiments/reference.md",
    "saved_models/README.md",
    "tests/README.md",
    "tests/faults/README.md",
)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_kind_of_fault_has_tests_that_exist():
    text = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    kinds = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(kinds) >= 30
    for kind in kinds:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", kind.split(" | ")[2])
        assert named, kind
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)


def test_no_two_test_files_have_one_name():
    """Pytest imports them by their names: `make test-slow` collects all of them in one call."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_subpackage_and_command_has_its_line_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| subpackage |") : text.index("Where one may look")]
    named = set(re.findall(r"`([\w/]+\.py|\w+/)`", table)) - {
        "pipeline.py",
        "runner.py",
        "tfmot_bridge.py",
        "chance.py",
    }
    there = {path.name for path in (ROOT / "tfigkd").glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in (ROOT / "tfigkd").glob("*/__init__.py")}
    assert named == there


def module(name):
    """The path of a module as the pages name it: from the root, or from tfigkd/."""
    return next(path for path in (ROOT / name, ROOT / "tfigkd" / name) if path.exists())


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_names_exists(page):
    for name in re.findall(r"[` ]((?:\w+/)+(?:\w+\.py)?)(?::|`| |$)", (ROOT / page).read_text(encoding="utf-8")):
        if name.endswith(".py"):
            assert module(name).is_file()


def test_contributing_names_what_is_in_the_modules_that_it_names():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = text[: text.index("## Tests")].split("\n### ")[1:]
    assert len(sections) > 12
    for where in sections:
        paths = re.findall(r"`((?:\w+/)+\w+\.py)`", where)
        source = "".join(module(path).read_text(encoding="utf-8") for path in paths)
        names = re.findall(r"`(?:Config\.)?(_?[A-Z]{4,}|_?[a-z]+_[a-z_]+|[A-Z][a-z]+[A-Z]\w+)`", where)
        assert paths or not names
        for name in names:
            assert re.search(rf"\b{name}\b", source), name


def test_the_study_in_the_text_is_one(tmp_path):
    text = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "my_study.toml"
    path.write_text(written, encoding="utf-8")
    study = read_study(str(path))
    jobs = plan(study, Options(str(path), workdir=tmp_path))
    (count,) = re.findall(r"lists the (\d+) runs", text)
    assert len(jobs) == int(count)
    keys = {field.name for field in dataclasses.fields(study)} - {"name", "source"}
    assert set(re.findall(r"^\| `\[?(\w+)\]?` \|.*\|.*\|$", text[text.index("| key |") :], re.MULTILINE)) >= keys


def test_the_version_is_the_packages():
    for page, said in (("CITATION.cff", r"^version: (.+)$"), ("README.md", r"version = \{(.+?)\}")):
        assert re.findall(said, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE) == [__version__], page


def test_the_readme_begins_with_two_commands_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (first,) = re.findall(r"## Two commands\n\n```sh\n(.*?)```", text, flags=re.DOTALL)
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make quickstart", "make test"]
    assert len(text.split()) < 2950


def test_the_most_accurate_students_are_those_of_their_rows():
    """Mean and standard deviation in the README, and each seed's file measured again."""
    results = ROOT / "experiments/results"
    with (results / "cifar10_kd_long.csv").open(encoding="utf-8") as long, (results / "students.csv").open() as again:
        rows, measured = list(csv.DictReader(long)), {row["model"]: row["accuracy"] for row in csv.DictReader(again)}
    assert [row["seed"] for row in rows] == ["0", "1", "2"] and len({row["config"] for row in rows}) == 1
    test, int8 = ([float(row[f"student{kind}_accuracy"]) for row in rows] for kind in ("", "_int8"))
    mean, spread = 100 * statistics.mean(test), 100 * statistics.stdev(test)
    said = f"| {mean:.2f} (sd {spread:.2f}), int8 {100 * statistics.mean(int8):.2f} |"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
    for seed, values in enumerate(zip(test, int8, strict=True)):
        for name, value in zip(("student.keras", "student.int8.tflite"), values, strict=True):
            assert float(measured[f"saved_models/cifar10_kd_long/{seed}/{name}"]) == value


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "saved_models").glob("*/[0-9]")), ids=lambda one: f"{one.parent.name}-{one.name}"
)
def test_saved_students_are_measured_again_by_the_command_of_their_page(folder):
    config = read_settings(folder)[1]
    flags = ["--training.precision", config.training.precision]
    flags += ["--teacher.training.precision", config.teacher.training.precision]
    where = ["--workdir", str(folder), "--seed", folder.name, "--stages", "evaluate"]
    _, chosen = parse(["--experiment", folder.parent.name, *where, *flags])
    assert changed_settings(folder / "config.json", chosen) == []


def test_pictures_are_small():
    for picture in (ROOT / "experiments/pictures").iterdir():
        assert picture.stat().st_size < 250_000, picture

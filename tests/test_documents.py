"""The documents agree with the tree: every room has its line, every link its target."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "experiments/README.md", "experiments/tutorial/README.md", "experiments/reference.md")


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


def test_every_room_has_its_line_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") : text.index("Core rooms")]
    named = set(re.findall(r"`([\w/]+\.py|\w+/)`", table))
    rooms = {path.name for path in (ROOT / "tfigkd").glob("*.py")} - {"__init__.py", "errors.py"}
    rooms |= {f"{path.parent.name}/" for path in (ROOT / "tfigkd").glob("*/__init__.py")}
    assert rooms - named == set()
    assert {name for name in named if name.endswith("/")} - rooms == set()


def test_the_readme_begins_with_two_commands_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (first,) = re.findall(r"## Two commands\n\n```sh\n(.*?)```", text, flags=re.DOTALL)
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make quickstart", "make test"]
    assert len(text.splitlines()) < 250


def test_pictures_are_small():
    for picture in (ROOT / "experiments/pictures").iterdir():
        assert picture.stat().st_size < 250_000, picture

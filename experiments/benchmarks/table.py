"""The table of benchmarks in experiments/README.md, written from rows: `python -m experiments.benchmarks.table`."""

import csv
from pathlib import Path

from experiments.benchmarks.harness import RESULTS

README = RESULTS.parents[1] / "README.md"
BEGIN = "<!-- benchmarks: made by `python -m experiments.benchmarks.table` from results/benchmarks.csv -->"
END = "<!-- end of benchmarks -->"
HEAD = ("what", "against", "ratio (lowest to highest, n)", "wanted", "ours", "theirs")


def latest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the newest row of each comparison, in the order of their first rows."""
    newest: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        newest[row["subject"], row["against"]] = row
    return list(newest.values())


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the table as Markdown, with the notes below it."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- | --- | --- | --- | ---: | ---: |"]
    notes = []
    for row in rows:
        wanted = row["target"].replace(">=", "≥").replace("<=", "≤")
        mark = {"yes": "", "no": " **missed**", "": ""}[row["met"]]
        ratio = f"{float(row['ratio']):.3g} ({float(row['lowest']):.3g} to {float(row['highest']):.3g}, {row['n']})"
        figures = f"{row['ours']} {row['unit']} | {row['theirs']} {row['unit']}"
        lines.append(f"| {row['subject']} | {row['against']} | {ratio} | {wanted}{mark} | {figures} |")
        if row["note"]:
            notes.append(f"- {row['subject']}, against {row['against']}: {row['note']}.")
    origin = sorted({row["hardware"] for row in rows})
    return "\n".join([*lines, "", f"Measured on: {'; '.join(origin)}.", "", *notes])


def insert(text: str, table: str) -> str:
    """Return the README's text with the table between its two marker lines.

    Raises:
        ValueError: a marker line is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"Expected the lines {BEGIN!r} and {END!r} in {README}.")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(results: Path = RESULTS, readme: Path = README) -> None:
    """Rewrite the table in the README."""
    with open(results, newline="", encoding="utf-8") as file:
        rows = latest(list(csv.DictReader(file)))
    readme.write_text(insert(readme.read_text(encoding="utf-8"), markdown(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()

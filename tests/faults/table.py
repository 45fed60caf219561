"""The table of `tests/faults/README.md`, written from the rows of experiments/results/faults.csv and long_runs.csv.

python tests/faults/table.py
"""

import csv
from pathlib import Path

from tfigkd.runtime.files import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "experiments" / "results"
README = HERE / "README.md"
MEMORY = (("first_mb", ".0f"), ("last_mb", ".0f"), ("growth_mb", "+.1f"))
BEGIN, END = "<!-- faults: written by `python tests/faults/table.py` -->", "<!-- end of faults -->"


def newest(path, key):
    """Return the last row of each kind, in the order of the first rows."""
    rows = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rows = {row[key]: row for row in csv.DictReader(file)}
    return list(rows.values())


def table(faults, long_runs):
    """Return both tables as Markdown; the totals are sums of the rows."""
    total = {name: sum(int(row[name]) for row in faults) for name in ("tried", "said", "same", "lost")}
    lines = ["| fault | tried | one clear line | went on unharmed | lost | seconds | repeat it |"]
    lines.append("| --- |" + " ---: |" * 5 + " --- |")
    for row in faults:
        cells = (row["fault"], row["tried"], row["said"], row["same"], row["lost"], row["seconds"])
        lines.append(f"| {' | '.join(cells)} | `{row['command'].removeprefix('python -m ')}` |")
    sums = " | ".join(f"**{total[name]:,}**" for name in total)
    lines += [f"| **all** | {sums} | | |", "", _where(faults), ""]
    lines += ["| long run | from | to | growth after the start | samples | repeat it |"]
    lines.append("| --- |" + " ---: |" * 4 + " --- |")
    for row in long_runs:
        first, last, growth = (f"{float(row[name]):{shape}} MB" for name, shape in MEMORY)
        cells = (row["run"], first, last, f"{growth} over {row['over']}", row["samples"])
        lines.append(f"| {' | '.join(cells)} | `{row['command'].removeprefix('python -m ')}` |")
    return "\n".join([*lines, "", _where(long_runs)])


def _where(rows):
    """Return hardware, commits and versions of rows as text."""
    distinct = ["; ".join(sorted({row[name] for row in rows})) for name in ("hardware", "commit", "versions")]
    return f"{distinct[0]}; commit {distinct[1]}; {distinct[2]}." if rows else "No rows yet."


def insert(text, content):
    """Replace the text between the two marker lines."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.partition(END)[2]}"


def main():
    """Write the tables to README.md."""
    content = table(newest(RESULTS / "faults.csv", "fault"), newest(RESULTS / "long_runs.csv", "run"))
    write_text(README, insert(README.read_text(encoding="utf-8"), content))


if __name__ == "__main__":
    main()

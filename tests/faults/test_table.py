"""The table of faults agrees with the rows, and no row has a lost case."""

from table import BEGIN, END, README, RESULTS, newest, table


def test_the_table_is_written_from_the_rows():
    faults, long_runs = newest(RESULTS / "faults.csv", "fault"), newest(RESULTS / "long_runs.csv", "run")
    text = README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table(faults, long_runs).strip()


def test_nothing_was_lost_and_enough_was_tried():
    rows = newest(RESULTS / "faults.csv", "fault")
    assert all(row["lost"] == "0" and int(row["tried"]) == int(row["said"]) + int(row["same"]) for row in rows)
    damaged = sum(int(row["tried"]) for row in rows if "cut, flipped" in row["fault"])
    assert damaged >= 1000
    assert sum(int(row["tried"]) for row in rows if row["fault"].startswith("kill -9")) >= 50

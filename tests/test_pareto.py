"""Table and picture of accuracy against latency and size, from rows."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from tfigkd.pareto import main
from tfigkd.report.pareto import front, plot, read_points, table
from tfigkd.runtime.errors import UserError


def write(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def points_of(paths):
    return read_points(paths)[0]


def row(model, format, accuracy, milliseconds, size, parameters=100):
    columns = {"model": model, "format": format, "accuracy": accuracy, "ms_p50_1t": milliseconds}
    return columns | {"bytes": size, "parameters": parameters}


def test_front_by_hand():
    costs, accuracies = [1, 2, 2, 3, 4, 1], [0.5, 0.4, 0.8, 0.8, 0.9, 0.5]
    # 1 is beaten by 0, 3 by 2 (cheaper, as accurate), 5 equals 0
    assert front(costs, accuracies) == [0, 2, 4]
    assert front([], []) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--table", "none/x.md"], "no folder none; make it or choose another --table"),
        (["--output", "none/x.html"], "no folder none; make it or choose another --output"),
        (["--table", "."], "--table is no name of a file, got '.'"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["missing.csv", *given]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_no_point_of_the_front_is_beaten_and_every_other_is():
    generator = np.random.default_rng(0)
    costs, accuracies = generator.random((2, 60))
    kept = front(costs, accuracies)
    for index in range(60):
        rivals = [i for i in range(60) if i != index]
        beaten = any(costs[i] <= costs[index] and accuracies[i] >= accuracies[index] for i in rivals)
        assert beaten == (index not in kept)


@pytest.fixture
def rows(tmp_path):
    return write(
        tmp_path / "rows.csv",
        row("large", "float32", 0.94, 3.0, 8000, 2000),
        row("large", "int8", 0.92, 1.0, 2000, 2000),
        row("small", "float32", 0.90, 1.5, 1000),
        row("small", "float32", 0.91, 1.7, 1000),
        row("small", "int8", 0.85, 0.5, 500),
        row("untrained", "int8", "", 0.1, 100),
    )


def run_row(config, accuracy, parameters=100):
    return {
        "arm": "kd", "seed": "0", "config": config, "student_int8_bytes": 500, "student_int8_accuracy": accuracy,
        "student_int8_ms": 1.0, "student_parameters": parameters,
    }  # fmt: skip


def test_runs_of_several_configs_are_no_seeds_of_one_another(tmp_path):
    """Two teachers' students of 29.17 % on average: two points, each of its own runs."""
    lines = [run_row("aaaa", 0.25), run_row("bbbb", 0.33), run_row("aaaa", 0.27), run_row("aaaa", 0.9, 5000)]
    points = points_of([write(tmp_path / "runs.csv", *lines)])
    assert {(point.model, point.n, round(point.accuracy, 4)) for point in points} == {
        ("kd (aaaa, 100 parameters)", 2, 0.26), ("kd (bbbb, 100 parameters)", 1, 0.33),
        ("kd (aaaa, 5000 parameters)", 1, 0.9),
    }  # fmt: skip
    # configs that differ in places or the seed alone are one protocol
    same = [{**line, "protocol": "cccc"} for line in lines[:3]]
    assert [(point.model, point.n) for point in points_of([write(tmp_path / "same.csv", *same)])] == [("kd", 3)]


def test_numbers_that_a_spreadsheet_has_changed_are_one_line(tmp_path):
    for changed in ({"accuracy": "0,95"}, {"n_test": "10000.0"}):
        with pytest.raises(UserError, match=r"cannot read rows of .*a\.csv: .*; expected numbers such as 0\.95"):
            points_of([write(tmp_path / "a.csv", row("m", "int8", 0.9, 1.0, 100) | changed)])


def test_rows_of_one_model_and_format_are_one_point(rows):
    points = points_of([rows])
    assert [(point.model, point.format, point.n) for point in points] == [
        ("large", "float32", 1),
        ("large", "int8", 1),
        ("small", "float32", 2),
        ("small", "int8", 1),
    ]
    assert points[2].accuracy == pytest.approx(0.905)
    assert points[2].deviation == pytest.approx(0.01 / np.sqrt(2))
    assert points[2].milliseconds == pytest.approx(1.6)
    assert points[0].deviation is None


def test_accuracy_and_latency_may_come_from_different_files(tmp_path):
    timed = write(tmp_path / "timed.csv", row("a", "int8", "", 2.0, 1000))
    scored = write(tmp_path / "scored.csv", *(row("a", "int8", value, "", "") for value in (0.7, 0.9)))
    (point,) = points_of([timed, scored])
    assert (point.accuracy, point.n, point.milliseconds, point.bytes) == (pytest.approx(0.8), 2, 2.0, 1000)


def test_accuracy_on_a_part_of_the_images_is_left_out(tmp_path):
    whole, part = row("a", "int8", 0.9, 1, 10) | {"n_test": 10_000}, row("a", "dynamic", 0.95, 1, 9) | {"n_test": 250}
    (point,) = points_of([write(tmp_path / "rows.csv", whole, part)])
    assert (point.format, point.accuracy) == ("int8", 0.9)


def test_each_data_set_has_points_of_its_own(tmp_path, capsys):
    """One file on two data sets is no average, and the largest number of images is that of the same data."""
    first = row("a", "int8", 0.92, 2.0, 10) | {"data": "cifar10", "n_test": 10_000}
    lines = [
        first,
        first | {"accuracy": 0.60, "data": "harder"},
        first | {"accuracy": 0.95, "n_test": 250},
        row("d", "int8", 0.98, 1.0, 9, 90) | {"data": "digits", "n_test": 360},
        row("a", "int8", "", 4.0, 10),  # latency alone, which belongs to both
    ]
    path = write(tmp_path / "rows.csv", *lines)
    assert [(one.model, one.accuracy, one.n, one.milliseconds) for one in points_of([path])] == [
        ("a (cifar10)", 0.92, 1, 2.0), ("a (harder)", 0.60, 1, 3.0), ("d (digits)", 0.98, 1, 1.0),
    ]  # fmt: skip
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "left out, fewer than the 10,000 test images of others: a (cifar10) int8" in said
    assert "accuracies on cifar10, digits, harder do not compare" in said
    (one,) = points_of([write(tmp_path / "one.csv", first)])
    assert one.model == "a"


def test_latencies_of_two_machines_are_two_points_and_a_file_measured_again_is_one(tmp_path, capsys):
    on_the_board = row("net", "int8", 0.9, 11.0, 1000) | {"hardware": "Raspberry Pi 5", "gzip_bytes": 900}
    here = on_the_board | {"hardware": "desk", "ms_p50_1t": 1.0}
    alone = row("net", "int8", 0.8, "", 1000) | {"hardware": "elsewhere", "gzip_bytes": 901}  # another seed, not timed
    path = write(tmp_path / "rows.csv", on_the_board, here, here | {"ms_p50_1t": 3.0}, alone)
    points, remarks = read_points([path])
    assert [(point.model, point.milliseconds, point.n, point.accuracy) for point in points] == [
        ("net (Raspberry Pi 5)", 11.0, 2, pytest.approx(0.85)),
        ("net (desk)", 2.0, 2, pytest.approx(0.85)),
    ]
    assert remarks == [
        "taken for seeds of one model, as several files have this name: net (Raspberry Pi 5) int8, net (desk) int8",
        "latencies on Raspberry Pi 5; desk do not compare; give the rows of only one machine",
    ]
    assert main([str(write(tmp_path / "one.csv", row("a|b", "int8", 0.9, 1.0, 500)))]) == 0
    assert "| a\\|b | int8 |" in capsys.readouterr().out


def test_rows_of_runs_are_read_as_they_are(tmp_path):
    columns = {"arm": "ig_kd", "student_parameters": 50, "student_int8_bytes": 10, "student_int8_ms": 0.3}
    columns |= {"student_int8_accuracy": 0.8, "student_float32_accuracy": 0.9}  # no float32 file: no point
    (point,) = points_of([write(tmp_path / "rows.csv", columns)])
    assert (point.model, point.format, point.accuracy, point.parameters) == ("ig_kd", "int8", 0.8, 50)
    pruned = {"compressed_method": "prune", "compressed_int8_bytes": 10, "compressed_int8_accuracy": 0.7}
    lines = [columns | pruned | {"compressed_settings": setting} for setting in ("half", "most", "most")]
    points = points_of([write(tmp_path / "compressed.csv", *lines)])
    assert {(point.model, point.n) for point in points} == {
        ("ig_kd", 3), ("ig_kd, prune (half)", 1), ("ig_kd, prune (most)", 2)
    }  # fmt: skip


def test_runs_of_two_machines_or_data_sets_are_apart_and_smoke_runs_left_out(tmp_path):
    one = run_row("aaaa", 0.9) | {"student_int8_ms": 10.0, "hardware": "board", "data_fingerprint": "d1", "seed": 0}
    one |= {"time": "10:00", "smoke": "False"}
    other = one | {"student_int8_accuracy": 0.92, "seed": 1, "time": "11:00"}
    server = one | {"hardware": "server", "student_int8_ms": 1.0}
    harder = one | {"data_fingerprint": "d2", "student_int8_accuracy": 0.5}
    tried = one | {"smoke": "True", "student_int8_accuracy": 0.99}

    def read(*rows):
        points, remarks = read_points([write(tmp_path / "rows.csv", *rows)])
        return [(point.model, point.n, round(point.accuracy, 3), point.milliseconds) for point in points], remarks

    assert read(one, one) == ([("kd", 1, 0.9, 10.0)], [])  # one run given twice
    assert read(one, other, tried) == ([("kd", 2, 0.91, 10.0)], ["left out, smoke runs: 1 row"])
    rented = other | {"hardware": "rented", "timed_on": "board"}  # trained elsewhere, timed here
    assert read(one, rented) == ([("kd", 2, 0.91, 10.0)], [])
    assert read(one, other | {"data_fingerprint": ""}) == ([("kd", 2, 0.91, 10.0)], [])  # of an earlier version
    found, remarks = read(one, server)
    assert sorted(found) == [("kd (board)", 1, 0.9, 10.0), ("kd (server)", 1, 0.9, 1.0)]
    assert remarks == ["latencies on board; server do not compare; give the rows of only one machine"]
    found, remarks = read(one, harder)
    assert sorted(found) == [("kd (d1)", 1, 0.9, 10.0), ("kd (d2)", 1, 0.5, 10.0)]
    assert remarks == ["accuracies on d1, d2 do not compare; give the rows of only one data set"]


def test_a_file_measured_on_fewer_images_before_is_one_file(tmp_path):
    measured = ((0.8, 1000), (0.9, 10000))
    rows = [row("a", "int8", value, 1.0, 10) | {"n_test": n, "gzip_bytes": 9} for value, n in measured]
    (point,), remarks = read_points([write(tmp_path / "rows.csv", *rows)])
    assert (point.accuracy, point.n) == (0.9, 1) and remarks == [
        "left out, fewer than the 10,000 test images of others: a int8"
    ]


def test_files_of_one_name_are_said_to_be_taken_for_seeds(tmp_path):
    measured = [row("student.int8", "int8", value, 1.0, 10) | {"gzip_bytes": value} for value in (0.9, 0.6)]
    (point,), remarks = read_points([write(tmp_path / "rows.csv", *measured)])
    assert point.n == 2
    assert remarks == ["taken for seeds of one model, as several files have this name: student.int8 int8"]


def test_the_table_marks_both_fronts(rows):
    lines = table(points_of([rows])).splitlines()
    assert lines[2] == "| large | float32 | 2,000 | 94.00 % | 1 | 3.00 ms * | 8.0 kB * |"
    assert lines[3] == "| large | int8 | 2,000 | 92.00 % | 1 | 1.00 ms * | 2.0 kB * |"
    # slower and less accurate than large int8, but smaller
    assert lines[4] == "| small | float32 | 100 | 90.50 ± 0.71 % | 2 | 1.60 ms | 1.0 kB * |"
    assert lines[5] == "| small | int8 | 100 | 85.00 % | 1 | 0.50 ms * | 0.5 kB * |"


def test_the_picture_shows_something(rows, tmp_path):
    picture = tmp_path / "pareto.png"
    plot(points_of([rows]), picture)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_command(rows, tmp_path, capsys):
    assert main([str(rows), "--output", str(tmp_path / "p.svg"), "--table", str(tmp_path / "p.md")]) == 0
    assert (tmp_path / "p.md").read_text() == table(points_of([rows]))
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert main([str(rows), "--output", str(tmp_path / "p.html"), "--table", str(tmp_path / "p.md")]) == 0
    assert "Pareto front" in (tmp_path / "p.html").read_text(encoding="utf-8")
    pooled = "taken for seeds of one model, as several files have this name: small float32\n"
    assert capsys.readouterr().out == ("left out, no accuracy: untrained int8\n" + pooled) * 2
    assert main([str(rows)]) == 0
    assert capsys.readouterr().out.startswith("| model | format |")


def test_files_of_other_tools_have_an_unknown_format(rows, tmp_path, capsys):
    """The row of benchmark leaves it empty; a spreadsheet has saved the file with a byte-order mark."""
    foreign = write(tmp_path / "foreign.csv", row("foreign", "", 0.93, 2.0, 3000, ""))
    foreign.write_text(foreign.read_text(), encoding="utf-8-sig")
    assert [(one.model, one.format) for one in points_of([foreign])] == [("foreign", "unknown")]
    for name in ("p.svg", "p.html"):
        assert main([str(rows), str(foreign), "--output", str(tmp_path / name)]) == 0
    assert "foreign, unknown" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "| foreign | unknown |" in capsys.readouterr().out


def test_what_is_refused(rows, tmp_path, capsys):
    write(tmp_path / "other.csv", {"format": "int8", "x": 1})
    write(tmp_path / "unscored.csv", row("a", "int8", "", 1, 1))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for arguments, message in {
        (str(tmp_path / "absent.csv"),): "cannot read rows",
        (str(tmp_path / "bytes.csv"),): "cannot read rows",
        (str(tmp_path / "other.csv"),): "expected a .csv of tfigkd.benchmark",
        (str(tmp_path / "unscored.csv"),): "no model has both an accuracy and a size",
        (str(rows), "--output", str(tmp_path / "p.txt")): "must end in .png, .svg, .pdf or .html",
    }.items():
        assert main(list(arguments)) == 1
        assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)
    with pytest.raises(UserError):
        points_of([])


def test_sizes_of_a_study_are_models_of_their_own(tmp_path):
    """Fields of `export` and `compress`, which a size may set, are not in the column `protocol`."""
    rows = [
        run_row("a", 0.9) | {"protocol": "p", "size": "fine"},
        run_row("a", 0.5) | {"protocol": "p", "size": "rough"},
    ]
    found = points_of([write(tmp_path / "rows.csv", *rows)])
    assert sorted((one.model, one.n, one.accuracy) for one in found) == [("kd fine", 1, 0.9), ("kd rough", 1, 0.5)]

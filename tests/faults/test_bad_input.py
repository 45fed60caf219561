"""Bad input, damaged files and a full disk: one error line, a non-zero exit status, and no file is damaged.

All tests use the real command line in child processes.
"""

import re
import shutil
import socket

import numpy as np
import pytest

from tests.faults.runs import (
    EXPERIMENT,
    RUN,
    TEACHERS,
    assert_kept,
    assert_same_run,
    finished_run,
    hashes,
    new_folder,
    one_line,
    only,
    row,
    stamps,
    start,
    succeed,
)

STORE = f"{TEACHERS}/overlays/*"
SHARD = f"{STORE}/overlays-00003-of-00011.tfrecord"
TEACHER = f"{TEACHERS}/teacher.keras"
STUDENT = f"{RUN}/distill/student.keras"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


@pytest.fixture
def copy(finished, tmp_path):
    """Return a copy of the finished run, which the test damages."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def empty(tmp_path):
    """Return a folder that contains only the experiment."""
    return new_folder(tmp_path)


def refused(folder, *arguments, **options):
    """Run a command that must fail and leave all files unchanged; return its error line."""
    before = hashes(folder)
    line = one_line(start(folder, *arguments, **options))
    assert hashes(folder).items() >= before.items()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--experiment", "quickstat"), "unknown experiment 'quickstat'; did you mean 'quickstart'"),
        (("--experiment", "none.toml"), "unknown experiment 'none.toml'"),
        (("--experiment",), "--experiment is missing; --list shows the shipped ones"),
        (("--losses.kd.temprature", "4"), "unknown argument '--losses.kd.temprature'; did you mean '--losses.*temp"),
        (("--frobnicate",), "unknown argument '--frobnicate'"),
        (("surplus",), "unknown argument 'surplus'"),
        (("--losses.kd.temperature", "hot"), "--losses.kd.temperature: .* float: 'hot'"),
        (("--training.epochs", "1.5"), "--training.epochs: .*'1.5'"),
        (("--training.epochs",), "--training.epochs"),
        (("--training.optimizer", "adm"), "'adm'.*'adam', 'adamw', 'sgd'"),
        (("--losses.kd.weight", "1.5"), r"kd.weight must be in \[0, 1\], or training.hard_weight given, got 1.5"),
        (("--losses.kd.weight", "nan"), "weight .*got nan"),
        (("--data.limit", "0"), "data.limit must be positive, got 0"),
        (("--stages", "teach"), "unknown stage 'teach'; did you mean 'teacher'"),
        (("--stages", ""), "unknown stage ''"),
        (("--seed", "-1"), "seed"),
        (("--seed", "4294967296"), "seed"),
        (("--teacher.seed", "-1"), "teacher.seed"),
        (("--control.seed", "-1"), "control.seed"),
        (("--smoke=1",), "--smoke"),
        (("--workdir", "tiny.toml"), "cannot make the folder tiny.toml: File exists"),
        (("--workdir", "tiny.toml/run"), "cannot make the folder tiny.toml/run: Not a directory"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_arguments(empty, arguments, message):
    assert re.search(message, refused(empty, *arguments))
    assert not (empty / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("limit = 200", "limt = 200", "unknown field 'data.limt'; did you mean 'limit'"),
        ("limit = 200", 'limit = "200"', "data.limit must be of type int, got '200'"),
        ("limit = 200", "limit = true", "data.limit must be of type int, got True"),
        ("limit = 200", "limit =", "tiny.toml: "),
        ("[data]", "[[data]]", "data is a table"),
        ("[data]", "base = 3\n[data]", "base.* got 3"),
        ("[data]", 'base = "nothing"\n[data]', "nothing"),
        ('"adam"', '"adm"', "teacher.training.optimizer must be one of 'adam'"),
        ("dropout = 0.3", "dropout = 1.0", r"dropout must be in \[0, 1\), got 1.0"),
        ("A few", "A \\ud800 few", "tiny.toml: "),
    ],
)
def test_experiment_files(tmp_path, old, new, message):
    assert old in EXPERIMENT
    (tmp_path / "tiny.toml").write_text(EXPERIMENT.replace(old, new, 1))
    assert re.search(message, refused(tmp_path))
    assert not (tmp_path / "runs").exists()


def save_npz(path, classes, kind=np.uint8):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 8 * classes, 8, 8, 3)).astype(kind)
    labels = np.arange(8 * classes) % classes
    np.savez(path, x_train=images[0], y_train=labels, x_test=images[1], y_test=labels)


def test_missing_and_wrong_data(empty):
    save_npz(empty / "float.npz", 3, np.float32)
    (empty / "text.npz").write_text("no archive\n")
    (empty / "pictures").mkdir()
    started = {
        name: start(empty, "--stages", "data", "--workdir", f"run{number}", "--data.name", name)
        for number, name in enumerate(("none.npz", "float.npz", "text.npz", "pictures", "none/such"))
    }
    lines = {name: one_line(process) for name, process in started.items()}
    assert lines["none.npz"].startswith("no file none.npz; expected an .npz with x_train")
    assert lines["float.npz"].startswith("float.npz: x_train is float32; expected uint8")
    assert lines["text.npz"].startswith("cannot read text.npz")
    assert lines["pictures"].startswith("pictures has no class folders")
    assert "'none/such'" in lines["none/such"]


def test_no_network_is_told(empty):
    """One proxy refuses connections, another accepts them and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxies = {"refusing": "http://127.0.0.1:9", "silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        for kind, proxy in proxies.items():
            process = start(
                empty,
                *("--data.name", "mnist", "--data.dir", "nothing-here", "--workdir", kind, "--stages", "data"),
                http_proxy=proxy,
                https_proxy=proxy,
                HTTPS_PROXY=proxy,
                TFDS_DATA_DIR=str(empty / "nothing"),
                HOME=str(empty),
            )
            while not process.stdout.readline().rstrip().endswith(f"in {kind}"):  # printed after the imports
                assert process.poll() is None
            assert "tfds data set 'mnist' is not prepared and there is no network" in one_line(process)


def test_teachers_that_do_not_fit(copy):
    """A .keras teacher with ten classes for data with three, and weights of another network."""
    shutil.copy(only(copy, TEACHER), copy / "ten.keras")
    save_npz(copy / "three.npz", 3)
    np.savez(copy / "wrong.npz", **{"features.0.0.weight": np.zeros((4, 3, 3, 3), np.float32)})
    own = ("--data.name", "three.npz", "--teacher.model", "ten.keras", "--teacher.drop_blocks", 0, "--teacher.width", 1)
    plain = ("--teacher.dropout", "None", "--teacher.no_train", "--workdir", "own")
    line = refused(copy, *own, *plain)
    assert line.startswith("ten.keras gives outputs of shape (10,), expected (3,)")
    line = refused(copy, "--teacher.weights", "wrong.npz", "--workdir", "published")
    assert line.startswith("wrong.npz does not fit mobilenet_v2") and "is missing" in line


def test_a_file_in_the_place_of_the_teachers_folder(empty):
    line = refused(empty, "--teachers", "tiny.toml")
    assert re.match("cannot make the folder tiny.toml.*(File exists|Not a directory)", line)


def test_a_workdir_of_other_settings(copy):
    line = refused(copy, "--losses.kd.temperature", "3")
    assert re.search(f"{RUN} holds a run with other settings .losses.kd.temperature.*another --workdir", line)
    line = refused(copy, "--workdir", RUN, "--seed", "1")
    assert "other settings (seed)" in line


def test_stages_without_their_predecessors(copy):
    for stage, missing in (("export", "distill"), ("overlays", "teacher")):
        line = refused(copy, "--stages", stage, "--workdir", "new", "--teachers", "new/teachers")
        assert re.match(f"stage '{missing}' has not run .*add it to --stages", line)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    path.write_text(path.read_text().replace("1", "2", 1))


CORRUPT = "{} is corrupt: its checksum is not the one in manifest.json; delete both and run again what made them"
ANEW = "delete it and run again what made it"


@pytest.mark.parametrize(
    ("pattern", "damage", "message"),
    [
        (SHARD, flip, CORRUPT),
        pytest.param(SHARD, cut, CORRUPT, marks=pytest.mark.slow),
        (TEACHER, cut, CORRUPT),
        (STUDENT, cut, CORRUPT),
        pytest.param(f"{RUN}/export/student.int8.tflite", flip, CORRUPT, marks=pytest.mark.slow),
        (f"{TEACHERS}/manifest.json", cut, f"{{}} is damaged .*; {ANEW}"),
        (f"{STORE}/manifest.json", alter, f"{{}} is damaged .*checksum does not fit.*; {ANEW}"),
        (f"{RUN}/config.json", cut, "{} is damaged .*; choose another --workdir or delete it"),
    ],
)
def test_damaged_files(copy, finished, pattern, damage, message, tally):
    one = tally(f"a run started over a damaged {pattern.rpartition('/')[2]} ({damage.__name__})")
    path = only(copy, pattern)
    damage(path)
    name = path.relative_to(copy)
    line = refused(copy)
    one.check(line, re.match(message.format(re.escape(str(name))), line), said=True)
    one.end()
    # only that file remains to be repaired
    shutil.copy(finished / name, path)
    assert hashes(copy) == hashes(finished)


@pytest.mark.slow
def test_no_space_left_in_the_middle_of_networks(empty, finished, tally):
    """The disk has too little space for a teacher, then for a student."""
    one = tally("no file larger than a network, then room (RLIMIT_FSIZE)")
    line = refused(empty, file_size=100_000)
    one.check(line, re.match("(File too large|No space left)", line), said=True)
    assert not list(empty.glob(TEACHER))
    succeed(empty, "--stages", "data,teacher,overlays")
    line = refused(empty, file_size=60_000)
    one.check(line, re.match("(File too large|No space left)", line), said=True)
    assert not list(empty.glob(STUDENT))
    succeed(empty)
    assert_same_run(empty, finished)
    one.check("afterwards", row(empty) == row(finished))
    one.end()


@pytest.mark.slow
def test_no_space_left_for_curves(empty):
    """TensorBoard's file grows faster than a checkpoint, and its errors come from TensorFlow."""
    long = ("--teacher.training.epochs", "400", "--teacher.training.batch_size", "64", "--data.limit", "20")
    line = refused(empty, *long, "--stages", "data,teacher", file_size=200_000)
    assert "File too large" in line
    assert list(empty.glob(f"{TEACHERS}/*.ckpt"))


@pytest.mark.slow
def test_the_advice_mends_the_damage(copy, finished):
    """Deleting the files that each error line names leads to the same teacher, shards and student."""
    for damage, pattern in ((cut, f"{TEACHERS}/manifest.json"), (flip, SHARD), (cut, STUDENT)):
        damage(only(copy, pattern))
    sound = stamps(copy, f"{STORE}/*.tfrecord")
    del sound[only(copy, SHARD)]
    for _ in range(3):
        line = one_line(start(copy))
        path, advised = copy / line.split()[0], re.search(r"delete (it|both) to redo", line)[1]
        path.unlink()
        if advised == "both":
            path.with_name("manifest.json").unlink()
    succeed(copy)
    assert_same_run(copy, finished)
    assert_kept(sound)


def test_no_space_left(empty, finished, tally):
    """Each limit stops another stage; the next call continues from there."""
    one = tally("no file larger than a config, a checkpoint, a shard, then room (RLIMIT_FSIZE)")

    def fails(limit, *, having, lacking):
        line = refused(empty, file_size=limit)
        one.check(line, re.match("(File too large|No space left)", line), said=True)
        assert all(list(empty.glob(pattern)) for pattern in having)
        assert not any(list(empty.glob(pattern)) for pattern in lacking)
        assert not [path for path in empty.rglob("*") if ".partial" in path.name]

    fails(300, having=(), lacking=[f"{RUN}/config.json"])
    fails(20_000, having=[f"{RUN}/data/manifest.json"], lacking=[f"{TEACHERS}/*.ckpt"])
    nearly = only(finished, TEACHER).parent
    shutil.copytree(nearly, only(empty, TEACHERS), ignore=lambda *_: ["overlays", "tensorboard"], dirs_exist_ok=True)
    fails(7_000, having=[TEACHER], lacking=[SHARD])
    succeed(empty)
    assert_same_run(empty, finished)
    one.check("afterwards", row(empty) == row(finished))
    one.end()


def test_no_space_left_for_the_report(copy, finished):
    """The old report is unchanged; the row written before it is complete."""
    report = (copy / RUN / "report.md").read_bytes()
    line = one_line(start(copy, file_size=len(report) - 100))
    assert re.match("(File too large|No space left)", line)
    assert (copy / RUN / "report.md").read_bytes() == report
    assert row(copy) == row(finished)
    assert {**hashes(copy), **hashes(finished, "**/rows.csv")} == hashes(finished)

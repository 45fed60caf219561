"""The page of a run: what stands in it is what the manifests say, and nothing of a user's is taken for HTML."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from jinja2 import UndefinedError

from tfigkd.config.experiment import override, read_experiment, to_mapping
from tfigkd.measure.examples import choose
from tfigkd.measure.gallery import Gallery
from tfigkd.measure.metrics import disagreement
from tfigkd.measure.statistics import wilson
from tfigkd.report.charts import label
from tfigkd.report.facts import Facts
from tfigkd.report.page import render
from tfigkd.report.pictures import picture
from tfigkd.report.run_page import page
from tfigkd.report.table import lines
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import checksum, make_folder, write_manifest
from tfigkd.stages.evaluate import check_measured, trained_files
from tfigkd.stages.report import figures, read_timed
from tfigkd.stages.workdir import Workdir

HOSTILE = ('<script>alert("a")</script>', '"><img src=x onerror=alert(1)>', "</script><b>", "a & b", "é猫")
N_TEST = 200


class Reader(HTMLParser):
    """Elements with their attributes, the tables by caption, and all text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.shown, self.scripts, self._open = [], {}, [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._line = []
        elif tag in ("td", "th"):
            self._line.append("")
        elif tag == "script":
            self.scripts.append((dict(attributes), ""))
        if tag in ("meta", "link", "img", "br"):
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "caption":
            self._lines = self.tables.setdefault(self._caption, [])
        elif tag == "tr":
            self._lines.append(self._line)

    def handle_data(self, data):
        if "script" in self._open:
            attributes, before = self.scripts.pop()
            self.scripts.append((attributes, before + data))
        elif "style" not in self._open:
            self.shown.append(data)
            if "caption" in self._open:
                self._caption += data
            elif {"td", "th"} & {*self._open}:
                self._line[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())


def make_gallery(count=4):
    draws = np.random.default_rng(0)
    classes = len(HOSTILE)
    labels = np.arange(count) % classes
    return Gallery(
        ids=np.array([f"id{index}" for index in range(count)]),
        images=draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        labels=labels,
        predicted=(labels + (labels > 1)) % classes,
        maps=draws.random((count, 8, 8), dtype=np.float32),
        teacher_predicted=labels,
        teacher_maps=draws.integers(0, 256, (count, 8, 8), dtype=np.uint8),
        overlays=draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        overlaid=np.array([True] * (count - 1) + [False]),
        alike=np.linspace(-0.5, 1, count),
        chance=np.zeros(count),
    )


def make_facts():
    """What a run leaves, with figures that are all different."""
    config = override(read_experiment("ig_kd")[1], {"description": "<i>mine</i>"})
    draws = np.random.default_rng(1)
    teacher, student = draws.normal(size=(2, N_TEST, len(HOSTILE)))
    labels = draws.integers(0, len(HOSTILE), N_TEST)
    results = {
        "teacher": {"accuracy": 0.965, "parameters": 700_490, "multiply_adds": 9_000_000},
        "student": {"accuracy": 0.93, "parameters": 151_882, "multiply_adds": 4_000_000, "agreement": 0.915, "kl": 0.2},
        "student.float32.tflite": {"accuracy": 0.925},
        "student.int8.tflite": {"accuracy": 0.91},
    }
    times = {"1": {"p50": 0.123, "p90": 0.234, "p99": 0.345, "runs": 200}}
    timed = {
        "student.float32.tflite": {"bytes": 654_321, "milliseconds": times},
        "student.int8.tflite": {"bytes": 234_567, "milliseconds": {"1": {**times["1"], "p50": 0.077}}},
    }
    parity = {"agreement": 0.987, "kl": 1.2e-3, "max_difference": 0.31, "mean_difference": 0.1}
    parity |= {"accuracy": 0.94, "keras_accuracy": 0.95}
    history = [
        {"loss": 2 - n / 10, "kd_loss": 1.5, "accuracy": n / 10, "val_accuracy": n / 11, "learning_rate": 1e-3}
        | {"seconds": 2.0}
        for n in range(1, 6)
    ]
    recalls = [{"examples": 40, "recall": 0.5 + n / 10, "precision": 0.5} for n in range(len(HOSTILE))]
    row = {"experiment": "<b>own</b>", "seed": 3, "smoke": True, "config": "c0ffee", "commit": "", "versions": "v 1"}
    row |= {"hardware": "a CPU", "n_train": 1_234, "train_seconds": 56.0, "saw_validation": False}
    row |= {"teacher_saw_validation": True}
    roles = {name: dict(results[name]) for name in ("teacher", "student")}
    roles["student"] |= {"int8_bytes": 234_567, "int8_ms": 0.077}
    return Facts(
        config=to_mapping(config),
        row=row,
        roles=roles,
        evaluated={
            "results": results,
            "per_class": {"teacher": recalls, "student": recalls[::-1], "student.int8.tflite": recalls},
            "disagreement": {"student": disagreement(student, teacher, labels)},
            "class_names": list(HOSTILE),
            "n_test": N_TEST,
        },
        command="python -m tfigkd.run --experiment x",
        toml='description = "<u>"\n',
        taught=True,
        data={
            "data": "f00d",
            "counts": {"train": 1_100, "validation": 134, "test": N_TEST},
            "image_shape": [8, 8, 3],
            "class_names": list(HOSTILE),
            "test_train_overlap": 7,
        },
        exported={"parity": {"student.int8.tflite": parity}},
        timed={"results": timed, "threads": [1], "hardware": "a CPU"},
        store={"identity": {"attribution": {"tolerance": 0.05}}, "mean_steps": 27.5},
        errors=np.linspace(0, 0.1, 101, dtype=np.float32),
        histories={"student": history, "teacher": history[:3]},
        ledger=[
            {
                "step": 1,
                "terms": {"hard_loss": {"value": 1.0, "share": 0.995}, "kd_loss": {"value": 2.0, "share": 0.005}},
            }
        ],
        gallery=make_gallery(),
    )


@pytest.fixture(scope="module")
def facts():
    return make_facts()


@pytest.fixture(scope="module")
def html(facts):
    return page(facts)


@pytest.fixture(scope="module")
def reader(html):
    return Reader(html)


def test_equal_facts_give_an_equal_page(html):
    assert page(make_facts()) == html


def test_nothing_is_loaded_and_no_handler_stands_in_the_markup(html, reader):
    for tag, attributes in reader.elements:
        assert tag not in ("iframe", "object", "embed", "form", "base", "video", "audio")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_what_a_user_named_is_text(html, reader, facts):
    assert not {"i", "u"} & {tag for tag, _ in reader.elements}
    assert {attributes.get("src", "")[:22] for tag, attributes in reader.elements if tag == "img"} == {
        "data:image/png;base64,"
    }
    for name in HOSTILE:
        assert " ".join(name.split()) in reader.text
    assert "<b>own</b>, seed 3" in reader.text
    kinds = [attributes.get("type") for attributes, _ in reader.scripts]
    assert kinds.count(None) == 1 and {*kinds} == {None, "application/json", "text/plain"}
    for attributes, content in reader.scripts:
        if attributes.get("type") == "application/json":
            text = json.dumps(json.loads(content), ensure_ascii=False)
            # Plotly reads tags in labels, so they come to it as text
            assert "<script" not in text and "<img" not in text


def test_no_text_of_a_run_becomes_markup(facts):
    """Wherever a text stands in the row, the commands or the store: it is shown as it is."""
    hostile = {name: f"{HOSTILE[1]}{name}" if isinstance(value, str) else value for name, value in facts.row.items()}
    reader = Reader(page(replace(facts, row=hostile, command=HOSTILE[0], study=HOSTILE[2], toml=HOSTILE[1])))
    assert all(attributes["src"].startswith("data:") for tag, attributes in reader.elements if tag == "img")
    assert len(reader.scripts) == 3 + sum(attributes.get("class") == "plot" for _, attributes in reader.elements) - 1
    for text in (*HOSTILE[:3], *(hostile[name] for name in ("experiment", "config", "versions", "hardware"))):
        assert text in reader.text


def test_no_template_turns_escaping_off_and_a_missing_value_is_an_error():
    for path in files("tfigkd.report").joinpath("templates").iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text(encoding="utf-8")), path.name
    with pytest.raises(UndefinedError, match="'charts' is undefined"):
        render("pareto.html", points=[])


def test_the_policy_admits_these_scripts_and_no_request(reader):
    (policy,) = (a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:"
    own = next(content for attributes, content in reader.scripts if not attributes)
    packed = next(content for attributes, content in reader.scripts if attributes.get("id") == "library")
    library = gzip.decompress(base64.b64decode(packed))
    hashes = [base64.b64encode(hashlib.sha256(code).digest()).decode() for code in (own.encode(), library)]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
    assert "unsafe" not in rules["script-src"]


def test_the_tables_say_what_the_manifests_say(reader, facts):
    tables = {caption: {line[0]: line[1:] for line in lines} for caption, lines in reader.tables.items()}
    assert tables["All figures by role"]["parameters"] == ["700,490", "151,882"]
    assert tables["All figures by role"]["test accuracy"] == ["96.50 %", "93.00 %"]
    for name, values in facts.evaluated["results"].items():
        title = f"{name.partition('.')[0]}, {name.split('.')[1] if '.' in name else 'Keras'}"
        low, high = wilson(values["accuracy"], N_TEST)
        said = [f"{100 * values['accuracy']:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"]
        assert tables["Test accuracy with 95 % intervals"][title] == said
    assert tables["Accuracy against size"]["student, int8"] == ["234.6 kB", "91.00 %"]
    assert tables["Accuracy against latency"]["student, float32"] == ["0.123 ms", "92.50 %"]
    assert tables["Latency of one image"]["student, int8, 1 thread"] == ["0.077", "0.234", "0.345"]
    parity = tables["Parity of the files with Keras"]["student, int8"]
    assert parity == ["98.70 %", "94.00 %", "95.00 %", "0.0012", "0.31"]
    curves = tables["Accuracy over the epochs"]
    assert [curves[str(n)][2] for n in range(1, 6)] == [f"{10 * n:.2f}" for n in range(1, 6)]
    assert [curves[str(n)][0] for n in range(1, 6)] == ["10.00", "20.00", "30.00", "", ""]
    assert tables["Each loss term's share of the gradient"]["1"] == ["99.50 %", "0.50 %"]
    counts = facts.evaluated["disagreement"]["student"]
    assert tables["Teacher and student on the test images"]["both right"][0] == str(counts["both_right"])
    said = reader.tables["Classes on which they disagree"][1:]
    assert [[HOSTILE.index(" ".join(a.split())), HOSTILE.index(b), int(n)] for a, b, n in said] == counts["pairs"][:40]
    maps = tables["Completeness error of the maps"]
    assert sum(int(line[0]) for error, line in maps.items() if error != "error") == 101
    for index, name in enumerate(HOSTILE):
        teacher, student = facts.evaluated["per_class"]["teacher"], facts.evaluated["per_class"]["student"]
        said = ["40", *(f"{100 * one[index]['recall']:.2f} %" for one in (teacher, student))]
        assert tables["Recall of each class"][name] == said


def test_the_profile_of_the_int8_file_is_shown(facts):
    """The slowest operations first, the noisiest first, names of layers as text; without profiles no section."""
    about = {"operation": "CONV_2D", "runs_on": "XNNPACK", "weight_bytes": 2_368, "activation_bytes": 32_768}
    nothing = dict.fromkeys(("milliseconds", "share", "cosine", "sqnr_db", "added_noise", "saturated"))
    fast = about | {"index": 0, "layer": HOSTILE[1], "multiply_adds": 1_500_000, "milliseconds": 0.002, "share": 0.2}
    fast |= {"cosine": 0.998, "sqnr_db": 24.94, "added_noise": 0.0016, "saturated": 0.0}
    slow = about | {"index": 1, "layer": "slow", "multiply_adds": 0, "milliseconds": 0.008, "share": 0.8}
    slow |= {"cosine": 1.0, "sqnr_db": None, "added_noise": 0.0, "saturated": 0.0}
    fused = about | nothing | {"index": 2, "layer": "fused", "multiply_adds": 0, "runs_on": "fused"}
    profile = {"operations": [fast, slow, fused], "times": ["0.010 ms an image"], "layers": [HOSTILE[2]], "images": 32}
    found = Reader(page(replace(facts, timed=facts.timed | {"profiles": {"student.int8.tflite": profile}})))
    assert "student, int8: 0.010 ms an image." in found.text and f"student, int8: {HOSTILE[2]}." in found.text
    times = found.tables["student, int8: the 12 operations that take longest"][1:]
    assert [line[0] for line in times] == ["1 slow", f"0 {HOSTILE[1]}", "2 fused"]
    assert times[1][1:] == ["CONV_2D", "XNNPACK", "2.0", "20.00 %", "1.50", "2.4", "32.8"]
    assert times[2][3:6] == ["", "", ""]
    noise = found.tables["student, int8: the layers that add most noise, on 32 validation images"][1:]
    assert noise == [
        [f"0 {HOSTILE[1]}", "CONV_2D", "0.99800", "24.9", "0.160", "0"],
        ["1 slow", "CONV_2D", "1.00000", "exact", "0.000", "0"],
    ]
    assert "#profile" in {attributes.get("href") for tag, attributes in found.elements if tag == "a"}
    before = Reader(page(facts))  # benchmarked by a version without profiles
    assert "#profile" not in {attributes.get("href") for tag, attributes in before.elements if tag == "a"}


def test_the_words_name_what_a_reader_must_know(reader):
    for text in (
        "smoke run, not a result",
        "n = 1",
        "The teacher was also trained on the validation images.",
        "7 test images are also in the training split",
        "50 maps are over the tolerance of 0.05",
        "Never above 1 %, so without effect: kd.",
        "map similarity −0.50 (chance 0.00)",
        "never overlaid",
    ):
        assert text in reader.text, text


def test_every_figure_has_a_title_words_and_numbers(reader):
    ids = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    plots = [attributes for _, attributes in reader.elements if attributes.get("class") == "plot"]
    assert len(plots) == 12 and len({plot["id"] for plot in plots}) == 12
    for plot in plots:
        assert {plot["data-chart"], plot["aria-describedby"], f"{plot['id']}-title"} <= ids
        assert plot["aria-label"] in reader.tables
        assert len(reader.tables[plot["aria-label"]]) > 1
    pictures = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert len(pictures) == 4 * 4 and all(one["alt"] for one in pictures)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"timed": None}, "--stages export,evaluate,benchmark,report"),
        ({"exported": None}, "--stages export,evaluate,benchmark,report"),
        ({"gallery": None}, "--stages evaluate,report"),
        ({"histories": {}, "ledger": []}, "--stages distill,report"),
        ({"store": None, "errors": np.empty(0)}, "--stages teacher,overlays,report"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_section_without_its_stage_says_which_one_fills_it(facts, changes, stage):
    text = Reader(page(replace(facts, **changes))).text
    assert f"add {stage} to the command" in text


def test_a_run_without_a_teacher_has_a_page(facts):
    config = to_mapping(read_experiment("student")[1])
    evaluated = facts.evaluated | {"disagreement": {}}
    evaluated["results"] = {name: v for name, v in evaluated["results"].items() if name != "teacher"}
    evaluated["per_class"] = {"student": evaluated["per_class"]["student"]}
    nothing = dict.fromkeys(
        ("teacher_predicted", "teacher_maps", "overlays", "overlaid", "alike", "chance"), np.empty(0)
    )
    alone = replace(
        facts,
        config=config,
        evaluated=evaluated,
        roles={"student": facts.roles["student"]},
        row=facts.row | {"teacher_saw_validation": ""},
        taught=False,
        store=None,
        histories={"student": facts.histories["student"]},
        gallery=replace(facts.gallery, **nothing),
    )
    reader = Reader(page(alone))
    assert "This student had no teacher" in reader.text and "did not overlay maps" in reader.text
    assert len([tag for tag, _ in reader.elements if tag == "img"]) == 2 * 4


def test_counts_and_factors_are_said_as_they_are(facts):
    """One epoch is not "1 epochs", and a student that is larger has no "fewer parameters"."""
    roles = facts.roles | {"student": facts.roles["student"] | {"parameters": 2 * 700_490}}
    histories = {role: history[:1] for role, history in facts.histories.items()}
    text = Reader(page(replace(facts, roles=roles, histories=histories))).text
    assert "more parameters 2.00× 1,400,980 of 700,490" in text and "fewer parameters" not in text
    assert text.count("1 epoch of") == 4 and "1 epochs" not in text
    worst = min(facts.evaluated["per_class"]["student"], key=lambda one: one["recall"])["recall"]
    assert f"Hardest class: {HOSTILE[-1]}; the student finds {100 * worst:.2f} % of its 40 test images." in text


def test_a_compressed_student_has_its_own_figures(facts):
    small = facts.roles["student"] | {"accuracy": 0.9, "parameters": 70_000, "agreement": 0.88}
    evaluated = facts.evaluated | {"results": facts.evaluated["results"] | {"compressed": small}}
    evaluated["disagreement"] = {role: facts.evaluated["disagreement"]["student"] for role in ("student", "compressed")}
    evaluated["per_class"] = facts.evaluated["per_class"] | {"compressed": facts.evaluated["per_class"]["student"]}
    reader = Reader(page(replace(facts, evaluated=evaluated, roles=facts.roles | {"compressed": small})))
    assert "compressed's test accuracy 90.00 %" in reader.text and "10.01×" in reader.text
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len({*ids}) and {"agreement-student", "agreement-compressed"} < {*ids}
    assert "Teacher and compressed on the test images" in reader.tables


def test_classes_without_test_images_are_not_the_worst(facts):
    shown = [{"examples": 5, "recall": index / 60, "precision": 0.5} for index in range(30)]
    recalls = [{"examples": 0, "recall": None, "precision": None}] * 30 + shown
    evaluated = facts.evaluated | {"class_names": [str(index) for index in range(60)], "disagreement": {}}
    evaluated["per_class"] = {"student": recalls}
    reader = Reader(page(replace(facts, evaluated=evaluated)))
    data = {a["id"]: json.loads(text) for a, text in reader.scripts if a.get("type") == "application/json"}
    assert {*data["recalls-data"]["data"][0]["y"]} == {str(index) for index in range(30, 54)}


def test_many_classes_of_one_name_stay_apart(facts):
    names = [f"{'long' * 20} {index}" for index in range(60)]
    recalls = [{"examples": 5, "recall": index / 60, "precision": 0.5} for index in range(60)]
    pairs = [[index, (index + 1) % 60, 1] for index in range(60)]
    counts = facts.evaluated["disagreement"]["student"] | {"pairs": pairs}
    evaluated = facts.evaluated | {"class_names": names, "disagreement": {"student": counts}}
    evaluated["per_class"] = {"teacher": recalls, "student": recalls[::-1]}
    reader = Reader(page(replace(facts, evaluated=evaluated)))
    data = {a["id"]: json.loads(text) for a, text in reader.scripts if a.get("type") == "application/json"}
    heat = data["confusions-student-data"]["data"][0]
    assert len({*heat["x"]}) == len(heat["x"]) == 24
    assert max(map(len, heat["x"])) < 24
    assert len({*data["recalls-data"]["data"][0]["y"]}) == 24
    assert len(reader.tables["Recall of each class"]) == 61


def test_files_that_were_exported_anew_have_no_earlier_latency(tmp_path):
    """As after `--export.io float32 --stages export,evaluate,report`: size and latency are of other files."""
    workdir, name = Workdir(tmp_path, tmp_path), "student.int8.tflite"
    results = {name: {"bytes": 111, "milliseconds": {"1": {"p50": 9.9}}}}
    for stage in ("export", "benchmark"):
        workdir.stage(stage).mkdir()

    def found(sums):
        write_manifest(workdir.stage("export"), "f", files={name: "new"}, parity={name: {"agreement": 1.0}})
        more = {"results": results, "profiles": {name: {}}, "threads": [1]} | sums
        write_manifest(workdir.stage("benchmark"), "f", **more)
        return read_timed(workdir), figures(workdir, {"student": {"accuracy": 0.9}, name: {"accuracy": 0.8}})["student"]

    own = {"accuracy": 0.9, "int8_parity": 1.0, "int8_accuracy": 0.8}
    assert found({"exported": {name: "old"}}) == (None, own)
    for sums in ({"exported": {name: "new"}}, {}):  # a manifest of before says nothing of the files
        timed, student = found(sums)
        assert timed["results"] == results and student == own | {"int8_bytes": 111, "int8_ms": 9.9}


def test_labels_are_short_and_carry_no_tags():
    assert label("<a href='x'>cat</a>") == "&lt;a href='x'&gt;cat&lt;/a&gt;"
    assert label("x" * 40, 10) == "x" * 9 + "…"
    assert label("a\n b") == "a b"


def test_the_interval_stands_under_the_accuracy():
    header, found = lines({"student": {"accuracy": 0.8}}, 10)
    assert header == ["", "student"]
    assert ["95 % interval (10 test images)", "49.02 to 94.33 %"] in found


def test_disagreement_by_hand():
    labels = np.array([0, 0, 1, 2, 2, 1])
    student = np.eye(3)[[0, 1, 1, 0, 1, 0]]
    teacher = np.eye(3)[[0, 0, 2, 0, 0, 1]]
    assert disagreement(student, teacher, labels) == {
        "both_right": 1,
        "only_reference": 2,
        "only_model": 1,
        "both_wrong_alike": 1,
        "both_wrong_apart": 1,
        "pairs": [[0, 1, 2], [1, 0, 1], [2, 1, 1]],
    }


def test_a_gallery_has_both_kinds_of_examples():
    first = np.zeros(20, int)
    second = np.where(np.arange(20) % 5 == 4, 1, 0)
    assert choose(first, second, 6).tolist() == [0, 1, 2, 4, 9, 14]
    assert choose(first, first, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert choose(first, 1 - first, 6).tolist() == [3, 4, 5, 0, 1, 2]
    assert choose(first[:2], second[:2], 6).tolist() == [0, 1]


def test_a_gallery_reads_back_and_a_pickled_one_is_refused(tmp_path):
    made = make_gallery()
    made.save(tmp_path / "a.npz")
    again = Gallery.load(tmp_path / "a.npz")
    for name in Gallery.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert made.save(tmp_path / "b.npz") == made.save(tmp_path / "a.npz")
    pickled = dict.fromkeys(Gallery.__dataclass_fields__, np.array([{}], dtype=object))
    np.savez(tmp_path / "c.npz", **pickled)
    with pytest.raises(UserError, match="is no gallery"):
        Gallery.load(tmp_path / "c.npz")


def test_a_picture_keeps_its_pixels_and_large_ones_are_reduced():
    import io

    from PIL import Image

    def read(uri):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))

    pixels = make_gallery().images[0]
    np.testing.assert_array_equal(read(picture(pixels)), pixels)
    assert read(picture(np.zeros((300, 200, 3), np.uint8))).shape == (96, 64, 3)


def test_figures_of_a_file_that_was_made_anew_are_refused(tmp_path):
    workdir = Workdir(tmp_path / "run", tmp_path / "teachers")
    for stage, name in (("distill", "student.keras"), ("export", "student.int8.tflite")):
        folder = make_folder(workdir.stage(stage))
        (folder / name).write_text("first")
        write_manifest(folder, "x", files={name: checksum(folder / name)})
    measured = {"models": trained_files(workdir), "exported": {"student.int8.tflite": checksum(folder / name)}}
    check_measured(workdir, measured)
    check_measured(workdir, {})  # of an earlier version
    for stage, name in (("distill", "student.keras"), ("export", "student.int8.tflite")):
        folder = workdir.stage(stage)
        kept = (folder / name).read_text()
        (folder / name).write_text("second")
        write_manifest(folder, "x", files={name: checksum(folder / name)})
        with pytest.raises(UserError, match=f"{name} was made anew after it was measured"):
            check_measured(workdir, measured)
        (folder / name).write_text(kept)
        write_manifest(folder, "x", files={name: checksum(folder / name)})
    check_measured(workdir, measured)
    write_manifest(workdir.stage("export"), "x", files={})
    with pytest.raises(UserError, match=r"student.int8.tflite is no longer exported after it was measured; add eval"):
        check_measured(workdir, measured)

"""Every file of a run is cut, changed, overwritten, lengthened or repeated at random positions and read again.

All tests run in one process, so that a crash of the interpreter would be noticed. Either the file is read as it was
written, or one error line names the damaged file.
"""

import csv
import dataclasses
import hashlib
import io
import json
import random

import keras
import numpy as np
import pytest

from tfigkd import models
from tfigkd.config.experiment import override, read_experiment
from tfigkd.data import load
from tfigkd.edge.contract import verified_contract
from tfigkd.losses import KLDivergence
from tfigkd.models import load_classifier, load_torch_weights
from tfigkd.models.batch_norm import with_stock_batch_norm
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import finished, read_manifest, require_stage, write_signed
from tfigkd.runtime.rows import sealed, unsealed
from tfigkd.search.tuner import check_state
from tfigkd.stages.data import training_examples
from tfigkd.stages.distill import load_student
from tfigkd.stages.overlays import load_knowledge, load_views, store_folder, views_folder
from tfigkd.stages.runner import SETTINGS, Run, changed_settings, run
from tfigkd.stages.teacher import load_teacher
from tfigkd.stages.workdir import JOB_FILE, Workdir
from tfigkd.store.maps import parse_record
from tfigkd.store.shards import read_shard
from tfigkd.study.collect import finished_runs
from tfigkd.study.plan import read_study
from tfigkd.training import checkpoint
from tfigkd.training.checkpoint import Progress
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import make_optimizer

FIELDS = {
    "teacher.training.precision": "float32",
    "description": "a tiny run",
    "data.name": "digits",
    "data.limit": 60,
    "augment.crop_padding": 1,
    "augment.flip": False,
    "teacher.drop_blocks": 15,
    "teacher.width": 0.25,
    "teacher.normalization": "none",
    "teacher.training.epochs": 1,
    "student.drop_blocks": 16,
    "student.width": 0.25,
    "attribution.shard_size": 24,
    "attribution.max_steps": 16,
    "overlay.probability": 0.5,
    "view.kind": "views",
    "view.views": 2,
    "losses.kd.weight": 0.5,
    "training.epochs": 1,
    "export.min_int8_agreement": 0.0,
    "export.calibration_examples": 4,
    "evaluation.attribution_examples": 0,
    "benchmark.runs": 2,
    "benchmark.warmup": 1,
}


def digest(*values):
    """Return a short hash of arrays, numbers, texts and containers of them; equal values have equal hashes."""
    whole = hashlib.sha256()

    def add(value):
        if dataclasses.is_dataclass(value):
            add(dataclasses.asdict(value))
        elif isinstance(value, np.ndarray):
            whole.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, dict):
            add([(name, value[name]) for name in sorted(value)])
        elif isinstance(value, list | tuple):
            whole.update(b"[")
            for one in value:
                add(one)
            whole.update(b"]")
        else:
            whole.update(f"{type(value).__name__} {value!r};".encode())

    add(values)
    return whole.hexdigest()[:16]


class Place:
    """A finished run with every kind of file, and a reader for each kind."""

    def __init__(self, folder):
        self.folder = folder
        self.config = override(read_experiment("student")[1], FIELDS)
        self.workdir = Workdir(folder / "studies/pair/kd/0", folder / "teachers", 0)
        self.run = Run("kd", self.config, self.workdir)
        run(self.run)
        self.examples = training_examples(self.config.data)
        self.store, self.views = store_folder(self.config, self.workdir), views_folder(self.config, self.workdir)
        self.write_the_rest()

    def write_the_rest(self):
        """Write checkpoints as of a stopped run, and the files of other commands."""
        self.distiller = Distiller(small_network(), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
        self.distiller.compile(make_optimizer(self.config.training, 4), jit_compile=False)
        self.stopped = self.folder / "stopped"
        self.stopped.mkdir()
        self.histories = []
        for epoch in range(2):
            for variable in self.distiller.student.trainable_variables:
                variable.assign_add(np.full(variable.shape, 0.01, np.float32))
            history = [{"loss": 1.0 + number} for number in range(epoch + 1)]
            checkpoint.save(self.stopped, self.distiller, "f", Progress(history))
            self.histories.append(digest(history, self.distiller.student.get_weights()))
        write_signed(
            self.workdir.run / JOB_FILE, {"study": "pair", "arm": "kd", "size": "", "command": "python -m tfigkd.study"}
        )
        generator = np.random.default_rng(0)
        arrays = {f"{kind}_{split}": generator.integers(0, 3, 30) for kind in "y" for split in ("train", "test")}
        images = {f"x_{split}": generator.integers(0, 256, (30, 4, 4, 3), np.uint8) for split in ("train", "test")}
        np.savez(self.folder / "data.npz", **arrays, **images)
        save_published(self.folder / "published.npz")
        (self.folder / "pair.toml").write_text('description = "x"\nseeds = 2\n[arms]\nkd = "kd"\nig = "ig"\n')
        state = {"start_order": ["0"], "seed_state": 3}
        (self.folder / "search/tuner/trial_0").mkdir(parents=True)
        write_signed(self.folder / "search/tuner/oracle.json", state)
        write_signed(self.folder / "search/tuner/trial_0/trial.json", {"trial_id": "0", "score": 0.5})

    def readers(self):
        """Return fault to (files, reader, values it may return, whether the error line may name another file)."""
        config, workdir, examples = self.config, self.workdir, self.examples
        run_folder, teacher = workdir.run, self.store.parents[1]
        stages = {
            name: workdir.stage(name)
            for name in ("data", "distill", "export", "evaluate", "benchmark")  # the stages with a manifest
        } | {"teacher": teacher, "overlays": self.store, "views": self.views}
        fingerprints = {name: read_manifest(folder)["fingerprint"] for name, folder in stages.items()}

        def manifests():
            return digest([finished(folder, fingerprints[name]) for name, folder in stages.items()])

        def network(model):
            return digest(model.get_weights(), json.dumps(model.get_config(), sort_keys=True, default=str))

        def exported():
            return digest(
                [[verified_contract(path), path.read_bytes()] for path in sorted(stages["export"].glob("*.tflite"))]
            )

        def restored():
            history = checkpoint.restore(self.stopped, self.distiller, "f").history
            return digest(history, self.distiller.student.get_weights())

        def shard(folder, parse):
            return lambda path: digest(list(read_shard(path, folder.name, parse)))

        def published():
            model = published_network()
            load_torch_weights(model, self.folder / "published.npz")
            return digest(model.get_weights())

        def collected():
            return digest([[str(path), row] for path, row in finished_runs(self.folder / "studies")])

        def data():
            found = load(str(self.folder / "data.npz"))
            return digest(found.fingerprint, found.train.images)

        def claimed():
            changed = changed_settings(run_folder / SETTINGS, self.run)
            if changed:  # as in `tfigkd.run`
                raise UserError(f"{run_folder / SETTINGS} holds other settings: {', '.join(changed)}")
            return "nothing changed"

        def searched():
            check_state(self.folder / "search/tuner")
            return digest(sorted(str(path) for path in (self.folder / "search").rglob("*")))

        tables = {
            "manifest": ([folder / "manifest.json" for folder in stages.values()], manifests),
            "shard of maps": (sorted(self.store.glob("*.tfrecord")), lambda: digest(self.knowledge())),
            "shard of views": (sorted(self.views.glob("*.tfrecord")), lambda: digest(self.stored_views())),
            "teacher": ([teacher / "teacher.keras"], lambda: network(load_teacher(config, workdir))),
            "student": ([run_folder / "distill/student.keras"], lambda: network(load_student(config, workdir))),
            "history and loss ledger": (
                [path for path in run_folder.glob("distill/*.json*") if path.name != "manifest.json"],
                lambda: digest(require_stage(run_folder / "distill", "distill")),
            ),
            "LiteRT file or its contract": (
                [path for path in stages["export"].iterdir() if path.name != "manifest.json"],
                exported,
            ),
            "checkpoint": (sorted(self.stopped.glob("*.ckpt")), restored),
            "row of results and its label": ([run_folder / "rows.csv", run_folder / JOB_FILE], collected),
            "settings of a run": ([run_folder / SETTINGS], claimed),
            "data .npz": ([self.folder / "data.npz"], data),
            "published weights .npz": ([self.folder / "published.npz"], published),
            "state of a search": (sorted((self.folder / "search").rglob("*.json")), searched),
        }
        assert examples is not None
        for fault, (paths, read) in tables.items():
            assert paths, fault
            expected = {read()} | (set(self.histories) if fault == "checkpoint" else set())
            yield fault, paths, read, expected
        for fault, folder, parse in (
            ("shard of an unfinished store", self.store, parse_record),
            ("shard of unfinished views", self.views, parse_views),
        ):
            for path in sorted(folder.glob("*.tfrecord"))[:1]:
                read = shard(folder, parse)
                yield fault, [path], lambda read=read, path=path: read(path), {read(path)}

    def knowledge(self):
        return load_knowledge(self.config, self.workdir, self.examples)

    def stored_views(self):
        return load_views(self.config, self.workdir, self.examples)


def parse_views(features):
    from tfigkd.store.views import parse_view

    return parse_view(features)


def small_network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))


def published_network():
    return models.build("mobilenet_v2", num_classes=3, input_shape=(8, 8, 3), drop_blocks=17, width=0.25)


def save_published(path):
    """Write the weights of a tiny network with PyTorch's names."""
    from tfigkd.models.weights import torch_axes, torch_places

    model = published_network()
    arrays = {}
    for name, (layer, variable) in torch_places(model):
        arrays[name] = keras.ops.convert_to_numpy(variable).transpose(torch_axes(layer, variable))
    np.savez(path, **arrays)


def damaged(content, draw):
    """Return the content with one random fault, and a description of it."""
    place, size = draw.randrange(len(content)), draw.choice((1, 8, 64, 512))
    block = content[place : place + size]
    return draw.choice(
        [
            (content[:place], f"cut at {place}"),
            (
                content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :],
                f"a bit at {place}",
            ),
            (content[:place] + bytes(len(block)) + content[place + size :], f"{len(block)} zeros at {place}"),
            (content[:place] + draw.randbytes(len(block)) + content[place + size :], f"{size} noise at {place}"),
            (content + draw.randbytes(size), f"{size} bytes more"),
            (content[:place] + block + content[place:], f"{len(block)} repeated at {place}"),
        ]
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("fuzz"))


def fuzz(place, tally, seed, count):
    """Try `count` faults for each kind of file, and repair each before the next."""
    counts = []
    for fault, paths, read, expected in place.readers():
        one, draw = tally(f"{fault} cut, flipped, blotted or lengthened"), random.Random(f"{seed} {fault}")
        counts.append(one)
        for number in range(count):
            path = draw.choice(paths)
            good = path.read_bytes()
            bad, what = damaged(good, draw)
            if bad == good:
                bad, what = good[:-1], f"cut at {len(good) - 1}"
            path.write_bytes(bad)
            one.read(f"{number} {path.name} {what}", read, expected, {path.name, path.stem.partition(".")[0]})
            path.write_bytes(good)
        one.end()
        assert read() in expected
    return sum(one.tried for one in counts)


def test_a_fault_in_any_file_is_said_or_harmless(place, tally):
    assert fuzz(place, tally, seed=0, count=12) >= 150


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_thousand_faults_in_any_file_are_said_or_harmless(place, tally):
    assert fuzz(place, tally, seed=1, count=80) >= 1000


def truncations(text, count, draw):
    places = range(len(text)) if count >= len(text) else sorted(draw.sample(range(len(text)), count))
    return [(f"cut at {place}", text[:place]) for place in places]


def test_half_written_toml_is_a_config_or_one_line(tmp_path, tally, monkeypatch):
    """A cut TOML file may be valid, so the run prints what it has read; an invalid file gives one error line."""
    monkeypatch.chdir(tmp_path)
    one, draw = tally("experiment or study half written, blotted or nested without end"), random.Random(0)
    good = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
        for name, fields in {
            "data": {"name": "digits", "limit": 60},
            "losses.kd": {"weight": 0.5, "temperature": 4.0},
            "training": {"epochs": 3, "optimizer": "adam"},
        }.items()
    )
    study = 'description = "x"\nseeds = 2\ncomparisons = [["kd", "ig"]]\n[arms]\nkd = "kd"\nig = "ig"\n'
    bombs = [("nested", "x = " + "[" * 100_000), ("digits", f"seeds = {'9' * 5000}"), ("huge", "#" * 2**21)]
    bombs += [("kinds", text) for text in ("seeds = true", "arms = 3", "sizes = [1]", "[arms]\nkd = 1", "stages = 1")]
    bombs += [("zeros", "\0" * 50), ("empty", "")]
    for name, text, read in (("tiny", good, read_experiment), ("pair", study, read_study)):
        path = tmp_path / f"{name}.toml"
        cases = truncations(text, 80, draw) + bombs
        for _ in range(60):
            bad, what = damaged(text.encode(), draw)
            cases.append((what, bad))
        for what, content in [*cases, ("directory", None)]:
            if content is None:
                path.unlink()
                path.mkdir()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())

            def usable(path=path, read=read):
                read(str(path))
                return "a config"

            one.read(f"{name} {what}", usable, {"a config"})
        path.rmdir()
    one.end()
    assert one.tried > 250
    assert one.said > 100


def test_a_second_fault_of_checkpoints_begins_anew_and_keeps_what_follows(place, tmp_path, capsys):
    """If both checkpoints are damaged, the run starts again, and its new checkpoints are not mistaken for old ones."""
    for number in (4, 5):
        (tmp_path / f"checkpoint-{number:05d}.ckpt").write_bytes(b"none")
    assert checkpoint.restore(tmp_path, place.distiller, "f") == Progress()
    assert capsys.readouterr().out.count("is damaged") == 2
    checkpoint.save(tmp_path, place.distiller, "f", Progress([{"loss": 1.0}]))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00001.ckpt"]


def test_a_sealed_row_reads_as_it_was_written():
    row = {"a": 0.1, "b": None, "c": True, "d": "x, y", "e": 3, "f": ""}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, sealed(row))
    writer.writeheader()
    writer.writerow(sealed(row))
    (read,) = csv.DictReader(io.StringIO(buffer.getvalue()))
    assert unsealed("rows.csv", read) == {"a": "0.1", "b": "", "c": "True", "d": "x, y", "e": "3", "f": ""}
    with pytest.raises(UserError, match=r"rows.csv is damaged"):
        unsealed("rows.csv", read | {"a": "0.2"})


@pytest.mark.slow
def test_faults_in_a_keras_file_without_a_manifest(place, tally, tmp_path):
    """A model without a manifest has only the checksums inside the zip file."""
    one, draw = tally(".keras file by itself, damaged"), random.Random(2)
    model, path = with_stock_batch_norm(small_network()), tmp_path / "given.keras"
    model.save(path)
    good = path.read_bytes()

    def read():
        own = load_classifier(path)
        return digest(own.get_weights(), own.output_shape)

    expected = {read()}
    for number in range(200):
        bad, what = damaged(good, draw)
        path.write_bytes(bad)
        one.read(f"{number} {what}", read, expected, {"given.keras"})
    one.end()


@pytest.mark.slow
def test_faults_in_a_litert_file_without_a_contract_end_no_process(place, tally, tmp_path):
    """Without a contract the weights cannot be checked, so the file may run, but it must not crash the process."""
    one, draw = tally("LiteRT file without a contract, damaged"), random.Random(3)
    good = (place.workdir.stage("export") / "student.int8.tflite").read_bytes()
    path = tmp_path / "given.tflite"
    for number in range(40):
        bad, what = damaged(good, draw)
        path.write_bytes(bad)
        one.read(f"{number} {what}", lambda: verified_contract(path), {None}, {"given.tflite"})
    one.end()

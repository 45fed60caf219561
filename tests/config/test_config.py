"""Experiments: strict names and types, one level of base, stable fingerprints."""

import dataclasses
import json
import re
import tomllib

import pytest

from tfigkd.config.experiment import (
    Config,
    early_phases,
    experiments_folder,
    override,
    read_experiment,
    smoke,
    to_mapping,
)
from tfigkd.config.flags import with_flags
from tfigkd.config.reading import differences, from_mapping
from tfigkd.config.toml import to_toml
from tfigkd.run import parse
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.fingerprint import fingerprint


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_ig_kd_is_the_papers_setting():
    _, config = read_experiment("ig_kd")
    assert config.data.name == "cifar10"
    assert (config.losses.kd.weight, config.losses.kd.temperature) == (0.01, 2.5)
    assert config.overlay.probability == 0.1
    assert (config.overlay.min_exponent, config.overlay.max_exponent) == (1.0, 2.0)
    assert (config.teacher.model, config.student.model, config.student.drop_blocks) == ("mobilenet_v2",) * 2 + (5,)
    assert (config.training.optimizer, config.training.learning_rate) == ("adam", 1e-3)
    assert (config.training.batch_size, config.training.epochs, config.training.schedule) == (64, 100, "constant")
    assert (config.augment.crop_padding, config.augment.flip) == (4, True)


def test_student_differs_from_ig_kd_in_the_teacher_alone():
    _, student = read_experiment("student")
    _, ig_kd = read_experiment("ig_kd")
    changed = differences(to_mapping(student), to_mapping(ig_kd))
    assert set(changed) == {"description", "losses.kd.weight", "overlay.probability"}
    assert not student.needs_teacher
    assert ig_kd.needs_teacher


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses.kd.uses": "logits"}, "unknown field 'losses.kd.uses'"),  # a constant of the class
        ({"losses.kd.temprature": 4.0}, "unknown field 'losses.kd.temprature'; did you mean 'temperature'?"),
        ({"losses.kd.temperature": "4"}, "losses.kd.temperature must be of type float, got '4'"),
        ({"training.epochs": 1.5}, "training.epochs must be of type int"),
        ({"training.epochs": True}, "training.epochs must be of type int, got True"),
        ({"training.epochs": 0}, "training.epochs must be positive"),
        ({"data.train_split": "test"}, "data.train_split must be one of 'train', 'train\\+validation'"),
        ({"losses.kd": 3}, "losses.kd is a table"),
        ({"losses.kd.weight": 1.5}, "losses.kd.weight must be in \\[0, 1\\]"),
        ({"overlay.min_exponent": 3.0}, "overlay.min_exponent and max_exponent must be 0 < min <= max"),
        ({"export.formats": ["int4"]}, "export.formats must be one of 'float32', .*, got 'int4'"),
        ({"export.formats": "int8"}, "export.formats must be a list, got 'int8'"),
        ({"export.formats": []}, "export.formats must name at least one format"),
        ({"export.min_int8_agreement": 95.0}, "export.min_int8_agreement must be in \\[0, 1\\], got 95.0"),
        ({"export.max_float32_difference": 0.0}, "export.max_float32_difference must be positive, got 0.0"),
        ({"export.max_float16_difference": -1.0}, "export.max_float16_difference must be positive, got -1.0"),
        (
            {"attribution.rule": "trapezoid", "attribution.n_steps": 1},
            "max_steps must be at least 2 .*, got 1",
        ),
        ({"attribution.rule": "trapezoid", "attribution.max_steps": 1}, "max_steps must be at least 2 .*, got 1"),
        ({"teacher.train": True, "teacher.weights": "x.npz"}, "teacher.train must be unset or false with published"),
        ({"export.formats": ["int8", "int8"]}, "export.formats must name at least one format, each once"),
        (
            {"student.init": "teacher", "student.width": 0.5},
            "unset or equal to teacher.width with .*, got 0.5",
        ),
        (
            {"student.init": "teacher", "student.model": "resnet20"},
            "student.model must be unset or equal",
        ),
        ({"student.init": "teacher", "student.depth": 3}, "student.depth must be unset or equal to teacher.depth"),
        ({"benchmark.threads": [1, 0]}, "benchmark.threads must be positive"),
        ({"benchmark.threads": [1, 1]}, "benchmark.threads must be positive numbers, each once"),
        ({"benchmark.threads": [1.5]}, "benchmark.threads must be of type int"),
        ({"training.learning_rate": float("inf")}, "training.learning_rate must be a finite number, got inf"),
        ({"teacher.input_range": [0.0, float("nan")]}, "teacher.input_range must be a finite number, got nan"),
    ],
)
def test_bad_fields_give_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(Config(), changes)
    assert "\n" not in str(caught.value)


def test_an_integer_is_a_float_where_a_float_is_expected():
    temperature = override(Config(), {"losses.kd.temperature": 4}).losses.kd.temperature
    assert temperature == 4.0
    assert isinstance(temperature, float)


def test_a_list_may_be_of_any_length_and_reads_back():
    config = override(Config(), {"export.formats": ["int8", "float16", "int16x8"], "benchmark.threads": [4]})
    assert config.export.formats == ("int8", "float16", "int16x8")
    assert config.benchmark.threads == (4,)
    assert from_mapping(Config, to_mapping(config)) == config


def test_base_is_read_and_overridden(tmp_path):
    write(tmp_path / "low.toml", "[losses.kd]\nweight = 0.5\ntemperature = 3\n")
    path = write(tmp_path / "high.toml", 'base = "low"\n[losses.kd]\ntemperature = 4\n')
    name, config = read_experiment(path)
    assert name == "high"
    assert (config.losses.kd.weight, config.losses.kd.temperature) == (0.5, 4.0)


def test_a_second_level_of_base_is_refused(tmp_path):
    write(tmp_path / "a.toml", "")
    write(tmp_path / "b.toml", 'base = "a"\n')
    with pytest.raises(UserError, match="one level"):
        read_experiment(write(tmp_path / "c.toml", 'base = "b"\n'))


@pytest.mark.parametrize("text", ["[data", "x = ", 'base = "nowhere"', "\x00"])
def test_a_malformed_file_gives_one_line(tmp_path, text):
    with pytest.raises(UserError):
        read_experiment(write(tmp_path / "bad.toml", text))


def test_an_unknown_experiment_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'ig_kd'"):
        read_experiment("ig_kdd")


@pytest.mark.parametrize("name", sorted(path.stem for path in experiments_folder().glob("*.toml")))
def test_a_config_that_was_written_and_read_has_its_fingerprint(name):
    _, config = read_experiment(name)
    written = json.loads(json.dumps(to_mapping(config)))
    assert fingerprint(from_mapping(Config, written)) == fingerprint(config)
    assert fingerprint(override(config, {"teacher.training.warmup_epochs": float(warmup(config))})) == fingerprint(
        config
    )


def warmup(config):
    return config.teacher.training.warmup_epochs


def test_fingerprint_depends_on_every_field_and_on_nothing_else():
    config = Config()
    assert fingerprint(config) == fingerprint(Config())
    changed = override(config, {"losses.kd.temperature": 2.4})
    assert fingerprint(config) != fingerprint(changed)
    assert differences(to_mapping(config), to_mapping(changed)) == ["losses.kd.temperature"]


@pytest.mark.parametrize("name", ["ig_kd", "student", "quickstart"])
def test_smoke_shrinks_work_and_keeps_the_method(name):
    _, config = read_experiment(name)
    small = smoke(config)
    assert small.data.limit == 128
    assert small.training.epochs <= 2
    for section in ("losses", "overlay", "augment", "student"):
        assert getattr(small, section) == getattr(config, section)


def test_smoke_enlarges_nothing():
    tiny = {
        "training.epochs": 1,
        "training.batch_size": 4,
        "teacher.training.batch_size": 4,
        "attribution.n_steps": 3,
        "attribution.shard_size": 16,
        "compress.steps": 2,
        "compress.batch_size": 8,
        "export.calibration_examples": 8,
        "evaluation.attribution_examples": 0,
        "benchmark.runs": 5,
        "benchmark.warmup": 1,
    }
    config = override(read_experiment("quickstart")[1], tiny)
    small = to_mapping(smoke(config))
    for dotted, value in tiny.items():
        table, _, name = dotted.rpartition(".")
        node = small
        for key in table.split("."):
            node = node[key]
        assert node[name] == value, dotted


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.epochs = 3


@pytest.mark.parametrize("word", ["None", "none", "NONE"])
def test_none_is_one_word_in_files_and_on_the_command_line(word):
    """A choice "none" and a field without a value are both meant by either spelling."""
    changed = override(Config(), {"teacher.normalization": "cifar10", "training.ema": 0.9, "data.image_size": 32})
    back = {"teacher.normalization": word, "training.ema": word, "data.image_size": word}
    expected = override(changed, {"teacher.normalization": "none", "training.ema": None, "data.image_size": None})
    assert override(changed, back) == expected
    flags = [item for name, value in back.items() for item in (f"--{name}", value)]
    assert with_flags(changed, flags) == expected
    equals = [f"--{name}={value}" for name, value in back.items()]
    assert with_flags(changed, equals) == expected
    assert with_flags(changed, ["--image-size", word]).data.image_size is None


def test_no_factor_of_a_loss_may_be_negative():
    for name, term in to_mapping(Config())["losses"].items():
        for field, value in term.items():
            if isinstance(value, float):
                with pytest.raises(UserError, match=field):
                    override(Config(), {f"losses.{name}.{field}": -1.0})
    with pytest.raises(UserError, match=r"losses\.rkd\.student_layer and teacher_layer must both be given, or neither"):
        override(Config(), {"losses.rkd.student_layer": "block_09"})


def test_relations_of_taps_need_no_logits():
    taps = {"losses.rkd.student_layer": "block_09", "losses.rkd.teacher_layer": "block_09"}
    logits = override(Config(), {"overlay.probability": 0.0, "losses.rkd.weight": 1.0})
    assert logits.needs_store and not logits.needs_live_teacher
    features = override(logits, taps)
    assert features.needs_live_teacher and not features.needs_store
    mixed = override(features, {"training.mixup": 1.0})
    assert mixed.training.mixup == 1.0


def test_a_field_without_a_value_is_written_and_read_back(tmp_path):
    assert Config().losses.ig_match.grid == 8
    for changes in ({"losses.ig_match.grid": None}, {"teacher.input_range": "none"}):
        config = override(Config(), {"teacher.input_range": [0.0, 255.0]} | changes)
        text = to_toml(config, "written")
        assert from_mapping(Config, tomllib.loads(text)) == config
    emoji = override(Config(), {"data.name": "🐈 and \x7f.npz"})
    assert from_mapping(Config, tomllib.loads(to_toml(emoji, "written"))) == emoji
    write(tmp_path / "base.toml", "[teacher]\ninput_range = [0, 255]\n")
    own = write(tmp_path / "own.toml", 'base = "base.toml"\n[teacher]\ninput_range = "none"\n')
    assert read_experiment(own)[1].teacher.input_range is None


def test_an_experiment_may_have_the_name_of_its_base(tmp_path):
    own = write(tmp_path / "ig_kd.toml", 'base = "ig_kd"\n[training]\nepochs = 7\n')
    assert read_experiment(own) == ("ig_kd", override(read_experiment("ig_kd")[1], {"training.epochs": 7}))


def test_features_first_may_be_compressed_with_the_teacher():
    _, config = read_experiment("cifar10_spirit")
    changed = override(config, {"compress.method": "qat", "compress.teacher": "teacher"})
    assert {*early_phases(changed)} == {"features", "head"}


def test_a_byte_order_mark_before_an_experiment_is_skipped(tmp_path):
    (tmp_path / "mine.toml").write_text("\ufeff[training]\nepochs = 7\n", encoding="utf-8")
    assert read_experiment(str(tmp_path / "mine.toml"))[1].training.epochs == 7


def test_weights_of_classes_are_read_from_files_and_flags_and_written_back(tmp_path):
    (tmp_path / "mine.toml").write_text('[training.class_weight]\ncat = 2\n"polar bear" = 0.5\n')
    config = read_experiment(str(tmp_path / "mine.toml"))[1]
    assert config.training.class_weight == {"cat": 2.0, "polar bear": 0.5}
    assert from_mapping(Config, tomllib.loads(to_toml(config, "written"))) == config
    flags = ["--training.class_weight", "cat", "2", "polar bear", "0.5"]
    assert with_flags(Config(), flags) == config
    assert with_flags(config, ["--training.epochs", "3"]).training.class_weight == config.training.class_weight
    balanced = with_flags(Config(), ["--training.class_weight", "balanced"])
    assert balanced.training.class_weight == "balanced"
    assert fingerprint(config) != fingerprint(balanced) != fingerprint(Config())


def test_infinite_numbers_are_refused_wherever_they_come_from():
    for flags in (["--overlay.max_exponent", "inf"], ["--student.width", "inf"], ["--training.learning_rate", "inf"]):
        with pytest.raises(UserError, match=f"{flags[0][2:]} must be a finite number"):
            with_flags(Config(), flags)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher.training.epochs", 0),
        ("training.epochs", 0),
        ("student.width", 0.0),
        ("teacher.width", 0.0),
        ("teacher.label_temperature", 0.0),
        ("losses.kd.temperature", 0.0),
        ("losses.osakd.neighbors", 0),
        ("compress.losses.kd.temperature", 0.0),
        ("compress.steps", 0),
        ("data.background", "pink"),
        ("data.image_size", 0),
        ("benchmark.runs", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_that_the_user_typed(tmp_path, field, value):
    table, _, last = field.rpartition(".")
    path = write(tmp_path / "mine.toml", f"[{table}]\n{last} = {json.dumps(value)}\n")
    other = "training" if field != "training.epochs" else "teacher.training"  # of the same class
    flags = [f"--{other}.epochs", "5", f"--{field}", str(value)]
    for refuse in (
        lambda: override(Config(), {field: value}),
        lambda: read_experiment(path),
        lambda: with_flags(Config(), flags),
    ):
        with pytest.raises(UserError, match=rf"^config: {re.escape(field)} must .*, got {re.escape(repr(value))}$"):
            refuse()


def test_a_class_may_have_a_dot_in_its_name(tmp_path):
    path = write(tmp_path / "mine.toml", '[training]\nclass_weight = {"a.b" = 2, c = 1}\n')
    weights = {"a.b": 2.0, "c": 1.0}
    config = parse(["--experiment", path, "--dry_run", "--augment.flip", "false"])[1].config
    assert config.training.class_weight == weights and not config.augment.flip
    assert with_flags(config, ["--training.epochs", "3"]).training.class_weight == weights
    assert override(config, {"training.epochs": 3}).training.class_weight == weights
    assert override(Config(), {"training.class_weight": weights}).training.class_weight == weights
    with pytest.raises(UserError, match=r"did you mean '--training\.class_weight'"):
        with_flags(config, ["--training.class_weigth", "balanced"])


def test_switches_take_the_words_of_files_in_any_case():
    def train(*flags):
        return with_flags(override(Config(), {"teacher.model": "mine.keras"}), flags).teacher.train

    for given in (["--teacher.train"], ["--teacher.train", "TRUE"], ["--teacher.train=true"]):
        assert train(*given) is True
    for given in (["--teacher.no_train"], ["--teacher.train", "false"], ["--teacher.train=False"]):
        assert train(*given) is False
    assert train("--teacher.train", "true", "--teacher.train=NONE") is None
    for given, flip in ((["--augment.flip=FALSE"], False), (["--augment.no_flip"], False), (["--augment.flip"], True)):
        assert with_flags(Config(), given).augment.flip is flip
    assert not with_flags(Config(), ["--losses.ig-match.times-input", "false"]).losses.ig_match.times_input

"""Experiments: strict names and types, one level of base, stable fingerprints."""

import dataclasses

import pytest

from tfigkd.config.experiment import Config, override, read_experiment, smoke, to_mapping
from tfigkd.config.reading import differences, from_mapping
from tfigkd.runtime.errors import UserError
from tfigkd.runtime.files import fingerprint


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
        ({"losses.kd.temprature": 4.0}, "unknown field 'losses.kd.temprature'; did you mean 'temperature'?"),
        ({"losses.kd.temperature": "4"}, "losses.kd.temperature must be of type float, got '4'"),
        ({"training.epochs": 1.5}, "training.epochs must be of type int"),
        ({"training.epochs": True}, "training.epochs must be of type int, got True"),
        ({"training.epochs": 0}, "training.epochs must be positive"),
        ({"data.train_split": "test"}, "data.train_split must be one of 'train', 'train\\+validation'"),
        ({"losses.kd": 3}, "losses.kd is a table"),
        ({"losses.kd.weight": 1.5}, "losses.kd.weight must be in \\[0, 1\\]"),
        ({"overlay.min_exponent": 3.0}, "overlay exponents"),
        ({"export.formats": ["int4"]}, "export.formats must be one of 'float32', .*, got 'int4'"),
        ({"export.formats": "int8"}, "export.formats must be a list, got 'int8'"),
        ({"export.formats": []}, "export.formats must name at least one format"),
        ({"export.formats": ["int8", "int8"]}, "export.formats must name at least one format, each once"),
        ({"student.init": "teacher", "student.width": 0.5}, "takes the teacher's width, got student.width"),
        ({"student.init": "teacher", "student.model": "resnet20"}, "takes the teacher's model, got student.model"),
        ({"benchmark.threads": [1, 0]}, "benchmark.threads must be positive"),
        ({"benchmark.threads": [1.5]}, "benchmark.threads must be of type int"),
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


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().training.epochs = 3

"""Exported files belong to one teacher: layers and weights alike."""

from pathlib import Path

import keras
import pytest

from tfigkd.config.experiment import override, read_experiment
from tfigkd.runtime.files import write_manifest
from tfigkd.runtime.fingerprint import fingerprint
from tfigkd.stages.compatibility import data_fingerprints
from tfigkd.stages.export import export_identity
from tfigkd.stages.workdir import Workdir


@pytest.fixture
def save(tmp_path: Path):
    """Save the same weights with another activation, under the same name."""

    def act(activation: str) -> None:
        keras.utils.set_random_seed(0)
        layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation=activation), keras.layers.Flatten()]
        keras.Sequential([*layers, keras.layers.Dense(10)]).save(tmp_path / "own.keras")

    return act


def test_a_teacher_with_other_layers_and_the_same_weights_is_exported_again(tmp_path: Path, save) -> None:
    config = override(read_experiment("quickstart")[1], {"teacher.model": str(tmp_path / "own.keras")})
    workdir, weights = Workdir(tmp_path / "run", tmp_path / "teachers"), {"teacher": "same", "student": "same"}
    save("relu")
    relu, content = export_identity(config, workdir, weights), (tmp_path / "own.keras").read_bytes()
    save("tanh")
    assert export_identity(config, workdir, weights) != relu
    (tmp_path / "own.keras").write_bytes(content)
    assert export_identity(config, workdir, weights) == relu
    # a run of an earlier version, which did not look at the layers, goes on under its own identity
    before = fingerprint("export", data_fingerprints(config.data)[0], weights, config.export)
    workdir.stage("export").mkdir(parents=True)
    write_manifest(workdir.stage("export"), before)
    assert export_identity(config, workdir, weights) == before

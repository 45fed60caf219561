"""Training with NaN or infinity stops at that step, names the loss term and keeps the last valid state."""

import itertools

import keras
import numpy as np
import pytest

from tests.faults.runs import new_folder, one_line, start, succeed
from tfigkd.config.training_fields import TrainingConfig
from tfigkd.losses import FSP, KLDivergence
from tfigkd.runtime.errors import UserError
from tfigkd.training import checkpoint
from tfigkd.training.checkpoint_callback import broken_terms
from tfigkd.training.distiller import Distiller
from tfigkd.training.fit import Training

STEPS = 40


class Count(keras.callbacks.Callback):
    """A callback that counts the finished steps."""

    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="features")(inputs)
    x = keras.layers.Conv2D(4, 3, name="more", padding="same")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def batches(change=lambda number, images, targets: None):
    """Return an endless stream of batches; `change` can modify each batch by its number."""

    def stream(epoch):
        draw = np.random.default_rng(epoch)
        for number in itertools.count(epoch * STEPS):
            images = draw.random((8, 6, 6, 3), np.float32)
            targets = {"label": np.arange(8, dtype=np.int32) % 3, "teacher_logits": draw.random((8, 3), np.float32)}
            change(number, images, targets)
            yield images, targets

    return stream


def train(folder, stream, *, losses, weights, teacher=None, epochs=3, **recipe):
    """Train until an error; return its line and the number of finished steps."""
    config = TrainingConfig(epochs=epochs, batch_size=8, schedule="constant", warmup_epochs=0, **recipe)
    model, count = Distiller(network(), losses=losses, loss_weights=weights, teacher=teacher), Count()
    folder.mkdir(exist_ok=True)
    options = {"examples": 8 * STEPS, "config": config, "folder": folder, "tensorboard": folder / "tb", "title": "test"}
    with pytest.raises(UserError) as caught:
        Training(model, stream, fingerprint="f", callbacks=[count], **options).run()
    return str(caught.value), count.steps


def assert_kept(folder, epochs):
    """Check that the newest checkpoint is of this number of epochs and has finite weights."""
    model = Distiller(network(), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    model.compile("adam", jit_compile=False)
    paths = sorted(path.name for path in folder.glob("*.ckpt"))
    assert [int(name[11:16]) for name in paths] == list(range(max(1, epochs - 1), epochs + 1))
    for path in folder.glob("*.ckpt"):
        with np.load(path, allow_pickle=False) as archive:
            assert all(np.isfinite(archive[name]).all() for name in archive.files if name != "note")


KD = {"losses": {"kd": KLDivergence()}, "weights": {"kd": 0.5}}


def test_a_term_that_becomes_nan_is_named_at_its_step(tmp_path, tally):
    one = tally("NaN or infinity in a term, the weights or the sum of a training")

    def spoil(number, images, targets):
        if number == STEPS + 4:
            targets["teacher_logits"][0, 0] = np.nan

    line, steps = train(tmp_path / "a", batches(spoil), **KD)
    sound = "training met kd_loss = NaN or infinity, in step 5 of epoch 2; the checkpoint of epoch 1 is kept" in line
    one.check(line, sound and steps == STEPS + 5, said=True)
    assert_kept(tmp_path / "a", 1)

    def spoil_images(number, images, targets):
        if number == 2 * STEPS + 9:
            images[0] = np.inf

    line, steps = train(tmp_path / "b", batches(spoil_images), **KD)
    sound = "in every term" in line and "in step 10 of epoch 3; the checkpoint of epoch 2 is kept" in line
    one.check(line, sound and steps == 2 * STEPS + 10, said=True)
    assert_kept(tmp_path / "b", 2)

    line, steps = train(tmp_path / "c", batches(), **KD, optimizer="sgd", learning_rate=1e30)
    one.check(line, "lower the learning rate" in line and "no epoch was finished" in line and steps < 8, said=True)

    loss = FSP(student_layer=("features", "more"), teacher_layer=("features", "more"))
    many = {"losses": {"kd": KLDivergence(), "fsp": loss}, "weights": {"kd": 0.5, "fsp": 1e38}}
    teacher = network()
    teacher.set_weights([10 * value + 1 for value in teacher.get_weights()])
    line, steps = train(tmp_path / "d", batches(), **many, teacher=teacher)
    one.check(f"{line} {steps}", "fsp_loss" in line and "times its weight" in line and steps < 4, said=True)
    one.end()


def test_weights_that_are_nan_after_an_epochs_last_step_are_never_kept(tmp_path, tally):
    """The last step's loss uses the weights before that step, so without validation it does not show the NaN."""
    one = tally("NaN in the weights after the last step of an epoch")

    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                variable = self.model.student.trainable_variables[0]
                variable.assign(np.full(variable.shape, np.nan))

    model = Distiller(network(), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    config = TrainingConfig(epochs=2, batch_size=8, schedule="constant", warmup_epochs=0)
    options = {"examples": 8 * STEPS, "config": config, "folder": tmp_path, "tensorboard": tmp_path / "tb"}
    with pytest.raises(UserError, match=r"weights 'features/kernel' in epoch 2; checkpoints before it are kept"):
        Training(model, batches(), fingerprint="f", title="test", callbacks=[Spoil()], **options).run()
    assert_kept(tmp_path, 1)
    again = Distiller(network(), losses={"kd": KLDivergence()}, loss_weights={"kd": 0.5})
    history = Training(again, batches(), fingerprint="f", title="test", **options).run()
    one.check("goes on from the checkpoint before", len(history) == 2)
    one.end()
    assert checkpoint._paths(tmp_path)


@pytest.mark.parametrize(
    ("logs", "before", "said"),
    [
        ({"loss": np.nan, "hard_loss": 1.0, "kd_loss": np.nan}, {"loss": 1.0}, "kd_loss = NaN or infinity"),
        ({"loss": np.nan, "hard_loss": np.nan, "kd_loss": np.nan}, {}, "hard_loss, kd_loss = NaN or infinity"),
        (
            {"loss": np.nan, "hard_loss": np.nan, "kd_loss": np.nan},
            {"loss": 1.0, "hard_loss": 3.0, "kd_loss": 2.0},
            "the largest one before was kd_loss = 2 times its weight",
        ),
        ({"loss": np.inf, "hard_loss": 1.0, "kd_loss": 1e30}, {}, "its largest term is kd_loss = 1e+30"),
        ({"loss": 1.0, "hard_loss": 1.0, "val_loss": np.nan}, {"loss": 1.0}, "val_loss = NaN or infinity"),
        ({"loss": np.nan, "hard_loss": np.nan}, {"loss": 1.0}, "hard_loss = NaN or infinity"),
    ],
)
def test_the_words_for_what_went_wrong(logs, before, said):
    assert said in broken_terms(logs, before, {"hard": 0.1, "kd": 0.9})


@pytest.mark.slow
def test_a_run_that_met_nan_is_repeated_with_other_settings(tmp_path, tally):
    """The command line is called as the error line recommends, and the run succeeds."""
    one = tally("a run that meets NaN, then the advice followed")
    folder = new_folder(tmp_path)
    wild = ("--training.optimizer", "sgd", "--training.learning_rate", "1e30")
    line = one_line(start(folder, *wild))
    one.check(line, "training met" in line and "choose another --workdir" in line, said=True)
    one.check("no student is left", not list(folder.glob("runs/tiny/0/distill/student.keras")))
    line = one_line(start(folder))
    one.check(line, "holds a run with other settings" in line, said=True)
    succeed(folder, "--workdir", "runs/tame")
    one.check("the tame run", (folder / "runs/tame/rows.csv").is_file())
    one.end()

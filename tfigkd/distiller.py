"""The Keras model that trains a student from hard labels and from a teacher's logits, cached or live."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops
from keras.distillation import DistillationLoss

from tfigkd.losses import hard_label_loss
from tfigkd.losses.logits import Tensor


def loss_terms(
    labels: Tensor,
    logits: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    losses: Mapping[str, DistillationLoss],
    weights: Mapping[str, float],
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every term of the loss and their weighted sum `"loss"`, all scalars.

    As everywhere in Keras, a sample weight multiplies its example's loss and the sum is divided by the batch size.

    Args:
        labels: Integers [B], or probabilities [B,C].
        logits: The student's, [B,C].
        teacher_logits: [B,C]; without them the hard label alone counts, with weight one.
        losses: Name to loss.
        weights: Name to weight; the hard label's is 1 minus that of `"kd"`.
        label_smoothing: Of the hard label, in [0, 1).
        sample_weight: [B], or None.
    """

    def reduce(values: Tensor) -> Tensor:
        if sample_weight is not None:
            values = values * ops.cast(ops.reshape(sample_weight, (-1,)), values.dtype)
        return ops.mean(values)

    hard = reduce(hard_label_loss(labels, logits, label_smoothing=label_smoothing))
    if teacher_logits is None:
        return {"loss": hard, "hard_loss": hard}
    terms = {"hard_loss": hard}
    total = (1.0 - weights.get("kd", 0.0)) * hard
    for name, loss in losses.items():
        if hasattr(loss, "per_example"):
            value = reduce(loss.per_example(teacher_logits, logits))
        else:
            value = loss.compute_loss(teacher_logits, logits)
        terms[f"{name}_loss"] = value
        total = total + weights[name] * value
    return {"loss": total, **terms}


def _labels(targets: Any) -> Tensor:
    labels = targets["label"] if isinstance(targets, Mapping) else targets
    return ops.squeeze(labels, -1) if len(labels.shape) == 2 and labels.shape[-1] == 1 else labels


@keras.saving.register_keras_serializable("tfigkd")
class Distiller(keras.Model):
    """Trains `student`; `fit`, `evaluate`, `predict` and `save` behave as on any Keras model.

    The loss is `(1 - w) · hard label + w · kd`, with w the weight of the term `"kd"`, plus `weight · term` for every
    other term. The terms are logged by name. Where the targets carry the teacher's logits, no teacher runs at all.

    Targets are labels (integers [B] or probabilities [B,C]), or a dictionary of `"label"` and `"teacher_logits"`
    [B,C]. Without cached logits the teacher runs on the student's own batch, in inference mode. It is neither tracked
    nor saved with the distiller, and its `trainable` flag is left alone.

    Args:
        student: A built Keras model, images to logits [B,C].
        losses: Name to `DistillationLoss`. Those with a method `per_example` respect sample weights.
        loss_weights: Name to weight, for the same names.
        teacher: A Keras model, images to logits [B,C]; only for training without cached logits.
        label_smoothing: Of the hard label, in [0, 1).

    Raises:
        ValueError: names of losses and weights differ, a weight is out of range, or teacher and student have
            different numbers of classes.

    Example:
        distiller = Distiller(student, losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": 0.5}, teacher=teacher)
        distiller.compile("adam", metrics=["accuracy"], jit_compile=False)
        distiller.fit(images, labels)
    """

    def __init__(
        self,
        student: keras.Model,
        *,
        losses: Mapping[str, DistillationLoss] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        teacher: keras.Model | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.student = student
        self.distillation_losses = dict(losses or {})
        self.distillation_weights = {name: float(weight) for name, weight in (loss_weights or {}).items()}
        self.label_smoothing = label_smoothing
        if self.distillation_losses.keys() != self.distillation_weights.keys():
            raise ValueError(
                f"losses and loss_weights must have the same names, got {sorted(self.distillation_losses)} "
                f"and {sorted(self.distillation_weights)}"
            )
        if not 0 <= self.distillation_weights.get("kd", 0.0) <= 1:
            raise ValueError(f"the weight of 'kd' must be in [0, 1], got {self.distillation_weights['kd']}")
        self.attach_teacher(teacher)
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "hard_loss", *(f"{name}_loss" for name in self.distillation_losses))
        }
        if student.built:
            self.build(student.input_shape)

    @property
    def teacher(self) -> keras.Model | None:
        """The live teacher, if any."""
        return self._get_teacher()

    def attach_teacher(self, teacher: keras.Model | None) -> None:
        """Set or remove the live teacher, for example after loading a saved distiller.

        Raises:
            ValueError: teacher and student have different numbers of classes.
        """
        if teacher is not None and teacher.output_shape[-1] != self.student.output_shape[-1]:
            raise ValueError(
                f"teacher and student must have the same classes, got {teacher.output_shape[-1]} "
                f"and {self.student.output_shape[-1]}"
            )
        # a closure in a method: Keras tracks, saves and trains every model that is assigned to an attribute,
        # through a property setter too
        self._get_teacher = lambda: teacher

    def build(self, input_shape: Any) -> None:
        """The student is built already; nothing else has weights."""
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """The student's logits."""
        return self.student(inputs, training=training)

    @property
    def metrics(self) -> list:
        """The loss terms' means, then the metrics given to `compile`."""
        # Keras keeps a tracker "loss" of its own, which only its own train_step updates
        return [*self._trackers.values(), *(m for m in super().metrics if m.name not in self._trackers)]

    def _terms(self, inputs: Tensor, targets: Any, logits: Tensor, sample_weight: Any, *, training: bool) -> dict:
        teacher_logits = None
        if self.distillation_losses:
            if isinstance(targets, Mapping) and "teacher_logits" in targets:
                teacher_logits = targets["teacher_logits"]
            elif (teacher := self.teacher) is not None:
                teacher_logits = ops.stop_gradient(teacher(inputs, training=False))
            elif training:
                raise ValueError(
                    "distillation needs a teacher: pass teacher= to the Distiller, or targets "
                    "{'label': ..., 'teacher_logits': ...} from an overlay store"
                )
        return loss_terms(
            _labels(targets),
            logits,
            teacher_logits,
            losses=self.distillation_losses,
            weights=self.distillation_weights,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
        )

    def _log(self, inputs: Tensor, targets: Any, logits: Tensor, sample_weight: Any, terms: dict) -> dict:
        count = ops.shape(logits)[0]
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=count)
        logs = self.compute_metrics(inputs, _labels(targets), logits, sample_weight)
        return {name: value for name, value in logs.items() if name in terms or name not in self._trackers}

    if keras.backend.backend() == "tensorflow":

        def train_step(self, data: Any) -> dict:
            """One step of gradient descent on a batch `(x, y[, sample_weight])`."""
            import tensorflow as tf

            inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            variables = self.student.trainable_variables
            with tf.GradientTape() as tape:
                logits = self.student(inputs, training=True)
                terms = self._terms(inputs, targets, logits, sample_weight, training=True)
                terms["loss"] += ops.cast(sum(self.student.losses), "float32")
                scaled = self.optimizer.scale_loss(terms["loss"])
            self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
            return self._log(inputs, targets, logits, sample_weight, terms)

        def test_step(self, data: Any) -> dict:
            """Loss terms and metrics of a batch; changes no weight."""
            inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            logits = self.student(inputs, training=False)
            terms = self._terms(inputs, targets, logits, sample_weight, training=False)
            return self._log(inputs, targets, logits, sample_weight, terms)

    elif keras.backend.backend() == "jax":

        def train_step(self, state: tuple, data: Any) -> tuple:  # type: ignore[misc]
            """One step of gradient descent on a batch `(x, y[, sample_weight])`, as a function of the state."""
            import jax

            trainable, non_trainable, optimizer_state, metrics_state = state
            inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

            def loss_function(trainable: list, non_trainable: list) -> tuple:
                logits, non_trainable, losses = self.stateless_call(
                    trainable, non_trainable, inputs, training=True, return_losses=True
                )
                terms = self._terms(inputs, targets, logits, sample_weight, training=True)
                terms["loss"] += ops.cast(sum(losses), "float32")
                return self.optimizer.scale_loss(terms["loss"]), (terms, logits, non_trainable)

            gradient = jax.grad(loss_function, has_aux=True)
            gradients, (terms, logits, non_trainable) = gradient(trainable, non_trainable)
            trainable, optimizer_state = self.optimizer.stateless_apply(optimizer_state, gradients, trainable)
            logs, metrics_state = self._stateless_log(metrics_state, inputs, targets, logits, sample_weight, terms)
            return logs, (trainable, non_trainable, optimizer_state, metrics_state)

        def test_step(self, state: tuple, data: Any) -> tuple:  # type: ignore[misc]
            """Loss terms and metrics of a batch, as a function of the state."""
            trainable, non_trainable, metrics_state = state
            inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            logits, non_trainable = self.stateless_call(trainable, non_trainable, inputs, training=False)
            terms = self._terms(inputs, targets, logits, sample_weight, training=False)
            logs, metrics_state = self._stateless_log(metrics_state, inputs, targets, logits, sample_weight, terms)
            return logs, (trainable, non_trainable, metrics_state)

        def _stateless_log(self, metrics_state: list, *batch: Any) -> tuple[dict, list]:
            mapping = zip(self.metrics_variables, metrics_state, strict=True)
            with keras.StatelessScope(state_mapping=mapping) as scope:
                logs = self._log(*batch)
            return logs, [scope.get_current_value(variable) for variable in self.metrics_variables]

    def get_config(self) -> dict:
        """Constructor arguments without the teacher, which is equipment and not part of the result."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "student": serialize(self.student),
            "losses": {name: serialize(loss) for name, loss in self.distillation_losses.items()},
            "loss_weights": self.distillation_weights,
            "label_smoothing": self.label_smoothing,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> "Distiller":
        """Rebuild from constructor arguments."""
        config = dict(config)
        deserialize = keras.saving.deserialize_keras_object
        config["student"] = deserialize(config["student"])
        config["losses"] = {name: deserialize(loss) for name, loss in config["losses"].items()}
        return cls(**config)

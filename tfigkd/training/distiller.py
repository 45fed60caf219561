"""The Keras model that trains a student from hard labels and from a teacher's logits, cached or live."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
from keras import ops

from tfigkd.data.spaces import Range
from tfigkd.losses import Loss, cross_entropy
from tfigkd.losses.adapted import adapted
from tfigkd.losses.base import LOGITS, Tensor
from tfigkd.models.kernels import l1_of_kernels
from tfigkd.training.checked import CheckedData
from tfigkd.training.optimizers import check_two_momenta, with_loss_scale
from tfigkd.training.single_logit import gives_one_logit, of_one_logit
from tfigkd.training.steps import Steps
from tfigkd.training.tapped import (
    OUTPUTS,
    STUDENT,
    TEACHER,
    TappedNetwork,
    all_taps,
    built_extra_layers,
    check_model,
    check_unshared,
    number_of_classes,
    shapes_at,
)
from tfigkd.training.targets import (
    given_loss,
    label_array,
    labels_like,
    labels_of,
    single_loss,
    weighted_mean,
)
from tfigkd.training.terms import (
    LiveTeacher,
    StepComparison,
    by_class,
    check_settings,
    check_terms,
    hard_label_weight,
    loss_terms,
)


@keras.saving.register_keras_serializable("tfigkd")
class Distiller(Steps, CheckedData, keras.Model):
    """Trains `student`; `fit`, `evaluate`, `predict` and `save` behave as on any Keras model, `export` exports it.

    The loss is `(1 - w) · hard label + w · kd`, with w the weight of the term `"kd"`, plus `weight · term` for every
    other term, plus the student's regularization. The terms are logged by name. The student runs once a step, whatever
    the losses look at. In evaluation `"loss"` is the hard-label loss plus regularization, so that it means the same
    with a live teacher, with cached knowledge and with only labels; the terms whose teacher is known stand beside it.

    `train_step` and `test_step` are in `steps.py`, one pair for each Keras backend.

    `compile(loss=...)` replaces the hard-label loss, which is the cross-entropy of the logits (see
    `targets.given_loss`).

    Targets are labels (integers [B] or probabilities [B,C]) or a dictionary: `"label"`; optionally
    `"label_probabilities"` [B,C], the labels of mixed images, which the hard-label loss then uses; and what is known of
    the teacher: `"teacher_logits"` [B,C], or [B,1] of a teacher with one logit; `"teacher_map"` [B,H,W],
    `"teacher_features"` (tap to features or attention), `"teacher_posteriors"` [B,C]. If they hold all that the losses
    need, no teacher runs. Otherwise the live teacher runs in inference mode on `"teacher_inputs"`, or on the student's
    own batch. It is neither tracked nor saved with the distiller, and its `trainable` flag is left alone.

    A model that gives probabilities (it ends in a softmax, or its outputs on noise look like probabilities) is handled:
    the losses see their logarithms. A single output, sigmoid or logit, becomes the logits of two classes. A subclassed
    model, whose layers are not known, is taken as giving logits; wrap one that ends in softmax:
    `tfigkd.models.as_classifier(model, outputs="probabilities")`.

    Args:
        student: A built Keras model, images to logits [B,C].
        losses: Name to loss: one of `tfigkd.losses.LOSSES`, of `keras.distillation`, or a user's subclass of
            `keras.distillation.DistillationLoss`. A loss that has trainable layers belongs to one Distiller and cannot
            be used in another.
        loss_weights: Name to weight, for the same names.
        hard_weight: Weight of the hard label; None is 1 - w, with w at most 1, see `hard_label_weight`.
        teacher: A Keras model, images to logits [B,C]; only for training without cached knowledge.
        teacher_shapes: Tap to shape of the teacher's features, with the batch; only for losses with an `extra_layer`,
            and only without a live teacher.
        label_smoothing: Of the hard label, in [0, 1).
        finetune_from: Optimizer step, counted from 0, from which only the hard label is used, with weight 1. None:
            there is no such second phase.
        l1: Weight of the sum of absolute values of the student's trainable kernels, part of `"loss"` in training.
        input_range: The values of a black and of a white pixel in the batches; a model that shows another range (see
            `tfigkd.models.input_range.infer_input_range`) gets its own. Needed where a model shows one that is not
            [0,1].

    Raises:
        ValueError: names of losses and weights differ, a number is out of range, a tap is unknown, teacher or student
            have several outputs, the two have different numbers of classes or share weights that train, or a loss
            is another Distiller's.

    Example:
        distiller = Distiller(student, losses={"kd": KLDivergence(2.5)}, loss_weights={"kd": 0.5}, teacher=teacher)
        distiller.compile("adam", metrics=["accuracy"], jit_compile=False)
        distiller.fit(images, labels)
    """

    def __init__(
        self,
        student: keras.Model,
        *,
        losses: Mapping[str, Loss] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        hard_weight: float | None = None,
        teacher: keras.Model | None = None,
        teacher_shapes: Mapping[str, tuple[int | None, ...]] | None = None,
        label_smoothing: float = 0.0,
        finetune_from: int | None = None,
        l1: float = 0.0,
        input_range: Range | None = None,
        **kwargs: Any,
    ):
        # whatever the policy of the process is, the student gets its inputs as they come and casts them itself
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        check_model("student", student)
        for name, given in (("losses", losses), ("loss_weights", loss_weights)):
            if not isinstance(given, Mapping | None):
                raise ValueError(f"{name} must be a dictionary by name, such as {{'kd': ...}}, got {given!r}")
        check_settings(label_smoothing, finetune_from, input_range)
        self.student = student
        self.input_range = None if input_range is None else (float(input_range[0]), float(input_range[1]))
        self._given_losses = dict(losses or {})
        self.distillation_losses = {name: adapted(loss) for name, loss in self._given_losses.items()}
        weights = {name: float(weight) for name, weight in (loss_weights or {}).items()}
        # read-only, since a change would not reach steps that are traced
        self.distillation_weights: Mapping[str, float] = MappingProxyType(weights)
        self.hard_weight = None if hard_weight is None else float(hard_weight)
        self.label_smoothing = label_smoothing
        self.finetune_from = finetune_from
        self.l1 = float(l1)
        self._compiled_loss: Any = None
        check_terms(self.distillation_losses, self.distillation_weights, self.hard_weight, self.l1)
        for loss in self.distillation_losses.values():
            loss.check_taps(student)
        self._tapped_student = TappedNetwork(student, self.distillation_losses, STUDENT, self.input_range)
        self.attach_teacher(teacher)
        self.teacher_shapes = dict(teacher_shapes or {})
        if teacher is not None:
            self.teacher_shapes = shapes_at(teacher, all_taps(self.distillation_losses, TEACHER))
        # tracked by Keras under this name, which saved files have
        self.projectors = built_extra_layers(self.distillation_losses, student, self.teacher_shapes)
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "hard_loss", *(f"{name}_loss" for name in self.distillation_losses))
        }
        if student.built:
            self.built = True

    def _first_phase(self) -> Any:
        """Return 1 in the first phase, else 0: a number, or a scalar where it depends on the optimizer's step."""
        if self.finetune_from is None or self.optimizer is None:
            return 1.0
        return ops.cast(self.optimizer.iterations < self.finetune_from, "float32")

    def _weights_at(self, first: Any) -> dict[str, Any]:
        """Return name to weight of every term, `"hard"` among them; `first` is that of `_first_phase`."""
        hard = hard_label_weight(self.distillation_losses, self.distillation_weights, self.hard_weight)
        terms = {name: first * weight for name, weight in self.distillation_weights.items()}
        return {"hard": first * hard + (1.0 - first), **terms}

    @property
    def term_weights(self) -> dict[str, float]:
        """Name to weight of every term in training, `"hard"` among them."""
        return self._weights_at(float(ops.convert_to_numpy(self._first_phase())))

    @property
    def teacher(self) -> keras.Model | None:
        """The live teacher, if any."""
        return None if self._live is None else self._live.network.model

    def attach_teacher(self, teacher: keras.Model | None) -> None:
        """Set or remove the live teacher, for example after loading a saved distiller.

        If the teacher's weights have changed, attach it again: pruned copies and kernel tensors are then computed anew.

        Raises:
            ValueError: teacher and student have different numbers of classes or share weights that train, a tap is
                unknown, or kernels that are compared have no shape in common.
        """
        self._live: LiveTeacher | None = None
        if teacher is not None:
            check_model("teacher", teacher)
            check_unshared(teacher, self.student)
            classes = [number_of_classes(model) for model in (teacher, self.student)]
            if None not in classes and classes[0] != classes[1]:
                raise ValueError(f"teacher and student must have the same classes, got {classes[0]} and {classes[1]}")
            for loss in self.distillation_losses.values():
                loss.check_taps(self.student, teacher)
            self._live = LiveTeacher(teacher, self.student, self.distillation_losses, self.input_range)
        self._trace_again()

    def build(self, input_shape: Any) -> None:
        """Mark the model as built: the student and the layers of the losses are built already."""
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the student's outputs."""
        return self.student(self._tapped_student.take(inputs), training=training)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        **options: Any,
    ) -> None:
        """Configure training, as on any Keras model.

        Args:
            optimizer: As for `keras.Model.compile`; its loss is scaled where the student computes in float16.
            loss: Replaces the hard-label loss, see `targets.given_loss`; None is the cross-entropy of the logits.
            loss_weights: Refused; the weights are those of the distiller.
            metrics: As for `keras.Model.compile`; they see labels and the student's outputs. Where these are one logit,
                a metric that is given by its name sees its sigmoid.
            options: As for `keras.Model.compile`.

        Raises:
            ValueError: a metric has the name of a term of the loss, label smoothing meets a given loss, or there are
                several losses or weights of them.
        """
        loss = single_loss(loss)
        if loss_weights is not None:
            raise ValueError(
                "compile takes no loss_weights; give Distiller(loss_weights={'kd': ...}, hard_weight=...), where "
                "hard_weight is that of this loss"
            )
        if loss is not None and self.label_smoothing:
            raise ValueError("label_smoothing belongs to the cross-entropy; give it to the loss of compile() instead")
        for metric in keras.tree.flatten([metrics, options.get("weighted_metrics")]):
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            if name in self._trackers:
                raise ValueError(f"a metric cannot be named {name!r}, which is a term of the loss; rename it")
        if gives_one_logit(self._tapped_student):
            metrics = of_one_logit(metrics)
            options["weighted_metrics"] = of_one_logit(options.get("weighted_metrics"))
        optimizer = keras.optimizers.get(optimizer)
        if options.get("auto_scale_loss", True):
            optimizer = with_loss_scale(optimizer, self.student)
        super().compile(optimizer=optimizer, metrics=metrics, **options)
        check_two_momenta(self.optimizer, self.finetune_from)
        self._compiled_loss = loss

    def get_compile_config(self) -> dict | None:
        """Return the arguments of `compile`, serialized."""
        config = super().get_compile_config()
        if config and self._compiled_loss is not None:
            config["loss"] = keras.saving.serialize_keras_object(self._compiled_loss)
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compile with the arguments that `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def export(self, *arguments: Any, **options: Any) -> Any:
        """Export the student, as `keras.Model.export` does; it takes what `predict` takes, pixels of `input_range`."""
        return self._tapped_student.standalone().export(*arguments, **options)

    @property
    def metrics(self) -> list:
        """The loss terms' means, then the metrics given to `compile`."""
        # Keras keeps a tracker "loss" of its own, which only its own train_step updates
        return [*self._trackers.values(), *(m for m in super().metrics if m.name not in self._trackers)]

    def compare(
        self, outputs: Mapping[str, Tensor], inputs: Tensor, targets: Any, sample_weight: Any = None, *, training: bool
    ) -> dict[str, Tensor]:
        """Return the loss terms of given outputs on a batch, as name to scalar, `"loss"` among them.

        Args:
            outputs: Tap to tensor, `"logits"` [B,C] among them.
            inputs: The images [B,H,W,C].
            targets: As for `fit`.
            sample_weight: [B] or None.
            training: Whether the step trains; the weights of the terms may depend on it.
        """
        known = targets if isinstance(targets, Mapping) else {}
        mixed = known.get("label_probabilities")
        for name, loss in self.distillation_losses.items():
            if mixed is not None and loss.refuses_mixed_labels:
                raise ValueError(f"loss {name!r} needs one label per example; leave out 'label_probabilities' (mixup)")
        compared = StepComparison(self._tapped_student, self._live, inputs, targets, outputs, training=training)
        return loss_terms(
            self._hard_loss(outputs, labels_of(targets), mixed, sample_weight),
            compared.sides(self.distillation_losses),
            labels_of(targets),
            losses=self.distillation_losses,
            weights=self._weights_at(self._first_phase() if training else 1.0),
            sample_weight=sample_weight,
        )

    def _hard_loss(self, outputs: Mapping[str, Tensor], labels: Tensor, mixed: Any, sample_weight: Any) -> Tensor:
        """Return the hard-label loss of a batch, a scalar; `mixed` are the labels of mixed images [B,C], or None."""
        logits = outputs[LOGITS]
        if self._compiled_loss is not None:
            own, known = outputs.get(OUTPUTS, logits), labels if mixed is None else mixed
            return given_loss(self._compiled_loss, known, own, logits, sample_weight)
        known = labels if mixed is None else by_class("label_probabilities", mixed, logits)
        return weighted_mean(cross_entropy(known, logits, label_smoothing=self.label_smoothing), sample_weight)

    def compute_terms(self, inputs: Tensor, targets: Any, sample_weight: Any = None, *, training: bool) -> tuple:
        """Return the loss terms of a batch, regularization included in `"loss"`, and the student's outputs.

        Args:
            inputs: The images [B,H,W,C].
            targets: As for `fit`.
            sample_weight: [B] or None.
            training: Whether the step trains; in evaluation `"loss"` is that of the hard label.

        Returns:
            Name to scalar, and the student's outputs [B,C], or [B,1] of a single one.
        """
        outputs = self._tapped_student(inputs, training=training)
        extra = self._regularization(training=training)  # losses that run layers again would clear it
        terms = self.compare(outputs, inputs, targets, sample_weight, training=training)
        total = terms["loss"] if training else terms["hard_loss"]
        return {**terms, "loss": total + extra}, outputs[OUTPUTS]

    def _regularization(self, *, training: bool) -> Tensor:
        value = ops.cast(sum(self.student.losses), "float32")
        if self.l1 and training:
            value = value + self.l1 * l1_of_kernels(self.student)
        return value

    def _run(self, data: Any, *, training: bool) -> tuple[Tensor, tuple]:
        """Return the loss of a batch `(x, y[, sample_weight])`, and what `_log` takes."""
        inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        sample_weight = label_array(sample_weight)  # Keras repeats it for each entry of a dictionary of targets
        terms, outputs = self.compute_terms(inputs, targets, sample_weight, training=training)
        return terms["loss"], (inputs, targets, outputs, sample_weight, terms)

    def _log(self, inputs: Tensor, targets: Any, outputs: Tensor, sample_weight: Any, terms: dict) -> dict:
        count = ops.shape(outputs)[0]
        for name, value in terms.items():
            self._trackers[name].update_state(value, sample_weight=count)
        logs = self.compute_metrics(inputs, labels_like(labels_of(targets), outputs), outputs, sample_weight)
        return {name: value for name, value in logs.items() if name in terms or name not in self._trackers}

    def get_config(self) -> dict:
        """Return the constructor arguments, without the teacher, which is not saved."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "student": serialize(self.student),
            "losses": {name: serialize(loss) for name, loss in self._given_losses.items()},
            "loss_weights": dict(self.distillation_weights),
            "hard_weight": self.hard_weight,
            "teacher_shapes": self.teacher_shapes,
            "label_smoothing": self.label_smoothing,
            "finetune_from": self.finetune_from,
            "l1": self.l1,
            "input_range": self.input_range,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> "Distiller":
        """Rebuild from constructor arguments."""
        config = dict(config)
        deserialize = keras.saving.deserialize_keras_object
        config["student"] = deserialize(config["student"])
        config["losses"] = {name: deserialize(loss) for name, loss in config["losses"].items()}
        return cls(**config)

"""Optimizers and schedules of the recipes: what Keras has, and on top of it what short trainings need.

The subclasses add a learning rate of its own for normalization biases, coupled weight decay, Muon for convolutions, and
an average of the weights as an optimizer variable, so that a checkpoint holds it.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.config.training_fields import TrainingConfig
from tfigkd.models.chain import AUXILIARY
from tfigkd.models.coded_features import DENSITY
from tfigkd.models.graph import flatten_layers, is_graph

SPARED = ["bias", "gamma", "beta", AUXILIARY, *DENSITY]
"""Variables that decoupled weight decay spares; of a chain of tensors it takes the center."""


class Triangular(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly to its peak and falls linearly from it; constant after the last step.

    Args:
        peak: The largest learning rate.
        steps: Steps of the whole training.
        start: Learning rate of step 0, as a share of the peak.
        at: Where the peak is, as a share of the steps.
        end: Learning rate after the last step, as a share of the peak.
    """

    def __init__(self, peak: float, steps: int, *, start: float = 0.2, at: float = 0.23, end: float = 0.07):
        self.peak, self.steps, self.start, self.at, self.end = peak, steps, start, at, end

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        done = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        rising = self.start + (1.0 - self.start) * done / max(self.at, 1e-9)
        falling = 1.0 + (self.end - 1.0) * (done - self.at) / max(1.0 - self.at, 1e-9)
        return self.peak * ops.where(done < self.at, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"peak": self.peak, "steps": self.steps, "start": self.start, "at": self.at, "end": self.end}


class ThenConstant(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule, and after its last step a constant learning rate.

    Args:
        first: The schedule, or a number.
        steps: Steps that it has.
        rate: Learning rate after them.
    """

    def __init__(self, first: Any, steps: int, rate: float):
        self.first, self.steps, self.rate = first, steps, rate

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        before = self.first(step) if callable(self.first) else self.first
        return ops.where(step < self.steps, ops.cast(before, "float32"), self.rate)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"first": self.first, "steps": self.steps, "rate": self.rate}


def _replicas() -> int:
    """Return on how many replicas of TensorFlow this step runs."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def summed_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """Return the sums of gradients over the replicas of TensorFlow; None where there is no gradient."""
    import tensorflow as tf

    given = [gradient for gradient in gradients if gradient is not None]
    sums = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, given))
    return [None if gradient is None else next(sums) for gradient in gradients]


class Extended:
    """What is added to a Keras optimizer; comes before it among the base classes, and is set by `extend`."""

    bias_factor = 1.0
    coupled_weight_decay = 0.0
    ema_decay: float | None = None
    lookahead = 0
    lookahead_decay = 0.95
    total_steps = 1

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable by its gradient."""
        # "beta" is what Keras calls the bias of every normalization layer; TensorFlow's own variables have other names
        known = self._trainable_variables[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        factor = self.bias_factor if known.name == "beta" else 1.0
        if self.coupled_weight_decay:
            gradient = gradient + self.coupled_weight_decay / factor * ops.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate * factor)  # type: ignore[misc]

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        # Keras clips what each replica has of a batch, and adds it up after that
        replicas = _replicas()
        if replicas == 1 or not any((self.clipnorm, self.global_clipnorm, self.clipvalue)):  # type: ignore[attr-defined]
            return super()._clip_gradients(grads)  # type: ignore[misc]
        clipped = super()._clip_gradients(summed_over_replicas(grads))  # type: ignore[misc]
        return [None if gradient is None else gradient / replicas for gradient in clipped]

    def _use_weight_decay(self, variable: Any) -> bool:
        # Keras matches the names to spare anywhere in a variable's path, so in that of a layer named "beta_head" too
        return self._trainable_variables[self._get_variable_index(variable)].name not in SPARED  # type: ignore[attr-defined]

    def average_decay(self, step: Any) -> Any:
        """Return the share that the average keeps of itself after an update, the updates counted from 0.

        Without the bound (1 + n) / (10 + n) the initial weights would keep their share for many steps (TensorFlow's
        `ExponentialMovingAverage` with `num_updates`). A lookahead's decay grows with the cube of the training done.
        """
        done = ops.cast(step, "float32")
        if self.ema_decay is not None:
            return ops.minimum(self.ema_decay, (1.0 + done) / (10.0 + done))
        return self.lookahead_decay**self.lookahead * ((done + 1.0) / self.total_steps) ** 3

    def _update_model_variables_moving_average(self, trainable_variables: Any) -> None:
        if not self.use_ema:  # type: ignore[attr-defined]
            return
        step = self.iterations  # type: ignore[attr-defined]
        # the averages are zeros before the first step
        keep = ops.where(ops.equal(step, 0), 0.0, self.average_decay(step))
        if self.lookahead:
            due = ops.equal((step + 1) % self.lookahead, 0)
            keep = ops.where(ops.logical_or(due, ops.equal(step, 0)), keep, 1.0)
        averages = self._model_variables_moving_average  # type: ignore[attr-defined]
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                new = ops.convert_to_tensor(variable)
                average.assign(average + (1.0 - keep) * (new - average))


class SGD(Extended, keras.optimizers.SGD):
    """`keras.optimizers.SGD` with the additions of `Extended`."""


class TwoMomenta(keras.optimizers.SGD):
    """SGD with a momentum for the gradient of the task and another for that of the distillation.

    See Zhao et al. 2023, "DOT: A Distillation-Oriented Trainer" (arXiv 2307.08436): the task has the momentum less
    `delta`, the distillation the momentum plus `delta`, and the steps of both are added up. With `delta` 0 it is SGD.
    What has no gradient of the task, such as the projector of a loss, keeps the momentum as it is. Weight decay belongs
    to the task. The authors have no Nesterov momentum; here both parts have it where SGD has.

    Args:
        learning_rate: As in SGD.
        delta: Half the difference of the two momenta.
        options: As in SGD.
    """

    def __init__(self, learning_rate: Any = 0.01, *, delta: float = 0.075, **options: Any):
        super().__init__(learning_rate, **options)
        unfit = ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps")
        if not self.momentum or any(getattr(self, name) for name in unfit):
            raise ValueError(f"separate momenta need a momentum, and take none of {', '.join(unfit)}")
        if not 0 <= delta <= min(self.momentum, 1 - self.momentum):
            raise ValueError(f"delta must be in [0, {min(self.momentum, 1 - self.momentum):g}], got {delta}")
        self.delta = delta
        self.distillation_gradients: list[Any] = []
        self.distillation_only: frozenset[int] = frozenset()

    def build(self, variables: Any) -> None:
        """Create the variables, one more momentum for each than SGD."""
        if self.built:
            return
        super().build(variables)
        self.taught_momentums = self.add_optimizer_variables(variables, "taught_momentum")

    @contextlib.contextmanager
    def with_distillation_gradients(
        self, gradients: Sequence[Any], distillation_only: Collection[int]
    ) -> Iterator[None]:
        """Let updates take these gradients beside those that they are given, for the time of the context.

        Args:
            gradients: Of the distillation, one for each trainable variable; None where it has none.
            distillation_only: Indices of the variables that only the distillation has a gradient for.
        """
        self.distillation_gradients, self.distillation_only = [*gradients], frozenset(distillation_only)
        try:
            yield
        finally:  # they belong to one step, and on a graph to one trace
            self.distillation_gradients, self.distillation_only = [], frozenset()

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable by its gradients."""
        index = self._get_variable_index(variable)
        distillation = self.distillation_gradients[index] if self.distillation_gradients else None
        alone = index in self.distillation_only or not self.distillation_gradients
        delta = 0.0 if alone else self.delta
        parts = [(gradient, self.momentums[index], self.momentum - delta)]
        if distillation is not None:
            parts.append((distillation, self.taught_momentums[index], self.momentum + delta))
        rate = ops.cast(learning_rate, variable.dtype)
        for part, velocity, momentum in parts:
            step = rate * ops.cast(part, variable.dtype)
            moved = momentum * velocity - step
            self.assign(velocity, moved)
            self.assign_add(variable, momentum * moved - step if self.nesterov else moved)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "delta": self.delta}


def check_two_momenta(optimizer: Any, finetune_from: int | None) -> None:
    """Refuse what `TwoMomenta` cannot do with a Distiller.

    Raises:
        ValueError: It is inside a LossScaleOptimizer, as under mixed_float16, or the training has a second phase.
    """
    if isinstance(getattr(optimizer, "inner_optimizer", None), TwoMomenta):
        raise ValueError("TwoMomenta does not scale the loss; train in float32 or bfloat16, not in float16")
    if isinstance(optimizer, TwoMomenta) and finetune_from is not None:
        raise ValueError("TwoMomenta has no second phase; leave out finetune_from")


def with_loss_scale(optimizer: Any, model: keras.Model) -> Any:
    """Return an optimizer that scales the loss where a layer of the model computes in float16, as Keras does it.

    Keras looks at the policy of the model that is compiled, which for a Distiller is not that of its student. Inputs,
    Functional and Sequential models compute nothing of their own; they have the policy of the process that loads them.
    """
    layers = flatten_layers(model, include_self=True)
    computing = [one for one in layers if not is_graph(one) and not isinstance(one, keras.layers.InputLayer)]
    float16 = any(layer.compute_dtype == "float16" for layer in computing)
    if not float16 or not optimizer or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")


class DOT(Extended, TwoMomenta):
    """`TwoMomenta` with the additions of `Extended`."""


class Adam(Extended, keras.optimizers.Adam):
    """`keras.optimizers.Adam` with the additions of `Extended`."""


class AdamW(Extended, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with the additions of `Extended`."""


class Muon(Extended, keras.optimizers.Muon):
    """`keras.optimizers.Muon` for the kernels of convolutions too (Jordan 2024, github.com/KellerJordan/Muon).

    A kernel [h,w,C,D] is one matrix [h·w·C,D]. Depthwise kernels, vectors and what `exclude_layers` names are updated
    by AdamW.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        parts = variable.path.split("/")
        excluded = "embeddings" in parts or not {*self.exclude_layers}.isdisjoint(parts)
        depthwise = variable.name == "depthwise_kernel" or "depthwise" in variable.path
        return excluded or depthwise or len(variable.shape) not in (2, 4)

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign_add(m, gradient + m * (self.momentum - 1))
        direction = gradient + self.momentum * m if self.nesterov else ops.convert_to_tensor(m)
        matrix = ops.reshape(direction, (-1, variable.shape[-1]))
        update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
        self.assign_sub(variable, ops.reshape(update, variable.shape))


def extend(optimizer: Any, config: TrainingConfig, steps: int) -> Any:
    """Set the additions of a recipe on an `Extended` optimizer, and return it.

    Args:
        optimizer: It is altered.
        config: The recipe.
        steps: Steps of the whole training.
    """
    optimizer.bias_factor = config.bias_factor
    if config.weight_decay_form == "coupled":
        optimizer.coupled_weight_decay = config.weight_decay
    optimizer.ema_decay, optimizer.total_steps = config.ema, steps
    optimizer.lookahead, optimizer.lookahead_decay = config.lookahead, config.lookahead_decay
    return optimizer


def make_schedule(config: TrainingConfig, steps_per_epoch: int) -> Any:
    """Return the learning rate of a recipe: a number or a schedule over the steps."""
    if config.finetune_epochs:
        first = dataclasses.replace(config, epochs=config.epochs - config.finetune_epochs, finetune_epochs=0)
        rate = config.finetune_rate * config.learning_rate
        return ThenConstant(make_schedule(first, steps_per_epoch), first.epochs * steps_per_epoch, rate)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "triangular":
        shape = {"start": config.schedule_start, "at": config.schedule_peak, "end": config.schedule_end}
        return Triangular(config.learning_rate, config.epochs * steps_per_epoch, **shape)
    if config.schedule == "cosine" or warmup:
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else config.learning_rate,
            decay_steps=max(1, config.epochs * steps_per_epoch - warmup),
            alpha=0.0 if config.schedule == "cosine" else 1.0,
            warmup_target=config.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    return config.learning_rate


def make_optimizer(
    config: TrainingConfig, steps_per_epoch: int, *, head: Collection[str] = ("logits",)
) -> keras.optimizers.Optimizer:
    """Return the optimizer of a recipe.

    Decoupled weight decay spares biases and normalization; under mixed_float16 the loss is scaled.

    Args:
        config: The recipe.
        steps_per_epoch: For schedules.
        head: Layers that make the logits; Muon leaves them to AdamW.
    """
    rate = make_schedule(config, steps_per_epoch)
    options: dict[str, Any] = {"weight_decay": config.weight_decay or None}
    if config.weight_decay_form == "coupled":
        options["weight_decay"] = None
    if config.ema:
        options |= {"use_ema": True, "ema_momentum": config.ema}
    elif config.lookahead:
        options |= {"use_ema": True, "ema_overwrite_frequency": config.lookahead}
    if config.clip_norm:
        options["global_clipnorm"] = config.clip_norm
    if config.dot:
        options |= {"momentum": config.momentum, "nesterov": config.momentum > 0, "delta": config.dot}
        optimizer: Any = DOT(rate, **options)
    elif config.optimizer == "sgd":
        optimizer = SGD(rate, momentum=config.momentum, nesterov=config.momentum > 0, **options)
    elif config.optimizer == "adamw":
        optimizer = AdamW(rate, **options | {"weight_decay": config.weight_decay})
    elif config.optimizer == "muon":
        optimizer = Muon(
            rate, adam_weight_decay=config.weight_decay, momentum=config.momentum, exclude_layers=[*head], **options
        )
    else:
        optimizer = Adam(rate, **options)
    extend(optimizer, config, config.epochs * steps_per_epoch)
    return optimizer

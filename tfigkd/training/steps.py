"""The steps of `Distiller` on each Keras backend: the gradient of its one loss function, then one update."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfigkd.losses.base import Tensor
from tfigkd.training.optimizers import TwoMomenta, summed_over_replicas


class _Shared:
    """What the steps of both backends need: a new trace, and two gradients apart for `TwoMomenta`."""

    def _trace_again(self: Any) -> None:
        """Discard the compiled steps; they captured the previous teacher.

        The next step is compiled anew, within a call of `fit` too.
        """
        if self.train_function is not None:
            self.make_train_function(force=True)
        if self.test_function is not None:
            self.make_test_function(force=True)

    def _parts(self: Any, terms: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the parts of the loss in training: hard label and regularization, and all terms beside them."""
        weights = self.distillation_weights
        distillation = sum((weight * terms[f"{name}_loss"] for name, weight in weights.items()), ops.zeros(()))
        return terms["loss"] - distillation, distillation

    @property
    def _auxiliary_indices(self: Any) -> list[int]:
        """The indices of the variables that losses train beside the student's."""
        ours = {id(variable) for variable in self.student.trainable_variables}
        return [index for index, variable in enumerate(self.trainable_variables) if id(variable) not in ours]


class TensorFlowSteps(_Shared):
    """Steps in graph mode or eagerly, on one replica or several."""

    def train_step(self: Any, data: Any) -> dict:
        """Take one step of gradient descent on a batch `(x, y[, sample_weight])`; return its logs."""
        import tensorflow as tf

        if isinstance(self.optimizer, TwoMomenta):
            return self._train_step_apart(data)
        with tf.GradientTape() as tape:
            loss, seen = self._run(data, training=True)
            # the gradients of replicas are added up, each is the mean over its own part of the batch
            loss = self.optimizer.scale_loss(loss / tf.distribute.get_strategy().num_replicas_in_sync)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self._log(*seen)

    def _train_step_apart(self: Any, data: Any) -> dict:
        import tensorflow as tf

        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape(persistent=True) as tape:
            _, seen = self._run(data, training=True)
            parts = [part / replicas for part in self._parts(seen[-1])]
        variables = self.trainable_variables
        task, distillation = (tape.gradient(part, variables) for part in parts)
        task = [ops.zeros_like(v) if g is None else g for g, v in zip(task, variables, strict=True)]
        if replicas > 1:  # the optimizer itself adds up what it is given, and not these
            distillation = summed_over_replicas(distillation)
        with self.optimizer.with_distillation_gradients(distillation, self._auxiliary_indices):
            self.optimizer.apply_gradients(zip(task, variables, strict=True))
        return self._log(*seen)

    def test_step(self: Any, data: Any) -> dict:
        """Return the loss terms and metrics of a batch; no weight changes."""
        return self._log(*self._run(data, training=False)[1])


class JaxSteps(_Shared):
    """Steps as functions of the state: lists of trainable, other, optimizer's and metrics' variables.

    The weights of a live teacher are constants in them, so they are traced again where these have changed.
    """

    def make_train_function(self: Any, force: bool = False) -> None:
        """Make the function of a training step, as Keras does before `fit` and each single batch."""
        self._check_teacher()
        super().make_train_function(force)  # type: ignore[misc]

    def make_test_function(self: Any, force: bool = False) -> None:
        """Make the function of a test step, as Keras does before `evaluate` and each single batch."""
        self._check_teacher()
        super().make_test_function(force)  # type: ignore[misc]

    def _trace_again(self: Any) -> None:
        # jax.jit takes the same method of the same object for what it has traced already
        self.train_step, self.test_step = (
            functools.partial(getattr(type(self), name), self) for name in ("train_step", "test_step")
        )
        super()._trace_again()

    def _check_teacher(self: Any) -> None:
        if self._live is None:
            return
        ours = {id(variable) for variable in self.variables}  # of a shared backbone; they are part of the state
        values = [one.value for one in self._live.network.model.variables if id(one) not in ours]
        before, self._live.values = self._live.values, values
        if [*map(id, before)] != [*map(id, values)]:
            self._trace_again()

    def train_step(self: Any, state: tuple, data: Any) -> tuple:
        """Take one step of gradient descent, as a function of the state; return the logs and the new state."""
        import jax

        trainable, _, optimizer_state, metrics_state = state
        scope: Any = contextlib.nullcontext()
        if isinstance(self.optimizer, TwoMomenta):
            _, backward, aux = jax.vjp(self._loss_function(state, data, apart=True), trainable, has_aux=True)
            one, zero = ops.ones(()), ops.zeros(())
            (gradients,), (distillation,) = backward((one, zero)), backward((zero, one))
            scope = self.optimizer.with_distillation_gradients(distillation, self._auxiliary_indices)
        else:
            gradients, aux = jax.grad(self._loss_function(state, data), has_aux=True)(trainable)
        seen, non_trainable = aux
        with scope:
            trainable, optimizer_state = self.optimizer.stateless_apply(optimizer_state, gradients, trainable)
        logs, metrics_state = self._stateless_log(metrics_state, *seen)
        return logs, (trainable, non_trainable, optimizer_state, metrics_state)

    def _loss_function(self: Any, state: tuple, data: Any, *, apart: bool = False) -> Callable[[list], tuple]:
        """Return a function of the trainable variables.

        Its value is the loss, or its two parts; its auxiliary output is what `_log` takes and the new values of the
        other variables.
        """
        _, non_trainable, optimizer_state, _ = state

        def loss_function(trainable: list) -> tuple:
            with self._scope(trainable, non_trainable, optimizer_state) as inside:
                loss, seen = self._run(data, training=True)
                if apart:
                    loss = self._parts(seen[-1])
            changed = [inside.get_current_value(variable) for variable in self.non_trainable_variables]
            mapping = list(zip(self.optimizer.variables, optimizer_state, strict=True))
            with keras.StatelessScope(state_mapping=mapping):  # the loss scale of mixed_float16 is a variable
                return loss if apart else self.optimizer.scale_loss(loss), (seen, changed)

        return loss_function

    def test_step(self: Any, state: tuple, data: Any) -> tuple:
        """Return the loss terms and metrics of a batch, and the new state; no weight changes."""
        trainable, non_trainable, metrics_state = state
        with self._scope(trainable, non_trainable):
            _, seen = self._run(data, training=False)
        logs, metrics_state = self._stateless_log(metrics_state, *seen)
        return logs, (trainable, non_trainable, metrics_state)

    def _scope(self: Any, trainable: list, non_trainable: list, optimizer_state: Sequence = ()) -> keras.StatelessScope:
        """Return the scope in which the variables have these values and every update stays inside."""
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        mapping = list(zip(variables, [*trainable, *non_trainable], strict=True))
        if optimizer_state:  # which step it is
            mapping += list(zip(self.optimizer.variables, optimizer_state, strict=True))
        return keras.StatelessScope(state_mapping=mapping, collect_losses=True)

    def _stateless_log(self: Any, metrics_state: list, *batch: Any) -> tuple[dict, list]:
        mapping = zip(self.metrics_variables, metrics_state, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self._log(*batch)
        return logs, [scope.get_current_value(variable) for variable in self.metrics_variables]


class _NoSteps:
    """Refuses a backend whose steps are not written, as Keras's own would train without the distillation losses."""

    def __init__(self, *arguments: Any, **options: Any):
        raise ValueError(
            f"Distiller runs on the backends tensorflow and jax, not on {keras.backend.backend()}; set KERAS_BACKEND"
        )


Steps: Any = {"tensorflow": TensorFlowSteps, "jax": JaxSteps}.get(keras.backend.backend(), _NoSteps)
"""The steps of the backend in use."""

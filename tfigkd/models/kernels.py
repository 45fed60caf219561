"""Layers whose kernel is a function of other trained variables, and their conversion to plain layers."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfigkd.models.copies import copy_layer, verified_copy
from tfigkd.models.graph import flatten_layers


class Reparameterized(keras.layers.Layer):
    """A mixin for a layer whose kernel is a function of other variables; it comes first among the base classes.

    The saved state holds the kernel and the bias, as that of the plain layer does, and not the trained variables. So
    `copy_layer_state` copies from either kind to the other. Keras itself would save the kernel and load it into the
    trained variable.
    """

    plain: ClassVar[type[keras.Layer]]
    """The layer of Keras with the same function."""
    own: ClassVar[tuple[str, ...]]
    """Arguments of the constructor that the plain layer lacks."""

    def kernel_value(self) -> Any:
        """Return the kernel, a tensor in the precision of the variables."""
        raise NotImplementedError

    def set_kernel(self, kernel: np.ndarray) -> None:
        """Set the trained variables so that the kernel is this one."""
        raise NotImplementedError

    @property
    def kernel(self) -> Any:
        """The kernel, a tensor."""
        return self.kernel_value()

    def save_own_variables(self, store: dict) -> None:
        """Write the kernel and the bias, as the plain layer does."""
        if self.built:
            for index, value in enumerate([self.kernel_value(), *self._biases()]):
                store[str(index)] = value

    def load_own_variables(self, store: dict) -> None:
        """Read the kernel and the bias, as the plain layer does.

        Raises:
            ValueError: The store has another number of variables.
        """
        if not self.built:
            return
        biases = self._biases()
        if len(store.keys()) != 1 + len(biases):
            raise ValueError(f"expected {1 + len(biases)} variables for {self.name}, got {len(store.keys())}")
        self.set_kernel(np.asarray(ops.convert_to_numpy(store["0"])))
        for index, variable in enumerate(biases, 1):
            variable.assign(np.asarray(ops.convert_to_numpy(store[str(index)])))

    def _biases(self) -> list[Any]:
        return [self.bias] if self.use_bias else []

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.own}}


def with_reparameterized_kernels(
    model: keras.Model, kinds: Mapping[type[keras.Layer], type[keras.Layer]], **own: Any
) -> keras.Model:
    """Return a copy of a model whose trainable layers of some kinds are reparameterized ones.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        kinds: Plain layer to the one that takes its place.
        own: Arguments that the plain layer lacks.

    Returns:
        A Functional model with the same layer names and the same function, not compiled.

    Raises:
        UserError: The copy is not the same function.
    """

    def replace(layer: keras.Layer) -> keras.Layer:
        if not trains_kernel(layer, kinds):
            return copy_layer(layer)
        return kinds[type(layer)].from_config({**layer.get_config(), **own})

    return verified_copy(model, replace)


def trains_kernel(layer: keras.Layer, kinds: Mapping[type[keras.Layer], type[keras.Layer]]) -> bool:
    """Return whether a layer is of one of these very types and trains, unlike the normalization of the input."""
    return type(layer) in kinds and layer.trainable  # exact types: a subclass may transform its kernel


def with_plain_kernels(model: keras.Model) -> keras.Model:
    """Return a copy of a model in which every reparameterized layer is the plain one with its kernel.

    Args:
        model: From `with_power` or `with_chain`, or a copy; another one is returned as it is.

    Returns:
        A Functional model with the same layer names and the same function, not compiled.

    Raises:
        UserError: The copy is not the same function.
    """
    if not any(isinstance(layer, Reparameterized) for layer in flatten_layers(model)):
        return model

    def replace(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, Reparameterized):
            return copy_layer(layer)
        config = {name: value for name, value in layer.get_config().items() if name not in layer.own}
        return layer.plain.from_config(config)

    return verified_copy(model, replace)


def has_plain_kernel(layer: keras.Layer) -> bool:
    """Return whether a layer computes with its kernel as it is: not quantized by Keras, and without factors of LoRA."""
    return getattr(layer, "quantization_mode", None) is None and not getattr(layer, "lora_enabled", False)


def l1_of_kernels(model: keras.Model) -> Any:
    """Return the sum of the absolute values of a model's trained kernels, float32, whatever its layers."""
    layers = [layer for layer in flatten_layers(model) if layer.trainable]
    # a reparameterized layer computes its kernel from a variable that Keras calls kernel as well
    with_kernel = [layer for layer in layers if getattr(layer, "kernel", None) is not None]
    theirs = {id(variable) for layer in with_kernel for variable in layer.variables if variable.name == "kernel"}
    kernels = [layer.kernel for layer in with_kernel]
    kernels += [v for v in model.trainable_variables if v.name.endswith("kernel") and id(v) not in theirs]
    each_once = {id(kernel): kernel for kernel in kernels}.values()  # a wrapper may show its layer's kernel as its own
    return sum(ops.sum(ops.abs(ops.cast(kernel, "float32"))) for kernel in each_once)

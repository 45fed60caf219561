"""Over-parameterization: layers whose kernel is a product of tensors, contracted to plain kernels after the training.

See Zhan et al. 2024, "Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation"
(arXiv 2411.06448): a kernel, as a matrix [I,J], is a matrix product operator of tensors [d, i, j, d'], where the
product of all i is I and that of all j is J. As in the authors' code only the first and the last tensor have factors of
I and J. Those between are square matrices, so that the kernel is a deep linear chain. Nothing is truncated: the chain
starts as the plain kernel.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from threadpoolctl import threadpool_limits

from tfigkd.models.graph import flatten_layers
from tfigkd.models.kernels import Reparameterized, trains_kernel, with_reparameterized_kernels
from tfigkd.runtime.errors import UserError

CENTER, AUXILIARY = "center", "auxiliary"
"""Names of the variables. Weight decay applies only to the center, which shrinks the kernel as decay shrinks a plain
one. Decaying every tensor penalizes singular values to a power below 1, which lowers the rank."""


def split(size: int) -> tuple[int, int]:
    """Return the two factors of a number that are nearest to each other, the larger one first."""
    small = next(factor for factor in range(math.isqrt(size), 0, -1) if size % factor == 0)
    return size // small, small


def decompose(kernel: np.ndarray, tensors: int) -> list[np.ndarray]:
    """Return the tensors of a kernel, as matrices, in the canonical form around the center; computed in float64.

    With factors of 1 between the ends, the successive singular value decompositions are one decomposition and
    identities. The first tensor has orthonormal columns, the last orthonormal rows, and the center the singular values.
    Of each column of the first tensor the entry that is largest is positive, which decides the signs. Vectors of equal
    singular values remain arbitrary.

    Args:
        kernel: [..., J]; all axes but the last are I.
        tensors: Their number, odd and at least 3.

    Returns:
        float64 [i·j, d], [d, d], …, [d, i'·j'], with I = i·i', J = j·j' and d the smaller one of i·j and i'·j'.
    """
    rows, columns = split(kernel.size // kernel.shape[-1]), split(kernel.shape[-1])
    matrix = kernel.astype("float64").reshape(*rows, *columns).transpose(0, 2, 1, 3)
    with threadpool_limits(1):  # on a busy machine threads that wait for one another take fifty times as long
        left, values, right = np.linalg.svd(matrix.reshape(rows[0] * columns[0], -1), full_matrices=False)
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(len(values))])
    between = [np.eye(len(values))] * (tensors // 2 - 1)
    return [left * signs, *between, np.diag(values), *between, right * signs[:, None]]


def contract(tensors: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return the product of tensors from `decompose`, a kernel of this shape, [..., J]."""
    rows, columns = split(math.prod(shape[:-1])), split(shape[-1])
    matrix = functools.reduce(ops.matmul, tensors)
    parts = ops.reshape(matrix, (rows[0], columns[0], rows[1], columns[1]))
    return ops.reshape(ops.transpose(parts, (0, 2, 1, 3)), tuple(shape))


class _Chain(Reparameterized):
    """A mixin that gives a layer a chain of tensors as its kernel; it comes before the layer among the base classes."""

    own = ("tensors",)
    _kernel: Any

    def __init__(self, *arguments: Any, tensors: int = 5, **options: Any):
        super().__init__(*arguments, **options)
        if tensors < 3 or tensors % 2 == 0:
            raise ValueError(f"tensors must be odd and at least 3, got {tensors}")
        self.tensors = tensors

    def build(self, input_shape: Any) -> None:
        """Create the tensors so that their product is what the initializer draws."""
        super().build(input_shape)
        drawn = ops.convert_to_numpy(self._kernel)
        self._untrack_variable(self._kernel)
        self._kernel = None
        self.kernel_shape = drawn.shape
        # in a mixed precision the chain is contracted in float32 nevertheless
        options: dict[str, Any] = {"initializer": "zeros", "autocast": False}
        self.chain = [
            self.add_weight(shape=one.shape, name=CENTER if index == self.tensors // 2 else AUXILIARY, **options)
            for index, one in enumerate(decompose(drawn, self.tensors))
        ]
        self.set_kernel(drawn)

    @property
    def auxiliary(self) -> list[Any]:
        """All tensors but the center, which is free to differ from the teacher's."""
        return [variable for variable in self.chain if variable.name == AUXILIARY]

    @property
    def kernel(self) -> Any:
        """The kernel in the precision that the layer computes in."""
        return ops.cast(self.kernel_value(), self.compute_dtype)

    def kernel_value(self) -> Any:
        """Return the product of the tensors, of the kernel's shape."""
        return contract([ops.convert_to_tensor(variable) for variable in self.chain], self.kernel_shape)

    def set_kernel(self, kernel: np.ndarray) -> None:
        """Set the tensors to the decomposition of a kernel."""
        for variable, value in zip(self.chain, decompose(kernel, self.tensors), strict=True):
            variable.assign(value)


@keras.saving.register_keras_serializable("tfigkd")
class ChainConv2D(_Chain, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a kernel of `tensors` tensors."""

    plain = keras.layers.Conv2D


@keras.saving.register_keras_serializable("tfigkd")
class ChainDense(_Chain, keras.layers.Dense):
    """`keras.layers.Dense` with a kernel of `tensors` tensors."""

    plain = keras.layers.Dense


CHAINED: dict[type[keras.Layer], type[keras.Layer]] = {kind.plain: kind for kind in (ChainConv2D, ChainDense)}
"""Plain layer to the one with a chain. Depthwise kernels have few entries a channel and stay as they are."""


def with_chain(model: keras.Model, tensors: int) -> keras.Model:
    """Return a copy of a model whose trainable convolutions and dense layers have chains of tensors as kernels.

    Args:
        model: Functional or Sequential, models inside it too; it is not altered.
        tensors: Of each chain, odd and at least 3; with 0 the model itself is returned.

    Returns:
        A Functional model with the same layer names and the same function, not compiled.

    Raises:
        UserError: A kernel has a regularizer or a constraint, or the copy is not the same function.
    """
    if not tensors:
        return model
    for layer in flatten_layers(model):
        if trains_kernel(layer, CHAINED) and (layer.kernel_regularizer or layer.kernel_constraint):
            raise UserError(
                f"over-parameterization: the kernel of {layer.name} has a regularizer or a constraint, which a chain "
                "cannot keep; choose a student without them, or training.chain = 0"
            )

    return with_reparameterized_kernels(model, CHAINED, tensors=tensors)


def taught_tensors(
    student: keras.Model, teacher: keras.Model, *, permuted: bool = False
) -> list[tuple[Any, list[np.ndarray]]]:
    """Return the layers of a student that a teacher has kernels for, each with the auxiliary tensors of that kernel.

    Layers are paired by the shapes of their kernels: with the teacher's layer of the same name if all of a shape have
    one. Otherwise the teacher's layers of that shape are spread evenly over the student's; twice as many are paired as
    the authors do, i with 2i + 1, counted from 0.

    Args:
        student: From `with_chain`.
        teacher: With plain layers.
        permuted: A control: each layer has the tensors of the next layer of its shape. Where the teacher has one only,
            they are those of its kernel with the output channels in reverse order.

    Returns:
        Layers with their `auxiliary` tensors, and float32 tensors of the same shapes.

    Raises:
        ValueError: The student has no chain, or no kernel of a shape that the teacher has.
    """
    ours = _by_shape(layer for layer in flatten_layers(student) if isinstance(layer, _Chain))
    theirs = _by_shape(layer for layer in flatten_layers(teacher) if type(layer) in CHAINED)
    if not ours:
        raise ValueError("the student has no chains of tensors; set training.chain, or take models.with_chain")
    pairs = []
    for shape, layers in ours.items():
        kernels = _kernels_for(layers, theirs[shape], permuted) if shape in theirs else []
        for layer, kernel in zip(layers, kernels, strict=False):
            found = decompose(kernel, layer.tensors)
            del found[layer.tensors // 2]
            pairs.append((layer, [one.astype("float32") for one in found]))
    if not pairs:
        raise ValueError(
            f"no kernel of the student {student.name!r} has the shape of one of the teacher {teacher.name!r}; choose a "
            "student cut from this teacher or with the same channels, or weight 0"
        )
    return pairs


def _by_shape(layers: Iterable[keras.Layer]) -> dict[tuple[int, ...], list[keras.Layer]]:
    groups = defaultdict(list)
    for layer in layers:
        groups[tuple(layer.kernel.shape)].append(layer)
    return groups


def _kernels_for(layers: Sequence[keras.Layer], taught: Sequence[keras.Layer], permuted: bool) -> list[np.ndarray]:
    """Return a kernel of the teacher for each layer of the student, all of one shape."""
    names = [layer.name for layer in taught]
    if all(layer.name in names for layer in layers):
        chosen = [names.index(layer.name) for layer in layers]
    else:
        chosen = [math.ceil((index + 1) * len(taught) / len(layers)) - 1 for index in range(len(layers))]
    kernels = [ops.convert_to_numpy(layer.kernel) for layer in taught]
    if permuted:
        kernels = [*kernels[1:], kernels[0]] if len(kernels) > 1 else [kernels[0][..., ::-1]]
    return [kernels[index] for index in chosen]

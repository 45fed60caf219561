"""A model without models inside it."""

from collections.abc import Sequence
from typing import Any

import keras

from tfigkd.models.copies import copy_layer, copy_layer_state
from tfigkd.models.equivalence import check_same
from tfigkd.models.graph import graph_of, input_like, is_graph, run_graph, takes_training, without_empty_mask


def flattened(model: keras.Model) -> keras.Model:
    """Return a copy in which the layers of the models inside stand in the outer graph; the same function.

    Args:
        model: Functional or Sequential; it is not altered. One without models inside is returned as it is.

    Returns:
        A Functional model, not compiled. Layers keep their names; on a name clash, the inner model's name becomes a
        prefix: "backbone_conv". A model inside that is called with `training=False` passes this on to its layers.

    Raises:
        ValueError: The model is neither Functional nor Sequential, or not built.
        UserError: The copy is not the same function.
    """
    bare = graph_of(model)
    if not any(is_graph(layer) for layer in bare.layers):
        return model
    copies: dict[int, tuple[keras.Layer, keras.Layer]] = {}  # old and new, by the identity of the old
    names = {layer.name for layer in bare.layers if not is_graph(layer)}

    def copied(layer: keras.Layer, inside: Sequence[keras.Model]) -> keras.Layer:
        if id(layer) not in copies:
            name = layer.name
            if inside:
                while name in names:
                    name = f"{inside[-1].name}_{name}"
                names.add(name)
            new = copy_layer(layer, lambda config: {**config, "name": name})
            if not all(one.trainable for one in inside):
                new.trainable = False
            copies[id(layer)] = layer, new
        return copies[id(layer)][1]

    def run(graph: keras.Model, inputs: Any, inside: Sequence[keras.Model], training: bool | None) -> Any:
        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if is_graph(operation):
                asked = kwargs.get("training")
                return run(graph_of(operation), args[0], [*inside, operation], training if asked is None else asked)
            if not isinstance(operation, keras.Layer):
                return operation(*args, **kwargs)
            kwargs = without_empty_mask(kwargs)
            if training is not None and kwargs.get("training") is None and takes_training(operation):
                kwargs["training"] = training
            return copied(operation, inside)(*args, **kwargs)

        return run_graph(graph, inputs, call)

    inputs = [input_like(tensor) for tensor in bare.inputs]
    given = keras.tree.pack_sequence_as(bare.input, inputs) if isinstance(bare.input, dict | list) else inputs[0]
    result = keras.Model(given, run(bare, given, [], None), name=model.name)
    for old, new in copies.values():
        copy_layer_state(old, new)
    check_same(result, model)
    return result

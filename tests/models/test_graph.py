"""The graph of layers: Keras's private names of it stand in one module, and what that module tells of small graphs."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import tfigkd
from tfigkd.models import graph

PACKAGE = Path(tfigkd.__file__).parent
PRIVATE = re.compile(
    r"\b(_keras_history|_inbound_nodes|_outbound_nodes|_nodes_by_depth|_operations_by_depth|_run_through_graph"
    r"|_flatten_layers|_inputs_struct|_outputs_struct|_call_has_training_arg|_call_context_args)\b"
)


def test_keras_private_names_of_a_graph_stand_in_one_module():
    modules = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in modules.items() if PRIVATE.search(text)] == ["models/graph.py"]


def residual(name: str = "residual") -> keras.Model:
    """Return a model whose layer "shared" is called twice, the second time on its own output."""
    images = keras.Input((4, 4, 3), name="images")
    shared = keras.layers.Conv2D(3, 1, name="shared")
    first = shared(images)
    return keras.Model(images, keras.layers.Add(name="sum")([first, shared(first)]), name=name)


def test_each_node_comes_after_those_that_it_reads():
    model = residual()
    nodes = graph.nodes_of(model)
    assert [node.operation.name for node in nodes] == ["images", "shared", "shared", "sum"]
    seen: set[int] = set()
    for node in nodes:
        assert {id(tensor) for tensor in node.input_tensors} <= seen
        seen.update(id(tensor) for tensor in node.outputs)
    readers = graph.readers_of(model, nodes[1].outputs[0])
    assert sorted(node.operation.name for node in readers) == ["shared", "sum"]


def test_makers_sources_and_calls():
    model = residual()
    last = graph.maker_of(model.outputs[0])
    assert last is model.get_layer("sum")
    assert [graph.maker_of(tensor).name for tensor in graph.sources_of(last)] == ["shared", "shared"]
    assert graph.sources_of(graph.maker_of(model.inputs[0])) == []
    assert len(graph.calls_of(model.get_layer("shared"))) == 2


def test_the_output_of_a_layer_is_that_of_the_graph_asked_for():
    model = residual()
    part = keras.Model(model.inputs[0], graph.calls_of(model.get_layer("shared"))[0].outputs[0])
    assert graph.output_in(part, model.get_layer("shared")) is part.outputs[0]
    with pytest.raises(ValueError, match="the graph does not call 'sum'"):
        graph.output_in(part, model.get_layer("sum"))


def test_a_graph_runs_with_other_inputs_and_other_operations():
    model, images = residual(), np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(graph.run_graph(model, [images])), expected, atol=1e-6)
    called = []

    def call(operation, *args, **kwargs):
        called.append(operation.name)
        return args[0] if operation.name == "shared" else operation(*args, **kwargs)

    np.testing.assert_allclose(keras.ops.convert_to_numpy(graph.run_graph(model, images, call)), 2 * images, atol=1e-6)
    assert called == ["shared", "shared", "sum"]


def test_what_is_a_graph_and_what_is_one_of_one_input_and_output():
    built, unbuilt = residual(), keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    several = keras.Model(built.inputs, graph.sources_of(built.get_layer("sum")), name="several")

    class Subclassed(keras.Model):
        pass

    models = [built, unbuilt, several, Subclassed(), keras.layers.Dense(2)]
    assert [graph.is_graph(model) for model in models] == [True, True, True, False, False]
    assert [graph.is_built_graph(model) for model in models] == [True, False, True, False, False]
    assert [graph.single_graph(model) is not None for model in models] == [True, False, False, False, False]
    assert [graph.graph_of(model).name for model in (built, several)] == ["residual", "several"]
    for model in (unbuilt, models[3]):
        with pytest.raises(ValueError, match="must be Functional, or Sequential with a known input shape"):
            graph.graph_of(model)


def test_layers_at_any_depth():
    inside = residual("inside")
    outer = keras.Sequential([keras.Input((4, 4, 3)), inside, keras.layers.TimeDistributed(keras.layers.Dense(2))])
    names = [layer.name for layer in graph.flatten_layers(outer)]
    assert {"inside", "shared", "sum", "time_distributed", "dense"} <= {re.sub(r"_\d+$", "", name) for name in names}
    assert graph.flatten_layers(outer, include_self=True) == [outer, *graph.flatten_layers(outer)]


def test_an_input_like_that_of_a_model_has_its_name_and_type():
    model = keras.Sequential([keras.Input((4, 4, 3), dtype="uint8", name="bytes"), keras.layers.Rescaling(1 / 255)])
    same, other = graph.input_like(model.inputs[0]), graph.input_like(model.inputs[0], (None, 8, 8, 3))
    assert [graph.maker_of(tensor).name for tensor in (same, other)] == ["bytes", "bytes"]
    assert (same.shape, other.shape, other.dtype) == ((None, 4, 4, 3), (None, 8, 8, 3), "uint8")

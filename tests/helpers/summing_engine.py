"""An engine of TensorRT, on doubles, that sums its kv cache: rows plus one go in, the sum comes out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cuda_double import Cuda
from onnx import TensorProto, helper, numpy_helper
from tensorrt_double.binding import Binding
from tensorrt_double.runtime import Engine

from foveate.engines.spec import GraphSpec, Symbol, TensorSpec
from foveate.engines.trt import builder, runner
from foveate.engines.trt.cuda.device import Device, TrtBuffer
from foveate.engines.trt.runner import TrtEngine

ROWS, CACHE, HEADS, WIDTH = Symbol("tokens", 1, 4, 8), 8, 2, 3
PAST = 1, HEADS, CACHE, WIDTH


def spec(appending: bool = False) -> GraphSpec:
    past = TensorSpec("past.0.key", "float32", PAST)
    found = GraphSpec(
        "llm.0",
        (TensorSpec("rows", "float32", (1, ROWS, WIDTH)), TensorSpec("write_index", "int64", (1,)), past),
        (TensorSpec("total", "float32", (1,)), TensorSpec("present.0.key", "float32", PAST)),
        (("present.0.key", "past.0.key"),),
    )
    return found.appending() if appending else found


def save(file: Path, graph: GraphSpec, nodes: list[onnx.NodeProto], **constants: Any) -> Path:
    """Write the ONNX file of a graph whose nodes are given."""
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def info(tensor: TensorSpec) -> onnx.ValueInfoProto:
        dims = [dim if isinstance(dim, int) else dim.name for dim in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], dims)

    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    sides = list(map(info, graph.inputs)), list(map(info, graph.outputs))
    made = helper.make_graph(nodes, graph.name, *sides, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), file)
    return file


def summing(file: Path, graph: GraphSpec) -> Path:
    """Write a graph that puts its rows, plus one, into the cache, and answers the sum of the cache."""
    nodes = [
        helper.make_node("Add", ["rows", "one"], ["more"]),
        helper.make_node("Unsqueeze", ["more", "axis"], ["single"]),
        helper.make_node("Expand", ["single", "heads"], ["present.0.key" if graph.appends else "new"]),
    ]
    past, present = "past.0.key", "present.0.key"
    if not graph.appends:
        nodes.append(helper.make_node("TensorScatter", [past, "new", "write_index"], [present], axis=2))
    summed = past if graph.appends else present
    nodes.append(helper.make_node("ReduceSum", [summed, "rest"], ["sum"], keepdims=0))
    # so that every input is used, which TensorRT demands
    nodes.append(helper.make_node("Cast", ["write_index"], ["index"], to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Mul", ["index", "zero"], ["no"]),
        helper.make_node("Add", ["sum", "no"], ["total"]),
    ]
    return save(
        file, graph, nodes, one=np.float32(1), zero=np.float32(0), axis=[1], rest=[1, 2, 3],
        heads=np.array([1, HEADS, 1, 1]),
    )  # fmt: skip


def loaded(trt: Binding, source: Path, graph: GraphSpec, **options: Any) -> TrtEngine:
    """Build a plan, and load it."""
    options, plan = {"max_context": CACHE, **options}, source.with_suffix(".plan")
    facts = builder.build(trt, source, graph, options, plan)
    plan.with_suffix(".json").write_text(json.dumps(facts))
    return runner.load(trt, "tensorrt", plan, graph, options)


def summer(trt: Binding, folder: Path, appending: bool = False, **options: Any) -> TrtEngine:
    return loaded(trt, summing(folder / "llm.onnx", spec(appending)), spec(appending), **options)


def inner(engine: TrtEngine) -> Engine:
    """TensorRT's engine, which is the double's."""
    return engine._contexts[0].context.engine


def feeds(count: int, start: int) -> dict[str, np.ndarray]:
    return {"rows": np.full((1, count, WIDTH), start, "float32"), "write_index": np.array([start])}


def steps(engine: TrtEngine, cuda: Cuda, past: Any = None) -> tuple[list[float], list[Counter[str]]]:
    """A prompt of three rows and four steps: the answers, and the calls of CUDA that each took."""
    past, start, answers, calls = past or engine.allocate("past.0.key", {}), 0, [], []
    for count in (3, 1, 1, 1, 1):
        cuda.calls.clear()
        outputs = engine.run({**feeds(count, start), "past.0.key": past})
        assert outputs["present.0.key"] is past
        answers.append(float(outputs["total"].numpy()[0]))
        calls.append(Counter(cuda.calls))
        start += count
    return answers, calls


def expected(before: bool) -> list[float]:
    """The sums of the cache behind each step, or ``before`` the step's rows are in it."""
    ends = np.cumsum([3 * 1, 4, 5, 6, 7]) * HEADS * WIDTH
    return [0.0, *ends[:-1].tolist()] if before else ends.tolist()


def prompt_of(engine: TrtEngine, count: int) -> float:
    past = engine.allocate("past.0.key", {})
    return float(engine.run({**feeds(count, 0), "past.0.key": past})["total"].numpy()[0])


def on_device(home: Device, array: np.ndarray) -> TrtBuffer:
    found = TrtBuffer(home, array.shape, str(array.dtype))
    home.upload(found.address, array)
    return found

"""From an ONNX file to a plan. The plan holds the file, and where its weights lie."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tensorrt_double.faults import checked

TYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL",
}  # fmt: skip


class Tensor:
    """A tensor of a network. Giving it a name renames it in the file."""

    def __init__(self, network: Network, name: str) -> None:
        self._network, self._name = network, name

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        for node in self._network.model.graph.node:
            node.output[:] = [name if each == self._name else each for each in node.output]
        self._name = name

    @property
    def _info(self) -> Any:
        graph = self._network.model.graph
        return next((v for v in (*graph.output, *graph.value_info) if v.name == self._name), None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.dim_value if d.dim_value else -1 for d in self._info.type.tensor_type.shape.dim)

    @property
    def dtype(self) -> Any:
        kind = self._info.type.tensor_type.elem_type if self._info else TensorProto.FLOAT16
        return self._network.binding.DataType[TYPES.get(kind, "HALF")]


class Layer:
    """A node of the file."""

    def __init__(self, network: Network, node: onnx.NodeProto) -> None:
        self._inputs = [Tensor(network, name) for name in node.input]
        self._outputs = [Tensor(network, name) for name in node.output]
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)

    def get_input(self, index: int) -> Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self._outputs[index]


class Network:
    """A network definition: an ONNX model, once the parser has filled it."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.model, self.folder = binding, onnx.ModelProto(), ""

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_layer(self, index: int) -> Layer:
        return Layer(self, self.model.graph.node[index])

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self, self.model.graph.input[index].name)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_output(self, index: int) -> Tensor:
        return Tensor(self, self.model.graph.output[index].name)

    @checked
    def add_topk(self, tensor: Tensor, operation: Any, count: int, axes: int) -> Layer:
        assert operation is self.binding.TopKOperation.MAX and axes == 1 << len(tensor.shape) - 1
        graph = self.model.graph
        graph.initializer.append(numpy_helper.from_array(np.array([count]), "topk.count"))
        names = ["topk.values", "topk.wide"]
        graph.node.append(helper.make_node("TopK", [tensor.name, "topk.count"], names))
        graph.node.append(helper.make_node("Cast", names[1:], ["topk.ids"], to=TensorProto.INT32))
        return Layer(self, helper.make_node("TopK", [], [names[0], "topk.ids"]))

    def mark_output(self, tensor: Tensor) -> None:
        kind = TensorProto.INT32 if tensor.name.endswith("ids") else TensorProto.FLOAT16
        logits = next(o for o in self.model.graph.output if o.name == "logits")
        count = int(numpy_helper.to_array(self.model.graph.initializer[-1])[0])
        if kind != TensorProto.INT32:
            kind = logits.type.tensor_type.elem_type
        shape = [*(d.dim_value for d in logits.type.tensor_type.shape.dim)][:-1]
        self.model.graph.output.append(helper.make_tensor_value_info(tensor.name, kind, [*shape, count]))


class OnnxParser:
    """Fills a network from the bytes of an ONNX file."""

    def __init__(self, binding: Any, network: Network, log: Any) -> None:
        self.binding, self._network, self.num_errors = binding, network, 0

    @checked
    def parse(self, model: bytes, path: str | None = None) -> bool:
        self._network.model = onnx.load_from_string(model)
        self._network.folder = str(Path(path).parent) if path else ""
        return True

    def get_error(self, index: int) -> Any:
        raise IndexError(index)


class Profile:
    """An optimization profile: input -> its least, usual and most shape, or value."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}
        self.values: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = [list(least), list(usual), list(most)]

    def set_shape_input(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.values[name] = [list(least), list(usual), list(most)]


class Config:
    """Settings of a build. Any attribute can be set."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.profiles = binding, []

    @checked
    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert size > 0

    def set_flag(self, flag: Any) -> None:
        self.flag = flag

    @checked
    def create_timing_cache(self, content: bytes) -> Any:
        return TimingCache(content)

    @checked
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return isinstance(cache, TimingCache)


class TimingCache:
    """Timings: text that grows with each build."""

    def __init__(self, content: bytes) -> None:
        self.content = content or b"timings"

    def serialize(self) -> bytes:
        return self.content


class Builder:
    """Makes plans."""

    def __init__(self, binding: Any, log: Any) -> None:
        self.binding, self._log = binding, log

    @checked
    def create_network(self, flags: int) -> Network:
        assert flags == 1 << int(self.binding.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network(self.binding)

    @checked
    def create_builder_config(self) -> Config:
        return Config(self.binding)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    @checked
    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        graph = network.model.graph
        inputs = {each.name for each in graph.input}
        dynamic = {
            each.name
            for each in graph.input
            if any(not d.HasField("dim_value") for d in each.type.tensor_type.shape.dim)
        }
        for number, profile in enumerate(config.profiles):
            assert {*profile.shapes, *profile.values} <= inputs, "a profile names an input that is not there"
            if missing := dynamic - profile.shapes.keys():
                self._log.log(
                    self.binding.ILogger.Severity.ERROR, f"missing dimensions in profile {number}: {missing}"
                )
                return None
        if refused := [n.op_type for n in graph.node if re.search(self.binding.refuses, n.op_type)]:
            self._log.log(self.binding.ILogger.Severity.ERROR, f"{refused[0]}: no implementation")
            return None
        aliases = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "TensorScatter"}
        outputs = {each.name for each in graph.output}
        plan = {
            "model": base64.b64encode(network.model.SerializeToString()).decode(),
            "folder": network.folder,
            "shapes": [profile.shapes for profile in config.profiles],
            "values": [profile.values for profile in config.profiles],
            "aliases": {out: into for out, into in aliases.items() if out in outputs and into in inputs},
        }
        return json.dumps(plan).encode()

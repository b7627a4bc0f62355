"""From a plan to numbers."""

from __future__ import annotations

import base64
import ctypes
import itertools
import json
import math
from typing import Any

import numpy as np
import onnx
from cuda_double import ALIGNED, STREAM

from foveate.engines.ort.backend import onnxruntime
from tensorrt_double.builder import TYPES
from tensorrt_double.faults import checked

_NUMPY = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
SCRATCH = 512  # bytes of scratch memory per new row
_SCRIBBLE = 0xAB  # what a run leaves in its scratch memory


class Runtime:
    """Makes engines of plans."""

    def __init__(self, binding: Any, log: Any) -> None:
        self.binding, self.logger, self.engine_host_code_allowed = binding, log, False

    @checked
    def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
        return Engine(self.binding, json.loads(bytes(plan)))


class IoTensor:
    """An input or output of an engine. Dimensions are numbers, or names if they are dynamic."""

    def __init__(self, info: onnx.ValueInfoProto) -> None:
        kind = info.type.tensor_type
        self.name, self.type = info.name, TYPES[kind.elem_type]
        self.dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
        self.dtype = np.dtype(_NUMPY[self.type])


class Engine:
    """A plan that is loaded. ``contexts`` holds those that were made."""

    def __init__(self, binding: Any, plan: dict[str, Any]) -> None:
        self.binding, self.plan, self.contexts = binding, plan, []
        self.asked = 0  # questions for the size of the scratch memory
        self.lent: list[int] = []  # bytes of scratch memory of each run
        content = base64.b64decode(plan["model"])
        graph = onnx.load_from_string(content).graph
        self.inputs = {each.name: IoTensor(each) for each in graph.input}
        self.outputs = {each.name: IoTensor(each) for each in graph.output}
        self.io = {**self.inputs, **self.outputs}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", plan["folder"]
        )
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.num_optimization_profiles = len(plan["shapes"])
        self.num_io_tensors = len(self.io)

    def get_tensor_name(self, index: int) -> str:
        return list(self.io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.binding.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT if name in self.outputs else modes.NONE

    def get_tensor_dtype(self, name: str) -> Any:
        return self.binding.DataType[self.io[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.io[name].dims)

    def get_tensor_location(self, name: str) -> Any:
        places = self.binding.TensorLocation
        return places.HOST if name in self.plan["values"][0] else places.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.plan["aliases"].get(name)

    @property
    def device_memory_size_v2(self) -> int:
        return max(map(self.get_device_memory_size_for_profile_v2, range(self.num_optimization_profiles)))

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        first = next(iter(self.inputs))
        return self._scratch(self.plan["shapes"][profile].get(first, [self.inputs[first].dims] * 3)[2])

    def _scratch(self, shape: Any) -> int:
        """Return the scratch memory of a run whose first input has this shape."""
        return SCRATCH * (shape[1] if len(shape) > 1 else 1)

    @checked
    def create_execution_context(self, settings: Any) -> Context | None:
        managed = self.binding.ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(settings, RuntimeConfig):
            assert settings.get_execution_context_allocation_strategy() is managed
        else:
            assert settings is managed
        self.contexts.append(Context(self, settings))
        return self.contexts[-1]

    @checked
    def create_runtime_config(self) -> RuntimeConfig | None:
        assert self.binding.rtx, "only TensorRT-RTX has it"
        return RuntimeConfig(self.binding)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.binding)


class Inspector:
    """Tells the layers of an engine."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding

    @checked
    def get_engine_information(self, form: Any) -> str:
        return json.dumps({"Layers": ["one"]})


class RuntimeConfig:
    """Settings of a context of TensorRT-RTX."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.cuda_graph_strategy = binding, binding.CudaGraphStrategy.DISABLED
        self._strategy, self.cache = None, None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.binding)

    def set_runtime_cache(self, cache: RuntimeCache | None) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels of TensorRT-RTX: a number that grows by one with each that is compiled."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.kernels = binding, 0

    @checked
    def deserialize(self, blob: Any) -> bool:
        self.kernels = int(bytes(blob))
        return True

    def serialize(self) -> bytes:
        return str(self.kernels).encode()


class Context:
    """An execution context."""

    def __init__(self, engine: Engine, settings: Any) -> None:
        self.binding, self.engine, self.settings = engine.binding, engine, settings
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, int] = {}
        self.sizes: dict[str, int] | None = None  # dynamic dimensions, once shapes are inferred
        self.memory: tuple[int, int] | None = None
        self.runs = 0

    @checked
    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert int(stream) == STREAM
        others = [each.profile for each in self.engine.contexts if each is not self]
        assert profile not in others, "two contexts with one profile"
        self.profile, self.shapes, self.sizes = profile, {}, None
        return 0 <= profile < self.engine.num_optimization_profiles

    @checked
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "a shape before the profile"
        dims = self.engine.inputs[name].dims
        least, _, most = self.engine.plan["shapes"][self.profile].get(name, [dims] * 3)
        if len(shape) != len(dims) or not all(
            a <= n <= b for a, n, b in zip(least, shape, most, strict=True)
        ):
            return False
        self.shapes[name], self.sizes = tuple(shape), None
        return True

    @checked
    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.io, f"no tensor {name}"
        if self._hosted(name):
            assert not self.binding.cuda.owns(address, 1), f"{name} belongs on the host"
            self.sizes = None
        else:
            assert address % ALIGNED == 0, f"{name} at {address:#x} is not aligned to {ALIGNED} bytes"
            assert self.binding.cuda.owns(address, 1), f"{name} belongs on the device"
        self.places[name] = address
        return True

    @checked
    def infer_shapes(self) -> list[str]:
        hosted = self.engine.plan["values"][self.profile or 0]
        missing = [name for name in self.engine.inputs if name not in self.shapes]
        missing += [name for name in hosted if name not in self.places]
        if missing:
            return missing
        self.sizes = {}
        for name, shape in self.shapes.items():
            dims = self.engine.inputs[name].dims
            self.sizes |= {d: n for d, n in zip(dims, shape, strict=True) if isinstance(d, str)}
        for name, (least, _, most) in hosted.items():
            value = int(self._read(name).item())
            assert least[0] <= value <= most[0], f"the value of {name} is outside its profile"
            self.sizes[name] = value
        return []

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.sizes is not None, "the size of scratch memory before the shapes"
        self.engine.asked += 1
        return self._needed

    @property
    def _needed(self) -> int:
        return self.engine._scratch(self.shapes[next(iter(self.engine.inputs))])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        assert self.sizes is not None, "the shape of an output before those of the inputs"
        values = list(self.engine.plan["values"][self.profile or 0])
        unknown = self.sizes.get(values[0], -1) if values else -1
        return tuple(
            d if isinstance(d, int) else self.sizes.get(d, unknown) for d in self.engine.io[name].dims
        )

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNED == 0 and self.binding.cuda.owns(address, size), (
            "scratch is not on the device"
        )
        self.memory = address, size

    @checked
    def execute_async_v3(self, stream: int) -> bool:
        assert int(stream) == STREAM
        assert self.sizes is not None, "a run before the shapes"
        spans = self._spans()
        places, shapes = dict(self.places), {name: self.get_tensor_shape(name) for name in self.engine.io}
        values = {name: self._read(name).tobytes() for name in self.engine.inputs if self._hosted(name)}
        memory = self.memory

        def work() -> None:
            for name, before in values.items():
                got = _array(places[name], shapes[name], self.engine.io[name].dtype).tobytes()
                assert got == before, f"the host memory of {name} has changed under a queued run"
            for name, (start, end) in spans.items():
                assert self.binding.cuda.owns(start, end - start), f"{name} was freed under a queued run"
            self._compute(places, shapes)
            if memory:
                ctypes.memset(memory[0], _SCRIBBLE, memory[1])

        self.binding.cuda.enqueue(work)
        if isinstance(self.settings, RuntimeConfig) and self.settings.cache and not self.runs:
            self.settings.cache.kernels += 1
        self.runs += 1
        self.engine.lent.append(self.memory[1] if self.memory else 0)
        return True

    def _spans(self) -> dict[str, tuple[int, int]]:
        """Return the device memory of each tensor and of the scratch memory, after checking it."""
        spans = {}
        for name, tensor in self.engine.io.items():
            assert name in self.places, f"{name} has no address"
            if self._hosted(name):
                continue
            size = max(1, math.prod(self.get_tensor_shape(name)) * tensor.dtype.itemsize)
            start = self.places[name]
            assert self.binding.cuda.owns(start, size), f"{size} bytes of {name} are not on the device"
            spans[name] = start, start + size
        assert self.memory and self.memory[1] >= self._needed, f"less than {self._needed} bytes of scratch"
        spans["scratch memory"] = self.memory[0], sum(self.memory)
        aliases = self.engine.plan["aliases"]
        for out, into in aliases.items():
            assert spans[out] == spans[into], f"{out} is to be written to the memory of {into}"
        for (one, a), (other, b) in itertools.combinations(spans.items(), 2):
            both_read = one in self.engine.inputs and other in self.engine.inputs
            if not both_read and aliases.get(other) != one and aliases.get(one) != other:
                assert a[1] <= b[0] or b[1] <= a[0], f"{one} and {other} share memory"
        return spans

    def _compute(self, places: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        arrays = {n: _array(places[n], shapes[n], t.dtype) for n, t in self.engine.io.items()}
        feeds = {name: arrays[name].copy() for name in self.engine.inputs}
        found = self.engine.session.run(list(self.engine.outputs), feeds)
        for name, result in zip(self.engine.outputs, found, strict=True):
            if result.shape != arrays[name].shape:
                assert result.size <= arrays[name].size, f"{name} has the shape {result.shape}"
            arrays[name].reshape(-1)[: result.size] = result.reshape(-1)

    def _hosted(self, name: str) -> bool:
        return self.engine.get_tensor_location(name) is self.binding.TensorLocation.HOST

    def _read(self, name: str) -> np.ndarray:
        return _array(self.places[name], self.shapes[name], self.engine.io[name].dtype)


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype, math.prod(shape)).reshape(shape)

"""The decoder from torch to ONNX: every precision and dialect, prefill, chunks, decode, TensorRT-RTX."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from foveate.calib.statistics import InputStatistics
from foveate.engines.ort.backend import onnxruntime
from foveate.engines.trt import backend as trt
from foveate.export import lowering
from foveate.export.bundling.precision import Precision, dialects
from foveate.export.bundling.write_graphs import write_graphs
from foveate.export.graphs.llm import language_graphs
from foveate.export.networks.decoder import Decoder, rope_tables
from foveate.export.spec import DecoderSpec

TOLERANCE = {"float32": 1e-5, "float16": 4e-3}  # largest error over largest value


def decoder_spec(kv_heads: int) -> DecoderSpec:
    return DecoderSpec(256, 384, 2, 4, kv_heads, 64, 500, 1e-5, 1e4, 128, tied=False)


class RandomWeights:
    """Seeded random values for every parameter, made when asked for."""

    def __init__(self, decoder: Decoder) -> None:
        tables = zip(("rope_cos", "rope_sin"), rope_tables(decoder.spec), strict=True)
        self.tensors = {f"llm.{name}": table for name, table in tables}
        generator = torch.Generator().manual_seed(7)
        for name, parameter in decoder.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            scaled = value * parameter.shape[0] ** -0.5 if value.ndim == 2 else 1 + 0.1 * value
            self.tensors[f"llm.{name}"] = scaled

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def get(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Ranges:
    """Calibration's answer where every input of a product reaches as far as it ever does in these tests."""

    def inputs(self, weight: str) -> InputStatistics:
        reach = 8.0 if "down_proj" in weight else 6.0
        return InputStatistics(np.array([reach]), np.array([1.0]), reach)


def export(directory, precision: str, kv_heads: int = 2, head: str | None = None, only: str | None = None):
    """Write the files of the dialects that take it, or of one.

    Returns the graph, and the torch decoder with the weights that the files hold.
    """
    with torch.device("meta"):
        decoder = Decoder(decoder_spec(kv_heads))
    (graph,) = language_graphs(SimpleNamespace(decoder=decoder), None)
    chosen = Precision(precision, head)
    names, _ = dialects(chosen, [only] if only else None, calibrated=True)
    readings = write_graphs(
        directory,
        SimpleNamespace(weights=RandomWeights(decoder), spec=SimpleNamespace(decoder=decoder.spec)),
        [graph],
        chosen,
        names,
        lambda *progress: None,
        Ranges(),
    ).readings
    store = next(iter(readings.values())).store
    reference = Decoder(decoder_spec(kv_heads)).eval()
    for name, parameter in reference.named_parameters():
        parameter.data = store.get(f"llm.{name}")
    reference.rope_cos, reference.rope_sin = rope_tables(reference.spec)
    return graph, reference


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(precision, kv_heads, head)``: directory, graph, torch decoder.

    They are written once and shared: do not change them.
    """
    made = {}

    def get(precision: str, kv_heads: int = 2, head: str | None = None):
        key = precision, kv_heads, head
        if key not in made:
            directory = tmp_path_factory.mktemp("decoder")
            made[key] = directory, *export(directory, *key)
        return made[key]

    return get


def session(path, optimized: bool = True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32 products
    return onnxruntime.InferenceSession(str(path), options)


def inputs(spec: DecoderSpec, rows: int, written: int, cache: int, past=None) -> list[torch.Tensor]:
    empty = [torch.zeros(1, spec.num_kv_heads, cache, spec.head_dim) for _ in range(2 * spec.num_layers)]
    embeds = (torch.randn(1, rows, spec.hidden_size) * 0.5).half().float()
    positions = torch.arange(written, written + rows)[None]
    return [embeds, positions, torch.tensor([written]), torch.tensor([rows - 1]), *(past or empty)]


@pytest.mark.parametrize("dialect", lowering.names())
@pytest.mark.parametrize(("precision", "kv_heads"), [("fp32", 4), ("fp32", 1), ("fp16", 2), ("int4", 2)])
def test_onnx_equals_torch(exported, precision, kv_heads, dialect):
    directory, graph, reference = exported(precision, kv_heads)
    path = directory / f"llm.{dialect}.onnx"
    onnx.checker.check_model(path, full_check=True)
    run = session(path)
    dtype = lowering.load(dialect).dtypes[precision]
    past = None
    for rows, written in ((37, 0), (1, 37), (5, 38), (1, 43)):  # prefill, decode, a chunk, decode
        feeds = inputs(reference.spec, rows, written, 64, past)
        with torch.no_grad():
            expected = reference(*feeds)
        arrays = [x.numpy().astype(dtype) if x.is_floating_point() else x.numpy() for x in feeds]
        answers = run.run(None, {i.name: x for i, x in zip(run.get_inputs(), arrays, strict=True)})
        assert [i.name for i in run.get_inputs()] == [t.name for t in graph.spec.inputs]
        for answer, truth in zip(answers, expected, strict=True):
            used = truth.numpy()
            if truth.ndim == 4:  # a cache
                first = written if dialect == "primitive" else 0  # it gives out the new rows alone
                used, answer = used[:, :, first : written + rows], answer[:, :, : written + rows - first]
            assert np.abs(answer - used).max() <= TOLERANCE[dtype] * np.abs(used).max()
        past = list(expected[1:])


def test_int4_weights_are_shared_between_dialects(exported):
    directory, _, _ = exported("int4")
    files = {path.name for path in (directory / "weights").iterdir()}
    assert files == {"llm.int4.data", "llm.float32.data", "llm.float16.data"}
    for dialect in lowering.names():
        model = onnx.load(directory / f"llm.{dialect}.onnx", load_external_data=False)
        packed = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4]
        assert len(packed) == 14
        for tensor in packed:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "weights/llm.int4.data"
            assert int(entries["offset"]) % 4096 == 0


@pytest.mark.parametrize("dialect", lowering.names())
def test_graphs_are_standard_onnx_without_traces_of_this_machine(exported, dialect):
    directory, _, _ = exported("int4")
    model = onnx.load(directory / f"llm.{dialect}.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21 if dialect == "primitive" else 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert b"/export/" not in model.SerializeToString()


def test_ort_attends_by_length_and_native_by_mask(exported):
    directory, _, _ = exported("fp16")
    nodes = {}
    for dialect in lowering.names():
        graph = onnx.load(directory / f"llm.{dialect}.onnx", load_external_data=False).graph
        nodes[dialect] = [node for node in graph.node if node.op_type == "Attention"]
    assert all(len(node.input) == 7 and not node.input[3] and node.input[6] for node in nodes["ort"])
    assert all(len(node.input) == 4 and node.input[3] for node in nodes["native"])
    assert len(nodes["ort"]) == len(nodes["native"]) == 2
    assert not nodes["primitive"]


@pytest.mark.parametrize(
    ("precision", "head"), [("fp16", None), ("int4", "int8"), ("int8", "int4"), ("fp8", "fp8")]
)
def test_tensorrt_rtx_compiles_the_native_dialect(exported, precision, head):
    directory, graph, _ = exported(precision, head=head)
    plan = trt.compile_plan(directory / "llm.native.onnx", graph.spec.typed("float16"), max_context=128)
    assert len(plan) > 100_000


@pytest.mark.parametrize("precision", ["fp16", "int4", "int8"])
def test_tensorrt_rtx_compiles_the_primitive_dialect(exported, precision):
    directory, graph, _ = exported(precision)
    spec = graph.spec.typed("float16").appending()
    plan = trt.compile_plan(directory / "llm.primitive.onnx", spec, max_context=128)
    assert len(plan) > 100_000


def round_inputs(reference: Decoder, precision: str, dialect: str) -> None:
    """Rounding of the inputs of the layers' products, from their definitions."""

    def dynamic(x):  # each row alone: 127 steps on either side of 0, up to its largest value
        peak, step = x.abs().amax(-1, keepdim=True), np.float32(1 / 127)
        return (x / peak / step).round() * step * peak

    def static(x, reach):
        step = np.float32(reach / (127 if precision == "int8" else 448))
        if precision == "int8":
            return (x / step).round().clamp(-127 - 1, 127) * step
        return (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step

    for name, module in reference.named_modules():
        if name.startswith("layers.") and name.endswith("_proj"):
            reach = 8.0 if "down_proj" in name else 6.0
            rounding = dynamic if dialect == "ort" else lambda x, reach=reach: static(x, reach)
            module.register_forward_pre_hook(lambda _, inputs, rounding=rounding: rounding(inputs[0]))


@pytest.mark.parametrize(("precision", "dialect"), [("int8", "ort"), ("int8", "native"), ("fp8", "native")])
def test_activations_are_rounded_as_the_scheme_says(tmp_path, monkeypatch, precision, dialect):
    """Answers agree in float32, for one of three prompts at least.

    A value on the edge of a rounding falls to either side, and later layers amplify that. The ``native`` form
    is taken as it is written: ONNX Runtime's own fusion of it overflows on CPUs without VNNI, which ``ort``
    avoids.
    """
    monkeypatch.setitem(lowering.load(dialect).dtypes, precision, "float32")
    _, reference = export(tmp_path, precision, only=dialect)
    path = tmp_path / f"llm.{dialect}.onnx"
    onnx.checker.check_model(path, full_check=True)
    run = session(path, optimized=dialect == "ort")
    prompts = [inputs(reference.spec, 37, 0, 64) for _ in range(3)]
    with torch.no_grad():
        plain = [reference(*feeds)[0].numpy() for feeds in prompts]
        round_inputs(reference, precision, dialect)
        rounded = [reference(*feeds)[0].numpy() for feeds in prompts]
    logits = []
    for feeds in prompts:
        arrays = {i.name: x.numpy() for i, x in zip(run.get_inputs(), feeds, strict=True)}
        logits.append(run.run(["logits"], arrays)[0])

    def distances(expected):
        return [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(logits, expected, strict=True)]

    assert min(distances(rounded)) < 1e-5
    assert all(1e-3 < apart < 0.2 for apart in distances(plain))

"""Plans on a GPU: needs cuda-bindings and one of the TensorRT bindings. See scripts/gpu_check.sh."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from foveate.engines.targets import backend
from foveate.engines.trt.cuda.gpu import find_gpu
from foveate.engines.trt.library import LIBRARY
from foveate.export import methods
from foveate.export.build import build
from foveate.export.models import llava
from foveate.runtime.bundle import compiled
from foveate.runtime.bundle.arrays import Archive
from foveate.runtime.bundle.compiled import load_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import compare
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.compiling.recorded_run import read_run
from foveate.runtime.llm.decoder import Decoder
from foveate.runtime.llm.logits import Logits
from foveate.runtime.llm.segment import Segment
from foveate.runtime.pipeline import Pipeline

TARGETS = [target for target, module in LIBRARY.items() if importlib.util.find_spec(module)]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(isinstance(find_gpu(), str), reason=str(find_gpu())),
    pytest.mark.skipif(not TARGETS, reason="neither tensorrt nor tensorrt_rtx is installed"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "bundle"
    build(llava.tiny(layers=4), methods.load("fastv"), out, precision="fp16")
    compile_bundle(out, "onnxruntime")
    return out


@pytest.fixture(
    scope="module", params=[(t, d) for t in TARGETS for d in ("native", "primitive")], ids="-".join
)
def plan(root: Path, request: pytest.FixtureRequest) -> compiled.CompiledEngine:
    """Compiled, and proved by the self-test."""
    target, dialect = request.param
    if dialect not in backend(target).dialects:
        pytest.skip(f"{target} is too old for the dialect {dialect}")
    folder = compile_bundle(root, target, dialect=dialect, options={"max_context": 128}, force=True)
    return compiled.choose(load(root), folder.name)


def test_the_self_test_passes_without_a_workaround(plan: compiled.CompiledEngine) -> None:
    assert plan.self_test["ok"]
    assert not any(plan.workarounds.values())


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_same_logits_as_onnx_runtime(
    root: Path, plan: compiled.CompiledEngine, cuda_graphs: bool
) -> None:
    """Prefill and 24 steps, in both engines after the same tokens."""
    bundle = load(root)
    settings = {"threads": 1, "cuda_graphs": cuda_graphs}
    engines = [
        load_engines(bundle, chosen, settings) for chosen in (compiled.choose(bundle, "onnxruntime"), plan)
    ]
    one, other = (Decoder(each, bundle.embeddings(), bundle.manifest) for each in engines)
    prompt = list(range(5, 40))
    logits = [decoder.prefill(prompt, 25).logits.numpy() for decoder in (one, other)]
    for _ in range(24):
        cosine = np.dot(*logits) / np.prod([np.linalg.norm(x) for x in logits])
        assert cosine > 0.999
        token = int(logits[0].argmax())
        logits = [decoder.step(token).numpy().astype(np.float32) for decoder in (one, other)]


def test_the_same_answer_with_device_sampling(
    root: Path, plan: compiled.CompiledEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of one engine whose candidates nobody looks at; the self-test did."""
    own = shutil.copytree(root, tmp_path / "own")
    options = {"max_context": 128, "device_sampling": True}
    folder = compile_bundle(own, plan.target, dialect=plan.dialect, options=options, force=True)
    made = compiled.choose(load(own), folder.name)
    assert any(finding["answer"] == "top_values" for finding in made.self_test["findings"])
    pipe, image = (
        Pipeline.load(own, made.key),
        np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8),
    )

    def answers() -> list[list[int]]:
        settings = ({}, {"temperature": 1.2, "top_k": 40, "seed": 5}, {"temperature": 1.2, "seed": 5})
        return [pipe.generate(image, "What is it?", max_new_tokens=16, **each).tokens for each in settings]

    found = answers()
    monkeypatch.setattr(Logits, "of", lambda outputs: Logits(outputs["logits"]))
    assert answers() == found


def test_a_buffer_outlives_the_next_run_of_its_engine(root: Path, plan: compiled.CompiledEngine) -> None:
    engine = load_engines(load(root), plan, {})["vision_encoder"]
    shape = engine.spec.input("pixel_values").shape
    first, second = (np.full(shape, value, "float16") for value in (0.1, 0.9))
    held = engine.run({"pixel_values": first})["projected"]
    before = held.numpy()
    engine.run({"pixel_values": second})
    np.testing.assert_array_equal(held.numpy(), before)


def test_inspect_tells_the_memory_on_the_gpu(plan: compiled.CompiledEngine) -> None:
    made = backend(plan.target)
    assert made.describe(plan.path, "vision_encoder")["device_bytes"] >= 0


def test_polygraphys_runner_agrees(
    root: Path, plan: compiled.CompiledEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second opinion on our runner: the same plans, run by NVIDIA's own tool on the recorded inputs."""
    rtx = plan.target == "tensorrt-rtx"
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", str(int(rtx)))  # read at its first import
    polygraphy = pytest.importorskip("polygraphy.backend.trt")
    if rtx != pytest.importorskip("polygraphy.config").USE_TENSORRT_RTX:
        pytest.skip("polygraphy drives one of the two bindings in a process")
    bundle = load(root)
    engines = load_engines(bundle, plan, {})
    for name in bundle.manifest.stages:
        spec, engine = bundle.manifest.spec(name, plan.dialect), engines[name]
        with Archive(bundle.golden(plan.dialect)) as golden:
            recorded = read_run(bundle.manifest, name, spec, golden)
        given = dict(recorded.inputs)
        for _, past in spec.in_place:  # as long as the plan's
            given[past] = np.zeros(engine.spec.input(past).extent("max"), given[past].dtype)
        with polygraphy.TrtRunner(
            polygraphy.EngineFromBytes((plan.path / f"{name}.plan").read_bytes())
        ) as it:
            theirs = {key: np.array(value) for key, value in it.infer(given, check_inputs=False).items()}
        if spec.in_place:
            segment = Segment(engine)
            rows = given[spec.inputs[0].name]
            segment.cache.reserve(rows.shape[1])
            ours = segment.run(rows, given["position_ids"][..., 0, :])
        else:
            ours = engine.run(given)
        limits = self_test.limits_in(bundle, plan.dialect, name)
        compared = [key for key in recorded.outputs if not key.startswith("present.")]
        assert compared
        for key in compared:
            for one, other in ((ours[key].numpy(), theirs[key]), (theirs[key], recorded.outputs[key])):
                assert compare(name, key, one, other, limits).ok, f"{name} {key}"

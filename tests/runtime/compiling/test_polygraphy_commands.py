"""The commands for Polygraphy: where they are named, and that Polygraphy takes them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import main
from foveate.runtime.compiling import polygraphy_commands as commands
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.compiling.polygraphy_folder import export_polygraphy

HINT = (
    "; `foveate check {0} --export-polygraphy DIR && sh DIR/{1}/llm/reduce.sh` finds the node with "
    "polygraphy debug reduce"
)


@pytest.fixture
def native(make_bundle: Callable[..., Path]) -> Path:
    """A bundle whose graphs are said to be in a dialect of TensorRT."""
    root = make_bundle()
    data = json.loads((root / "bundle.json").read_text())
    data["dialects"] = {"native": data["dialects"]["ort"], "ort": data["dialects"]["ort"]}
    (root / "bundle.json").write_text(json.dumps(data))
    return root


def test_the_hint_names_the_script(native: Path) -> None:
    hint = commands.reduce_hint(load(native), "tensorrt", "native", "llm")
    assert hint == HINT.format(native, "native")
    rtx = commands.reduce_hint(load(native), "tensorrt-rtx", "native", "llm")
    assert "DIR && POLYGRAPHY_USE_TENSORRT_RTX=1 sh DIR/native/llm/reduce.sh`" in rtx


@pytest.mark.parametrize(
    ("target", "dialect", "graph"),
    [("onnxruntime", "native", "llm"), ("tensorrt", "ort", "llm"), ("tensorrt", "native", "pruner")],
)
def test_no_hint_where_polygraphy_cannot_find_it(
    native: Path, tmp_path: Path, target: str, dialect: str, graph: str
) -> None:
    """There is no second engine, TensorRT does not take the dialect, or the graph makes choices."""
    bundle = load(native)
    assert commands.reduce_hint(bundle, target, dialect, graph) == ""
    if target != "onnxruntime":
        export_polygraphy(bundle, tmp_path / "out")
        assert not (tmp_path / "out" / dialect / graph / "reduce.sh").exists()
        assert (tmp_path / "out/native/llm/reduce.sh").exists()


def test_no_hint_for_weights_of_two_gigabytes(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (native / "weights/llm.data").stat().st_size
    monkeypatch.setattr(commands, "_PROTOBUF", size)
    assert commands.reduce_hint(load(native), "tensorrt", "native", "llm") == ""
    monkeypatch.setattr(commands, "_PROTOBUF", size + 1)
    assert commands.reduce_hint(load(native), "tensorrt", "native", "llm")


def test_a_failed_self_test_ends_with_the_hint(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime stands for TensorRT."""
    root = make_bundle(fault="stale")
    monkeypatch.setattr(commands, "LIBRARY", {"onnxruntime": "onnxruntime"})
    monkeypatch.setattr(commands, "DIALECTS", ("ort",))
    with pytest.raises(UserError, match="the graph llm is wrong on this machine") as error:
        compile_bundle(root)
    assert str(error.value).endswith(HINT.format(root, "ort"))
    compile_bundle(root, self_test=False)
    assert main(["check", str(root)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"--force{HINT.format(root, 'ort')}")


def test_words_are_quoted(native: Path, tmp_path: Path) -> None:
    """As a shell reads them, but for the bundle's folder."""
    root = native.rename(tmp_path / "it's $HOME here")
    export_polygraphy(load(root), tmp_path / "out")
    for script in (tmp_path / "out").rglob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
    text = (tmp_path / "out/native/llm/reduce.sh").read_text()
    text = "\n".join(text.replace("polygraphy", "printf '%s\\n'").splitlines())
    said = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert str(root) in said.splitlines() and "*" in said.splitlines()
    assert "Mismatched outputs" in said.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a bundle with two segments of the language model and a pruner between them."""
    methods = pytest.importorskip("foveate.export.methods")
    llava = pytest.importorskip("foveate.export.models.llava")
    build = pytest.importorskip("foveate.export.build").build
    root = tmp_path_factory.mktemp("built")
    build(llava.tiny(layers=4), methods.load("fastv"), root / "bundle", precision="fp16")
    export_polygraphy(load(root / "bundle"), root / "out")
    return root / "out"


def run(*words: object, cwd: Path, **variables: str) -> str:
    """Run a command that must succeed, and return what it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "ORT_DISABLE_TELEMETRY": "1"} | variables
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def last_command(script: Path) -> list[str]:
    """Return the words of a script's last command."""
    bundle = script.parents[3] / "bundle"
    text = script.read_text().replace("\\\n", " ").replace('"$bundle"', shlex.quote(str(bundle)))
    return shlex.split(text.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["native", "primitive", "ort"])
def test_polygraphy_agrees_about_every_graph(folder: Path, dialect: str) -> None:
    pytest.importorskip("polygraphy")
    graphs = ["llm.0", "llm.1", "pruner.0", "vision_encoder"]
    assert sorted(path.name for path in (folder / dialect).iterdir()) == graphs
    for graph in graphs:
        said = run("sh", "onnxrt.sh", cwd=folder / dialect / graph)
        assert "All outputs matched" in said
        assert (graph != "llm.0") or "Comparing Output: 'hidden'" in said


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["native", "primitive"])
def test_tensorrt_rtx_builds_what_the_scripts_name(folder: Path, dialect: str, tmp_path: Path) -> None:
    """Without a GPU nothing can be run: ``polygraphy convert`` takes the same model and ranges."""
    pytest.importorskip("polygraphy")
    pytest.importorskip("tensorrt_rtx")
    for graph in ("llm.0", "llm.1", "pruner.0", "vision_encoder"):
        where = folder / dialect / graph
        for weights in (folder.parent / "bundle/weights").iterdir():  # what the script does first
            (where / "weights").mkdir(exist_ok=True)
            (where / "weights" / weights.name).unlink(missing_ok=True)
            (where / "weights" / weights.name).symlink_to(weights)
        _, _, model, *words = last_command(where / "trt.sh")
        ranges = words[words.index("--trt-min-shapes") :] if "--trt-min-shapes" in words else []
        plan = tmp_path / f"{graph}.plan"
        convert = ("polygraphy", "convert", model, "--convert-to", "trt", "--strongly-typed", "-o", plan)
        said = run(*convert, *ranges, cwd=where, POLYGRAPHY_USE_TENSORRT_RTX="1")
        assert plan.stat().st_size > 1000
        for word in ranges[1 : ranges.index("--trt-opt-shapes")] if ranges else ():
            name, least = word.split(":")
            assert f"{name} [min={least.replace(',', ', ')}" in said


@pytest.mark.slow
def test_reduce_finds_the_first_wrong_node(folder: Path) -> None:
    """ONNX Runtime stands for TensorRT, and the reference is falsified from one node on."""
    comparator = pytest.importorskip("polygraphy.comparator")
    pytest.importorskip("onnx_graphsurgeon")
    onnx = pytest.importorskip("onnx")
    where = folder / "native/llm.1"
    reference, reduce = (where / "reduce.sh").read_text().replace("\\\n", " ").splitlines()[-2:]
    bundle = shlex.quote(str(folder.parent / "bundle"))
    run(*shlex.split(reference.replace('"$bundle"', bundle)), cwd=where)
    layers = comparator.RunResults.load(str(where / "layers.json"))
    nodes = onnx.load(where / "graph.onnx", load_external_data=False).graph.node
    planted = [node for node in nodes if node.op_type == "MatMul"][3]
    wrong = False
    result = layers[0][1][0]
    for node in nodes:
        wrong |= node.name == planted.name
        for name in node.output if wrong else ():
            if name in result and result[name].dtype.kind == "f":
                result[name] = np.random.default_rng(0).standard_normal(result[name].shape)
    layers.save(str(where / "layers.json"))
    words = shlex.split(reduce.replace('"$bundle"', bundle))
    assert words.pop(words.index("--trt") + 1) == "--strongly-typed"
    words[words.index("--trt")] = "--onnxrt"
    run(*words, cwd=where)
    found = onnx.load(where / "reduced.onnx").graph.node
    assert found[-1].name == planted.name

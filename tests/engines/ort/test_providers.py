"""The CUDA provider: what is refused if it cannot start, on a double of onnxruntime-gpu without CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.engines.errors import UserError
from foveate.engines.ort import backend, library, providers, session
from foveate.engines.ort import compile as compiler
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec
from foveate.runtime.compiling.compile import compile_bundle

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SAID = """Failed to load /site/nvidia/cu13/lib/libcublas.so.13: wrong ELF class
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or directory
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.
"""


class Double:
    """onnxruntime-gpu 1.31.1. ``said`` is what ``preload_dlls`` prints, ``starts`` whether CUDA can start."""

    __version__, cuda_version = "1.31.1", "13.0"
    SessionOptions = backend.onnxruntime.SessionOptions
    GraphOptimizationLevel = backend.onnxruntime.GraphOptimizationLevel

    def __init__(self, said: str = "", starts: bool = True) -> None:
        self.said, self.starts = said, starts
        self.calls: list[Any] = []

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", CUDA, CPU]

    def preload_dlls(self) -> None:
        self.calls.append("preload")
        print(self.said, end="")

    def InferenceSession(  # noqa: N802, its name in onnxruntime
        self, model: str, config: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> SimpleNamespace:
        self.calls.append((model, providers, enable_fallback))
        names = [name for name, _ in providers]
        return SimpleNamespace(get_providers=lambda: names if self.starts else [CPU])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Double]:
    """``installed(said, starts, driver)`` puts the double in the place of onnxruntime."""

    def install(said: str = "", starts: bool = True, driver: bool = True) -> Double:
        double = Double(said, starts)
        for module in (backend, providers, session, compiler):
            monkeypatch.setattr(module, "onnxruntime", double)
        real = ctypes.CDLL

        def load(name: str, *rest: Any) -> Any:
            if name != "libcuda.so.1":
                return real(name, *rest)
            if not driver:
                raise OSError(f"{name}: cannot open shared object file: No such file or directory")
            return None

        monkeypatch.setattr(ctypes, "CDLL", load)
        return double

    return install


@pytest.mark.parametrize(
    ("said", "driver", "missing", "remedy"),
    [
        (SAID, True, "libcurand.so.10 cannot", f"{library.INSTALL_CUDA}, or take --provider cpu"),
        ("", False, "libcuda.so.1 cannot", "install NVIDIA's driver, or take --provider cpu"),
        (SAID, False, "libcurand.so.10, libcuda.so.1 cannot", f"{library.INSTALL_CUDA} and install NVIDIA's"),
    ],
)
def test_missing_libraries_are_named_before_anything_is_compiled(
    installed: Callable[..., Double],
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    said: str,
    driver: bool,
    missing: str,
    remedy: str,
) -> None:
    installed(said, driver=driver)
    with pytest.raises(UserError) as error:
        compile_bundle(bundle, options={"provider": "cuda"}, self_test=False)
    what, why, how = str(error.value).split(" | ")
    assert what == "ONNX Runtime 1.31.1 cannot use the GPU" and missing in why and "CUDA 13.0" in why
    assert how.startswith(remedy)
    assert "libcublas" not in why  # one of them was found in another place
    assert capsys.readouterr().out == ""
    assert not [folder for folder in (bundle / "engines").iterdir() if "cuda" in folder.name]


def test_a_session_on_cuda(installed: Callable[..., Double]) -> None:
    """CUDA's libraries are loaded first, products are float32, and an error is not followed by the CPU."""
    double = installed()
    opened = providers.open_session(Path("llm.onnx"), None, {"provider": "cuda"})
    assert opened.get_providers() == [CUDA, CPU]
    assert double.calls == ["preload", ("llm.onnx", [(CUDA, {"use_tf32": "0"}), (CPU, {})], 0)]


def test_a_session_on_the_cpu_needs_no_cuda(installed: Callable[..., Double]) -> None:
    double = installed(SAID, starts=False, driver=False)
    assert providers.open_session(Path("llm.onnx"), None, {}).get_providers() == [CPU]
    assert double.calls == [("llm.onnx", [(CPU, {})], 0)]


FELL_BACK = r"cannot use the GPU and took the CPUExecutionProvider for llm\.onnx \| .* \| .*nvidia-smi"


def test_a_session_that_fell_back_is_not_loaded(installed: Callable[..., Double], tmp_path: Path) -> None:
    installed(starts=False)
    with pytest.raises(UserError, match=FELL_BACK):
        session.load(tmp_path, GraphSpec("llm", (), ()), {"provider": "cuda"})


def test_a_session_that_fell_back_is_not_compiled(installed: Callable[..., Double], tmp_path: Path) -> None:
    installed(starts=False)
    job = {"source": "llm.onnx", "folder": str(tmp_path), "name": "llm", "options": {"provider": "cuda"}}
    with pytest.raises(UserError, match=FELL_BACK):
        compiler._compile_here({**job, "minimum": 1024, "prepack": True})


def test_what_the_compiling_process_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    """ONNX Runtime has no CUDA provider here, and the process of its own finds out."""
    with pytest.raises(UserError) as error:
        compiler.compile_graph(
            tmp_path / "llm.onnx", tmp_path, GraphSpec("llm", (), ()), {"provider": "cuda"}
        )
    assert str(error.value).startswith(f"this ONNX Runtime has no {CUDA} | it offers ")
    assert str(error.value).endswith(f" | {library.INSTALL_CUDA}")


def test_a_version_without_the_dialect_ort_has_no_cuda(
    installed: Callable[..., Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()
    monkeypatch.setattr(backend, "VERSION", "1.27.0")
    with pytest.raises(
        UserError, match=r"dialect ort alone \| .*1\.27\.0 .*\| pip install -U 'onnxruntime-gpu\["
    ):
        OnnxRuntime().machine({"provider": "cuda"})

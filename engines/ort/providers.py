"""Execution providers of ONNX Runtime: how a session on one is opened, and what CUDA needs.

If a provider cannot start, ONNX Runtime writes to its log and computes on the CPU. Here that is a UserError.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from pathlib import Path
from typing import Any

from foveate.engines.backend import Options
from foveate.engines.errors import UserError, unknown
from foveate.engines.ort import library

__all__ = ["PROVIDERS", "open_session", "require"]

onnxruntime = library.load()

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Values of the option ``provider``, with ONNX Runtime's names."""

_SETTINGS: dict[str, dict[str, str]] = {
    "CPUExecutionProvider": {},
    # The default is TF32: float32 products of 10 bits, whose error is as large as the self-test's limit.
    "CUDAExecutionProvider": {"use_tf32": "0"},
}

_DRIVER = "libcuda.so.1"


def require(options: Options) -> str:
    """Return the provider of ``options``: "cpu" (the default) or "cuda". Load the libraries that it needs.

    Raises UserError if the installed ONNX Runtime does not have it, or if a library is missing.
    """
    provider = str(options.get("provider") or "cpu")
    if provider not in PROVIDERS:
        raise unknown("provider", provider, PROVIDERS)
    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise UserError(
            f"this ONNX Runtime has no {PROVIDERS[provider]} | it offers {', '.join(available)} "
            f"| {library.INSTALL_CUDA}"
        )
    if provider == "cuda":
        _require_cuda()
    return provider


def open_session(model: Path, config: Any, options: Options) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the provider of ``options``. The library has no types.

    Nodes that the CUDA provider does not have run on the CPU. Raises UserError if the whole session does,
    and ONNX Runtime's own errors.
    """
    wanted = PROVIDERS[require(options)]
    names = dict.fromkeys((wanted, "CPUExecutionProvider"))
    providers = [(name, _SETTINGS[name]) for name in names]
    # Without a fallback an error is raised. Otherwise a message is printed and the CPU is taken.
    session = onnxruntime.InferenceSession(str(model), config, providers=providers, enable_fallback=0)
    got = session.get_providers()[0]
    if got != wanted:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU and took the {got} for {model.name} "
            f"| expected the {wanted}{_built_for()} "
            "| compare with the driver and the GPU that nvidia-smi shows, or take --provider cpu"
        )
    return session


def _require_cuda() -> None:
    """Load the libraries of CUDA, from NVIDIA's packages or the system. Raises UserError if it fails."""
    missing = _missing()
    if not missing:
        return
    steps = [library.INSTALL_CUDA] if missing != [_DRIVER] else []
    steps += ["install NVIDIA's driver"] if _DRIVER in missing else []
    raise UserError(
        f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU "
        f"| {', '.join(missing)} cannot be loaded{_built_for()} "
        f"| {' and '.join(steps)}, or take --provider cpu"
    )


def _missing() -> list[str]:
    """Return the libraries that cannot be loaded. Those of CUDA stay loaded for the CUDA provider."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # preload_dlls prints what it does not find
        onnxruntime.preload_dlls()
    # a name without a folder was looked for everywhere
    names = re.findall(r"^Failed to load ([^\s/]+):", said.getvalue(), re.MULTILINE)
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        names.append(_DRIVER)
    return names


def _built_for() -> str:
    """Return for which CUDA this ONNX Runtime was built, as the end of a sentence, or nothing."""
    version = getattr(onnxruntime, "cuda_version", "")
    return f", it was built for CUDA {version}" if version else ""

"""The target ``onnxruntime``, and its options."""

from __future__ import annotations

from foveate.engines.backend import Backend, Option, Target

__all__ = ["TARGETS"]


def _make() -> Backend:
    from foveate.engines.ort.backend import OnnxRuntime

    return OnnxRuntime()


TARGETS = (
    Target(
        "onnxruntime",
        title="ONNX Runtime",
        libraries=("onnxruntime",),
        install="pip install onnxruntime",
        rank=30,
        options=(
            Option(
                "provider",
                "Run on this execution provider: cpu or cuda (default: cpu).",
                default="cpu",
            ),
            Option(
                "accuracy_level",
                "Compute the products of int4 weights with int8 activations (4, fast) or with float32 "
                "activations (1) (default: 4).",
                kind="number",
                default=4,
                least=0,
                most=4,
            ),
        ),
        make=_make,
    ),
)

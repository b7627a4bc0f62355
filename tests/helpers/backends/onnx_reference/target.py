"""The target ``onnx-reference``, and its option."""

from __future__ import annotations

from foveate.engines.backend import Backend, Option, Target
from foveate.engines.errors import install_extra

__all__ = ["TARGETS"]


def _make() -> Backend:
    from foveate.engines.onnx_reference.backend import OnnxReference

    return OnnxReference()


TARGETS = (
    Target(
        "onnx-reference",
        title="ONNX's reference evaluator",
        libraries=("onnx",),
        install=install_extra("export"),
        rank=90,
        options=(
            Option(
                "verbosity",
                "Print what each node computes, from 0 (nothing) to 10 (default: 0).",
                kind="number",
                default=0,
                least=0,
                most=10,
            ),
        ),
        make=_make,
    ),
)

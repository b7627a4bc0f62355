"""Device side: bundle, pipeline, cache, pictures, prompts, command line. ``from foveate.runtime import Pipeline``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

if TYPE_CHECKING:
    from foveate.runtime.pipeline import Answer, Chat, Pipeline, Timings

__all__ = ["Answer", "Chat", "Pipeline", "Timings"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: ``foveate --version`` should not wait for numpy."""
    if name in __all__:
        from foveate.runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

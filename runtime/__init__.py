"""Device side: runs bundles. ``from foveate.runtime import Pipeline``.

* ``pipeline``, ``conversation``, ``answer``: the public classes.
* ``model``, ``request``, ``answering``: what these classes share, from a question's arguments to its answer.
* ``clock``: times. ``input_file``: faults of a file that the user named.
* ``bundle``: the bundle's files and its compiled engines.
* ``images``, ``video``, ``text``: what a prompt is made of.
* ``vision``: the stages before the language model. ``llm``: the language model.
* ``finite``, ``overflow``: NaN and infinity explained.
* ``compiling``: ``foveate compile`` and ``check``. ``measuring``: ``bench``, costs and energy.
* ``cli``: the command line of every verb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import foveate.engines  # noqa: F401  (before any library: it switches ONNX Runtime's telemetry off)

if TYPE_CHECKING:
    from foveate.runtime.pipeline import Answer, Chat, Options, Pipeline, Stream, Timings

__all__ = ["Answer", "Chat", "Options", "Pipeline", "Stream", "Timings"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``foveate --version`` does not wait for numpy."""
    if name in __all__:
        from foveate.runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

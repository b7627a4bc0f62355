"""Commands of Polygraphy 0.53 for the graphs of a bundle, as shell scripts that lie beside their files.

A script takes the bundle's folder as an argument; without one it takes the folder that it was written for.
``tests/runtime/compiling/test_polygraphy_folder.py`` runs them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from foveate.engines.spec import GraphSpec
from foveate.engines.trt.library import DIALECTS, LIBRARY
from foveate.engines.trt.onnx_dims import external_files
from foveate.engines.trt.profiles import profiles, settled
from foveate.runtime.bundle.loading import Bundle
from foveate.runtime.compiling.comparison import Limits

__all__ = ["FIXED", "GraphRun", "can_reduce", "reduce_hint", "script", "weights_of"]

Words = tuple[str, ...]

FIXED = "graph.onnx"
"""The file of a graph whose cache has a fixed length, as TensorRT needs it."""

_BUNDLE = "$bundle"
"""Stands for the bundle's folder at the beginning of a word. The scripts set this variable."""

_RECORDED = ("--load-inputs", "inputs.json", "--load-outputs", "outputs.json")
_LAYERS = "layers.json"
_PROTOBUF = 2 << 30  # bytes; a model with changed outputs is handed on in one protobuf message


@dataclass(frozen=True)
class GraphRun:
    """One graph and its recorded run: what the commands say about it.

    ``file`` is the ONNX file in the bundle, ``weights`` are the files of its external data, all as paths in
    the bundle. ``spec`` is typed. ``rows`` is the number of rows of the prompt, and of the cache.
    """

    dialect: str
    spec: GraphSpec
    file: str
    weights: Words
    rows: int
    limits: Limits

    def onnxrt(self, expected: Mapping[str, np.ndarray]) -> list[Words]:
        """Return the command that compares ONNX Runtime with the recorded outputs."""
        return [self._run(f"{_BUNDLE}/{self.file}", "--onnxrt", *_RECORDED, *self._tolerances(expected))]

    def trt(self, expected: Mapping[str, np.ndarray]) -> list[Words]:
        """Return the commands that compare TensorRT with the recorded outputs.

        It is built with the ranges of the spec. Polygraphy cannot set the cache's length in a graph, so a
        graph with a cache is read from ``FIXED``. Its weights are looked for beside it.
        """
        commands: list[Words] = []
        model = f"{_BUNDLE}/{self.file}"
        if self.spec.in_place:
            model = FIXED
            for name in self.weights:
                commands.append(("mkdir", "-p", str(PurePosixPath(name).parent)))
                commands.append(("ln", "-sf", f"{_BUNDLE}/{name}", name))
        typed = ("--trt", "--strongly-typed")
        tolerances = self._tolerances(expected)
        return [*commands, self._run(model, *typed, *_RECORDED, *tolerances, *self._ranges())]

    def reduce(self) -> list[Words]:
        """Return the commands that find the first node that TensorRT computes wrongly.

        ONNX Runtime computes the reference for every layer. Layers are compared by their cosine, which needs
        no scale. Only a wrong answer counts as a failure, not a graph that cannot be built.
        """
        model: Words = (f"{_BUNDLE}/{self.file}",)
        if self.spec.in_place:
            model = (FIXED, "--external-data-dir", _BUNDLE)
        given = ("--load-inputs", "inputs.json")
        cosine = ("--compare", "cosine_similarity", "--cosine-similarity-threshold", f"{self.limits.cosine}")
        check = self._run(
            "polygraphy_debug.onnx", "--trt", "--strongly-typed", *given, "--load-outputs", _LAYERS, *cosine
        )
        reduce = ("polygraphy", "debug", "reduce", *model, *given, "--no-reduce-inputs")
        return [
            self._run(*model, "--onnxrt", "--onnx-outputs", "*", *given, "--save-outputs", _LAYERS),
            (*reduce, "--output", "reduced.onnx", "--fail-regex", "Mismatched outputs", "--check", *check),
        ]

    def _run(self, *words: str) -> Words:
        return ("polygraphy", "run", *words)

    def _tolerances(self, expected: Mapping[str, np.ndarray]) -> Words:
        """Return the largest allowed difference of each output; integers must be equal."""
        each = (
            f"{name}:{self.limits.error * float(np.abs(value).max(initial=0.0)):.3g}"
            if value.dtype.kind == "f"
            else f"{name}:0"
            for name, value in expected.items()
        )
        return ("--rtol", "0", "--atol", *each)

    def _ranges(self) -> Words:
        """Return the options of the optimization profile that covers all ranges."""
        ranges = profiles(settled(self.spec, self.rows))[0]
        words: list[str] = []
        for index, end in enumerate(("min", "opt", "max") if ranges else ()):
            words.append(f"--trt-{end}-shapes")
            words += [f"{name}:[{','.join(map(str, ends[index]))}]" for name, ends in ranges.items()]
        return tuple(words)


def script(bundle: Path, purpose: str, commands: list[Words]) -> str:
    """Return a shell script that runs ``commands`` in its own folder."""
    lines = [
        "#!/bin/sh",
        f"# {purpose}",
        "# If the bundle has moved, give its folder as an argument.",
        "set -eu",
        f"bundle=${{1:-{shlex.quote(str(bundle))}}}",
        'bundle=$(cd "$bundle" && pwd)',
        'cd "$(dirname "$0")"',
        "export ORT_DISABLE_TELEMETRY=1",
        *(_line(command) for command in commands),
    ]
    return "\n".join(lines) + "\n"


def _line(command: Words) -> str:
    """Return a command for the shell, with each option on a line of its own."""
    return " ".join(
        f"\\\n    {_quoted(word)}" if word.startswith("--") else _quoted(word) for word in command
    )


def _quoted(word: str) -> str:
    """Quote a word for the shell, except the variable at its beginning."""
    if not word.startswith(_BUNDLE):
        return shlex.quote(word)
    rest = word.removeprefix(_BUNDLE)
    return f'"{_BUNDLE}"' + (shlex.quote(rest) if rest else "")


def can_reduce(bundle: Bundle, dialect: str, graph: str) -> bool:
    """True if ``polygraphy debug reduce`` can find a wrong node of the graph in TensorRT.

    It cannot where a graph makes choices: a near-tie that falls the other way changes every layer behind it.
    Nor can it where the weights are too large for one protobuf message.
    """
    spec = bundle.manifest.graphs[graph]
    if dialect not in DIALECTS or any(tensor.name == "kept" for tensor in spec.outputs):
        return False
    size = sum(bundle.manifest.files[name].size for name in weights_of(bundle, dialect, graph))
    return size < _PROTOBUF


def weights_of(bundle: Bundle, dialect: str, graph: str) -> Words:
    """Return the files of a graph's external data, as paths in the bundle."""
    return tuple(sorted(external_files(bundle.graph_file(graph, dialect).read_bytes())))


def reduce_hint(bundle: Bundle, target: str, dialect: str, graph: str) -> str:
    """Return the end of an error's remedy: how Polygraphy finds the wrong node. Empty where it cannot."""
    if target not in LIBRARY or not can_reduce(bundle, dialect, graph):
        return ""
    folder = shlex.quote(str(bundle.path))
    chosen = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if target == "tensorrt-rtx" else ""
    return (
        f"; `foveate check {folder} --export-polygraphy DIR && {chosen}sh DIR/{dialect}/{graph}/reduce.sh` "
        "finds the node with polygraphy debug reduce"
    )

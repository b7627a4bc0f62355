"""The contents of ``bundle.json``, format 2. ``docs/bundle-format.md`` explains every key.

Each class is one object of the file, and its fields are the keys. ``Manifest.from_json`` refuses wrong types
and missing keys by name. A key may be absent where its field has a default; builds leave such keys out.

Formats after this one add keys and names in ``requires``, not a version: see ``FEATURES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

from foveate.engines.spec import GraphSpec
from foveate.runtime.bundle import typed_json
from foveate.runtime.bundle.licence import Licence
from foveate.runtime.bundle.settings import GenerationSettings, ImageSettings, PromptFormat

__all__ = [
    "FEATURES",
    "FORMAT",
    "PREFILL_ROWS",
    "ClipSizes",
    "DecoderSizes",
    "DialectFiles",
    "LayerPeak",
    "Manifest",
    "MergedSizes",
    "MethodInfo",
    "PositionMode",
    "PrecisionInfo",
    "Source",
    "StoredFile",
    "VisionSizes",
    "vision_sizes",
]

FORMAT = 2

PREFILL_ROWS = 1024
"""Largest number of a prompt's rows that are computed together, except where an in-LLM pruner reads them all.

ONNX Runtime's attention also computes what the mask hides, so smaller pieces take less time: at 7B sizes a
sixth less for 2,880 tokens, and a third less for 4,000 (docs/measurements/cpu-speed.md). TensorRT plans
memory for this number of rows (docs/measurements/tensorrt-rtx.md).
"""

FEATURES: Mapping[str, str] = {}
"""Features that this runtime knows beyond plain format 2: name in ``requires``, and what it means."""

PositionMode = Literal["compact", "keep"]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Source:
    """The origin of the weights. ``model`` is a directory, a hub id or a name; revisions are commits."""

    model: str
    revision: str = "local"
    load_format: Literal["auto", "dummy"] = "auto"
    adapter: str | None = None
    adapter_revision: str | None = None
    pruner: str | None = None


@dataclass(frozen=True)
class MethodInfo:
    """A pruning method of the bundle: its options, and what it does at which budget.

    ``stages`` are its graphs in the order in which they run. ``position_mode`` is that of the rows behind the
    pre-LLM pruner, ``position_mode_inside`` that of the rows behind a cut. ``fixed_keep`` is the number of
    tokens per image if the build fixes it. ``whole``: its pruner sees all tiles of an image together.
    ``cuts`` are the decoder layers before which it prunes. ``budgets`` has the budget of each stage, and
    ``limits`` the most rows that it keeps where that is another number, both as points of ``llm.budget``.
    """

    name: str
    stages: tuple[str, ...]
    options: dict[str, object] = field(default_factory=dict)
    position_mode: PositionMode = "compact"
    position_mode_inside: PositionMode = "keep"
    fixed_keep: int | None = None
    whole: bool = False
    cuts: tuple[int, ...] = ()
    budgets: dict[str, Points] = field(default_factory=dict)
    limits: dict[str, Points] = field(default_factory=dict)

    @property
    def prunes(self) -> bool:
        """True unless the method is ``none``, which drops no visual tokens."""
        return self.name != "none"


@dataclass(frozen=True)
class PrecisionInfo:
    """The precision of each part: a scheme such as "int4", or "compute dtype" for that of its graph.

    ``prefill`` is that of a second form of the decoder's layers, for prompts. ``weights`` says that the
    checkpoint was quantized already.
    """

    decoder: str
    head: str
    vision: str
    prefill: str | None = None
    weights: str | None = None

    @property
    def kinds(self) -> set[str]:
        """The precisions in use."""
        return {self.decoder, self.head, self.vision} | ({self.prefill} if self.prefill else set())


@dataclass(frozen=True)
class DialectFiles:
    """The graphs in one dialect: their compute dtype, and the file of each graph.

    ``prefill`` has the files of second forms, which compute prompts. ``golden`` is the file of the reference
    answers. ``widened`` has the dtype inside graphs that compute in another one than ``dtype``. ``appends``:
    graphs return only the new rows of their kv caches, and the engine appends them.
    """

    dtype: Literal["float16", "float32"]
    files: dict[str, str]
    prefill: dict[str, str] = field(default_factory=dict)
    golden: str = "golden.npz"
    widened: dict[str, str] = field(default_factory=dict)
    appends: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of all graphs."""
        return (*self.files.values(), *self.prefill.values())


@dataclass(frozen=True)
class DecoderSizes:
    """The language model in numbers. ``max_positions`` is the longest context."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int


@dataclass(frozen=True)
class ClipSizes:
    """A CLIP tower in numbers. ``patches`` is the number of patches of one tile."""

    kind: Literal["clip"]
    hidden: int
    intermediate: int
    layers: int
    patch_size: int
    patches: int


@dataclass(frozen=True)
class MergedSizes:
    """An encoder that merges ``merge`` x ``merge`` patches into a visual token, as Qwen2.5-VL's.

    ``full_layers`` attend to all patches, the others to windows of ``window`` patches.
    """

    kind: Literal["merged"]
    hidden: int
    intermediate: int
    layers: int
    patch_size: int
    merge: int
    mlp_matrices: int
    full_layers: int
    window: int
    mergers: int


VisionSizes = ClipSizes | MergedSizes


def vision_sizes(data: Mapping[str, Any]) -> VisionSizes:
    """Return the sizes in a JSON object. Raises ``typed_json.MisfitError``."""
    if data.get("kind") == "merged":
        return typed_json.read(MergedSizes, dict(data), "vision")
    return typed_json.read(ClipSizes, dict(data), "vision")


@dataclass(frozen=True)
class LayerPeak:
    """The largest absolute value recorded in a layer of a graph, None for no layer, and where it occurred.

    ``edge``: the value is an input, an output or a kv cache of the graph.
    """

    layer: int | None
    at: str
    value: float
    edge: bool


@dataclass(frozen=True)
class StoredFile:
    """Size of a file in bytes, and its SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of ``bundle.json``.

    ``graphs`` leave the compute dtype open; ``dialects`` set it. The first of ``methods`` is the default.
    ``ranges`` has the largest recorded values by graph. ``image``, ``prompt`` and ``generation`` are JSON,
    checked against the classes of ``bundle.settings``.
    """

    format: int = field(default=FORMAT, metadata={"always": True})
    requires: tuple[str, ...] = field(default=(), metadata={"always": True})
    name: str
    family: str
    source: Source
    methods: tuple[MethodInfo, ...]
    precision: PrecisionInfo
    num_visual_tokens: int
    grid: tuple[int, int]
    decoder: DecoderSizes
    vision: VisionSizes | None = None
    image: dict[str, Any] = field(metadata={"checked": ImageSettings})
    prompt: dict[str, Any] = field(metadata={"checked": PromptFormat})
    generation: dict[str, Any] = field(default_factory=dict, metadata={"checked": GenerationSettings})
    licence: dict[str, Licence] = field(default_factory=dict)
    graphs: dict[str, GraphSpec]
    dialects: dict[str, DialectFiles]
    ranges: dict[str, tuple[LayerPeak, ...]] = field(default_factory=dict)
    files: dict[str, StoredFile]

    def __post_init__(self) -> None:
        if not self.methods:
            raise typed_json.MisfitError("methods is [], expected a method")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as ``bundle.json`` holds it."""
        return typed_json.write(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Return the manifest in ``data``. Keys that this version does not know are left out.

        Raises ``typed_json.MisfitError`` for a missing key or a wrong type.
        """
        return typed_json.read(cls, dict(data))

    @property
    def method(self) -> MethodInfo:
        """The method in use."""
        return self.methods[0]

    @property
    def stages(self) -> tuple[str, ...]:
        """The graphs of the method in use, in the order in which they run."""
        return self.method.stages

    @property
    def segments(self) -> list[tuple[str, str | None]]:
        """The graphs of the language model in order, each with the pruner after it.

        The graphs are ``llm``, or ``llm.0`` and so on.
        """
        following = zip_longest(self.stages, self.stages[1:], fillvalue="")
        return [
            (name, behind if behind.startswith("pruner.") else None)
            for name, behind in following
            if name.partition(".")[0] == "llm"
        ]

    def spec(self, graph: str, dialect: str) -> GraphSpec:
        """Return the graph's interface in ``dialect``: with its dtype, and its way of treating kv caches."""
        found = self.dialects[dialect]
        spec = self.graphs[graph].typed(found.dtype)
        return spec.appending() if found.appends and spec.in_place else spec

    def forms(self, graph: str, dialect: str) -> list[tuple[GraphSpec, str]]:
        """Return the forms of a graph that are compiled, each with its file.

        These are the graph itself and, if the bundle has one, its form for prefill
        (``engines.prefill_switch``), whose spec is named ``<graph>.prefill``.

        A segment of the language model takes at most ``PREFILL_ROWS`` rows at once. The runtime feeds no
        more, and an engine's memory grows with them. With in-LLM pruners it takes any number, since a prompt
        with images goes through it in one piece.
        """
        spec, kinds = self.spec(graph, dialect), self.dialects[dialect]
        if spec.in_place and not any(method.cuts for method in self.methods):
            spec = spec.with_most_rows(PREFILL_ROWS)
        found = [(spec, kinds.files[graph])]
        if graph in kinds.prefill:
            found.append((replace(spec, name=f"{graph}.prefill"), kinds.prefill[graph]))
        return found

"""Sizes of a model and its method that a plan needs, as plain numbers.

A model is a bundle, a name in ``models.json`` or ``other_models.json``, or a ``config.json`` in Hugging
Face's format. A method is a name in ``methods.json``. ``make generated`` writes ``models.json`` and
``methods.json`` from the families and methods. The result is a ``Model``. Its ``manifest``, which
``runtime.measuring.costs`` reads, is the bundle's, or one with the same facts for a bundle that is not built
yet. Imports no torch and builds nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError, unknown
from foveate.jetson.planner import model_config
from foveate.jetson.planner.model_config import PHOTO
from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import (
    DecoderSizes,
    Manifest,
    MergedSizes,
    MethodInfo,
    PrecisionInfo,
    Source,
    VisionSizes,
    vision_sizes,
)
from foveate.runtime.images.processor import image_processor
from foveate.runtime.llm.budget import Keep, resolve_keep
from foveate.runtime.llm.cache_rows import cache_rows
from foveate.runtime.measuring import costs

__all__ = ["Model", "known", "methods", "model"]

_HALF = 2  # bytes of a number in the compute dtype of NVIDIA's engines
# bytes of a weight; int4 with a scale per block of 128
_BYTES = {"fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 128}


@dataclass(frozen=True)
class Model:
    """Sizes and costs of one model. Whatever ``manifest`` says is in the compute dtype counts as FP16."""

    manifest: Manifest
    free_budget: bool = False
    """The method merges in the encoder, and its budget is not fixed since no bundle is built."""
    most_visual_tokens: int | None = None
    """Visual tokens of the largest image. None: ``manifest.num_visual_tokens``."""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def vision(self) -> VisionSizes | None:
        """Sizes of the vision encoder, or None for a model without one."""
        return self.manifest.vision

    @property
    def precision(self) -> str:
        """Precision of the decoder's matrices."""
        found = self.manifest.precision.decoder
        return found if found in _BYTES else "fp16"  # fp32 is what a CPU computes in

    @property
    def _merge(self) -> int:
        """Side of a visual token in patches."""
        return self.vision.merge if isinstance(self.vision, MergedSizes) else 1

    @property
    def decoder(self) -> DecoderSizes:
        """Sizes of the decoder."""
        return self.manifest.decoder

    def cache_rows(self, asked: int | None = None) -> int:
        """Return the rows of the kv cache that ``foveate compile`` gives an engine of this model.

        ``asked`` is the value of its ``--max-context``.
        """
        most = max(self.most_visual_tokens or 0, self.manifest.num_visual_tokens)
        return cache_rows(replace(self.manifest, num_visual_tokens=most), asked)

    def schedule(self, keep: Keep) -> costs.Schedule:
        """Return ``costs.schedule`` for a budget of ``keep``. Raises UserError for a wrong ``keep``.

        The budget of an encoder merger is fixed when its bundle is built. So a model that is not built yet
        may have any budget.
        """
        manifest = self.manifest
        if self.free_budget:
            count = resolve_keep(keep, manifest.num_visual_tokens, manifest.method)
            manifest = replace(manifest, methods=(replace(manifest.method, fixed_keep=count),))
        return costs.schedule(manifest, keep)

    @property
    def patches(self) -> int:
        """Number of patches of an image, before the encoder merges them."""
        return self.manifest.num_visual_tokens * self._merge**2 if self.vision else 0

    @property
    def vision_flops(self) -> int:
        """Floating-point operations of the vision encoder and projector for one image."""
        if self.vision is None:
            return 0
        sizes = {key: value for key, value in asdict(self.vision).items() if key != "kind"}
        projected = self.decoder.hidden_size
        if isinstance(self.vision, MergedSizes):
            return costs.merged_vision_flops(**sizes, patches=self.patches, projected=projected)
        tiles = math.ceil(self.patches / self.vision.patches)  # a lower bound: padding makes no tokens
        return tiles * costs.vision_flops(**sizes, projected=projected)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the decoder's matrices. Every token reads all of them."""
        d = self.decoder
        heads = (d.num_heads + d.num_kv_heads) * d.head_dim
        each = d.hidden_size * (2 * heads + 3 * d.intermediate_size)
        return round(d.num_layers * each * _BYTES[self.precision])

    @property
    def most_layers(self) -> int:
        """Largest number of decoder layers in one graph.

        A bundle has its own cuts. A model that is not built is cut where its method cuts.
        """
        graphs = self.manifest.graphs
        built = [len(graphs[name].in_place) // 2 for name, _ in self.manifest.segments if name in graphs]
        return max(built or [layers for _, layers in costs.segments(self.manifest)])

    @property
    def head_bytes(self) -> int:
        """Bytes of the head's matrix."""
        weight = _BYTES.get(self.manifest.precision.head, _HALF)
        return round(self.decoder.vocab_size * self.decoder.hidden_size * weight)

    @property
    def vision_bytes(self) -> int:
        """Bytes of the matrices of the vision encoder and the projector."""
        v = self.vision
        if v is None:
            return 0
        width, joined = self.decoder.hidden_size, v.hidden * self._merge**2
        if isinstance(v, MergedSizes):
            matrices, projectors = v.mlp_matrices, v.mergers * joined * (joined + width)
        else:
            matrices, projectors = 2, width * (joined + width)
        row = 4 * v.hidden**2 + matrices * v.hidden * v.intermediate
        weight = _BYTES.get(self.manifest.precision.vision, _HALF)
        return round(weight * v.layers * row + _HALF * projectors)


@cache
def _table(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).parents[1].joinpath("data", name).read_text(encoding="utf-8"))


def _rows() -> dict[str, dict[str, Any]]:
    """Return the models that are known by name: those of the families, and others that were measured."""
    return _table("models.json")["models"] | _table("other_models.json")["models"]


def known() -> list[str]:
    """Return the names of the known vision-language models."""
    return sorted(name for name, row in _rows().items() if row["vision"])


def methods() -> list[str]:
    """Return the names of the methods."""
    return sorted(_table("methods.json"))


def model(
    name: str, method: str = "none", precision: str = "int4", visual_tokens: int | None = None
) -> Model:
    """Return the sizes of a model.

    ``name`` is a known model or its hub id, a ``config.json`` or the folder of one, or a bundle's folder. A
    bundle sets method and precision itself. ``visual_tokens`` is the number per image, for models whose
    images differ in it. Raises UserError.
    """
    if precision not in _BYTES:
        raise unknown("precision", precision, _BYTES)
    path = Path(name).expanduser()
    if path.is_dir() and (path / "bundle.json").is_file():
        built = _of_bundle(path)
        manifest, most, free_budget = _shown_a_photo(built), built.num_visual_tokens, False
        any_size = image_processor(manifest.image).varies
    else:
        path = path / "config.json" if path.is_dir() else path
        row = _of_config(path) if path.is_file() else _row(name)
        manifest, any_size = _unbuilt(row, method, precision), row["any_size"]
        free_budget = _table("methods.json")[method]["where"] == "encoder"
        most = row["most_visual_tokens"]
    return Model(_shown(manifest, visual_tokens, any_size) if visual_tokens else manifest, free_budget, most)


def _row(name: str) -> dict[str, Any]:
    names = {row["checkpoint"]: each for each, row in _rows().items() if row.get("checkpoint")}
    name = names.get(name, name)
    if name not in _rows():
        raise unknown("model", name, _rows())
    return {"name": name, **_rows()[name]}


def _of_config(path: Path) -> dict[str, Any]:
    table = _table("models.json")
    families = table["families"] | _table("other_models.json")["families"]
    return model_config.read(path, families, table["decoders"])


def _shown(manifest: Manifest, visual_tokens: int, any_size: bool) -> Manifest:
    """Return the manifest for an image of ``visual_tokens``.

    Raises UserError if that number is fixed otherwise.
    """
    known = manifest.num_visual_tokens
    if manifest.vision and not any_size and visual_tokens != known:
        raise UserError(
            f"{manifest.name} makes {known} visual tokens of every image "
            f"| got {visual_tokens} | leave it out",
            code=2,
        )
    return replace(manifest, num_visual_tokens=visual_tokens)


def _unbuilt(row: dict[str, Any], method: str, precision: str) -> Manifest:
    """Return a manifest without graphs that holds all that ``costs.schedule`` reads. Raises UserError."""
    table = _table("methods.json")
    if "+" in method:
        raise UserError(
            f"a pair of methods is planned from its bundle | got {method} "
            "| foveate build it, then foveate plan BUNDLE",
            code=2,
        )
    if method not in table:
        raise unknown("method", method, table)
    facts, layers = table[method], row["decoder"]["num_layers"]
    cuts = [_cut(cut, layers) for cut in facts["cuts"]]
    stages = ["vision_encoder", *(["pruner"] if facts["where"] == "before" else [])]
    for number in range(len(cuts)):
        stages += [f"llm.{number}", f"pruner.{number}"]
    stages += [f"llm.{len(cuts)}" if cuts else "llm"]
    return Manifest(
        name=row["name"],
        family="",
        source=Source(row["name"]),
        methods=(
            MethodInfo(
                method,
                tuple(stages),
                cuts=tuple(cuts),
                budgets=facts["budgets"],
                limits=facts["limits"],
            ),
        ),
        precision=PrecisionInfo(precision, "compute dtype", "compute dtype"),
        graphs={},
        dialects={},
        num_visual_tokens=row["visual_tokens"],
        grid=(1, row["visual_tokens"]),
        decoder=DecoderSizes(**row["decoder"]),
        vision=vision_sizes(row["vision"]) if row["vision"] else None,
        image={},
        prompt={},
        files={},
    )


def _cut(cut: int | str, layers: int) -> int:
    """Return the layer of a cut. ``cut`` is its number, or a share of the layers such as "8/32"."""
    if isinstance(cut, int):
        return cut
    part, whole = map(int, cut.split("/"))
    return round(layers * part / whole)


def _of_bundle(path: Path) -> Manifest:
    """Return the manifest of a bundle. Raises UserError."""
    manifest = load(path).manifest
    if manifest.vision is None:
        raise UserError(
            f"{path} does not tell the sizes of its vision encoder | it was built by an older foveate "
            "| build it again, or foveate plan --model ... --method ...",
            code=2,
        )
    return manifest


def _shown_a_photo(manifest: Manifest) -> Manifest:
    """Return the manifest for an image of ``PHOTO``'s size, if visual tokens depend on the size."""
    tokens = image_processor(manifest.image).token_layout(PHOTO, manifest.grid).total
    return replace(manifest, num_visual_tokens=min(tokens, manifest.num_visual_tokens))

"""Bundles of the variants that are compared.

They are built once, and again if the code that builds them changes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from evaluation.store import ROOT, code_version
from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.bundling.precision import Precision
from foveate.export.model_parts import ModelParts
from foveate.runtime.bundle.manifest import MethodInfo
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.llm.budget import resolve_keep

__all__ = ["at_budgets", "options_of", "precision_of", "ready_bundle", "slug"]


def slug(variant: str) -> str:
    """Return a variant as part of a file name."""
    return variant.replace(":", ".").replace(",", ".").replace("=", "-").replace("@", ".")


def options_of(variant: str) -> tuple[str, dict[str, str]]:
    """Return method and options of a variant such as ``sppruner:rho=0.7,mu=1``; ``@precision`` may follow."""
    name, _, options = variant.partition("@")[0].partition(":")
    return name, dict(pair.split("=", 1) for pair in options.split(",") if pair)


def precision_of(variant: str) -> Precision:
    """Return the precision behind a variant's @, or float32.

    ``int4+vision-int8`` is int4 with a vision encoder in int8.
    """
    decoder, *parts = (variant.partition("@")[2] or "fp32").split("+")
    return Precision(decoder, **dict(part.split("-", 1) for part in parts))


def at_budgets(model: str, variant: str, budgets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the variants to build for ``budgets``, and why budgets are missing.

    A variant whose budget is fixed when it is built becomes one per budget, with its option ``keep``. Not
    every budget can be built. Any other variant stays as it is.
    """
    name, options = options_of(variant)
    spec = _parts(model).spec
    if "keep" in options or methods.load(name, options).fixed_keep(spec) is None:
        return [variant], []
    found, missing = [], []
    for budget in budgets:
        keep = resolve_keep(budget, spec.vision.num_tokens, MethodInfo(name, ()))
        try:
            methods.load(name, options | {"keep": str(keep)}).fixed_keep(spec)
        except UserError as error:
            missing.append(f"{variant} is left out at {budget}: {error}")
        else:
            found.append(f"{variant}{',' if options else ':'}keep={keep}")
    return found, missing


def ready_bundle(model: str, variant: str, work: Path) -> Path:
    """Return the variant's compiled bundle. It is built if it does not exist or was built by other code."""
    name, options = options_of(variant)
    out, stamp = work / slug(variant), work / f"{slug(variant)}.code"
    code = code_version(*_builders(name))
    if not ((out / "bundle.json").is_file() and stamp.is_file() and stamp.read_text() == code):
        build(
            _parts(model), methods.load(name, options), out, precision=precision_of(variant), dialects=["ort"]
        )
        stamp.write_text(code)
    compile_bundle(out)
    return out


@functools.cache
def _parts(model: str) -> ModelParts:
    """Load the model once per process, so that what all variants share is traced once."""
    return models.load(model)


def _builders(method: str) -> list[str]:
    """Return the modules that determine a bundle of ``method``: all of export but other methods' files.

    A pair of methods is ``a+b``.
    """
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "export").rglob("*.py"))
    others = {f"foveate.export.methods.{name}" for name in methods.names()} - {
        f"foveate.export.methods.{name}" for name in method.split("+")
    }
    modules = (".".join(("foveate", *(part for part in file.parts if part != "__init__"))) for file in files)
    return sorted(set(modules) - others)

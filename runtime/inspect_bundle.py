"""``foveate inspect``: what a bundle holds and costs: model, method and options, stages with their shapes, sizes, engines,
and the tokens, FLOPs and bytes of a prompt at the usual budgets."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.spec import FLOAT, TensorSpec
from foveate.runtime import costs, options
from foveate.runtime.bundle import Bundle, Manifest, load
from foveate.runtime.cli import Parser
from foveate.runtime.plans import Plan, plans

__all__ = ["describe", "main"]

_BUDGETS = ("100%", "33.3%", "22.2%", "11.1%", "5.6%")


def main(argv: list[str]) -> int:
    parser = Parser(prog="foveate inspect", description="Show what a bundle holds.")
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=costs.TEXT_TOKENS,
        help=f"of the prompt whose costs are shown (default {costs.TEXT_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    if args.text_tokens < 0:
        raise UserError(
            f"wrong text-tokens | got {args.text_tokens}, expected 0 or more | leave it out", code=2
        )
    bundle = load(args.bundle, progress=lambda name: options.say(f"checking {name}"))
    facts = describe(bundle, args.text_tokens)
    print(json.dumps(facts) if args.json else "\n".join(_lines(facts)))
    return 0


def describe(bundle: Bundle, text_tokens: int = costs.TEXT_TOKENS) -> dict[str, Any]:
    """The bundle as plain data; costs are of one picture among ``text_tokens``."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "family": manifest.family,
        "source": manifest.source,
        "method": manifest.method,
        "precision": manifest.precision,
        "visual_tokens": manifest.num_visual_tokens,
        "grid": list(manifest.grid),
        "image": manifest.image["kind"],
        "max_pixels": manifest.image.get("max_pixels"),
        "decoder": manifest.decoder,
        "costs": _costs(manifest, text_tokens),
        "stages": [_stage(bundle, name) for name in manifest.stages],
        "files": {name: entry["size"] for name, entry in manifest.files.items()},
        "bytes": sum(entry["size"] for entry in manifest.files.values()),
        "engines": [_engine(bundle, plan) for plan in plans(bundle)],
    }


def _costs(manifest: Manifest, text_tokens: int) -> dict[str, Any]:
    whole = costs.prefill_flops(manifest.decoder, costs.unpruned(manifest), text_tokens)
    dtypes = sorted({entry["dtype"] for entry in manifest.dialects.values()})
    rows = []
    for keep in _budgets(manifest):
        by_dtype = {dtype: costs.of(manifest, keep, text_tokens, dtype) for dtype in dtypes}
        cost = by_dtype[dtypes[0]]
        rows.append(
            {
                "keep": keep,
                "schedule": [list(part) for part in cost.schedule],
                "average_tokens": cost.average_tokens,
                "flops": cost.flops,
                "saved": 1 - cost.flops / whole,
                "decode_flops": cost.decode_flops,
                "cache_bytes": {dtype: each.cache_bytes for dtype, each in by_dtype.items()},
            }
        )
    return {"text_tokens": text_tokens, "budgets": rows}


def _budgets(manifest: Manifest) -> tuple[str, ...]:
    if (fixed := manifest.method.get("fixed_keep")) is not None:
        return (str(fixed),)
    return _BUDGETS[:1] if manifest.method["name"] == "none" else _BUDGETS


def _stage(bundle: Bundle, name: str) -> dict[str, Any]:
    manifest, spec = bundle.manifest, bundle.manifest.graphs[name]
    files = {dialect: entry["files"][name] for dialect, entry in manifest.dialects.items()}
    return {
        "name": name,
        "inputs": [_tensor(tensor) for tensor in spec.inputs],
        "outputs": [_tensor(tensor) for tensor in spec.outputs],
        "dialects": {
            dialect: {
                "file": file,
                "dtype": manifest.dialects[dialect]["dtype"],
                "bytes": manifest.files[file]["size"],
            }
            for dialect, file in files.items()
        },
    }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else d.name for d in tensor.shape]
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": shape}


def _engine(bundle: Bundle, plan: Plan) -> dict[str, Any]:
    try:
        fault = plan.fault(bundle)
    except UserError as error:  # its library is not installed here
        fault = str(error)
    return {
        "key": plan.key,
        "machine": plan.machine,
        "dialect": plan.dialect,
        "options": plan.options,
        "bytes": sum(entry["size"] for entry in plan.files.values()),
        "fault": fault,
        "remedies": plan.remedies,
        "self_test": plan.self_test,
        "graphs": _compiled(plan),
    }


def _compiled(plan: Plan) -> dict[str, Any]:
    """What the engine tells of its graphs: layers, types, memory; empty for engines that tell nothing."""
    facts = {name.removesuffix(".json"): plan.path / name for name in plan.files if name.endswith(".json")}
    return {
        graph: json.loads(file.read_text(encoding="utf-8")) for graph, file in facts.items() if file.is_file()
    }


def _engine_lines(engine: dict[str, Any]) -> list[str]:
    tested = engine["self_test"]
    outcome = "passed" if tested.get("ok") else f"not run: {tested.get('not_run', 'compiled without')}"
    options = ", ".join(f"{name} {value}" for name, value in engine["options"].items() if value is not None)
    lines = [
        f"{'engine':<12}{engine['key']}, {engine['bytes'] / 1e6:.1f} MB, {engine['fault'] or 'fits this machine'}",
        f"  {'key':<10}{', '.join(f'{k} {v}' for k, v in engine['machine'].items() if isinstance(v, str))}",
        f"  {'options':<10}{engine['dialect']}, {options}",
        f"  {'self-test':<10}{outcome}",
    ]
    for graph, facts in engine["graphs"].items():
        types = ", ".join(f"{count} {dtype}" for dtype, count in facts["layers"].items())
        memory = facts.get("device_bytes")
        needs = f", {memory / 1e6:.1f} MB on the GPU besides" if memory is not None else ""
        lines.append(f"  {graph:<16}{facts['bytes'] / 1e6:.1f} MB{needs}, layers: {types}")
    lines += [f"  {graph:<16}{remedy}" for graph, found in engine["remedies"].items() for remedy in found]
    return lines


def _picture(facts: dict[str, Any]) -> str:
    number, (rows, columns) = facts["visual_tokens"], facts["grid"]
    if facts["image"] == "anyres":
        return f"up to {number} visual tokens in tiles of {rows} x {columns}, and newlines"
    if facts["image"] == "windows":
        return (
            f"up to {number} visual tokens, larger pictures than {facts['max_pixels']} pixels are scaled down"
        )
    return f"{number} visual tokens, {rows} x {columns}"


def _lines(facts: dict[str, Any]) -> list[str]:
    method = facts["method"]
    chosen = ", ".join(f"{name}={value}" for name, value in method["options"].items()) or "no options"
    fixed = "" if (keep := method.get("fixed_keep")) is None else f", always {keep} visual tokens"
    lines = [
        f"{'bundle':<12}{facts['name']}, {facts['bytes'] / 1e6:.1f} MB",
        f"{'model':<12}{facts['family']}, {', '.join(f'{k} {v}' for k, v in facts['source'].items())}",
        f"{'method':<12}{method['name']} ({chosen}), positions {method['position_mode']}{fixed}",
        f"{'precision':<12}{', '.join(f'{part} {kind}' for part, kind in facts['precision'].items())}",
        f"{'picture':<12}{_picture(facts)}",
        f"{'decoder':<12}{', '.join(f'{name} {value}' for name, value in facts['decoder'].items())}",
    ]
    lines += ["", *_cost_lines(facts["costs"])]
    for stage in facts["stages"]:
        lines += ["", stage["name"]]
        lines += [f"  in   {text}" for text in _shapes(stage["inputs"])]
        lines += [f"  out  {text}" for text in _shapes(stage["outputs"])]
        lines += [
            f"  {name:<12}{entry['file']}, {entry['dtype']}, {entry['bytes'] / 1e3:.1f} kB"
            for name, entry in stage["dialects"].items()
        ]
    weights = {name: size for name, size in facts["files"].items() if not name.endswith(".onnx")}
    lines += ["", *(f"{name:<32}{size / 1e6:10.1f} MB" for name, size in weights.items()), ""]
    lines += [line for engine in facts["engines"] for line in _engine_lines(engine)] or [
        "engine      none: foveate compile"
    ]
    return lines


def _cost_lines(facts: dict[str, Any]) -> list[str]:
    rows = facts["budgets"]
    ends = [0, *accumulate(layers for layers, _ in rows[0]["schedule"])]
    head = [
        "keep",
        *(f"layers {first}..{end - 1}" for first, end in pairwise(ends)),
        "average",
        "GFLOPs",
        "saved",
    ]
    table = [head + [f"{dtype} cache" for dtype in rows[0]["cache_bytes"]]]
    for row in rows:
        table.append(
            [
                row["keep"],
                *(str(tokens) for _, tokens in row["schedule"]),
                f"{row['average_tokens']:.0f}",
                f"{row['flops'] / 1e9:.1f}",
                f"{row['saved']:.1%}",
                *(f"{size / 1e6:.1f} MB" for size in row["cache_bytes"].values()),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    title = (
        f"{'costs':<12}prefill of one picture and {facts['text_tokens']} text tokens; visual tokens at most"
    )
    return [title, *("  " + "  ".join(map(str.rjust, line, widths)) for line in table)]


def _shapes(tensors: list[dict[str, Any]]) -> list[str]:
    """A line per tensor; the cache's, which differ in their layer alone, on one."""
    cache = [t for t in tensors if t["name"].startswith(("past.", "present."))]
    texts = [_shape(t) for t in tensors if t not in cache]
    if cache:
        texts.append(f"{_shape(cache[0])} ... {cache[-1]['name']}: {len(cache)} alike")
    return texts


def _shape(tensor: dict[str, Any]) -> str:
    kind = "dtype" if tensor["dtype"] == FLOAT else tensor["dtype"]
    return f"{tensor['name']} {kind}[{', '.join(map(str, tensor['shape']))}]"

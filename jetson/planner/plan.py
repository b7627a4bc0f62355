"""``foveate plan``: estimates whether a model fits a device and how fast it answers.

Nothing is built. All numbers are estimates from published measurements. ``jetson/planner/roofline.py`` and
``jetson/planner/memory.py`` give the sources, and docs/jetson.md the errors.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from foveate.engines.errors import UserError
from foveate.jetson.device import devices
from foveate.jetson.device.devices import Device
from foveate.jetson.planner import model_sizes
from foveate.jetson.planner.memory import DIALECTS, Memory, fitting_context, memory
from foveate.jetson.planner.model_config import PHOTO
from foveate.jetson.planner.model_sizes import Model
from foveate.jetson.planner.roofline import Times, spread, times
from foveate.runtime.cli import Parser
from foveate.runtime.llm.budget import Keep
from foveate.runtime.measuring import costs

__all__ = ["best_keep", "main", "plan"]

_STAGES = ("vision", "prune", "prefill", "first_token")


def plan(
    model: Model,
    device: Device,
    keep: Keep = None,
    *,
    ttft: float | None = None,
    text_tokens: int = costs.TEXT_TOKENS,
    new_tokens: int = 64,
    desktop: bool = True,
    max_context: int | None = None,
    dialect: str | None = None,
) -> dict[str, Any]:
    """Return the plan as plain data.

    If answering does not fit, ``memory`` has "fitting_context", the largest ``max_context`` that fits. If
    compiling does not fit, it has "llm_parts", the least number of parts that the language model must be cut
    into. Either is None if no number helps. ``ttft`` is the wanted time to first token in seconds; with it
    the plan has the budget for that time. Raises UserError for a wrong ``keep``, and for a ``max_context``
    that is too short for the answer.
    """
    schedule = model.schedule(keep)
    needs = _needs(model, device, max_context, dialect, desktop, _rows(schedule, text_tokens, new_tokens))
    # TensorRT's attention masks what is not written, but reads it
    speed = times(model, device, schedule, text_tokens, new_tokens, cache_rows=needs["max_context"])
    least, most = spread(speed)
    facts = {
        "model": model.name,
        "precision": model.precision,
        "device": {
            "name": device.name,
            "title": device.title,
            "mode": device.mode,
            "sources": device.sources,
        },
        "visual_tokens": model.manifest.num_visual_tokens,
        "schedule": [list(part) for part in schedule],
        "average_tokens": costs.average_tokens(schedule),
        "text_tokens": text_tokens,
        "new_tokens": new_tokens,
        "seconds": _seconds(speed),
        "seconds_range": {"from": _seconds(least), "to": _seconds(most)},
        "tokens_per_second": speed.tokens_per_second,
        "tokens_per_second_range": {"from": most.tokens_per_second, "to": least.tokens_per_second},
        "memory": needs,
    }
    if ttft is not None:
        facts["ttft"] = {"wanted": ttft, "keep": best_keep(model, device, ttft, text_tokens)}
    return facts


def _seconds(speed: Times) -> dict[str, float]:
    return asdict(speed) | {"first_token": speed.first_token}


def _rows(schedule: costs.Schedule, text_tokens: int, new_tokens: int) -> int:
    """Return the rows of the kv cache that one answer fills."""
    return max(tokens for _, tokens in schedule) + text_tokens + new_tokens


def _needs(
    model: Model, device: Device, max_context: int | None, dialect: str | None, desktop: bool, rows: int
) -> dict[str, Any]:
    def needed(context: int | None, parts: int = 1) -> Memory:
        return memory(model, device, max_context=context, dialect=dialect, desktop=desktop, llm_parts=parts)

    found = needed(max_context)
    if found.max_context < rows:
        raise UserError(
            "the kv cache is too short "
            f"| it has {found.max_context} rows, image, text and answer have {rows} "
            "| give a larger --max-context, or a smaller --keep or --new-tokens",
            code=2,
        )
    needs = found.to_json() | {"answer_rows": rows}
    if not needs["fits"]:
        context = needs["fitting_context"] = fitting_context(
            model, device, found.max_context, rows, dialect, desktop
        )
        max_context = context or max_context
    if not needs["builds"]:
        parts = range(2, model.decoder.num_layers + 1)
        fitting = (n for n in parts if needed(max_context, n).build <= device.memory)
        needs["llm_parts"] = next(fitting, None)
    return needs


def best_keep(model: Model, device: Device, ttft: float, text_tokens: int = costs.TEXT_TOKENS) -> int | None:
    """Return the largest budget whose first token comes within ``ttft`` seconds, or None if none does.

    A method with a fixed budget gives that budget or None.
    """
    method, total = model.manifest.method, model.manifest.num_visual_tokens

    def soon(keep: Keep) -> bool:
        return times(model, device, model.schedule(keep), text_tokens).first_token <= ttft

    if not method.prunes or method.fixed_keep is not None:
        return (method.fixed_keep or total) if soon(None) else None
    return next((keep for keep in range(total, 0, -1) if soon(keep)), None)


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    args = _parser().parse_args(argv)
    if (args.model is None) == (args.bundle is None):
        raise UserError(
            "no model to plan, or two | expected either a BUNDLE or --model NAME | foveate plan --help",
            code=2,
        )
    for name, least in (("text_tokens", 0), ("new_tokens", 1), ("visual_tokens", 1), ("max_context", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise UserError(f"wrong {option} | got {value}, expected {least} or more | leave it out", code=2)
    if args.bundle and (args.method or args.precision):
        raise UserError(
            "a bundle sets its own method and precision | got --method or --precision | leave them out",
            code=2,
        )
    model = model_sizes.model(
        args.bundle or args.model, args.method or "none", args.precision or "int4", args.visual_tokens
    )
    facts = plan(
        model,
        devices.in_mode(devices.device(args.device), args.mode),
        args.keep,
        ttft=args.ttft,
        text_tokens=args.text_tokens,
        new_tokens=args.new_tokens,
        desktop=not args.headless,
        max_context=args.max_context,
        dialect=args.dialect,
    )
    print(json.dumps(facts) if args.json else "\n".join(_lines(facts)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="foveate plan", description="Estimate memory and speed on a device before anything is built."
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?",
        help="Plan this bundle's model, method and precision instead of --model, --method and --precision.",
    )
    parser.add_argument(
        "--model",
        help="Plan for this model: a config.json in Hugging Face's format, its folder, or one of "
        f"{', '.join(model_sizes.known())}, or the hub id of one of these that build knows "
        "(required without BUNDLE).",
    )
    parser.add_argument(
        "--method", help=f"Plan for this method: {', '.join(model_sizes.methods())} (default: none)."
    )
    parser.add_argument(
        "--precision",
        help="Plan for decoder layers in this precision: int4, int8, fp8 or fp16 (default: int4).",
    )
    parser.add_argument(
        "--keep",
        help="Keep this many visual tokens of each image: a count such as 128, or a percentage such as "
        '"22.2%%" '
        "(default: the bundle's, or 22.2%% without BUNDLE; the method none keeps all).",
    )
    parser.add_argument(
        "--device",
        required=True,
        help=f"Plan for this device: {', '.join(devices.DEVICES)} (required).",
    )
    parser.add_argument(
        "--mode",
        metavar="NAME",
        help="Plan for this power mode of the device, as nvpmodel names it, such as 25W (default: the "
        "module's default mode where the table has it, else the one in the table).",
    )
    parser.add_argument(
        "--ttft",
        type=float,
        metavar="SECONDS",
        help="Also find the largest --keep that reaches this time to first token (default: do not search).",
    )
    parser.add_argument(
        "--visual-tokens",
        type=int,
        help="Count this many visual tokens per image, for models where it depends on the image's size "
        f"(default: those of an image of {PHOTO[0]} x {PHOTO[1]} pixels).",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=costs.TEXT_TOKENS,
        help=f"Count this many text tokens in the prompt (default: {costs.TEXT_TOKENS}).",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=64, help="Count this many tokens in the answer (default: 64)."
    )
    parser.add_argument(
        "--max-context",
        type=int,
        help="Give the kv cache room for this many rows, as in `foveate compile` (default: as there).",
    )
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        help="Plan for this dialect: native is for TensorRT 10.15 or newer (JetPack 7.2), primitive for "
        "older versions (default: primitive on a Jetson, else native).",
    )
    parser.add_argument(
        "--headless", action="store_true", help="Count no memory for a desktop (default: a Jetson runs one)."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print the plan as one JSON document (default: as text)."
    )
    return parser


def _lines(facts: dict[str, Any]) -> list[str]:
    device, needs = facts["device"], facts["memory"]
    mode = f", mode {device['mode']}" if device["mode"] else ""
    stages = ", ".join(f"{tokens} in {layers} layers" for layers, tokens in facts["schedule"])
    low, high = (facts["seconds_range"][end] for end in ("from", "to"))
    decoding = facts["tokens_per_second_range"]
    lines = [
        f"{'model':<12}{facts['model']}, decoder {facts['precision']}",
        f"{'device':<12}{device['title']}{mode}",
        f"{'image':<12}{facts['visual_tokens']} visual tokens, kept {stages}; {facts['text_tokens']} of text",
        "",
        *(
            f"{name.replace('_', ' '):<12}{low[name] * 1e3:10.1f} to {high[name] * 1e3:.1f} ms"
            for name in _STAGES
        ),
        f"{'decoding':<12}{decoding['from']:10.1f} to {decoding['to']:.1f} tokens/s",
        "",
    ]
    notes = {
        "context": "  CUDA and TensorRT in the process, our assumption",
        "cache": f"  {needs['max_context']} rows, whatever is kept; this answer needs {needs['answer_rows']}",
        "scratch": f"  an estimate, for {needs['rows']} rows at once in the dialect {needs['dialect']}",
        "buffers": "  inputs and outputs of as many rows",
    }
    parts = ("system", "context", "weights", "cache", "scratch", "buffers", "run", "build", "total")
    lines += [f"{name:<12}{needs[name] / 1e9:10.2f} GB{notes.get(name, '')}" for name in parts]
    lines += ["", *_verdict(needs)]
    if "ttft" in facts:
        wanted, keep = facts["ttft"]["wanted"], facts["ttft"]["keep"]
        most = (
            f"keep {keep}" if keep else "no budget is small enough: vision alone, or one token, takes longer"
        )
        lines.append(f"{'first token':<12}in {wanted} s: {most}")
    return [*lines, "estimates from published measurements of other engines; docs/jetson.md has their errors"]


def _verdict(needs: dict[str, Any]) -> list[str]:
    parts, context = needs.get("llm_parts"), needs.get("fitting_context")
    and_so = " and that --max-context" if context else ""
    whole = "a smaller model or a larger module (swap does not help the builder)"
    lines = []
    for fits, need, what, remedy in (
        (
            "fits",
            "run",
            "answering",
            f"it does with `foveate compile --max-context {context}`"
            if context
            else "lower --precision, a smaller model or --headless",
        ),
        (
            "builds",
            "build",
            "compiling",
            f"it does with `foveate build --llm-parts {parts}`{and_so}" if parts else whole,
        ),
    ):
        lack = (needs[need] - needs["total"]) / 1e9
        spare = f"fits, {-lack:.2f} GB to spare"
        lines.append(
            f"{what:<12}{spare if needs[fits] else f'does not fit: {lack:.2f} GB too little; {remedy}'}"
        )
    return lines

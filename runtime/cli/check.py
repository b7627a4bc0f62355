"""``foveate check``: test a compiled bundle on this machine.

Every file is hashed. Then the engines are tested (``runtime.compiling.self_test``). With
``--export-polygraphy`` nothing is tested: Polygraphy's files are written (``compiling.polygraphy_folder``).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError, install_extra
from foveate.runtime.bundle.compiled import CompiledEngine, choose, compile_command
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.cli import Parser, options
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import Finding
from foveate.runtime.compiling.polygraphy_commands import reduce_hint
from foveate.runtime.compiling.polygraphy_folder import export_polygraphy

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    parser = Parser(
        prog="foveate check",
        description="Test that a compiled bundle answers correctly on this machine: hash its files, and "
        "replay the reference answers of its build.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a compiled bundle.")
    options.add_engine(parser)
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON document (default: print text for people)."
    )
    parser.add_argument(
        "--export-polygraphy",
        type=Path,
        metavar="DIR",
        help="Test nothing, and write the recorded inputs and outputs of every graph to this new folder, "
        "with the commands by which NVIDIA's Polygraphy compares ONNX Runtime and TensorRT with them. The "
        "bundle need not be compiled (default: test the bundle).",
    )
    args = parser.parse_args(argv)
    if args.export_polygraphy is not None:
        return _export(args)
    bundle = load(args.bundle, full=True, progress=lambda name: options.say(f"hashing {name}"))
    made = choose(bundle, args.engine)
    options.say(f"hashing {made.key}")
    if fault := made.fault(bundle, full=True):
        raise UserError(
            f"the engine {made.key} is damaged | {fault} | {compile_command(bundle, made)} --force"
        )
    findings = []
    for finding in self_test.replay(bundle, made, args.threads):
        findings.append(finding)
        if not args.json:
            print(_line(finding), flush=True)
    if args.json:
        print(json.dumps(_document(bundle, made, findings)))
    wrong = next((finding for finding in findings if not finding.ok), None)
    if wrong:
        limits = self_test.limits_of(bundle, made, wrong.graph)
        raise self_test.not_finite(bundle, made.dialect, wrong) or UserError(
            f"the graph {wrong.graph} is wrong on this machine "
            f"| {self_test.seen(wrong)}, expected {limits.cosine} and {limits.error:g} "
            f"| {compile_command(bundle, made)} --force"
            + reduce_hint(bundle, made.target, made.dialect, wrong.graph)
        )
    if not args.json:
        print(f"fine: {len(bundle.manifest.files)} files, {len(findings)} answers, engine {made.key}")
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write Polygraphy's files. Raises UserError."""
    for name in ("engine", "threads", "json"):
        if getattr(args, name) not in (None, False):
            raise UserError(
                f"--{name} has no meaning with --export-polygraphy | no engine is tested | leave it out",
                code=2,
            )
    bundle = load(args.bundle, full=True, progress=lambda name: options.say(f"hashing {name}"))
    out = args.export_polygraphy
    count = export_polygraphy(bundle, out, progress=options.say)
    print(f"{out}: {count} graphs. Polygraphy runs their scripts; {install_extra('debug')}")
    return 0


def _line(finding: Finding) -> str:
    line = f"{finding.graph:<16}{finding.answer:<24}cosine {finding.cosine:.6f}  error {finding.error:8.2e}"
    if finding.not_finite:
        line += "  NaN or infinity"
    elif finding.agreement is not None:
        line += f"  agreement {finding.agreement:.1%}, {finding.excused} excused"
    return line + ("" if finding.ok else "  WRONG")


def _document(bundle: Bundle, made: CompiledEngine, findings: list[Finding]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "engine": made.key,
        "files": len(bundle.manifest.files),
        "ok": all(finding.ok for finding in findings),
        "limits": {name: asdict(self_test.limits_of(bundle, made, name)) for name in bundle.manifest.stages},
        "findings": [_plain(finding) for finding in findings],
    }


def _plain(finding: Finding) -> dict[str, Any]:
    """Return a finding for JSON, with None in place of NaN and infinity, which JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(finding).items()
    }

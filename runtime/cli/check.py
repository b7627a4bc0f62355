"""``foveate check``: test a compiled bundle on this machine.

Every file is hashed. Then the engines are tested (``runtime.compiling.self_test``).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.bundle.compiled import CompiledEngine, choose, compile_command
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.cli import Parser, options
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import Finding

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
    args = parser.parse_args(argv)
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
        )
    if not args.json:
        print(f"fine: {len(bundle.manifest.files)} files, {len(findings)} answers, engine {made.key}")
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

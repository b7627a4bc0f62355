"""ONNX Runtime's telemetry is off before anything imports it: here, in children, in every file of ours."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.engines import NO_TELEMETRY

ROOT = Path(__file__).parents[2]
TOP = ("calib", "engines", "export", "jetson", "runtime")
ONLY = "engines/ort/library.py"  # in it alone stands the import
SHELL = ("Makefile", "*.sh", ".ci/*", "Dockerfile*", "*.service")
IN_TEXT = re.compile(r"(?:import\s+(?:[\w.]+\s*,\s*)*|from\s+)onnxruntime\b")
OURS = re.compile(r"(?:import|from)\s+foveate\.(?:calib|engines|export|jetson|runtime)\b")


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != NO_TELEMETRY}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", TOP)
def test_every_package_switches_it_off(name):
    child = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = python(
        f"import foveate.{name}, subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_users_variable_stays():
    done = python(f"import os, foveate.engines; print(os.environ[{NO_TELEMETRY!r}])", **{NO_TELEMETRY: "0"})
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_an_import_before_ours_is_one_warning_that_names_the_variable():
    late = "import onnxruntime, foveate.engines, foveate.runtime, foveate.engines.ort.backend"
    said = python(late).stderr
    assert said.count("RuntimeWarning") == said.count(NO_TELEMETRY) == 1
    assert "onnxruntime was imported before foveate" in said
    assert python(late, **{NO_TELEMETRY: "1"}).stderr == ""
    assert python("import foveate.engines, onnxruntime, foveate.engines.ort.backend").stderr == ""


def test_the_hub_hears_nothing_besides():
    code = (
        "import foveate.export; from huggingface_hub import constants; "
        "print(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    assert python(code).stdout == "True\n"


def faults(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield imports of onnxruntime, in code and in strings with code, that may come before ours."""
    where = path.relative_to(root).as_posix()
    if where == ONLY:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = any(alias.name.split(".")[0] == "onnxruntime" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = (node.module or "").split(".")[0] == "onnxruntime"
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            found = name in ("import_module", "__import__", "importorskip") and (
                isinstance(first, str) and first.split(".")[0] == "onnxruntime"
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = unsafe(node.value)
        else:
            continue
        if found:
            yield f"{where}:{node.lineno}: take it from foveate.engines.ort.backend"


def unsafe(text: str) -> bool:
    """Tell whether code in ``text`` imports onnxruntime before anything of ours, and without the variable."""
    found = IN_TEXT.search(text)
    before = text[: found.end()] if found else ""
    return bool(found) and not OURS.search(before) and NO_TELEMETRY not in before


def test_onnxruntime_is_imported_in_one_place_only():
    """Package, scripts and tests. This file imports it first on purpose, in a child."""
    mine = Path(__file__).relative_to(ROOT)
    paths = [p for top in (*TOP, "scripts", "tests") for p in sorted((ROOT / top).rglob("*.py"))]
    assert len(paths) > 150
    assert not [fault for path in paths for fault in faults(path) if path != ROOT / mine]


def test_no_shell_script_imports_it_by_itself():
    paths = [p for pattern in SHELL for p in ROOT.rglob(pattern) if ".venv" not in p.parts]
    assert len(paths) > 5
    for path in paths:
        if path.is_file():
            assert not unsafe(path.read_text()), path


@pytest.mark.parametrize(
    "code",
    [
        "import onnxruntime",
        "import numpy, onnxruntime.capi as c",
        "def f():\n    from onnxruntime import InferenceSession",
        "import importlib\nimportlib.import_module('onnxruntime')",
        "import pytest\npytest.importorskip('onnxruntime')",
        "CHILD = 'import json, onnxruntime as o; print(o)'",
        "import foveate.engines\nimport onnxruntime",  # a formatter that sorts would turn it round
    ],
)
def test_the_test_sees_faults(tmp_path, code):
    (tmp_path / "bad.py").write_text(code)
    assert len(list(faults(tmp_path / "bad.py", tmp_path))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from foveate.engines.ort.backend import onnxruntime",
        "CHILD = 'import foveate.engines, onnxruntime as o'",
        "TARGETS = {'onnxruntime': 'pip install onnxruntime'}",
    ],
)
def test_the_test_takes_what_is_right(tmp_path, code):
    (tmp_path / "good.py").write_text(code)
    assert not list(faults(tmp_path / "good.py", tmp_path))


def test_deployed_containers_and_services_set_the_variable():
    for name in ("Dockerfile.jetpack6", "Dockerfile.jetpack7"):
        assert re.search(
            rf"^ENV {NO_TELEMETRY}=1$", (ROOT / "jetson" / "docker" / name).read_text(), re.MULTILINE
        ), name
    unit = (ROOT / "jetson/docker/foveate-watch.service").read_text()
    assert re.search(rf"^Environment={NO_TELEMETRY}=1$", unit, re.MULTILINE)


OTHERS = re.compile(
    r"(?<!--export-)polygraphy|optimum-cli|tritonserver|lmms|trtexec|olive"
    r"|python3? -m (?!pip|pytest|venv|foveate)"
)


def test_commands_of_others_in_the_docs_carry_it():
    """Programs that may load ONNX Runtime without us. ``pip install`` of them loads nothing."""
    seen = 0
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(
            r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if OTHERS.search(line) and "pip" not in words:
                    assert f"{NO_TELEMETRY}=1" in words, f"{page.name}: {line}"
                    seen += 1
    assert seen

"""docs/bundle-format.md is true: its program reads bundles, and built bundles fit its JSON Schema.

The program does not import foveate.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.runtime.cli import main
from foveate.runtime.compiling.compile import compile_bundle

DOCS = Path(__file__).parents[2] / "docs"
QUESTION = "What is left of the bus?"
METHODS = {
    "none": {},
    "sppruner": {},
    "sppruner keeping positions": {"position_mode": "keep"},
    "fastv": {"layer": "1"},
    "tome": {"keep": "24"},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["none", "sppruner", "sppruner keeping positions"])
def test_the_program_of_the_page_answers_as_foveate_without_it(name, method_bundle, image, capsys):
    bundle = method_bundle(name.partition(" ")[0], "fp32", **METHODS[name])
    total = json.loads((bundle / "bundle.json").read_text())["num_visual_tokens"]
    keep = total if name == "none" else 5
    program = re.findall(r"```python\n(.*?)```", (DOCS / "bundle-format.md").read_text(), re.DOTALL)
    blocked = f"import sys\nsys.modules['foveate'] = None\nsys.argv[0] = 'page'\n{program[0]}"
    command = [sys.executable, "-c", blocked, str(bundle), str(image), QUESTION, str(keep), "24"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)

    compile_bundle(bundle)
    arguments = ["run", str(bundle), QUESTION, "--image", str(image), "--keep", str(keep), "--json"]
    capsys.readouterr()
    assert main([*arguments, "--max-new-tokens", "24"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert len(ours["tokens"]) > 8 and theirs["tokens"] == ours["tokens"]
    assert [theirs["kept"]] == ours["kept"] and theirs["text"] == ours["text"].strip()


@pytest.mark.parametrize("name", METHODS)
def test_built_bundles_fit_the_schema(name, method_bundle):
    """And the schema is no rubber stamp: a key less, or another type, does not fit."""
    validators = pytest.importorskip(
        "jsonschema", reason="jsonschema checks the schema; it is in the extra dev"
    )
    schema = json.loads((DOCS / "bundle.schema.json").read_text())
    validators.Draft202012Validator.check_schema(schema)
    check = validators.Draft202012Validator(schema)
    data = json.loads(
        (method_bundle(name.partition(" ")[0], "fp32", **METHODS[name]) / "bundle.json").read_text()
    )
    assert [error.message for error in check.iter_errors(data)] == []
    for key in schema["required"]:
        assert not check.is_valid({k: v for k, v in data.items() if k != key}), key
    for key in schema["properties"]:
        assert not check.is_valid(data | {key: 1.5}), key
    method = data["methods"][0]
    assert not check.is_valid(data | {"methods": [method | {"position_mode": "x"}]})
    assert not check.is_valid(data | {"vision": data["vision"] | {"kind": "x"}})

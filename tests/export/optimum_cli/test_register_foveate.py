"""``optimum-cli export foveate`` in the real optimum-cli.

It finds the file where the editable install shows it, or else in a folder laid out as a wheel's.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.export import build
from foveate.runtime.bundle.loading import load

ROOT = Path(__file__).parents[3]
pytest.importorskip("optimum.commands.optimum_cli", reason="the extra optimum is not installed")


def installed() -> bool:
    """True unless this environment was installed before the file existed."""
    spec = importlib.util.find_spec("optimum.commands.register")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return any(Path(place, "register_foveate.py").is_file() for place in places)


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH, with the file if it is not installed: optimum-cli takes no command twice."""
    folder = tmp_path / "site/optimum/commands/register"
    folder.mkdir(parents=True)
    if not installed():
        (folder / "register_foveate.py").symlink_to(ROOT / "export/optimum_cli/register_foveate.py")
    return tmp_path / "site"


def optimum_cli(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    code = "from optimum.commands.optimum_cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        cwd=site, capture_output=True, text=True, check=False,
    )  # fmt: skip


def options(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", text.split("usage:")[1].split("\n\n")[0]))


def test_its_options_are_those_of_foveate_build(registered: Path) -> None:
    """All but ``--out``, which comes last and without a name."""
    done = optimum_cli(registered, "export", "foveate", "--help")
    assert done.returncode == 0, done.stderr
    theirs = options(done.stdout)
    assert theirs == options(build._parser().format_help()) - {"--out"} and len(theirs) > 10
    assert re.search(r"--no-compile\]\s+OUT\n", done.stdout)


def test_it_stands_beside_the_commands_of_others(registered: Path) -> None:
    """optimum-cli reads every file of the folder, and starts without our libraries."""
    other = registered / "optimum/commands/register/register_other.py"
    other.write_text("print('the other one was read')\n")
    done = optimum_cli(registered, "export")
    assert "foveate" in done.stdout and "the other one was read" in done.stdout
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'rich', 'safetensors', 'yaml', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "from optimum.commands.optimum_cli import main; main()"
    )
    command = [sys.executable, "-c", code, "export", "foveate", "--model", ROOT / "scripts/shapes"]
    done = subprocess.run(
        [*command, "--method", "none", "out"],
        env={**os.environ, "PYTHONPATH": str(registered)},
        cwd=registered, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"`foveate build` needs the export extra \| \w+ is not installed", done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "llava-1.5-7b", "--method", "nome"], "foveate: unknown method 'nome' | known: "),
        (["--model", "", "--method", "none"], "argument --model: the value is empty"),
        (["--model", "llava-1.5-7b"], "the following arguments are required: --method"),
    ],
)
def test_errors_are_those_of_foveate_build(registered: Path, words: list[str], said: str) -> None:
    done = optimum_cli(registered, "export", "foveate", *words, "out")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (registered / "out").exists()


def test_nothing_is_reported_to_the_hub(registered: Path) -> None:
    """Importing optimum imports the hub's client before it reads our file, but no settings of it."""
    code = (
        "import sys\nfrom optimum.commands.optimum_cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "from huggingface_hub import constants\nassert constants.HF_HUB_DISABLE_TELEMETRY\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(registered)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_builds_the_bundle(registered: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = ("--model", ROOT / "scripts/shapes", "--method", "uniform", "--precision", "fp32")
    done = optimum_cli(registered, "export", "foveate", *words, "--dialects", "ort", "--no-compile", out)
    assert done.returncode == 0, done.stderr
    assert f'next: foveate run {out} "What is in the image?"' in done.stderr
    assert load(out).manifest.method.name == "uniform"

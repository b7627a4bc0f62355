"""The command line: codes, streams, one-line errors, and what it imports."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import main

import foveate.engines
import foveate.runtime
from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.compiling.compile import compile_bundle

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "", "x"],
        *(["run", "BUNDLE", "x", option] for option in ("--image", "--video", "--overlay", "--engine")),
        *(["watch", "BUNDLE", "--prompt", "x", option] for option in ("--camera", "--video")),
        ["compile", "BUNDLE", "--target"],
        ["plan", "--model"],
        ["doctor", "--path"],
        *(["pack", "BUNDLE", option] for option in ("--out", "--wheels")),
        *(["deploy", "BUNDLE", "host", option] for option in ("--to", "--python", "--image", "--wheels")),
        *(
            ["build", "--method", "none", "--model", "llava-1.5-7b", "--no-compile", option]
            for option in ("--model", "--adapter", "--clip", "--pruner", "--out", "--statistics")
        ),
        *(["build", "--method", "none", "--model", "m", option] for option in ("--dialects", "--calibrate")),
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_the_current_folder(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv
) -> None:
    """Nor is it an option that was left out."""
    monkeypatch.chdir(tmp_path)
    values = [str(bundle) if arg == "BUNDLE" else arg for arg in argv]
    assert main(*values, *([""] if argv[-1].startswith("--") else [])) == 2
    assert "the value is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["runn"], "did you mean run?"),
        (["run"], "required: BUNDLE, PROMPT"),
        (["run", "BUNDLE", " "], "prompt is empty"),
        (["run", "BUNDLE", "x", "--keep", "abc%"], "wrong keep"),
        (["run", "BUNDLE", "x", "--top-p", "3"], "wrong top-p"),
        (["run", "BUNDLE", "x", "--seed", "one"], "invalid int value"),
        (["run", "BUNDLE", "x", "--threads", "0"], "wrong threads"),
        (["run", "BUNDLE", "x", "--overlay", "a.png"], "--overlay shows"),
        (["run", "BUNDLE", "x", "--image", "i.png", "--overlay", "a.doc"], "the suffix '.doc'"),
        (["run", "BUNDLE", "x", "--image", "i.png", "--overlay", "no/a.png"], "no folder no"),
        (["run", "nowhere", "x"], "no such directory"),
        (["compile", "BUNDLE", "--target", "tensort"], "unknown target"),
        (["check", "BUNDLE", "--engine", "abacus"], None),
        (["inspect", "--nothing"], "required: BUNDLE"),
    ],
)
def test_usage_errors_are_one_line(
    bundle: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str | None
) -> None:
    code = main(*[bundle if arg == "BUNDLE" else arg for arg in argv])
    printed = capsys.readouterr()
    assert code == (2 if words else 1)
    assert printed.out == ""
    assert printed.err.startswith("foveate: ")
    assert len(printed.err.splitlines()) == 1
    assert (words or "no compiled engine abacus") in printed.err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.VERBS)
    assert main("--version") == 0
    assert capsys.readouterr().out.startswith("foveate 0.")
    assert main() == 2
    for verb in ("run", "chat", "check", "inspect", "compile"):
        with pytest.raises(SystemExit) as end:
            main(verb, "--help")
        assert end.value.code == 0
        assert f"usage: foveate {verb}" in capsys.readouterr().out


def test_ctrl_c(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from foveate.runtime.cli import run

    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "main", interrupt)
    assert main("run", bundle, "x") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away(bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "foveate.runtime.cli", "run", str(bundle), "x", "--max-new-tokens", "20"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_build_says_that_it_needs_the_export_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from foveate.runtime.cli import main; "
        "sys.exit(main(['build', '--model', '.', '--method', 'none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "needs the export extra | torch is not installed | in a clone of foveate: "
        "pip install --editable '.[export]'" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


def test_the_runtime_needs_no_torch(bundle: Path, image: Path) -> None:
    """Every device-side module is imported and a question answered where the host's libraries cannot be."""
    names = [
        f"{package.__name__}.{module.name}"
        for package in (foveate.engines, foveate.runtime)
        for module in pkgutil.iter_modules(package.__path__)
        if module.name != "trt"  # needs TensorRT
    ]
    code = f"""
import importlib, sys
for name in {HEAVY}:
    sys.modules[name] = None
for name in {names}:
    importlib.import_module(name)
from foveate.runtime.cli import main
sys.exit(main(["run", {str(bundle)!r}, "Why?", "--image", {str(image)!r}, "--max-new-tokens", "2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_verb_is_imported_when_it_is_asked_for() -> None:
    code = "import sys; from foveate.runtime.cli import main; main(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "foveate.runtime.pipeline" not in done.stdout
    assert "numpy" not in done.stdout


def test_exit_code_of_a_failure(make_bundle, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_bundle(fault="scale")
    compile_bundle(root, self_test=False)
    assert main("check", root) == 1
    printed = capsys.readouterr()
    assert "WRONG" in printed.out
    assert "the graph llm is wrong" in printed.err


def test_user_errors_stay_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise UserError("first\nsecond")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main("run") == 1
    assert capsys.readouterr().err == "foveate: first second\n"

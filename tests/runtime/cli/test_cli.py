"""The command line: codes, streams, one-line errors, and what it imports."""

from __future__ import annotations

import io
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveate.engines
import foveate.runtime
from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.compiling.compile import compile_bundle

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


@pytest.fixture
def image(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def main(*argv: object) -> int:
    return cli.main([str(arg) for arg in argv])


def test_run_streams_text(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from foveate.runtime.pipeline import Pipeline

    assert main("run", bundle, "Why?", "--image", image, "--max-new-tokens", 9) == 0
    printed = capsys.readouterr()
    expected = Pipeline.load(bundle).generate(image, "Why?", max_new_tokens=9)
    assert printed.out == expected.text + "\n"
    assert printed.err == ""


def test_run_json(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        *("run", bundle, "Why?", "--image", image, "--image", image, "--keep", "25%", "--json"),
        *(
            "--max-new-tokens",
            9,
            "--temperature",
            1,
            "--top-k",
            5,
            "--top-p",
            0.9,
            "--seed",
            3,
            "--threads",
            1,
        ),
    )
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["tokens"]) == 9
    assert [len(kept) for kept in document["kept"]] == [4, 4]
    assert document["timings"]["cache_bytes_allocated"] > document["timings"]["cache_bytes_used"] > 0
    assert document["finish"] == "length"


def test_run_timings(bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("run", bundle, "Why?", "--image", image, "--timings", "--max-new-tokens", 3) == 0
    lines = capsys.readouterr().err.splitlines()
    names = [
        "kept",
        "preprocess",
        "vision",
        "prune",
        "prefill",
        "decode",
        "first",
        "total",
        "decoding",
        "prompt",
        "cache",
    ]
    assert [line.split()[0] for line in lines] == names
    assert re.fullmatch(r"kept +\d+ of 16 visual tokens \(\d+\.\d%\)", lines[0])


def test_run_overlay(bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    code = main(
        "run", bundle, "Why?", "--image", image, "--image", image, "--overlay", out, "--max-new-tokens", 1
    )
    assert code == 0
    for path in (out, tmp_path / "out-2.png"):
        with Image.open(path) as drawn:
            assert drawn.size[0] == drawn.size[1] >= 8
    printed = capsys.readouterr().err
    assert printed == f"overlay: {out}\noverlay: {tmp_path / 'out-2.png'}\n"


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


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("inspect", bundle) == 0
    text = capsys.readouterr().out
    for words in (
        "tap (no options), positions compact",
        "16 visual tokens, 4 x 4",
        "keep int64[]",
        "past.0.key dtype[1, 2, cache, 8] ... past.1.value: 4 alike",
        "vision_encoder.ort.onnx, float32",
        "weights/llm.data",
        "fits this machine",
    ):
        assert words in text, words
    assert main("inspect", bundle, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in facts["stages"]] == ["vision_encoder", "pruner", "llm"]
    assert facts["engines"][0]["fault"] is None
    assert facts["bytes"] == sum(facts["files"].values())


def test_inspect_without_engines(make_bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("inspect", make_bundle(keep=7)) == 0
    text = capsys.readouterr().out
    assert "engine      none" in text
    assert "keep=7" in text


def test_chat(
    bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        f"/image {image}",
        "What?",
        "",
        "/reprune",
        "Why?",
        "/nonsense",
        "/help",
        "/image nowhere.png",
        "Who?",
        "/quit",
        "x",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main("chat", bundle, "--max-new-tokens", 3, "--keep", 4, "--timings") == 1  # a turn failed
    printed = capsys.readouterr()
    assert printed.err.count("first token") == 2
    assert "no such command: /nonsense" in printed.err
    assert "\n/image FILE shows an image with the next question" in printed.err, "/help"
    assert "cannot read the image nowhere.png" in printed.err


def test_chat_ends_with_its_input(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main("chat", bundle, "--max-new-tokens", 2, "--system", "Be kind.") == 0
    assert capsys.readouterr().out.endswith("\n")


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


def test_ctrl_c_breaks_an_answer_off_and_the_chat_goes_on(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foveate.runtime.llm.decoder import Decoder

    step, calls = Decoder.step, []

    def interrupted(self: Decoder, token: int) -> np.ndarray:
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, token)

    monkeypatch.setattr(Decoder, "step", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nWhy?\n"))
    assert main("chat", bundle, "--max-new-tokens", 6, "--timings") == 0
    printed = capsys.readouterr()
    assert printed.out.count("[broken off]") == 1
    assert printed.err.count("first token") == 1
    assert len(calls) == 3 + 5


def test_ctrl_c_at_the_prompt_ends_the_chat(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(io.StringIO):
        def readline(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert main("chat", bundle) == 130
    assert "Traceback" not in capsys.readouterr().err

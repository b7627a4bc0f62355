"""``foveate build`` for a user: files that are written, refusals, and traces of a failed build."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.export import build as build_module
from foveate.export import models
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import main

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_checkpoint):
    path = tmp_path_factory.mktemp("hf") / "tiny"
    save_checkpoint(path)
    return path


def build(checkpoint, out, *more: str) -> int:
    return main(["build", "--model", str(checkpoint), "--method", "sppruner", "--out", str(out), *more])


def leftovers(directory: Path) -> list[str]:
    """Hidden files but locks, which stay."""
    return sorted(p.name for p in directory.iterdir() if p.name.startswith(".") and p.suffix != ".lock")


def test_the_bundle_is_whole_and_alone(checkpoint, tmp_path):
    assert build(checkpoint, tmp_path / "b", "--set", "rho=0.25") == 0
    bundle = load(tmp_path / "b", full=True)
    assert bundle.manifest.method.options["rho"] == 0.25
    assert set(bundle.manifest.dialects) == {"native", "ort", "primitive"}
    assert not leftovers(tmp_path)
    text = (tmp_path / "b" / "bundle.json").read_text()
    assert str(tmp_path) not in text.replace(json.dumps(str(checkpoint)), "")


def test_the_script_is_the_verb(checkpoint, tmp_path):
    command = [sys.executable, str(REPOSITORY / "export" / "build.py"), "--model", str(checkpoint)]
    command += ["--method", "none", "--dialects", "ort", "--out", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "here").manifest.stages == ("vision_encoder", "llm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "sprunner"], "did you mean sppruner"),
        (["--model", "llava-1.5-7n"], "llava-1.5-7b"),
        (["--dialects", "nativ"], "did you mean native"),
        (["--set", "roh=1"], "did you mean rho"),
        (["--set", "rho"], "expected KEY=VALUE"),
        (["--set", "rho=2"], "bad value for rho"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(checkpoint, tmp_path, capsys, arguments, words):
    out = tmp_path / "b"
    assert build(checkpoint, out, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not out.exists() and not leftovers(tmp_path)


def test_a_directory_that_is_no_bundle_is_not_replaced(checkpoint, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert build(checkpoint, tmp_path / "mine") == 1
    assert "in the way" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_older_bundle_is_replaced(checkpoint, tmp_path):
    assert build(checkpoint, tmp_path / "b", "--dialects", "ort", "--no-compile") == 0
    (tmp_path / "b" / "of_the_old_one").touch()
    assert build(checkpoint, tmp_path / "b", "--dialects", "ort", "--no-compile", "--set", "rho=0.75") == 0
    assert load(tmp_path / "b").manifest.method.options["rho"] == 0.75
    assert not (tmp_path / "b" / "of_the_old_one").exists() and not leftovers(tmp_path)


def test_a_disk_that_cannot_hold_such_files_is_said_and_leaves_nothing(checkpoint, tmp_path):
    """A limit on file size stands for FAT: the kernel refuses the write with the same error."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "from foveate.runtime.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "build", "--model", str(checkpoint), "--method", "none"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "b")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot hold files of that size" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".b.lock"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_no_bundle_and_the_next_one_succeeds(checkpoint, tmp_path, number):
    command = [sys.executable, "-m", "foveate.runtime.cli", "build", "--model", str(checkpoint)]
    command += ["--method", "none", "--out", str(tmp_path / "b"), "--no-compile", "--dialects", "ort"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not leftovers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() != 0
    assert not (tmp_path / "b").exists()
    assert main(command[3:]) == 0
    assert load(tmp_path / "b", full=True) and not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "usage: foveate build"),
        (["--model", "x", "--method", "sprunner"], "did you mean sppruner"),
        (["--model", "llava-1.5-7n", "--method", "none"], "did you mean llava-1.5-7b"),
        (["--model", "no/such/folder", "--method", "none"], "no directory no/such/folder"),
        (["--model", ".", "--method", "none", "--precision", "int3"], "invalid choice: 'int3'"),
        (["--model", ".", "--method", "none", "--dialects", "nativ"], "did you mean native"),
        (["--model", ".", "--method", "none", "--metod", "x"], "unknown option --metod"),
        (["--model", ".", "--method", "none", "--set", "rho"], "expected KEY=VALUE"),
    ],
)
def test_help_and_mistyped_names_are_answered_without_torch(tmp_path, arguments, words):
    code = (
        "import sys\nfrom foveate.runtime.cli import main\n"
        "try:\n    main(['build', *sys.argv[1:]])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'onnx_ir', 'onnx', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert words in done.stdout + done.stderr
    assert done.stdout.endswith("[]\n")
    assert list(tmp_path.iterdir()) == []


def test_names_of_models_are_those_of_their_families():
    for family in models.families():
        named = [name for name, each in models.checkpoints().items() if each == family]
        assert named == list(models.family(family).CHECKPOINTS)


def test_a_directory_gives_the_bundle_its_real_name(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    for given in (".", "../tiny/", str(checkpoint)):
        args = build_module._parser().parse_args(["--model", given, "--method", "none"])
        assert build_module._default_out(args) == Path("bundles/tiny.none.int4")
    args = build_module._parser().parse_args(["--model", "org/name", "--method", "none"])
    assert build_module._default_out(args) == Path("bundles/name.none.int4")

"""``foveate check --export-polygraphy``: the real Polygraphy reads its files and runs its commands."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.engines.disk import files
from foveate.engines.errors import UserError
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import main
from foveate.runtime.compiling.polygraphy_folder import export_polygraphy

BIN = Path(sys.executable).parent  # where pip put the command


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    # polygraphy starts a thread per core; the tests next to this one have the other cores
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | path | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a bundle that was never compiled."""
    root = make_bundle()
    out = tmp_path_factory.mktemp("export") / "with a blank"
    assert main(["check", str(root), "--export-polygraphy", str(out)]) == 0
    return out


@pytest.mark.parametrize("graph", ["vision_encoder", "pruner", "llm"])
def test_polygraphy_agrees_with_the_recorded_answers(folder: Path, graph: str) -> None:
    pytest.importorskip("polygraphy")
    done = run("sh", folder / "ort" / graph / "onnxrt.sh")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = {"llm": "'logits', 'present.0.key', 'present.0.value', 'present.1.key', 'present.1.value'"}
    names |= {"pruner": "'tokens', 'kept', 'count'", "vision_encoder": "'projected', 'cls_attention.1'"}
    assert f"All outputs matched | Outputs: [{names[graph]}]" in done.stdout
    assert "skipping corresponding output" not in done.stdout


def test_polygraphy_finds_a_planted_fault(make_bundle: Callable[..., Path], folder: Path) -> None:
    """The files of one bundle, run with the graphs of another: its language model has another rope."""
    pytest.importorskip("polygraphy")
    done = run("sh", folder / "ort/llm/onnxrt.sh", make_bundle(fault="rope"))
    assert done.returncode == 1
    assert "Mismatched outputs: ['logits', 'present.0.key'" in done.stdout


def test_nothing_but_the_standard_library_and_numpy_writes_it(folder: Path, tmp_path: Path) -> None:
    """On a device without Polygraphy, onnx and torch."""
    bundle = (folder / "ort/llm/onnxrt.sh").read_text().split("bundle=${1:-")[1].split("}")[0]
    code = (
        "import sys\n"
        "for name in ('polygraphy', 'onnx', 'torch', 'onnxruntime'):\n    sys.modules[name] = None\n"
        "from foveate.runtime.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    done = run(sys.executable, "-c", code, "check", bundle, "--export-polygraphy", out)
    assert done.returncode == 0, done.stderr
    for path in folder.rglob("*.*"):
        assert (out / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_no_dialect_of_onnx_runtime_gets_commands_of_tensorrt(folder: Path) -> None:
    found = {path.name for path in folder.rglob("*") if path.is_file()}
    assert found == {"inputs.json", "outputs.json", "onnxrt.sh"}


def small(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_an_existing_folder_is_left_alone(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    bundle = load(make_bundle())
    with pytest.raises(UserError, match=r"out exists already \| .* \| name a new folder") as error:
        export_polygraphy(bundle, out)
    assert error.value.code == 2 and small(tmp_path) == ["out"] and not list(out.iterdir())
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link exists already"):
        export_polygraphy(bundle, tmp_path / "link")


def test_a_folder_in_the_bundle_is_refused(make_bundle: Callable[..., Path]) -> None:
    root = make_bundle()
    before = small(root)
    with pytest.raises(UserError, match="lies in the bundle"):
        export_polygraphy(load(root), root / "out")
    assert small(root) == before


def test_a_full_disk_leaves_nothing(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(UserError, match=r"cannot write .*out \| No space left on device, \d+ MiB are free"):
        export_polygraphy(load(make_bundle()), tmp_path / "out")
    assert small(tmp_path) == []


def test_a_folder_that_appears_meanwhile_is_kept(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appears(folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").touch()

    monkeypatch.setattr(files, "flush", appears)
    with pytest.raises(UserError, match="cannot write"):
        export_polygraphy(load(make_bundle()), tmp_path / "out")
    assert small(tmp_path) == ["out"] and small(tmp_path / "out") == ["theirs"]


def test_a_missing_parent(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file or directory \| name another folder"):
        export_polygraphy(load(make_bundle()), tmp_path / "none/out")


def test_a_bundle_without_recorded_answers(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root = make_bundle()
    (root / "golden.npz").unlink()
    data = json.loads((root / "bundle.json").read_text())
    del data["files"]["golden.npz"]
    (root / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"it has no golden\.npz"):
        export_polygraphy(load(root), tmp_path / "out")
    assert small(tmp_path) == []


@pytest.mark.parametrize("words", [["--engine", "ort"], ["--threads", "1"], ["--json"]])
def test_options_of_a_test_are_refused(
    make_bundle: Callable[..., Path], tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(make_bundle()), "--export-polygraphy", str(tmp_path / "out"), *words]) == 2
    assert f"{words[0]} has no meaning with --export-polygraphy" in capsys.readouterr().err
    assert small(tmp_path) == []

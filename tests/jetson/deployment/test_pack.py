"""Packs: one file that installs a bundle on a device without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from wheels_by_hand import HERE, make_wheel, rename

from foveate.jetson.deployment.pack import contents, main, pack
from foveate.jetson.deployment.wheels import Target
from foveate.runtime.bundle.loading import load


def install(packed: Path, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(packed), "--to", str(root), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_pack_installs_from_one_file(source: Path, tmp_path: Path, device: Path, wheels: Path) -> None:
    packed, root = tmp_path / "it.pyz", device
    rename(source, "packed")
    pack(source, HERE, packed, wheels)
    done = install(packed, root)
    assert done.returncode == 0, done.stderr
    name = load(source).manifest.name
    assert load(root / "bundles" / name, full=True).manifest == load(source).manifest
    said = subprocess.run(
        [root / "runtime/bin/foveate", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("foveate ")
    ask = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"  # of any program, before it imports foveate
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for given, expected in ({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0"):
        python = [root / "runtime/bin/python", "-c", ask]
        assert subprocess.check_output(python, env=bare | given, text=True).strip() == expected
    before = (root / "runtime").resolve().stat().st_mtime_ns
    assert install(packed, root).returncode == 0  # nothing to do
    assert (root / "runtime").resolve().stat().st_mtime_ns == before


def test_a_damaged_pack_leaves_what_was_there(
    source: Path, tmp_path: Path, device: Path, wheels: Path
) -> None:
    packed, root = tmp_path / "it.pyz", device
    rename(source, "damaged")
    pack(source, HERE, packed, wheels)
    content = bytearray(packed.read_bytes())
    at = content.find((source / "more.data").read_bytes()[1000:1064])
    content[at] ^= 1
    packed.write_bytes(content)
    done = install(packed, root)
    assert done.returncode == 1 and "not installed" in done.stderr
    assert not (root / "bundles" / load(source).manifest.name).exists()
    pack(source, HERE, packed, wheels)
    assert install(packed, root).returncode == 0


def test_a_pack_for_another_machine_is_refused(source: Path, tmp_path: Path, wheels: Path) -> None:
    packed = tmp_path / "it.pyz"
    pack(source, Target("riscv64", "3.99", "2.35"), packed, wheels)
    done = install(packed, tmp_path / "device")
    assert done.returncode == 1 and "it is for machine riscv64" in done.stderr
    assert not (tmp_path / "device").exists()


def test_packages_with_a_wheel_are_installed(source: Path, tmp_path: Path) -> None:
    for name in ("foveate", "cuda_python"):
        make_wheel(tmp_path, name, {})
    assert contents(source, "it", tmp_path, HERE)["install"] == ["foveate", "cuda-python"]


def test_a_pack_shows_the_licences_in_it(source: Path, tmp_path: Path, capsys) -> None:
    make_wheel(tmp_path, "foveate", {})
    copy = shutil.copytree(source, tmp_path / "bundle")
    manifest = json.loads((copy / "bundle.json").read_text())
    each = {"source": "a/b", "id": "cc-by-nc-4.0", "use": "non-commercial", "files": []}
    (copy / "bundle.json").write_text(json.dumps(manifest | {"licence": {"model": each}}))
    pack(copy, HERE, tmp_path / "it.pyz", tmp_path)
    assert "licence of the model a/b: cc-by-nc-4.0 (not for commercial use)" in capsys.readouterr().err


def test_a_patch_release_of_jetpack_is_packed_as_its_family(
    source: Path, tmp_path: Path, wheels: Path, capsys
) -> None:
    said = {}
    for version in ("6.2.3", "6.2.2"):
        out = tmp_path / f"{version}.pyz"
        options = ["--jetpack", version, "--wheels", str(wheels), "--out", str(out)]
        assert main([str(source), *options]) == 0 and out.is_file()
        said[version] = capsys.readouterr().err
    assert "packed as 6.2.2" in said["6.2.3"] and "packed as" not in said["6.2.2"]

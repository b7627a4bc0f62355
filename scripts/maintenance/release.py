"""Make the files of a release, and install them in fresh environments.

The files are made from the last commit, in ``--out``: wheel, sdist, the versions that were tested as
constraints, a CycloneDX SBOM of each installation, and SHA256SUMS. Run it with the Python that ran the tests,
since the constraints are the versions of its packages. Then the wheel is installed twice, with these
constraints: without extras, as on a device, and with the extra ``export``, where it builds and asks the
small checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import tomllib

__all__ = ["constraints", "main", "sums"]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("build", "cyclonedx-bom>=7")
QUESTION, ANSWER = "What letter is on the sign?", "T"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("dist"), help="Empty folder for the files (default: dist)."
    )
    parser.add_argument(
        "--device-only", action="store_true", help="Try the wheel without extras only (default: both)."
    )
    args = parser.parse_args()
    if run("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"):
        sys.exit("there are changes that are not committed | a release is made of a commit | commit first")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        sys.exit(f"{out} is not empty | a release needs an empty folder | remove what is in it, or use --out")
    with tempfile.TemporaryDirectory() as folder:
        make(out, Path(folder), extras=("",) if args.device_only else ("", "export"))
    (out / "SHA256SUMS").write_text(sums(out.iterdir()), encoding="utf-8")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")
    return 0


def make(out: Path, work: Path, extras: Iterable[str]) -> None:
    """Write all files but SHA256SUMS into ``out``. Ends the program if an installation fails."""
    source = work / "source"
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, source)
    version = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    tools = environment(work / "tools")
    pip = [tools, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "install", *TOOLS)
    say("wheel and sdist")
    run(tools, "-m", "build", "--outdir", out, source)
    versions = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    pinned = out / f"foveate-{version}-constraints.txt"
    pinned.write_text(constraints(versions), encoding="utf-8")
    for extra in extras:
        say(f"fresh environment, {extra or 'no extra'}")
        python = environment(work / (extra or "device"), pip=False)
        install = [*pip[:3], "--python", python, *pip[3:], "install"]
        # From a folder, not by path: a path would be recorded, and end up in the SBOM.
        run(*install, "--no-index", "--no-deps", "--find-links", out, f"foveate=={version}")
        run(*install, "-c", pinned, f"foveate{f'[{extra}]' if extra else ''}=={version}")
        say(*try_out(python.parent, version, source, extra))
        bom = out / f"foveate-{version}-{extra or 'device'}.cdx.json"
        run(tools.parent / "cyclonedx-py", "environment", python, "--output-reproducible", "-o", bom)


def try_out(commands: Path, version: str, source: Path, extra: str) -> list[str]:
    """Return what an installation answered, beside no checkout. Ends the program if an answer is wrong."""
    folder = source.parent
    foveate = commands / "foveate"
    told = [run(foveate, "--version", cwd=folder)]
    expect(told[0], f"foveate {version}")
    told.append(run(foveate, "doctor", "--disk", "0", cwd=folder))
    if extra == "export":
        bundle = folder / "shapes"
        model = ["--model", source / "scripts/shapes", "--precision", "fp32", "--dialects", "ort"]
        run(foveate, "build", *model, "--method", "sppruner", "--out", bundle, cwd=folder)
        told.append(run(foveate, "run", bundle, QUESTION, "--image", source / "docs/scene.png", cwd=folder))
        expect(told[-1], ANSWER)
    return told


def expect(found: str, wanted: str) -> None:
    if found != wanted:
        sys.exit(f"a fresh installation answers wrongly | got {found!r}, expected {wanted!r}")


def environment(folder: Path, pip: bool = True) -> Path:
    """Make an environment with this Python, and return its interpreter."""
    run(sys.executable, "-m", "venv", *(() if pip else ("--without-pip",)), folder)
    return folder / "bin/python"


def constraints(versions: dict[str, str]) -> str:
    """Return a constraints file of ``versions`` by name.

    A version as ``2.13.0+cpu`` becomes ``2.13.0``, which every build of it satisfies.
    """
    left_out = {"foveate", "pip", "setuptools", "wheel"}
    pinned = {name: each.partition("+")[0] for name, each in versions.items() if name not in left_out}
    lines = [f"{name}=={pinned[name]}" for name in sorted(pinned, key=str.lower)]
    tested = f"# Tested together with Python {platform.python_version()} on {platform.machine()}, Linux."
    return "\n".join([tested, *lines, ""])


def sums(files: Iterable[Path]) -> str:
    """Return the lines of SHA256SUMS, as ``sha256sum -c`` reads them."""
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files))
    return "".join(lines)


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output. Ends the program if it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout.strip()

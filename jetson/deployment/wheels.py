"""Collects the wheels that the device side needs on another machine and Python, with this machine's pip.

``pip download`` can pick wheels for another Python, but it evaluates the conditions of requirements
(``python_version < '3.11'``) for the Python that it runs on. So it misses packages that only the target
needs. ``collect`` therefore evaluates the conditions for the target, and downloads what is missing until
nothing is.
"""

from __future__ import annotations

import ast
import email
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from foveate.engines.errors import UserError
from foveate.engines.trt.cuda.requirement import requirement

__all__ = ["Target", "collect", "fingerprint", "holds", "requirements"]

_GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 38, 39)  # minor versions that manylinux wheels name


class Target:
    """A machine that wheels are for.

    ``machine`` is the output of ``uname -m``, ``python`` e.g. "3.10", ``glibc`` e.g. "2.35". ``cuda``, e.g.
    "12.6", is set if TensorRT is to be used there.
    """

    def __init__(self, machine: str, python: str, glibc: str, cuda: str | None = None) -> None:
        self.machine, self.python, self.glibc, self.cuda = machine, python, glibc, cuda

    @property
    def extras(self) -> list[str]:
        """Further requirements of TensorRT's engines: the bindings for its version of CUDA."""
        return [requirement(self.cuda)] if self.cuda else []

    @property
    def platforms(self) -> list[str]:
        """Platform tags of wheels that run there, best first."""
        most = int(self.glibc.split(".")[1])
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in _GLIBC if minor <= most]
        return [*reversed(tags), f"manylinux2014_{self.machine}", f"linux_{self.machine}"]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of PEP 508 conditions with their values on the target."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "sys_platform": "linux",
            "os_name": "posix",
            "extra": "",
        }


def collect(target: Target, folder: Path, extra: list[str] | None = None) -> list[str]:
    """Fill ``folder`` with the wheels of foveate, of all that it requires on ``target``, and of pip.

    ``extra`` are further requirements. Of ``target.extras`` those that have no wheel for it are left out and
    returned: its own libcudart does the same. Raises UserError with pip's own message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("foveate-*.whl"):
        old.unlink()
    own, missing = _own_wheel(folder), []
    for each in target.extras:
        try:
            _download(target, folder, [each])
        except UserError:
            missing.append(each)
    wanted = [f"pip>={version('pip')}", *(extra or []), *requirements(own, target)]
    while wanted:
        _download(target, folder, wanted)
        have = {_name(wheel.name.partition("-")[0]) for wheel in folder.glob("*.whl")}
        needs = {need for wheel in folder.glob("*.whl") for need in requirements(wheel, target)}
        wanted = sorted(need for need in needs if _name(need) not in have)
    return missing


def fingerprint(target: Target, extra: list[str]) -> str:
    """Return a hash of what ``collect`` collects from: foveate's sources, the target and the requirements.

    A newer version of a requirement in the package index does not change it.
    """
    facts = [
        target.machine,
        target.python,
        target.glibc,
        target.cuda,
        version("foveate"),
        version("pip"),
        extra,
    ]
    digest = hashlib.sha256(repr(facts).encode())
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        packages = [path.parent for path in root.glob("*/__init__.py")]
        files = [path for package in packages for path in package.rglob("*") if path.is_file()]
        for path in sorted([root / "pyproject.toml", *files]):
            if "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def requirements(wheel: Path, target: Target) -> list[str]:
    """Return the requirements of a wheel that apply on ``target``, without conditions and extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(metadata))
    found = []
    for line in message.get_all("Requires-Dist") or []:
        need, _, condition = line.partition(";")
        if not condition.strip() or holds(condition.strip(), target.environment):
            found.append(need.strip())
    return found


def holds(condition: str, environment: dict[str, str]) -> bool:
    """Evaluate a PEP 508 condition. Raises ValueError.

    Such a condition is a Python expression, except for how versions are ordered.
    """
    return _holds(ast.parse(condition, mode="eval").body, environment)


def _holds(node: ast.expr, environment: dict[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        return (all if isinstance(node.op, ast.And) else any)(
            _holds(value, environment) for value in node.values
        )
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise ValueError(f"unknown condition {ast.unparse(node)}")
    names = [side.id for side in (node.left, node.comparators[0]) if isinstance(side, ast.Name)]
    left, right = (
        environment.get(side.id, "") if isinstance(side, ast.Name) else ast.literal_eval(side)
        for side in (node.left, node.comparators[0])
    )
    if names and names[0].startswith("python_"):
        left, right = _numbers(left), _numbers(right)
    compare = {
        ast.Eq: lambda: left == right,
        ast.NotEq: lambda: left != right,
        ast.Lt: lambda: left < right,
        ast.LtE: lambda: left <= right,
        ast.Gt: lambda: left > right,
        ast.GtE: lambda: left >= right,
        ast.In: lambda: left in right,
        ast.NotIn: lambda: left not in right,
    }
    return compare[type(node.ops[0])]()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _name(requirement: str) -> str:
    """Return the normalized name of a requirement: "Foo_Bar[x]>=1" is foo-bar."""
    found = re.match(r"[\w.-]+", requirement.strip())
    assert found is not None  # a requirement begins with a name
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _own_wheel(folder: Path) -> Path:
    """Put foveate's own wheel into ``folder``: built from this checkout, or fetched in the same version."""
    root, source = Path(__file__).parents[2], f"foveate=={version('foveate')}"
    with tempfile.TemporaryDirectory() as work:
        if (root / "pyproject.toml").is_file():
            source = f"{work}/source"
            _copy(root, Path(source))
        _pip("wheel", "--no-deps", "--wheel-dir", work, source)
        (wheel,) = Path(work).glob("*.whl")
        return Path(shutil.copy(wheel, folder))


def _copy(root: Path, target: Path) -> None:
    """Copy what the wheel is built from.

    Building in place would leave ``build/`` behind, and the next wheel would contain its files.
    """
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, target)
    for package in root.glob("*/__init__.py"):
        shutil.copytree(package.parent, target / package.parent.name)


def _download(target: Target, folder: Path, wanted: list[str]) -> None:
    options = [word for tag in target.platforms for word in ("--platform", tag)]
    options += ["--python-version", target.python, "--implementation", "cp", "--only-binary", ":all:"]
    _pip("download", "--dest", str(folder), "--find-links", str(folder), *options, *wanted)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()[-3:]
        raise UserError(
            f"cannot collect wheels | {' '.join(said)} | check the network of this machine, or --wheels DIR"
        )

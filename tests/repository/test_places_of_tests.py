"""Each test module lies where its module lies: tests/PACKAGE/FOLDER/test_MODULE.py.

``contracts``, ``end_to_end`` and ``repository`` test several modules together, or the whole.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("calib", "engines", "export", "jetson", "runtime", "scripts")
OTHERS = ("contracts", "end_to_end", "golden", "helpers", "repository")
EXCEPTIONS = {"tests/engines/trt/test_gpu.py": "holds all that needs a GPU; scripts/gpu_check.sh runs it"}


def names(folder: Path) -> set[str]:
    """Return the names of a folder's modules and sub-packages, and its own: a test of its ``__init__.py``."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return modules | packages | {folder.name} if folder.is_dir() else set()


def misplaced(test: str, root: Path = ROOT) -> bool:
    """Tell whether ``test`` is named after nothing in its folder.

    A topic may follow: test_MODULE_TOPIC.py.
    """
    path = Path(test).relative_to("tests")
    words = path.stem.removeprefix("test_").split("_")
    return not {"_".join(words[:end]) for end in range(1, len(words) + 1)} & names(root / path.parent)


TESTS = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / "tests" / package).rglob("test_*.py")
)


def test_modules_are_where_their_modules_are():
    assert len(TESTS) > 100
    assert [test for test in TESTS if misplaced(test)] == sorted(EXCEPTIONS)


def test_no_other_folders_and_no_modules_on_top():
    tests = ROOT / "tests"
    assert {path.parent.name for path in tests.glob("*/*.py")} <= {*PACKAGES, *OTHERS}
    assert [path.name for path in tests.glob("*.py")] == ["conftest.py"]


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        ("runtime/text/test_stops.py", False),
        ("runtime/text/test_stops_of_bytes.py", False),  # a topic
        ("runtime/text/test_text.py", False),  # the folder's own name
        ("runtime/test_text.py", False),  # a sub-package
        ("runtime/test_stops.py", True),  # it lies in text
        ("runtime/text/test_stop.py", True),
        ("runtime/words/test_stops.py", True),  # no such folder
    ],
)
def test_the_test_sees_faults(tmp_path, test, wrong):
    (tmp_path / "runtime/text").mkdir(parents=True)
    for name in ("__init__.py", "pipeline.py", "text/__init__.py", "text/stops.py"):
        (tmp_path / "runtime" / name).touch()
    assert misplaced(f"tests/{test}", tmp_path) == wrong

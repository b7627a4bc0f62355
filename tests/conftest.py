"""Shared fixtures: random checkpoints in Hugging Face's format, and tiny bundles of every method.

It also says which tests share a process. torch and transformers are imported by what needs them: a test
without them starts in half a second.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SHARING = dict.fromkeys(
    ("test_bundle_format.py", "test_chain.py", "test_graphs.py", "test_on_doubles.py"), "bundles of methods"
)


def pytest_collection_modifyitems(items):
    """Group tests for ``--dist loadgroup``.

    Tests of a file share a process, and so do files that trace the same graphs.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_SHARING.get(item.path.name, str(item.path))))


def pytest_terminal_summary(terminalreporter):
    """Print the processor time of this process, of the workers and of every process that tests started."""
    whole = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in whole)
    terminalreporter.write_line(f"processor time: {seconds / 60:.1f} minutes")


@pytest.fixture(scope="session")
def method_bundle(tmp_path_factory) -> Callable[..., Path]:
    """A bundle of a tiny model of four layers, of every dialect, built when it is first asked for."""
    from foveate.export import methods
    from foveate.export.build import build
    from foveate.export.models import llava

    root = tmp_path_factory.mktemp("bundles")
    parts = llava.tiny(layers=4)  # what methods share is traced once

    def get(method: str, precision: str = "fp16", **options: str) -> Path:
        name = ".".join([method, precision, *(f"{key}={value}" for key, value in options.items())])
        if not (root / name).exists():
            build(parts, methods.load(method, options), root / name, precision=precision)
        return root / name

    return get


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[..., tuple[Any, Any]]:
    """Return ``llava_checkpoint.save``, which writes a random checkpoint of LLaVA or LLaVA-NeXT."""
    from llava_checkpoint import save

    return save

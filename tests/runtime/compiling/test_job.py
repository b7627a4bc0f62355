"""Compilation goes on after a graph that is refused, or an engine that cannot be loaded or fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foveate.engines import targets
from foveate.engines.errors import NoMemoryError, RefusedError, UserError
from foveate.engines.ort.backend import OnnxRuntime
from foveate.engines.spec import GraphSpec
from foveate.engines.workarounds import Workaround
from foveate.runtime.bundle import compiled
from foveate.runtime.bundle.loading import load
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.compile import compile_bundle

Options = Mapping[str, Any]
FIRST, SECOND, SPELT_OUT = (
    Workaround(name, "a thread", ("onnxruntime",), **more)
    for name, more in (
        ("first", {"flags": "-some"}),
        ("second", {"flags": "-other"}),
        ("spelt out", {"dialect": "primitive"}),
    )
)


class Refusing(OnnxRuntime):
    """Refuses the graph ``llm``, where ``where`` says, unless a workaround of the name ``cure`` is used."""

    dialects = ("ort", "primitive")
    workarounds: tuple[Workaround, ...] = ()

    def __init__(self, where: str, cure: str, error: Callable[[str], Exception]) -> None:
        self.where, self.cure, self.error = where, cure, error
        self.compiled: list[str] = []

    def _refuse(self, where: str, spec: GraphSpec, options: Options) -> None:
        if (where, spec.name) == (self.where, "llm") and self.cure not in self.used:
            raise self.error(spec.name)

    def compile_graph(self, source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
        self.compiled.append(source.name)
        if spec.name == "llm":
            self.used = options.get("workarounds", ())
        self._refuse("build", spec, options)
        return super().compile_graph(source, folder, spec, options)

    def load(self, folder: Path, spec: GraphSpec, options: Options) -> Any:
        self._refuse("load", spec, options)
        engine = super().load(folder, spec, options)
        run = engine.run

        def running(feeds: Any) -> Any:
            self._refuse("run", spec, options)
            return run(feeds)

        engine.run = running
        return engine


@pytest.fixture
def refusing(make_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle in two dialects, which name one graph, and a target that refuses it."""
    root = make_bundle()

    def make(where: str, cure: str, error: Callable[[str], Exception], *known: Workaround) -> Any:
        found = Refusing(where, cure, error)
        found.workarounds = known
        for module in (targets, self_test, compiled):
            monkeypatch.setattr(module, "backend", lambda target: found)
        return root, found

    return make


def refused(graph: str) -> Exception:
    return RefusedError(f"cannot compile {graph} | no implementation | take another dialect")


def broken(graph: str) -> Exception:
    return RuntimeError(f"{graph}: TensorRT did not start")


@pytest.mark.parametrize(("where", "error"), [("build", refused), ("load", refused), ("run", broken)])
def test_workarounds_follow_a_graph_that_is_refused_or_fails(refusing: Any, where: str, error: Any) -> None:
    root, backend = refusing(where, "second", error, FIRST, SECOND)
    said: list[str] = []
    compile_bundle(root, progress=said.append)
    (made,) = compiled.compiled_engines(load(root))
    assert made.self_test["ok"] and made.workarounds["llm"] == ["first", "second"]
    assert made.workarounds["vision_encoder"] == []
    assert sum(name.startswith("llm") for name in backend.compiled) == 3
    assert [line for line in said if line.startswith("trying")] == [
        "trying: first (a thread)", "trying: second (a thread)",
    ]  # fmt: skip


@pytest.mark.parametrize(("where", "error"), [("build", refused), ("load", refused), ("run", broken)])
def test_without_one_the_graph_is_named_and_nothing_is_written(refusing: Any, where: str, error: Any) -> None:
    root, _ = refusing(where, "none", error, FIRST)
    words = "llm of tap: cannot compile llm" if where == "build" else "the graph llm fails on this machine"
    with pytest.raises(UserError, match=words):
        compile_bundle(root)
    assert not list(compiled.compiled_engines(load(root)))


@pytest.mark.parametrize("known", [(), (SPELT_OUT,)], ids=["the next one", "in the table"])
def test_another_dialect_is_tried_for_all_graphs(
    refusing: Any, known: tuple[Workaround, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, backend = refusing("build", "spelt out" if known else "dialect primitive", refused, *known)
    bundle = load(root)
    bundle.manifest.dialects["primitive"] = bundle.manifest.dialects["ort"]
    monkeypatch.setattr("foveate.runtime.compiling.compile.load", lambda *rest, **more: bundle)
    compile_bundle(root)
    (made,) = compiled.compiled_engines(bundle)
    assert made.dialect == "primitive" and made.self_test["ok"]
    assert all(made.workarounds[name] == [backend.cure] for name in bundle.manifest.stages)
    assert len(backend.compiled) == len(bundle.manifest.stages) + 1 + bundle.manifest.stages.index("llm")
    said: list[str] = []
    compile_bundle(root, progress=said.append)
    assert said[-1].endswith("is up to date")


def test_no_workaround_helps_where_memory_or_the_disk_ends(refusing: Any) -> None:
    def full(graph: str) -> Exception:
        return UserError(f"cannot write {graph}.plan | No space left on device | free some space")

    root, backend = refusing("build", "first", full, FIRST)
    with pytest.raises(UserError, match="No space left"):
        compile_bundle(root)
    assert sum(name.startswith("llm") for name in backend.compiled) == 1


def test_what_is_compiled_stays_where_memory_ends_in_the_self_test(refusing: Any) -> None:
    def full(graph: str) -> Exception:
        return NoMemoryError("the GPU has no room for llm.plan | 10 MiB are free | close other programs")

    for error in (full, lambda graph: MemoryError("no memory on the GPU")):
        root, _ = refusing("load", "none", error, FIRST)
        compile_bundle(root, force=True)
        (made,) = compiled.compiled_engines(load(root))
        assert "no memory" in made.self_test["not_run"] or "no room" in made.self_test["not_run"]


def test_a_known_fault_without_workaround_has_advice(refusing: Any) -> None:
    def known(graph: str) -> Exception:
        return RefusedError(
            f"cannot compile {graph} | Could not infer output types for dequantize | try later"
        )

    entry = Workaround(
        "no int8", "an issue", ("onnxruntime",), sign="Could not infer output types", advice="take int4"
    )
    root, _ = refusing("build", "none", known, entry)
    with pytest.raises(UserError, match=r"Could not infer output types .* \(an issue\) \| take int4$"):
        compile_bundle(root)

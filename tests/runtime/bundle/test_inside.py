"""A bundle from somebody else cannot reach files outside its folder: see SECURITY.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines.errors import UserError
from foveate.engines.trt.onnx_dims import external_files
from foveate.runtime.bundle.loading import load, write_manifest
from foveate.runtime.compiling.compile import compile_bundle

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be changed, with a file beside it that is none of its."""
    (tmp_path / "secret.onnx").write_bytes(b"none of the bundle's business")
    return shutil.copytree(bundle, tmp_path / "copy")


def edit(root: Path, change: Change) -> None:
    data = json.loads((root / "bundle.json").read_text())
    change(data)
    (root / "bundle.json").write_text(json.dumps(data))


def rename_graph(data: dict[str, Any], name: str) -> None:
    data["graphs"][name] = data["graphs"].pop("llm") | {"name": name}
    (method,) = data["methods"]
    method["stages"] = [name if stage == "llm" else stage for stage in method["stages"]]
    files = data["dialects"]["ort"]["files"]
    files[name] = files.pop("llm")


@pytest.mark.parametrize(
    "path", ["../secret.onnx", "/etc/hostname", "weights/../../secret.onnx", "other.onnx"]
)
def test_a_graph_is_one_of_the_bundles_files(copy: Path, path: str) -> None:
    edit(copy, lambda data: data["dialects"]["ort"]["files"].update(llm=path))
    with pytest.raises(UserError, match=r"not among its files .* do not trust"):
        load(copy)


@pytest.mark.parametrize("path", ["../secret.npz", "/tmp/secret.npz"])
def test_recorded_answers_lie_inside(copy: Path, path: str) -> None:
    edit(copy, lambda data: data["dialects"]["ort"].update(golden=path))
    with pytest.raises(UserError, match="names a file outside the bundle"):
        load(copy)


@pytest.mark.parametrize("name", ["../../llm", "/tmp/llm", "a/b", "..", "", "llm\n"])
def test_names_of_graphs_are_no_paths(copy: Path, name: str) -> None:
    """``compile`` writes files of that name."""
    edit(copy, lambda data: rename_graph(data, name))
    with pytest.raises(UserError, match="names a graph as no build does"):
        load(copy)


def test_a_graph_has_one_name(copy: Path) -> None:
    edit(copy, lambda data: data["graphs"]["llm"].update(name="../../llm"))
    with pytest.raises(UserError, match="names a graph as no build does"):
        load(copy)


@pytest.mark.parametrize("name", ["../../there", "/tmp/there", ".."])
def test_names_of_dialects_are_no_paths(copy: Path, name: str) -> None:
    """``check --export-polygraphy`` makes folders of that name."""
    edit(copy, lambda data: data["dialects"].update({name: data["dialects"]["ort"]}))
    with pytest.raises(UserError, match="names a dialect as no build does"):
        load(copy)


@pytest.mark.parametrize("name", ["../../home", "/etc", "..", ""])
def test_the_bundles_name_is_no_path(copy: Path, name: str) -> None:
    """``pack`` and ``deploy`` make folders of that name on a device."""
    edit(copy, lambda data: data.update(name=name))
    with pytest.raises(UserError, match="a name that is a path"):
        load(copy)


@pytest.mark.parametrize("name", ["weights/llm.data", "tokenizer.json"])
def test_links_that_lead_out_are_refused(copy: Path, name: str, tmp_path: Path) -> None:
    """Although what is there is what the hash says."""
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads out of the bundle .*\(cp -rL\)"):
        load(copy)
    (copy / name).unlink()
    (tmp_path / "elsewhere").rename(copy / "inside")
    (copy / name).symlink_to(copy / "inside")
    load(copy)


def test_engines_are_not_written_through_a_link(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "engines")
    (tmp_path / "theirs").mkdir()
    (copy / "engines").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="leads out of the bundle"):
        compile_bundle(copy)
    assert not list((tmp_path / "theirs").iterdir())


def test_a_bundle_may_be_a_link_itself(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    load(tmp_path / "link")


def external(location: str, name: str = "w") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("path", ["../secret.onnx", "/etc/hostname", "secret.data"])
def test_weights_are_among_the_bundles_files(copy: Path, path: str) -> None:
    """Also where the hashes are right: the graph itself names what it reads."""
    file = copy / "llm.ort.onnx"
    model = onnx.load(file, load_external_data=False)
    model.graph.initializer.append(external(path))
    file.write_bytes(model.SerializeToString())
    write_manifest(copy, json.loads((copy / "bundle.json").read_text()))
    with pytest.raises(UserError, match=r"reads files that bundle.json does not list .* do not trust"):
        compile_bundle(copy, force=True)


def test_every_place_of_a_tensor_is_looked_at() -> None:
    """Initializers, attributes, subgraphs, sparse tensors and functions; a tensor's entries in any order."""
    inner = helper.make_graph([], "inner", [], [], [external("in a subgraph")])
    constant = helper.make_node("Constant", [], ["c"], value=external("in an attribute"))
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    several = helper.make_node("Foo", [], ["z"], tensors=[external("in a list")], graphs=[inner])
    sparse = helper.make_sparse_tensor(external("sparse values"), external("sparse indices", "i"), [4])
    graph = helper.make_graph([constant, branch, several], "g", [], [], [external("at the top")])
    graph.sparse_initializer.append(sparse)
    graph.initializer.append(helper.make_tensor("plain", TensorProto.FLOAT, [2], [1.0, 2.0]))
    function = helper.make_function("f", "F", [], [], [constant], [helper.make_opsetid("", 20)])
    function.node[0].attribute[0].t.CopyFrom(external("in a function"))
    model = helper.make_model(graph, functions=[function])
    assert external_files(model.SerializeToString()) == {
        "at the top",
        "in a subgraph",
        "in an attribute",
        "in a list",
        "sparse values",
        "sparse indices",
        "in a function",
    }
    swapped = external("").SerializeToString()
    pair = onnx.StringStringEntryProto(key="location", value="x").SerializeToString()
    assert pair in external("x").SerializeToString() and swapped
    value_first = pair[10:] + pair[:10]
    tensor = external("x").SerializeToString().replace(pair, value_first)
    assert onnx.TensorProto.FromString(tensor).external_data[0].value == "x"
    message = onnx.ModelProto(graph=onnx.GraphProto(initializer=[onnx.TensorProto.FromString(tensor)]))
    assert external_files(message.SerializeToString()) == {"x"}


def test_recorded_answers_hold_no_programs(copy: Path) -> None:
    """NumPy would load pickled objects, which run code, if it were asked to."""

    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was run",))

    from foveate.runtime.bundle.compiled import choose
    from foveate.runtime.compiling.self_test import replay

    with np.load(copy / "golden.npz") as golden:
        arrays = dict(golden)
    name = "llm.prompt"
    arrays[name] = np.array([Program()], dtype=object)
    np.savez(copy / "golden.npz", **arrays)
    write_manifest(copy, json.loads((copy / "bundle.json").read_text()))
    loaded = load(copy)
    with pytest.raises(UserError, match="allow_pickle"):
        list(replay(loaded, choose(loaded)))

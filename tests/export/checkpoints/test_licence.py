"""Licences: what card and files of a checkpoint say travels in the bundle and is shown."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.checkpoints import hub, licence
from foveate.export.checkpoints.tensor_files import Folder
from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.other_checkpoints import pruner_weights
from foveate.runtime.bundle import loading as bundle
from foveate.runtime.bundle.licence import Licence, lines, notes
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.cli import inspect

CARDS = {
    "---\nlicense: apache-2.0\nlanguage: en\n---\n# A model": ({"id": "apache-2.0"}, "commercial"),
    "---\r\nlicense: mit\r\n---\r\n": ({"id": "mit"}, "commercial"),
    "\ufeff---\nlicense: llama2\n---": ({"id": "llama2"}, "commercial"),
    "---\nlicense: [apache-2.0, cc-by-nc-4.0]\n---\n": ({"id": "apache-2.0, cc-by-nc-4.0"}, "non-commercial"),
    "---\nlicense: cc-by-nc-sa-4.0\n---\n": ({"id": "cc-by-nc-sa-4.0"}, "non-commercial"),
    "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://a.b/LICENSE\n---\n": (
        {"id": "other", "name": "qwen-research", "link": "https://a.b/LICENSE"},
        "non-commercial",
    ),
    "---\nlicense: other\nlicense_name: house-rules\n---\n": (
        {"id": "other", "name": "house-rules"},
        "unknown",
    ),
    "---\nlicense: no\n---\n": ({"id": "no"}, "unknown"),
    "---\nlicense: unknown\n---\n": ({}, "unknown"),
    "---\nlicense:\n---\n": ({}, "unknown"),
    "---\nlicense: apache-2.0\nbroken: [\n---\n": ({"id": "apache-2.0"}, "commercial"),
    "---\n- a\n- b\n---\n": ({}, "unknown"),
    "# A model\nlicense: mit": ({}, "unknown"),
    "": ({}, "unknown"),
    "---\nlicense: !!python/object/apply:os.mkdir [exploded]\n---\n": ({"id": "exploded"}, "unknown"),
}


@pytest.mark.parametrize(("card", "said"), CARDS.items())
def test_fields_of_a_card(tmp_path, card, said):
    (tmp_path / "README.md").write_bytes(card.encode())
    found, files = licence.of(Folder(tmp_path), "model")
    assert found == Licence(str(tmp_path), said[1], **said[0])
    assert files == {}


def test_no_card_but_files(tmp_path):
    for name in ("LICENSE.txt", "Notice", "licence-of-parts.md", "README.txt"):
        (tmp_path / name).write_text(name)
    found, files = licence.of(Folder(tmp_path), "model")
    assert found.use == "unknown"
    names = ["licences/model/LICENSE.txt", "licences/model/Notice", "licences/model/licence-of-parts.md"]
    assert list(found.files) == names == list(files)


def test_commercial_use_is_silent_and_the_rest_is_said():
    each = Licence("a/b", "commercial", id="mit")
    assert notes({"model": each}) == []
    assert lines({"model": each}) == ["model a/b: mit (commercial use under its terms)"]
    other = Licence("a/c", "non-commercial", ("licences/model/LICENSE",), id="cc-by-nc-4.0")
    expected = (
        "licence of the adapter a/c: cc-by-nc-4.0 (not for commercial use), licences/model/LICENSE; "
        "read it before use"
    )
    assert notes({"model": each, "adapter": other}) == [expected]
    nothing = Licence("a/d")
    assert "not given (whether for commercial use is not known)" in notes({"model": nothing})[0]


@pytest.mark.filterwarnings("ignore")
def test_licences_travel_with_the_bundle(copy, tmp_path, capsys, clip_checkpoint):
    (copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (copy / "LICENSE").write_text("of the model")
    model = AutoModelForImageTextToText.from_pretrained(copy, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (tmp_path / "adapter" / "LICENSE").write_text("of the adapter")

    parts = models.load(str(tmp_path / "adapter"), clip=str(clip_checkpoint(2)[0]))
    build(parts, methods.load("trim"), tmp_path / "bundle", precision="fp32", dialects=["ort"])
    said = capsys.readouterr().err
    assert "licence of the adapter" in said and "cc-by-nc-4.0 (not for commercial use)" in said
    assert "licence of the clip" in said and "licence of the model" not in said

    found = bundle.load(tmp_path / "bundle", full=True)
    assert (found.path / "licences/model/LICENSE").read_text() == "of the model"
    assert (found.path / "licences/adapter/LICENSE").read_text() == "of the adapter"
    assert "licences/adapter/LICENSE" in found.manifest.files
    uses = {role: each.use for role, each in found.manifest.licence.items()}
    assert uses == {"model": "commercial", "adapter": "non-commercial", "clip": "unknown"}
    assert inspect.main([str(found.path)]) == 0
    shown = capsys.readouterr().out
    assert "cc-by-nc-4.0 (not for commercial use)" in shown and "apache-2.0 (commercial use" in shown


@pytest.mark.parametrize("place", ["hub", "file", "beside the model"])
def test_the_licence_of_a_trained_pruner(copy, tmp_path, capsys, monkeypatch, place):
    """Beside the model it is the model's."""
    (copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    folder = copy if place == "beside the model" else tmp_path / "pruner"
    folder.mkdir(exist_ok=True)
    width = models.load(str(copy)).spec.vision.hidden_size
    pruner_weights.save(SlotPruner(width).reset(), folder / "ocvtp.safetensors", torch.float32, {})
    if folder != copy:
        (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
        (folder / "LICENSE").write_text("of the pruner")
    monkeypatch.setattr(hub, "download_file", lambda *asked: folder / "ocvtp.safetensors")
    given = {"hub": "some/pruner", "file": str(folder / "ocvtp.safetensors")}.get(place)
    parts, method = models.load(str(copy)), methods.load("ocvtp")
    build(parts, method, tmp_path / "bundle", precision="fp32", dialects=["ort"], pruner=given)
    found = bundle.load(tmp_path / "bundle", full=True)
    said = capsys.readouterr().err
    assert "pruner" not in parts.licence
    if place == "beside the model":
        assert list(found.manifest.licence) == ["model"] and "licence of the pruner" not in said
        return
    assert f"licence of the pruner {given}: cc-by-nc-4.0 (not for commercial use)" in said
    assert found.manifest.licence["pruner"].use == "non-commercial"
    assert (found.path / "licences/pruner/LICENSE").read_text() == "of the pruner"
    assert "licences/pruner/LICENSE" in found.manifest.files


def test_bundles_without_a_licence_are_read(method_bundle):
    path = method_bundle("none", "fp32")
    manifest = json.loads((path / "bundle.json").read_text())
    assert "licence" not in manifest and Manifest.from_json(manifest).licence == {}
    assert lines({}) == notes({}) == []

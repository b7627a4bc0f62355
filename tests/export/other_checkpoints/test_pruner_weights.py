"""A trained pruner's weights are found, read from either format, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.export import methods, models
from foveate.export.build import build
from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.models import llava
from foveate.export.other_checkpoints import pruner_weights

METHOD = methods.load("ocvtp")
SHAPES = Path(__file__).parents[3] / "scripts" / "shapes"
WIDTH = 64  # of the tower of ``llava.tiny()``


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    """A state dict as the published code saves it, decoder included; its network, filled."""
    torch.manual_seed(0)
    values = dict(SlotPruner(WIDTH).reset().named_parameters())
    found = {name: (value.T if value.ndim == 2 else value).detach().clone() for name, value in values.items()}
    return found | {"decode.mask_token": torch.ones(1, 1, WIDTH)}


def refusal(call, *args, **options) -> str:
    """The message of the UserError, which has what happened, what was found and what to do."""
    with pytest.raises(UserError) as error:
        call(*args, **options)
    assert str(error.value).count(" | ") >= 2
    return str(error.value)


def real(parts, model: str = "local"):
    """The same parts, as of a checkpoint that is no dummy."""
    return replace(parts, source={"model": model, "revision": "local", "load_format": "auto"})


@pytest.mark.parametrize("name", ["weights.pth", "wrapped.pth", "pruner.safetensors"])
def test_every_format_gives_the_same_weights(tmp_path, published, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"state_dict": published, "epoch": 3} if name == "wrapped.pth" else published, path)
    else:
        save_file({key: value.contiguous() for key, value in published.items()}, path)
    parts = pruner_weights.joined(real(llava.tiny()), METHOD, str(path))
    assert parts.source["pruner"] == str(path)
    for key, value in published.items():
        if not key.startswith("decode."):
            assert torch.equal(parts.weights.get(f"pruner.{key}"), value.T if value.ndim == 2 else value)
    assert "pruner.decode.mask_token" not in parts.weights
    assert parts.weights.get("pruner.noise").shape == (65, WIDTH // 2)
    assert "embed_tokens" in parts.weights and parts.weights.get("embed_tokens").ndim == 2


def test_saved_is_what_was_loaded(tmp_path, published):
    torch.save(published, tmp_path / "weights.pth")
    network = pruner_weights.load(SlotPruner(WIDTH), tmp_path / "weights.pth")
    pruner_weights.save(network, tmp_path / "out.safetensors", torch.float32, {"epoch": "3"})
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {name for name in published if not name.startswith("decode.")}
    assert all(torch.equal(value, published[name]) for name, value in found.items())
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"epoch": "3"}


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-was-sprung"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Trap(), "holds more than tensors"),
        ({"state_dict": {"a": Trap()}}, "holds more than tensors"),
        ([1, 2], "is no state dict"),
        ({"state_dict": {"a": 1}}, "is no state dict"),
        (b"", "is damaged"),
        (b"PK\x03\x04 cut short", "is damaged"),
    ],
    ids=["code", "code inside", "list", "number", "empty", "cut short"],
)
def test_files_that_hold_no_state_dict_are_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert said in refusal(pruner_weights.read, path)
    assert not Path("trap-was-sprung").exists()
    path.rename(tmp_path / "weights.safetensors")
    assert "damaged" in refusal(pruner_weights.read, tmp_path / "weights.safetensors")


def test_missing_and_misshapen_tensors_are_named(tmp_path, published):
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in published.items() if k != "initializ.logstd"}, path)
    message = refusal(pruner_weights.joined, real(llava.tiny()), METHOD, str(path))
    assert "are missing | initializ.logstd |" in message
    torch.save({k: v for k, v in published.items() if not k.startswith("aggregat.")}, path)
    assert "aggregat.norm_in.weight" in refusal(pruner_weights.joined, real(llava.tiny()), METHOD, str(path))
    other = SlotPruner(128).reset()
    pruner_weights.save(other, tmp_path / "other.safetensors", torch.float16, {})
    message = refusal(pruner_weights.joined, real(llava.tiny()), METHOD, str(tmp_path / "other.safetensors"))
    assert (
        "tower of another width" in message
        and "encode_project.mlp.0.weight is [128], expected [64]" in message
    )


def test_places_where_a_pruner_is_searched(tmp_path, published):
    for given in ("nowhere.pth", str(tmp_path), str(tmp_path / "none.safetensors"), "no such name"):
        message = refusal(pruner_weights.joined, real(llava.tiny()), METHOD, given)
        assert f"no pruner {given} | " in message
    message = refusal(pruner_weights.joined, real(llava.tiny(), str(tmp_path)), METHOD)
    assert str(tmp_path / "ocvtp.safetensors") in message and "train_ocvtp.py" in message
    save_file({k: v.contiguous() for k, v in published.items()}, tmp_path / "ocvtp.safetensors")
    parts = pruner_weights.joined(real(llava.tiny(), str(tmp_path)), METHOD)
    assert parts.source["pruner"] == str(tmp_path / "ocvtp.safetensors")


def test_shapes_brings_its_own():
    parts = pruner_weights.joined(models.load(str(SHAPES)), METHOD)
    assert parts.source["pruner"] == str(SHAPES / "ocvtp.safetensors")
    pair = pruner_weights.joined(models.load(str(SHAPES)), methods.load("ocvtp+fastv"))
    assert pair.source == parts.source


def test_a_dummy_model_gets_a_dummy_pruner():
    parts = pruner_weights.joined(llava.tiny(), METHOD)
    assert parts.source["pruner"] == "dummy"
    names = [name for name, _ in METHOD.module(parts.spec).named_parameters()]
    values = [parts.weights.get(f"pruner.{name}") for name in names]
    assert all(value.isfinite().all() for value in values)
    assert len({value.numpy().tobytes() for value in values}) == len(names)


def test_methods_without_weights_take_none():
    parts = llava.tiny()
    assert pruner_weights.joined(parts, methods.load("uniform")) is parts
    assert "uniform has no trained weights" in refusal(
        pruner_weights.joined, parts, methods.load("uniform"), "weights.pth"
    )


def test_offline_llava_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    parts = real(models.load("llava-1.5-7b", load_format="dummy"), "llava-hf/llava-1.5-7b-hf")
    message = refusal(pruner_weights.joined, parts, METHOD)
    assert message.startswith("cannot get GarryLarry0131/OC-VTP | ")
    assert "HF_HUB_OFFLINE is set" in message
    assert "--pruner" in message and "train_ocvtp.py" in message


def test_the_bundle_holds_the_file_given(tmp_path, published):
    """The pruner's graph keeps what the given network keeps, on the features of golden.npz."""
    torch.save(published, tmp_path / "weights.pth")
    out = tmp_path / "bundle"
    given = str(tmp_path / "weights.pth")
    build(real(llava.tiny()), METHOD, out, precision="fp32", dialects=["ort"], pruner=given)
    assert json.loads((out / "bundle.json").read_text())["source"]["pruner"] == given
    golden = np.load(out / "golden.npz")
    session = onnxruntime.InferenceSession(out / "pruner.ort.onnx")
    feeds = {i.name: golden[f"pruner.in.{i.name}"] for i in session.get_inputs()}
    feeds = {key: value if key == "keep" else value.astype(np.float32) for key, value in feeds.items()}
    network = METHOD.module(llava.tiny().spec).eval()
    pruner_weights.load(network, tmp_path / "weights.pth")
    taps = {
        key: torch.from_numpy(value) for key, value in feeds.items() if key in METHOD.taps(llava.tiny().spec)
    }
    keep = int(feeds["keep"])
    with torch.no_grad():
        taps |= network(taps, keep)
    _, kept, _ = METHOD.reduce(
        torch.from_numpy(feeds["projected"]), taps, keep, llava.tiny().spec.vision.grid
    )
    assert session.run(["kept"], feeds)[0].tolist() == kept.tolist()

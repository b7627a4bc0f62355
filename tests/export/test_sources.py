"""Sources: what users can get wrong about a checkpoint, the hub and its cache; tensors as they are read; dummies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from foveate.engines.errors import UserError
from foveate.export import models, sources
from foveate.export.checkpoint import Directory, Entry
from foveate.export.decoder import Decoder, Linear, rope_tables
from foveate.export.dummy import Dummy, DummyWeights, byte_tokenizer
from foveate.export.models import llava


def refusal(path, *args, **options) -> str:
    """The message of the UserError, which has what happened, what was found and what to do."""
    with pytest.raises(UserError) as error:
        models.load(str(path), *args, **options)
    assert str(error.value).count(" | ") >= 2
    return str(error.value)


@pytest.fixture
def copy(llava_checkpoint, tmp_path):
    return shutil.copytree(llava_checkpoint()[0], tmp_path / "copy")


@pytest.fixture
def shards(llava_checkpoint, copy):
    (copy / "model.safetensors").unlink()
    llava_checkpoint()[1].save_pretrained(copy, max_shard_size="200KB")
    return copy


def test_unknown_models_are_answered_with_the_nearest_name():
    message = refusal("lava-1.5-7b")
    assert "did you mean llava-1.5-7b?" in message
    assert "llava-1.5-13b" in message
    assert "org/name" in message


@pytest.mark.parametrize("path", ["./nothing", "/no/such/place", "~/nothing-here", "a/b/c"])
def test_a_path_that_is_not_there(path):
    assert "no directory" in refusal(path)


def test_a_file_in_place_of_a_directory(copy):
    assert "is a file" in refusal(copy / "model.safetensors")


def test_a_directory_without_a_config(tmp_path):
    assert "config.json" in refusal(tmp_path)


def test_a_config_that_is_no_json(copy):
    (copy / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(copy)


def test_a_config_of_another_family(copy, edit_json):
    edit_json(copy / "config.json", model_type="blip-2")
    message = refusal(copy)
    assert "blip-2" in message
    assert "llava" in message


def test_an_unknown_load_format(copy):
    assert "did you mean dummy?" in refusal(copy, load_format="dumy")


def test_a_missing_shard_is_named(shards):
    files = sorted(shards.glob("*.safetensors"))
    files[2].unlink()
    message = refusal(shards)
    assert files[2].name in message
    assert f"1 of {len(files)}" in message


@pytest.mark.parametrize("left", [0, 5, 100, 0.5, -1])
def test_a_shard_cut_short_is_named(shards, left):
    path = sorted(shards.glob("*.safetensors"))[2]
    size = path.stat().st_size
    keep = size + left if left < 0 else int(left * size) if isinstance(left, float) else left
    os.truncate(path, keep)
    message = refusal(shards)
    assert path.name in message
    assert f"{keep} bytes" in message


def test_a_pointer_of_git_lfs_is_told_from_the_file(copy):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14\n"
    (copy / "model.safetensors").write_bytes(pointer)
    assert "Git LFS" in refusal(copy)


@pytest.mark.parametrize("header", [b"\x10" + bytes(7) + b"this is not json", b"\x02" + bytes(7) + b"[]"])
def test_a_file_of_another_format(copy, header):
    (copy / "model.safetensors").write_bytes(header)
    assert "not in safetensors format" in refusal(copy)


def test_no_weights_at_all(copy):
    (copy / "model.safetensors").unlink()
    assert "--load-format dummy" in refusal(copy)


def test_wrong_shapes_are_refused_before_anything_is_read(copy, edit_json):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_json(copy / "config.json", text_config=text | {"intermediate_size": 128})
    message = refusal(copy)
    assert "is [96, 64], expected [128, 64]" in message
    assert "and 3 more" in message  # three matrices in two layers, three of them shown


def test_missing_tensors_are_named(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["multi_modal_projector.linear_1.bias"]
    save_file(tensors, copy / "model.safetensors")
    assert "multi_modal_projector.linear_1.bias" in refusal(copy)


def test_weights_that_are_quantized_already(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, copy / "model.safetensors")
    assert "I8" in refusal(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_missing_settings_file_is_named(copy, name):
    (copy / name).unlink()
    assert name in refusal(copy)


def test_a_tokenizer_of_another_model(copy):
    (copy / "tokenizer.json").write_bytes(byte_tokenizer(259, {"<s>": 0, "</s>": 1, "<pad>": 2}))
    (copy / "config.json").write_text((copy / "config.json").read_text().replace('index": 3', 'index": 300'))
    assert "no token 300" in refusal(copy)


def test_a_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(copy)


# The format before safetensors


def test_pickled_weights_are_read_where_there_are_no_others(copy):
    tensors = load_file(copy / "model.safetensors")
    truth = models.load(str(copy)).weights.get("llm.layers.1.mlp.down_proj.weight")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert torch.equal(models.load(str(copy)).weights.get("llm.layers.1.mlp.down_proj.weight"), truth)
    os.truncate(copy / "pytorch_model.bin", 5000)
    assert "pytorch_model.bin is damaged" in refusal(copy)


def test_pickled_weights_run_no_code(copy):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(copy / "exploded"),)

    (copy / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, copy / "pytorch_model.bin")
    assert "damaged" in refusal(copy)
    assert not (copy / "exploded").exists()


# The hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from foveate.engines.errors import UserError
from foveate.export import models
for load_format in ("dummy", "auto"):
    try:
        print(models.load(sys.argv[1], load_format=load_format).source["load_format"])
    except UserError as error:
        print(error)
"""


def test_no_network_and_no_cache(tmp_path):
    """In a process of its own, as users start it: huggingface_hub reads its environment when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    run = subprocess.run(
        [sys.executable, "-c", LOAD, "llava-1.5-7b"],
        check=True,
        env=kept | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    dummy, message = run.stdout.splitlines()
    assert dummy == "dummy"  # needs no network
    assert message.startswith(
        "cannot get llava-hf/llava-1.5-7b-hf | the hub cannot be reached, and the cache does not hold all of it |"
    )
    assert "--load-format dummy" in message
    assert "Traceback" not in run.stderr


class Hub(ThreadingHTTPServer):
    """A hub with one model, ``some/model``: the files of ``folder``, or an error for every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder: Path | None = None
        self.error = 500, ""
        self.sent: list[str] = []
        self.starts: list[int] = []
        self.broken = ""  # a file of which only the first half arrives
        self.names: dict[str, str] = {}  # the hashes by which files are known; default: their names


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.server.folder is None:
            status, code = self.server.error
            return self.answer(b"", status, {"X-Error-Code": code})
        if self.path.startswith("/api/"):
            files = [path for path in self.server.folder.iterdir() if path.is_file()]
            found = {"id": "some/model", "sha": COMMIT}
            found["siblings"] = [{"rfilename": path.name} for path in files]
            if "/tree/" in self.path:
                sizes = ((path.name, path.stat().st_size) for path in files)
                found = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes]
            return self.answer(json.dumps(found).encode())
        path = self.server.folder / self.path.rpartition("/")[2]
        body, start = path.read_bytes(), 0
        if self.command == "GET":
            self.server.sent.append(path.name)
            start = int((self.headers["Range"] or "bytes=0-")[6:].partition("-")[0])
            self.server.starts.append(start)
        etag = self.server.names.get(path.name, path.name)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.answer(body[start:], 206 if start else 200, headers, cut=path.name == self.server.broken)

    def answer(self, body, status=200, headers=(), cut=False):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"" if status == 206 and cut else body[: len(body) // 2] if cut else body)
            self.close_connection = cut

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in place of the real one, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_brings_what_is_needed_and_no_more(hub, copy):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "README.md", "tf_model.h5"):
        (copy / name).write_bytes(b"not needed")
    hub.folder = copy
    parts = models.load("some/model")
    assert parts.source == {"model": "some/model", "revision": COMMIT, "load_format": "auto"}
    needed = {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"}
    needed |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(hub.sent) == needed
    truth = models.load(str(copy)).weights.get("embed_tokens")
    assert torch.equal(parts.weights.get("embed_tokens"), truth)
    hub.sent.clear()
    models.load("some/model")
    assert not hub.sent  # it is in the cache


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, copy, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept is whole chunks
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's own attempts
    hub.folder, hub.broken = copy, "model.safetensors"
    message = refusal("some/model")
    assert message.startswith("downloading some/model failed")
    assert "goes on where it stopped" in message
    hub.broken = ""
    hub.starts.clear()
    weights = models.load("some/model").weights
    half = (copy / "model.safetensors").stat().st_size // 2
    assert len(hub.starts) == 1
    assert half - 10_000 < hub.starts[0] <= half
    truth = models.load(str(copy)).weights
    for name in ("embed_tokens", "llm.lm_head.weight", "vision_encoder.projector.linear_1.weight"):
        assert torch.equal(weights.get(name), truth.get(name))


def test_what_arrives_damaged_is_not_kept(hub, copy):
    """Large files are named by their hash."""
    hub.folder, hub.names = copy, {"model.safetensors": "0" * 64}
    assert "arrived damaged" in refusal("some/model")
    digest = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    hub.names["model.safetensors"] = digest
    assert models.load("some/model").source["revision"] == COMMIT


def test_a_dummy_of_a_hub_id_downloads_no_weights(hub, copy):
    hub.folder = copy
    assert models.load("some/model", load_format="dummy").source["load_format"] == "dummy"
    assert "config.json" in hub.sent
    assert not any("safetensors" in name for name in hub.sent)


def test_a_repository_without_safetensors_gives_its_pickled_weights(hub, copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    hub.folder = copy
    models.load("some/model")
    assert "pytorch_model.bin" in hub.sent


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "the hub has no model some/model"),
        (401, "RepoNotFound", "the hub has no model some/model"),
        (403, "GatedRepo", "some/model is gated"),
        (500, "", "cannot get some/model"),
    ],
)
def test_what_the_hub_refuses(hub, status, code, said):
    hub.error = status, code
    message = refusal("some/model")
    assert message.startswith(said)
    assert "--load-format dummy" in message


def test_the_clip_of_the_tower_is_fetched_when_a_method_asks_for_it(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = Dummy("like the published one", llava.CONFIGS["llava-1.5-7b"])
    parts = llava._parts(source, llava._CLIP, llava._CLIP_ID)
    assert parts.spec.vision.joint_size == 768
    parts.vision(("cls_attention.22",))
    with pytest.raises(UserError, match="cannot get openai/clip-vit-large-patch14-336"):
        parts.vision(("clip_image",))


def test_offline_and_no_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = "cannot get some/model | HF_HUB_OFFLINE is set, and the cache does not hold all of it |"
    assert refusal("some/model").startswith(said)


def cached(path, cache, revision="0123abc"):
    root = cache / "hub" / "models--some--model"
    shutil.copytree(path, root / "snapshots" / revision)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    return root / "snapshots" / revision


@pytest.mark.parametrize("offline", [True, False], ids=["told to be offline", "hub out of order"])
def test_the_cache_serves_without_the_hub(hub, llava_checkpoint, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    cached(llava_checkpoint()[0], tmp_path)
    parts = models.load("some/model")
    assert parts.source == {"model": "some/model", "revision": "0123abc", "load_format": "auto"}


def test_a_download_that_was_broken_off_is_told_to_go_on(hub, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cached(shards, tmp_path)
    lost = sorted(snapshot.glob("*.safetensors"))[3]
    lost.unlink()
    message = refusal("some/model")
    assert lost.name in message
    assert "goes on where it stopped" in message


# Reading, dummies, fill


def test_tensors_come_as_the_modules_hold_them(tmp_path):
    stored = {"a.weight": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.randn(2).half()}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    entries = {
        "x.weight": Entry((5, 3), ("other.weight", "a.weight"), transposed=True),
        "b": Entry((4,), ("b",)),
        "c": Entry((2,), ("c",)),
    }
    weights = Directory(tmp_path).weights(entries)
    assert torch.equal(weights.get("x.weight"), stored["a.weight"].T)
    assert weights.get("x.weight").is_contiguous()
    assert torch.equal(weights.get("b"), stored["b"].float())
    assert weights.get("c").dtype == torch.float16
    assert "x.weight" in weights
    assert "a.weight" not in weights


def test_dummy_tensors_differ_and_do_not_depend_on_the_order():
    shapes = {
        f"llm.layers.{i}.mlp.{name}.weight": (64, 64) for i in range(3) for name in ("up_proj", "down_proj")
    }
    entries = {name: Entry(shape, (name,), transposed=True) for name, shape in shapes.items()}
    forth, back = DummyWeights(entries), DummyWeights(dict(reversed(entries.items())))
    values = {name: forth.get(name) for name in entries}
    assert len({value.numpy().tobytes() for value in values.values()}) == len(values)
    assert all(torch.equal(back.get(name), value) for name, value in reversed(values.items()))


def test_dummy_scales_are_those_of_trained_models():
    weights = models.load("llava-1.5-7b", load_format="dummy").weights
    for name, mean, deviation in (
        ("llm.layers.7.self_attn.q_proj.weight", 0, 4096**-0.5),
        ("llm.layers.7.input_layernorm.weight", 1, 0.1),
        ("vision_encoder.tower.layers.3.self_attn.q_proj.bias", 0, 0.02),
        ("vision_encoder.tower.embeddings.patch_embedding.weight", 0, (3 * 14 * 14) ** -0.5),
        ("embed_tokens", 0, 4096**-0.5),
    ):
        value = weights.get(name)
        assert abs(value.mean() - mean) < 4 * deviation / value.numel() ** 0.5
        assert 0.9 < value.std() / deviation < 1.1


def test_dummy_tokenizers_take_any_text():
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000}
    made = Tokenizer.from_str(byte_tokenizer(32064, special, begin="<s>").decode())
    assert made.get_vocab_size() == 32064
    ids = made.encode("Où? 猫").ids
    assert ids[0] == 1
    assert made.decode(ids, skip_special_tokens=True) == "Où? 猫"
    assert all(made.id_to_token(i) is not None for i in range(32064))
    with pytest.raises(ValueError, match="too small"):
        byte_tokenizer(257, special)


def test_fill_gives_every_parameter_its_value_and_the_decoder_its_tables():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.empty(3), requires_grad=False)
            self.linear = Linear(3, 2, bias=True)

    class Weights(dict):
        def get(self, name):
            return self[name]

    values = Weights({"p.own": torch.randn(3).half(), "p.linear.weight": torch.randn(3, 2)})
    values["p.linear.bias"] = torch.randn(2)
    with torch.device("meta"):
        module = Module()
    assert sources.fill(module, values, "p.") is module
    assert module.own.dtype == torch.float32
    assert torch.equal(module.own, values["p.own"].float())
    assert torch.equal(module.linear.weight, values["p.linear.weight"])
    assert torch.equal(module.linear.bias, values["p.linear.bias"])
    parts = llava.tiny()
    decoder: Decoder = sources.fill(parts.decoder, parts.weights, "llm.")
    assert not any(value.is_meta for value in (*decoder.parameters(), *decoder.buffers()))
    assert torch.equal(decoder.rope_sin, rope_tables(decoder.spec)[1])

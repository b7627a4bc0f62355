"""Downloads from a hub on this machine: which files, how they continue, and messages when they fail."""

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

import peft
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from foveate.engines.errors import UserError
from foveate.export import methods, models
from foveate.export.checkpoints import files as checkpoint_files
from foveate.export.checkpoints.directory import Directory
from foveate.export.checkpoints.hub import download_file
from foveate.export.checkpoints.random_weights import Dummy
from foveate.export.graphs.assemble import with_files_for
from foveate.export.models import llava

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from foveate.engines.errors import UserError
from foveate.export import methods, models
for load_format in ("dummy", "auto"):
    try:
        print(models.load(sys.argv[1], load_format=load_format).source["load_format"])
    except UserError as error:
        print(error)
"""


def refusal(path, *args, **options) -> str:
    """The message of the UserError, which has what happened, what was found and what to do."""
    with pytest.raises(UserError) as error:
        models.load(str(path), *args, **options)
    assert str(error.value).count(" | ") >= 2
    return str(error.value)


def test_no_network_and_no_cache(tmp_path):
    """Run in a process of its own, as users do: huggingface_hub reads its environment when it is imported."""
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
        "cannot get llava-hf/llava-1.5-7b-hf | there is no directory of that name here, the hub cannot be "
        "reached, and the cache does not hold all of it |"
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
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "notes.md", "tf_model.h5"):
        (copy / name).write_bytes(b"not needed")
    for name in ("README.md", "LICENSE.txt", "NOTICE"):
        (copy / name).write_text("of the licence")
    hub.folder = copy
    parts = models.load("some/model")
    assert parts.source == {"model": "some/model", "revision": COMMIT, "load_format": "auto"}
    needed = {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"}
    needed |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    needed |= {"README.md", "LICENSE.txt", "NOTICE"}
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


def test_damaged_downloads_are_not_kept(hub, copy):
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


def test_pickled_weights_come_in_shards_too(hub, copy, shard_pickled):
    shard_pickled(copy)
    hub.folder = copy
    models.load("some/model")
    assert {each.name for each in copy.glob("pytorch_model*")} <= set(hub.sent)


def test_every_settings_file_that_is_read_is_downloaded(hub, copy):
    """A Directory opens no file that is not listed in ``checkpoints/files.py``."""
    names = [name for name in checkpoint_files.SETTINGS if "*" not in name and "/" not in name]
    for name in names:
        if not (copy / name).exists() and name not in ("adapter_config.json", "model.safetensors.index.json"):
            (copy / name).write_text("{}")
    hub.folder = copy
    models.load("some/model", load_format="dummy")
    there = {name for name in names if (copy / name).exists()}
    assert "video_preprocessor_config.json" in there
    assert there <= set(hub.sent)
    with pytest.raises(AssertionError, match=r"not in checkpoints/files\.py"):
        Directory(copy).json("of_my_own.json")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "the hub has no model some/model"),
        (401, "RepoNotFound", "the hub has no model some/model"),
        (403, "GatedRepo", "some/model is gated"),
        (500, "", "cannot get some/model"),
    ],
)
def test_refusals_of_the_hub(hub, status, code, said):
    hub.error = status, code
    message = refusal("some/model")
    assert message.startswith(said)
    assert "--load-format dummy" in message


def test_the_clip_of_the_tower_is_fetched_when_a_method_asks_for_it(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = Dummy("like the published one", llava.CONFIGS["llava-1.5-7b"])
    parts = llava.parts(source, llava._CLIP, llava._CLIP_ID)
    assert parts.spec.vision.joint_size == 768
    assert with_files_for(parts, methods.load("visionzip")) is parts
    with pytest.raises(UserError, match="cannot get openai/clip-vit-large-patch14-336"):
        with_files_for(parts, methods.load("sppruner", {"relevance": "clip"}))


def test_offline_and_no_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal("some/model").startswith(
        "cannot get some/model | there is no directory of that name here, HF_HUB_OFFLINE is set, and the "
        "cache does not hold all of it |"
    )


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


def test_a_pruner_is_one_file_of_its_repository(hub, copy):
    """The first of the names that is there, and nothing else; then from the cache."""
    for name in ("weights.pth", "notes.md"):
        (copy / name).write_bytes(b"a pruner")
    hub.folder = copy
    found = download_file("some/model", ("ocvtp.safetensors", "weights.pth"), "train one")
    assert found.read_bytes() == b"a pruner" and found.name == "weights.pth"
    assert not {"model.safetensors", "notes.md"} & set(hub.sent)
    hub.folder = None
    assert download_file("some/model", ("ocvtp.safetensors", "weights.pth"), "train one") == found


def test_a_repository_without_the_file(hub, copy):
    hub.folder = copy
    with pytest.raises(UserError, match=r"has no weights.pth \| .* \| train one"):
        download_file("some/model", ("weights.pth",), "train one")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_the_hub_brings_its_own_weights_alone(hub, llava_checkpoint, tmp_path, capsys):
    """Its base model is in a directory here, so that nothing else is asked for."""
    base, _ = llava_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    for name in ("model.safetensors", "training_args.bin"):
        (tmp_path / "adapter" / name).write_bytes(b"not needed")
    hub.folder = tmp_path / "adapter"
    found, named = models.load("some/model"), models.load(str(base), adapter="some/model")
    assert set(hub.sent) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert found.source == named.source
    assert found.source["adapter"] == "some/model" and found.source["adapter_revision"] == COMMIT
    truth, name = models.load(str(tmp_path / "adapter")).weights, "llm.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(truth.get(name), models.load(str(base)).weights.get(name))
    for parts in (found, named):
        assert torch.equal(parts.weights.get(name), truth.get(name))
    (tmp_path / "adapter" / "non_lora_trainables.bin").write_bytes(b"")
    assert "original LLaVA format" in refusal("some/model")

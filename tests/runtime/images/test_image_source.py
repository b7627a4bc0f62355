"""Images from pipes, the standard input, data URLs, bytes and open files; each of them read once."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from foveate.engines.errors import UserError
from foveate.runtime.images import image_source
from foveate.runtime.images.image_file import load_image, size_of
from foveate.runtime.images.image_source import EncodedImage, read_once
from foveate.runtime.pipeline import Pipeline


def fed(path: Path, data: bytes) -> Path:
    """A named pipe into which ``data`` goes once."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()
    return path


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_every_source_gives_the_same_pixels(pixels, png, tmp_path):
    (tmp_path / "a.png").write_bytes(png)
    wrapped = "data:image/png;charset=x;base64," + base64.encodebytes(png).decode().rstrip("=\n")
    with (tmp_path / "a.png").open("rb") as opened:
        sources = [
            *(png, bytearray(png), memoryview(png), io.BytesIO(png), opened, data_url(png), wrapped),
            *("data:," + quote(png), "DATA:image/png;BASE64," + base64.b64encode(png).decode()),
            *(
                fed(tmp_path / "pipe", png),
                str(tmp_path / "a.png"),
                tmp_path / "a.png",
                Image.fromarray(pixels),
            ),
        ]
        for source in sources:
            again = read_once(source)
            assert size_of(again) == (8, 8)
            assert np.array_equal(np.asarray(load_image(again)), pixels)
            assert np.array_equal(np.asarray(load_image(again)), pixels)


@pytest.mark.parametrize("qwen", (False, True))
def test_a_pipeline_reads_a_pipe_once(bundle, pixels, png, tmp_path, qwen, monkeypatch):
    """A pipe that is opened twice would wait for ever, or be empty.

    ``varies`` makes the size be asked for first.
    """
    pipe = Pipeline.load(bundle)
    if qwen:
        monkeypatch.setattr(type(pipe.vision), "varies", True)
    want = pipe.generate(pixels, "Why?", max_new_tokens=5).tokens
    assert pipe.generate(fed(tmp_path / "one", png), "Why?", max_new_tokens=5).tokens == want
    assert pipe.generate([io.BytesIO(png)], "Why?", max_new_tokens=5).tokens == want
    assert pipe.generate(png, "Why?", max_new_tokens=5).tokens == want
    seen = pipe.see(fed(tmp_path / "two", png))
    assert pipe.generate(seen, "Why?", max_new_tokens=5).tokens == want
    assert pipe.chat().ask("Why?", fed(tmp_path / "three", png), max_new_tokens=5).tokens == want


def shell(command: str, bundle: Path, png: bytes, tmp_path: Path, stdin=None) -> subprocess.CompletedProcess:
    (tmp_path / "x.png").write_bytes(png)
    run = f"{sys.executable} -m foveate.runtime.cli"
    environment = {**os.environ, "F": run, "B": str(bundle), "D": data_url(png)}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=stdin,
        check=False,
    )


@pytest.mark.parametrize(
    "image",
    (
        '--image "$D"',
        "--image - < x.png",
        "--image /dev/stdin < x.png",
        "--image <(cat x.png) --overlay kept.png",
    ),
)
def test_run_takes_them(image, bundle, png, pixels, tmp_path):
    want = Pipeline.load(bundle).generate(pixels, "Why?", max_new_tokens=5).text
    done = shell(f'$F run "$B" "Why?" --max-new-tokens 5 {image}', bundle, png, tmp_path)
    assert (done.returncode, done.stdout) == (0, want + "\n"), done.stderr
    assert ("overlay" in image) == (tmp_path / "kept.png").exists()


def test_run_takes_a_pipe_and_a_socket(bundle, png, pixels, tmp_path):
    """Some programs start others with a socket as standard input; /dev/stdin cannot be opened there."""
    want = Pipeline.load(bundle).generate(pixels, "Why?", max_new_tokens=5).text
    run = '$F run "$B" "Why?" --max-new-tokens 5'
    for name in ("-", "/dev/stdin"):
        done = shell(f"cat x.png | {run} --image {name}", bundle, png, tmp_path)
        assert (done.returncode, done.stdout) == (0, want + "\n"), done.stderr
        near, far = socket.socketpair()
        with near, far:
            far.sendall(png)
            far.shutdown(socket.SHUT_WR)
            done = shell(f"{run} --image {name}", bundle, png, tmp_path, stdin=near)
        assert (done.returncode, done.stdout) == (0, want + "\n"), done.stderr


@pytest.mark.parametrize(
    "command, says",
    (
        ('$F run "$B" "Why?" --image - <&-', "standard input"),
        ('$F run "$B" "Why?" --image - </dev/null', "image standard input | the file is empty"),
        ('$F run "$B" "Why?" --image - --image /dev/stdin < x.png', "the standard input holds one image"),
        ('$F run "$B" "Why?" --image ""', "the value is empty"),
        ('printf "/image\\nWhy?\\n" | $F chat "$B"', "the name is empty"),
        ('echo "Why?" | $F chat "$B" --image -', "chat reads the questions there"),
        ('printf "/image -\\nWhy?\\n" | $F chat "$B"', "chat reads the questions there"),
        ('$F run "$B" "Why?" --image https://127.0.0.1:9/x.png', "add --allow-url"),
        ('$F run "$B" "Why?" --image /dev/null', "got a device"),
    ),
)
def test_a_file_that_is_no_image_gives_one_line(command, says, bundle, png, tmp_path):
    done = shell(command, bundle, png, tmp_path)
    assert done.returncode in (1, 2) and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "source, says",
    (
        ("x" * 300 + ".png", "file name too long"),
        ("a\0b", "null"),
        ("\ud800.png", "surrogates|no such file"),
        ("", "the name is empty"),
        (b"", "the file is empty"),
        (io.BytesIO(), "the file is empty"),
        (io.StringIO("text"), "open as text"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a.b", "base64 is damaged"),
        ("data:image/png;base64,", "the file is empty"),
        ("data:image/png;base64,\udcff", "not UTF-8"),
        ("data:,\udcff", "not UTF-8"),
        ("data:text/plain,hello", "not an image"),
        ("file:///etc/passwd", "got a file URL"),
        ("ftp://host/x.png", "got a ftp URL"),
        ("https://user:secret@host/x.png?key=secret", "add --allow-url"),
        (7, "got int"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "looks like a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ),
)
def test_refused_with_one_sentence(source, says):
    with pytest.raises(UserError, match=says) as caught:
        load_image(source)
    message = str(caught.value)
    assert message.count(" | ") == 2 and "secret" not in message and len(message) < 500


def test_other_names(pixels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "-",
        "with\nnewline.png",
        "a b.png",
        "%20.png",
        b"\xe9.png".decode("utf-8", "surrogateescape"),
    ):
        Image.fromarray(pixels).save(name, "PNG")
        assert np.array_equal(np.asarray(load_image(name)), pixels)


def test_reads_into_memory_have_a_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(image_source, "MOST_BYTES", 1000)
    for source in (
        bytes(1001),
        io.BytesIO(bytes(1001)),
        fed(tmp_path / "pipe", bytes(1001)),
        data_url(bytes(1001)),
    ):
        with pytest.raises(UserError, match="too large"):
            read_once(source)
    assert read_once(bytes(1000)) == EncodedImage(bytes(1000), "of 1000 bytes")

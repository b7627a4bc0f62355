"""Images from URLs: what a server on this machine sends, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.images import image_source, image_url
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.image_source import read_once
from foveate.runtime.pipeline import Pipeline


class Handler(BaseHTTPRequestHandler):
    """``answers``: by path a function that writes the answer."""

    answers: ClassVar[dict] = {}

    def do_GET(self) -> None:
        self.answers[self.path](self)

    def log_message(self, *arguments: object) -> None: ...

    def say(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(png, monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    released = threading.Event()

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    Handler.answers = {
        "/x.png": lambda h: h.say(200, png),
        "/%C3%A9%20%41+b?q=%C3%A9%20&r=/:": lambda h: h.say(200, png),
        "/moved": lambda h: h.say(302, Location="/x.png"),
        "/away": lambda h: h.say(302, Location="file:///etc/passwd"),
        "/ftp": lambda h: h.say(302, Location="ftp://127.0.0.1/x.png"),
        "/round": lambda h: h.say(302, Location="/round"),
        "/page": lambda h: h.say(200, b"<html>no image</html>"),
        "/none": lambda h: h.say(404),
        "/empty": lambda h: h.say(200),
        "/large": lambda h: h.say(200, bytes(2000)),
        "/cut": lambda h: h.say(200, png[:-9], Content_Length=str(len(png))),
        "/slow": drip,
        "/silent": lambda h: released.wait(5),
    }
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    released.set()
    serving.shutdown()
    serving.server_close()


def test_urls_are_downloaded_when_that_is_allowed(server, pixels):
    for path in ("/x.png", "/moved", "/é %41+b?q=é &r=/:#part"):
        found = read_once(server + path, allow_url=True)
        assert np.array_equal(np.asarray(load_image(found)), pixels)


@pytest.mark.parametrize(
    "path, says",
    (
        ("/away", "302 .* is not allowed"),
        ("/ftp", "redirects from http to ftp"),
        ("/round", "infinite loop"),
        ("/page", "not an image"),
        ("/none", "the server answers 404"),
        ("/empty", "the file is empty"),
        ("/large", "larger than"),
        ("/cut", "the connection ended after"),
        ("/slow", "nothing came for|took longer"),
        ("/silent", "nothing came for"),
    ),
)
def test_bad_downloads(path, says, server, monkeypatch):
    monkeypatch.setattr(image_source, "MOST_BYTES", 1000)
    monkeypatch.setattr(image_url, "SECONDS", 0.6)
    monkeypatch.setattr(image_url, "_SILENCE", 0.3)
    with pytest.raises(UserError, match=says) as caught:
        load_image(read_once(server + path, allow_url=True))
    assert str(caught.value).count(" | ") == 2 and path in str(caught.value)


def test_bad_addresses(server):
    for url in (
        *(f"http://127.0.0.1:{9}/x", "http://", "http://[::1", "https:x", f"https{server[4:]}/x.png"),
        *(
            f"{server}/\udcff?key=secret",
            "http://\udcff/?key=secret",
            "http://a..é/?key=secret",
            "http://a:b/",
        ),
        *(f"http://{'é' * 70}/x.png", "http://127.0.0.1 /?key=secret", "http://127.0.0.1:9/a b?key=sec ret"),
    ):
        with pytest.raises(UserError, match="cannot download the image") as caught:
            read_once(url, allow_url=True)
        assert "sec" not in str(caught.value) and "codec" not in str(caught.value)


def test_never_from_https_back_to_http():
    request = image_url.urllib.request.Request("https://host/x")
    with pytest.raises(UserError, match="redirects from https to http"):
        image_url._Redirects().redirect_request(request, None, 302, "", {}, "http://host/x")


def test_run_downloads(server, bundle, pixels, capsys):
    want = Pipeline.load(bundle).generate(pixels, "Why?", max_new_tokens=5).text
    arguments = [
        "run",
        str(bundle),
        "Why?",
        "--max-new-tokens",
        "5",
        "--image",
        server + "/x.png",
        "--allow-url",
    ]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == want + "\n"

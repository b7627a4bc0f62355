"""Download of an image over http or https. Called only if the user allowed it (``--allow-url``).

Guards: no other scheme, not even after a redirect; no redirect from https back to http; a limit on bytes; a
limit on the total time, name resolution included. Proxies are those of the environment (``https_proxy``).
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from importlib.metadata import version
from typing import IO

from foveate.engines.errors import UserError

__all__ = ["SECONDS", "download", "without_secrets"]

SECONDS = 30.0
"""The longest time that a download may take, in seconds."""

_SILENCE = 10.0  # seconds without a byte after which a connection is given up
_CHUNK = 2**16
_AS_THEY_ARE = "%/:?#[]@!$&'()*+,;="  # characters that have a meaning in URLs (RFC 3986) and are not encoded


def without_secrets(url: str) -> str:
    """Return the URL without user name, password and query, which may hold keys."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        return url.split("?")[0].split("@")[-1]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def download(url: str, most_bytes: int) -> bytes:
    """Return the body of the answer to GET ``url``. Raises UserError if it cannot be had."""
    found: list[bytes] = []
    faults: list[Exception] = []

    def work() -> None:
        try:
            found.append(_get(url, most_bytes, time.monotonic() + SECONDS))
        except Exception as error:  # noqa: BLE001  raised again by the thread that waits
            faults.append(error)

    # Uses a thread, because neither name resolution nor a slow header obeys a timeout of the socket.
    thread = threading.Thread(target=work, daemon=True, name="download")
    thread.start()
    thread.join(SECONDS)
    if faults:
        raise _explained(url, faults[0]) from faults[0]
    if not found:
        raise _failed(url, f"it took longer than {SECONDS:g} seconds", "download it first")
    return found[0]


def _get(url: str, most_bytes: int, deadline: float) -> bytes:
    request = urllib.request.Request(_in_ascii(url), headers={"User-Agent": f"foveate/{version('foveate')}"})
    with _opener().open(request, timeout=_SILENCE) as answer:
        promised = answer.length  # None if the server does not report it
        parts, size = [], 0
        while chunk := answer.read1(_CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > most_bytes:
                raise _failed(url, f"it is larger than {most_bytes // 2**20} MiB", "scale it down first")
            if time.monotonic() > deadline:
                raise TimeoutError
    if promised is not None and size < promised:
        raise _failed(url, f"the connection ended after {size} of {promised} bytes", "try again")
    return b"".join(parts)


def _in_ascii(url: str) -> str:
    """Return the URL as it is sent: blanks and letters beyond ASCII are encoded as browsers do it.

    Parts that are encoded already stay. Raises ValueError for characters that cannot be encoded.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        path, query = (urllib.parse.quote(part, safe=_AS_THEY_ARE) for part in (parts.path, parts.query))
    except UnicodeError as error:
        raise ValueError("the address holds characters that no address may hold") from error
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener with urllib's handlers for http and https only.

    Its default opener also reads file: and ftp:.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(each).scheme.lower() for each in (req.full_url, newurl))
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise _failed(
                req.full_url, f"the server redirects from {old} to {new or 'nothing'}", "download it first"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _explained(url: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        return _failed(url, f"the server answers {error.code} {error.msg}", "check the address")
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return _failed(url, f"nothing came for {_SILENCE:g} seconds", "try again, or download it first")
    if isinstance(error, (OSError, http.client.HTTPException, ValueError, urllib.error.URLError)):
        return _failed(url, str(error) or type(error).__name__, "check the address and the network")
    raise error


def _failed(url: str, got: str, remedy: str) -> UserError:
    return UserError(f"cannot download the image {without_secrets(url)} | {got} | {remedy}")

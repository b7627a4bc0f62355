"""The Hugging Face hub: downloads a repository's files into the local cache.

Settings come by ``snapshot_download``. Weights are downloaded into the same cache one by one, each into a
partial file that a later run continues: huggingface_hub itself (2.4) discards a partial file when the process
ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, file_download
from huggingface_hub import errors as hub
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from foveate.engines.errors import UserError
from foveate.export.checkpoints.files import SETTINGS, refuse_remnants, weight_files
from foveate.export.checkpoints.model_names import INSTEAD

__all__ = ["INSTEAD", "download", "download_file"]


def download(repo: str, *, weights: bool = True, revision: str | None = None) -> Path:
    """Return the snapshot directory of ``repo`` in the cache, named by its commit.

    ``revision`` is a branch, tag or commit (default: the main branch). Without a connection the cached files
    are used. Shows progress, continues where it stopped, and uses HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and
    HF_TOKEN. Raises UserError.
    """
    with _explained(repo):
        path = _snapshot(repo, SETTINGS, revision=revision)
        there = _files(repo, path.name) if weights else []
        refuse_remnants(there, repo)
        names = weight_files(there)
        for name in names:
            _fetch(repo, name, path.name)
        if names:  # links them into the snapshot
            _snapshot(repo, (*SETTINGS, *names), revision=path.name)
        return path


def download_file(repo: str, names: tuple[str, ...], instead: str) -> Path:
    """Return the cached path of the first of the files ``names`` that ``repo`` has.

    The file is downloaded as by ``download``. ``instead`` tells users in error messages what else they can
    do. Raises UserError.
    """
    with _explained(repo, instead):
        path = _snapshot(repo, SETTINGS)
        there = _files(repo, path.name)
        for name in [name for name in names if name in there][:1]:
            _fetch(repo, name, path.name)
            _snapshot(repo, (name,), revision=path.name)
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{repo} has no {' or '.join(names)} | expected one of them in the repository | {instead}"
    )


def _snapshot(repo: str, names: tuple[str, ...], **options: Any) -> Path:
    return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(names), **options))


def _files(repo: str, revision: str) -> list[str]:
    try:
        found = huggingface_hub.HfApi().model_info(repo, revision=revision).siblings or []
    except (hub.HTTPError, OSError):
        return []  # no connection: the code that reads a file reports that the cache lacks it
    return [file.rfilename for file in found]


def _fetch(repo: str, name: str, revision: str) -> None:
    """Download one file as a blob of the cache, under the name by which huggingface_hub looks for it."""
    url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
    found = huggingface_hub.get_hf_file_metadata(url)
    if found.etag is None:
        raise OSError(f"the hub gives no hash of {name}")
    cache = Path(constants.HF_HUB_CACHE)
    folder = file_download.repo_folder_name(repo_id=repo, repo_type="model")
    blob = cache / folder / "blobs" / found.etag
    partial = blob.with_name(f"{blob.name}.partial")
    lock = cache / ".locks" / folder / f"{found.etag}.lock"  # huggingface_hub's own
    for each in (blob, lock):
        each.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        partial.touch()
        with partial.open("r+b") as file:
            done = file.seek(0, 2)
            file_download.http_get(
                url,
                file,
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=found.size,
                displayed_filename=name,
            )
        if not _is_intact(partial, found.etag):
            partial.unlink()
            raise OSError(f"{name} arrived damaged")
        partial.rename(blob)


def _is_intact(path: Path, etag: str) -> bool:
    """Check a large file against ``etag``, its SHA-256.

    Small files have no SHA-256 and pass: the download has checked their size.
    """
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == etag


@contextlib.contextmanager
def _explained(repo: str, instead: str = INSTEAD) -> Iterator[None]:
    """Turn errors of the hub and the network into UserError."""
    try:
        yield
    except hub.GatedRepoError as error:
        raise UserError(
            f"{repo} is gated | the hub gives it only to users who accepted its licence | accept it on "
            f"https://huggingface.co/{repo} and run `hf auth login`, or {instead}"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no model {repo}, or it is private | no directory of that name here either "
            f"| check the name, run `hf auth login` for a private one, or {instead}"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(
            f"cannot get {repo} | there is no directory of that name here, {reason}, "
            "and the cache does not hold all of it "
            f"| connect and run again, or {instead}"
        ) from error
    except (hub.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, remedy = "the disk is full", "free some space or set HF_HOME to another disk"
        else:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            remedy = "run again: the download goes on where it stopped"
        raise UserError(f"downloading {repo} failed | {reason} | {remedy}, or {instead}") from error

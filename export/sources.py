"""Where a checkpoint comes from: a directory or the Hugging Face hub; and modules filled from it.

``find`` gives a ``Source`` (``checkpoint``): its config, files and tensors. ``entries`` says which tensors a module
needs, ``fill`` puts them in. Random checkpoints are in ``dummy``.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import errors as hub
from torch import nn

from foveate.engines.errors import UserError
from foveate.export.checkpoint import Directory, Entry, Source
from foveate.export.decoder import Decoder, Linear, rope_tables
from foveate.export.parts import Weights

__all__ = ["entries", "fill", "find", "is_path_or_id"]

_SETTINGS = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_PICKLED = ["pytorch_model.bin"]  # taken only where a repository has nothing else

_INSTEAD = "name a checkpoint's directory, or use --load-format dummy (random weights)"


def is_path_or_id(name: str) -> bool:
    """Whether ``name`` can be meant as a directory or as a hub id, rather than as the name of a model."""
    return "/" in name or os.sep in name or name.startswith((".", "~")) or Path(name).is_dir()


def find(name: str, *, weights: bool = True) -> Source:
    """The checkpoint in a directory, or that of a hub id (``org/name``), downloaded where the cache lacks it.

    Downloads show their progress, go on where they stopped, and heed HF_HOME, HF_HUB_OFFLINE and HF_TOKEN.
    ``weights`` False fetches settings only. Raises UserError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return Directory(path)
    if path.exists():
        raise UserError(
            f"{name} is a file | expected a directory in Hugging Face's format | give the directory it is in"
        )
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise UserError(f"no directory {name} | got no such path | {_INSTEAD}, or give a hub id (org/name)")
    return _download(name, weights)


def _download(repo: str, weights: bool) -> Directory:
    path = _snapshot(repo, _SETTINGS + _WEIGHTS if weights else _SETTINGS)
    if weights and not any(path.glob("*.safetensors*")):
        path = _snapshot(repo, _SETTINGS + _PICKLED)
    remedy = "run again with a network (HF_HUB_OFFLINE unset): the download goes on where it stopped"
    return Directory(path, label=repo, revision=path.name, remedy=remedy)


def _snapshot(repo: str, patterns: list[str]) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except hub.GatedRepoError as error:
        raise UserError(
            f"{repo} is gated | the hub gives it to those who accepted its licence | accept it on "
            f"https://huggingface.co/{repo} and run `hf auth login`, or {_INSTEAD}"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no model {repo}, or it is private | no directory of that name here either | check the "
            f"name, run `hf auth login` for a private one, or {_INSTEAD}"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "no network"
        raise UserError(
            f"cannot get {repo} | {offline}, and the cache does not have it | connect and run again, or {_INSTEAD}"
        ) from error
    except (hub.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, remedy = "the disk is full", "free some space or set HF_HOME to another disk"
        else:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            remedy = "run again: the download goes on where it stopped"
        raise UserError(f"downloading {repo} failed | {reason} | {remedy}, or {_INSTEAD}") from error


def entries(
    module: nn.Module, prefix: str, renames: Iterable[tuple[str, tuple[str, ...]]]
) -> dict[str, Entry]:
    """What ``module`` needs, as ``prefix`` + path. ``renames`` gives, for the start of a path, the possible starts
    in a checkpoint; the first that fits counts. ``Linear`` matrices are stored transposed there."""
    linear = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, Linear)}
    found = {}
    for path, parameter in module.named_parameters():
        start, stored = next((ours, theirs) for ours, theirs in renames if path.startswith(ours))
        names = tuple(there + path.removeprefix(start) for there in stored)
        found[prefix + path] = Entry(tuple(parameter.shape), names, path in linear)
    return found


def fill(module: nn.Module, weights: Weights, prefix: str) -> nn.Module:
    """Give ``module``, built on the meta device, its values in float32 on the CPU, in place; returns it.

    ``prefix`` + path are the names in ``weights``. Rotary tables, which no checkpoint holds, are computed.
    """
    for path, part in module.named_modules():
        start = f"{prefix}{path}." if path else prefix
        for name, parameter in part.named_parameters(recurse=False):
            value = weights.get(start + name).to(torch.float32)
            assert value.shape == parameter.shape, f"{start}{name}: {value.shape} is not {parameter.shape}"
            setattr(part, name, nn.Parameter(value, requires_grad=False))
        if isinstance(part, Decoder):
            part.rope_cos, part.rope_sin = rope_tables(part.spec)
    return module

"""The weights of a trained pruner: finding, checking and saving them.

A file holds them under the names of the published state dict, as safetensors or as a PyTorch archive. Nothing
but tensors is read. Graphs use the names ``pruner.<name>``. Other tensors in a file, such as a decoder for
training, are ignored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from foveate.engines.disk.files import atomic_file
from foveate.engines.errors import UserError
from foveate.export.checkpoints import hub, licence
from foveate.export.checkpoints.directory import Entry
from foveate.export.checkpoints.layered_weights import LayeredWeights, TensorWeights
from foveate.export.checkpoints.random_weights import DummyWeights
from foveate.export.checkpoints.tensor_files import Folder, some
from foveate.export.model_parts import ModelParts
from foveate.export.pruning.method import Method
from foveate.export.spec import ModelSpec
from foveate.runtime.bundle.licence import Licence

__all__ = ["dummy", "entries", "joined", "load", "read", "save"]

_HUB = "GarryLarry0131/OC-VTP"
_HUB_FITS = (1024, 576, 23)  # width, tokens and running layers of the tower that it was trained on
_PREFIX = "pruner."
_TRAIN = "train one with scripts/train_ocvtp.py, or use --load-format dummy (random weights)"


def joined(parts: ModelParts, method: Method, pruner: str | None = None) -> ModelParts:
    """Return ``parts`` with the weights of ``method``'s trained network, or unchanged if it has none.

    ``pruner`` is a file or a hub id. The default is ``<method>.safetensors`` in the checkpoint's directory,
    then the published pruner if the tower is LLaVA-1.5's. A dummy model gets a dummy pruner. The licence is
    that of the hub's repository, or of the file's directory. Raises UserError.
    """
    before = method.pre_llm
    with torch.device("meta"):
        network = before.module(parts.spec) if before else None
    if before is None or network is None:
        if pruner is not None:
            raise UserError(
                f"{method.name} has no trained weights | got --pruner {pruner} | leave it out", code=2
            )
        return parts
    licences: dict[str, Licence] = {}
    files: dict[str, Path] = {}
    if pruner is None and parts.source.get("load_format") == "dummy":
        label, found = "dummy", dummy(network)
    else:
        path, label = _find(parts, before, pruner)
        found = _fitting(read(path), network, label)
        if path.parent != Path(parts.source["model"]):  # there it is the model's, which parts have
            licences["pruner"], files = licence.of(Folder(path.parent, label), "pruner")
    return dataclasses.replace(
        parts,
        weights=LayeredWeights(
            TensorWeights({_PREFIX + name: value for name, value in found.items()}), parts.weights
        ),
        source=parts.source | {"pruner": label},
        licence=parts.licence | licences,
        files={**parts.files, **files},
    )


def entries(network: nn.Module) -> dict[str, Entry]:
    """Return the Entries of ``network`` in a file. Files store matrices as ``[out, in]``."""
    tables = _tables(network)
    return {
        name: Entry(tuple(parameter.shape), (name,), transposed=parameter.ndim == 2)
        for name, parameter in network.named_parameters()
        if name not in tables
    }


def _tables(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that the network computes and no file holds."""
    tables = getattr(network, "tables", None)
    return tables() if tables else {}


def dummy(network: nn.Module) -> dict[str, Tensor]:
    """Return random weights for ``network`` in its own layout, and its tables."""
    weights = DummyWeights(entries(network))
    return {name: weights.get(name) for name in entries(network)} | _tables(network)


def save(network: nn.Module, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Write the trained weights as safetensors, under the published names and in the published layout."""
    found = dict(network.named_parameters())
    stored = {
        name: (found[name].T if entry.transposed else found[name]).detach().to("cpu", dtype).contiguous()
        for name, entry in entries(network).items()
    }
    with atomic_file(path) as part:
        safetensors.torch.save_file(stored, part, metadata)


def load(network: nn.Module, path: Path) -> nn.Module:
    """Fill ``network`` in place with a file's weights in float32, and return it. Raises UserError."""
    values = _fitting(read(path), network, str(path))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(values[name])
    return network


def read(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file, or of its ``state_dict``, by its name. Raises UserError."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the pruner {path} | {error.strerror} | check the path") from error
    except Exception as error:  # a damaged archive, or a pickle of more than tensors, may raise any exception
        raise UserError(
            f"{path} is damaged or holds more than tensors | expected safetensors, or a state dict that "
            "PyTorch saved | download it again"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} is no state dict | got {type(found).__name__}, expected tensors by their names "
            "| save the network's state_dict()"
        )
    return dict(found)


def _fitting(found: dict[str, Tensor], network: nn.Module, label: str) -> dict[str, Tensor]:
    """Return the tensors of ``found`` that ``network`` needs, in its own layout, and its tables.

    Raises UserError when one is missing or has another shape.
    """
    wanted = entries(network)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{label}: tensors of the pruner are missing | {some(missing)} "
            "| give the file that its training wrote"
        )
    misfits = [
        f"{name} is {list(found[name].shape)}, expected {list(entry.stored_shape)}"
        for name, entry in wanted.items()
        if tuple(found[name].shape) != entry.stored_shape
    ]
    if misfits:
        raise UserError(
            f"{label}: the pruner was trained for a vision tower of another width | {some(misfits, '; ')} "
            f"| {_TRAIN}"
        )
    fitting = {
        name: (found[name].T if entry.transposed else found[name]).float().contiguous()
        for name, entry in wanted.items()
    }
    return fitting | _tables(network)


def _find(parts: ModelParts, method: Method, pruner: str | None) -> tuple[Path, str]:
    """Return the pruner's file, and its name in messages and in ``bundle.json``."""
    file = f"{method.name}.safetensors"
    if pruner is None:
        beside = Path(parts.source["model"]) / file
        if beside.is_file():
            return beside, str(beside)
        if not _is_published_for(parts.spec):
            raise UserError(
                f"{method.name} has no pruner for {parts.source['model']} "
                f"| expected {beside}; the published one fits the tower of LLaVA-1.5 alone "
                f"| give one with --pruner, {_TRAIN}"
            )
        pruner = _HUB
    path = Path(pruner).expanduser()
    if path.is_file():
        return path, pruner
    if (
        path.exists()
        or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", pruner)
        or path.suffix in (".pth", ".safetensors")
    ):
        raise UserError(
            f"no pruner {pruner} | got {'a directory' if path.is_dir() else 'no such file'}, "
            "expected a .safetensors or .pth file, or a hub id (org/name) | check --pruner",
        )
    return hub.download_file(
        pruner, (file, "weights.pth"), f"give its file with --pruner, or {_TRAIN}"
    ), pruner


def _is_published_for(spec: ModelSpec) -> bool:
    vision = spec.vision
    return (vision.hidden_size, vision.num_tokens, vision.depth) == _HUB_FITS

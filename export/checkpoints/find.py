"""Find a checkpoint in a directory or on the Hugging Face hub, with the adapter that is merged into it.

``find`` returns a ``Source`` (see ``directory``): config, files and tensors. Random weights are in
``random_weights``.
"""

from __future__ import annotations

from pathlib import Path

from foveate.engines.errors import UserError
from foveate.export.checkpoints.adapters.lora import Adapter
from foveate.export.checkpoints.adapters.merged import Adapted
from foveate.export.checkpoints.directory import Directory, Source
from foveate.export.checkpoints.files import ADAPTER_CONFIG
from foveate.export.checkpoints.hub import download
from foveate.export.checkpoints.model_names import require_path_or_id
from foveate.export.checkpoints.tensor_files import Folder, some
from foveate.runtime.cli.options import say

__all__ = ["find"]


def find(
    name: str, *, weights: bool = True, adapter: str | None = None, revision: str | None = None
) -> Source:
    """Return the checkpoint in a directory, or the checkpoint of a hub id (``org/name``).

    Files that the cache lacks are downloaded. Downloads show their progress, continue where they stopped, and
    use HF_HOME, HF_HUB_OFFLINE and HF_TOKEN. ``weights`` False fetches the settings only.

    ``adapter`` is the directory or hub id of a LoRA adapter to merge. An adapter beside the weights is merged
    too. If ``name`` holds an adapter alone, the base model that it names is found. Raises UserError.
    """
    folder, commit = _folder(name, weights, revision)
    beside = folder.file(ADAPTER_CONFIG) is not None
    if adapter is not None and beside:
        raise UserError(
            f"{name} has an adapter of its own | got --adapter {adapter} too, expected one "
            "| leave --adapter out, or name the base model with --model",
            code=2,
        )
    if adapter is not None:
        return _adapted(_directory(folder, commit), Adapter(*_folder(adapter, weights)), weights)
    if not beside:
        return _directory(folder, commit)
    found = Adapter(folder, commit)
    if commit == "local" and folder.file("config.json") and folder.weights_file():
        others = sorted(path.parent.name for path in folder.path.glob(f"*/{ADAPTER_CONFIG}"))
        _refuse_several(found, [each for each in others if not each.startswith("checkpoint-")])
        return _adapted(_directory(folder, commit), found, weights)
    return _adapted(_base(found, weights), found, weights)


def _folder(name: str, weights: bool, revision: str | None = None) -> tuple[Folder, str]:
    """Return the directory ``name`` and "local", or a hub id's directory in the cache and its commit."""
    path = Path(name).expanduser()
    if path.is_dir():
        return Folder(path), "local"
    require_path_or_id(name)
    path = download(name, weights=weights, revision=revision)
    remedy = "run again with a network (HF_HUB_OFFLINE unset): the download goes on where it stopped"
    return Folder(path, name, remedy), path.name


def _directory(folder: Folder, commit: str) -> Directory:
    return Directory(folder.path, folder.label, commit, folder.remedy)


def _base(adapter: Adapter, weights: bool) -> Directory:
    """Return the base model that ``adapter`` names."""
    if not adapter.base:
        raise UserError(
            f"{adapter.label} does not say what its base model is "
            "| base_model_name_or_path is empty | name the base model with --model and this one with "
            "--adapter"
        )
    say(f"{adapter.label} belongs to {adapter.base}")
    try:
        folder, commit = _folder(adapter.base, weights, adapter.base_revision)
        alone = folder.file(ADAPTER_CONFIG) is None
        found = _directory(folder, commit) if alone else None
    except UserError as error:
        raise UserError(
            f"cannot load the base model of {adapter.label} | it names {adapter.base}: "
            f"{str(error).replace(' | ', '; ')} "
            "| name a copy of that model with --model and this one with --adapter"
        ) from error
    if found is None:
        itself = folder.path.resolve() == adapter.folder.path.resolve()
        got = "is the adapter itself" if itself else "is or has an adapter too"
        raise UserError(
            f"the base model of {adapter.label} is not a plain model | {adapter.base} {got} "
            "| name the model with --model and one adapter with --adapter, or merge the others with peft"
        )
    return found


def _adapted(base: Directory, adapter: Adapter, weights: bool) -> Source:
    found = Adapted(base, adapter)
    if weights:
        say(f"{adapter.label} is merged into {base.label}")
    return found


def _refuse_several(adapter: Adapter, others: list[str]) -> None:
    if others:
        raise UserError(
            f"{adapter.label} is one of several adapters | got others in {some(others)}, expected one "
            "| name the base model with --model, in a directory without adapters, and one of them with "
            "--adapter"
        )

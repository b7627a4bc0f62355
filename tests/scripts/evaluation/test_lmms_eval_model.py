"""The adapter for lmms-eval, against stand-ins with the signatures of lmms-eval 0.7.3.

lmms-eval brings CUDA and is not installed.
"""

from __future__ import annotations

import abc
import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from evaluation.benchmarks.base import padded
from foveate.engines.errors import UserError


class Lmms(abc.ABC):
    """Stand-in for ``lmms_eval.api.model.lmms``."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = Hook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        def value(text):
            return {"True": True, "False": False}.get(text, int(text) if text.isdigit() else text)

        given = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        more = {name: v for name, v in (additional_config or {}).items() if v is not None}
        return cls(**{name: value(text) for name, text in given.items()}, **more)

    @property
    def rank(self):
        return self._rank


class Hook:
    def __init__(self) -> None:
        self.partial = []

    def add_partial(self, attr, req, res) -> None:
        self.partial.append((attr, req, res))


@dataclass
class Instance:
    """Stand-in for ``lmms_eval.api.instance.Instance``."""

    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)

    @property
    def args(self):
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    """Stand-in for ``lmms_eval.models.registry_v2.ModelManifest``."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Registry:
    """Stand-in for ``lmms_eval.models.registry_v2.ModelRegistryV2``."""

    def __init__(self) -> None:
        self.manifests = {}

    def register_manifest(self, manifest, *, overwrite=False) -> None:
        assert overwrite or manifest.model_id not in self.manifests
        self.manifests[manifest.model_id] = manifest


@pytest.fixture
def adapter(monkeypatch):
    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {"MODEL_REGISTRY_V2": Registry()},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "tqdm": {"tqdm": lambda items, **_: items},
    }
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "evaluation.lmms_eval_model", raising=False)
    lmms_eval_model = importlib.import_module("evaluation.lmms_eval_model")
    yield lmms_eval_model
    sys.modules.pop("evaluation.lmms_eval_model")


def request(context: str, images: list, **settings) -> Instance:
    return Instance("generate_until", (context, settings, lambda doc: doc["images"], 0, "task", "test"), 0)


def asked(model, context: str, images: list, **settings) -> str:
    model.task_dict = {"task": {"test": [{"images": images}]}}
    (answer,) = model.generate_until([request(context, images, **settings)])
    return answer


def test_answers_are_the_pipeline_s(adapter, uniform_bundle):
    from foveate.runtime.pipeline import Pipeline

    model = adapter.Foveate.create_from_arg_string(
        f"bundle={uniform_bundle},keep=5", {"batch_size": 1, "device": None}
    )
    assert model.is_simple and model.rank == 0
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    pipe = Pipeline.load(uniform_bundle)
    square, *_ = padded(image, pipe.manifest.image["mean"])
    text = pipe.generate(square, "what is it?", keep=5, max_new_tokens=12).text
    settings = {"max_new_tokens": 12, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}
    assert asked(model, "<image>\nwhat is it?", [image], **settings) == text.strip()
    assert model.cache_hook.partial == [("generate_until", ("<image>\nwhat is it?", settings), text.strip())]
    cut = text.strip()[2:4]
    assert (
        asked(model, "what is it?", [image], until=[cut, "never"], **settings)
        == text.strip().split(cut)[0].strip()
    )
    assert (
        asked(model, "what is it?", [image], until=cut, max_new_tokens=12)
        == text.strip().split(cut)[0].strip()
    )
    as_is = adapter.Foveate(str(uniform_bundle), keep=5, as_is=True)
    plain = pipe.generate(image, "what is it?", keep=5, max_new_tokens=12).text.strip()
    assert asked(as_is, "what is it?", [image], max_new_tokens=12) == plain
    alone = pipe.generate(None, "what is it?", max_new_tokens=6).text.strip()
    assert asked(model, "what is it?", [], max_new_tokens=6) == alone


def test_unsupported_requests_are_refused(adapter, uniform_bundle):
    model = adapter.Foveate(str(uniform_bundle))
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError):
        model.generate_until_multi_round([])
    with pytest.raises(UserError, match="looks at images"):
        asked(model, "?", ["video.mp4"])
    with pytest.raises(UserError, match="beam"):
        asked(model, "?", [], num_beams=4)
    with pytest.raises(UserError, match="one question at a time"):
        adapter.Foveate(str(uniform_bundle), batch_size=8)
    with pytest.raises(TypeError):
        adapter.Foveate(str(uniform_bundle), keeep=5)


def test_it_is_registered_under_its_name(adapter):
    from lmms_eval.models import MODEL_REGISTRY_V2

    adapter.register()
    path = MODEL_REGISTRY_V2.manifests["foveate"].simple_class_path
    module, _, name = path.rpartition(".")
    assert getattr(sys.modules[module], name) is adapter.Foveate

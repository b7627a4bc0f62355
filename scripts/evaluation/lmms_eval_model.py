"""Run lmms-eval with a foveate bundle as a model.

It takes the arguments of ``python -m lmms_eval``, and has ``foveate`` among its models.

The variables are set here because lmms-eval is imported before foveate, which would set them.

Arguments of the model are ``bundle`` and, optionally, ``keep``, ``engine``, ``threads``, ``system`` ("vicuna"
is the system turn of LLaVA-1.5's evaluation) and ``as_is=True`` (otherwise images are padded to squares, as
LLaVA-1.5 was evaluated). lmms-eval 0.7 must be installed; foveate does not depend on it. It sends one
question at a time. Images come before the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from evaluation.benchmarks.base import VICUNA, padded
from foveate.engines.errors import UserError
from foveate.runtime.images.image_file import load_image
from foveate.runtime.llm.generation import Options
from foveate.runtime.pipeline import Pipeline

__all__ = ["Foveate", "register"]

_NEW_TOKENS = 1024  # if a task does not say: the default of lmms-eval's other models


class Foveate(lmms):
    """A model of lmms-eval that answers with a bundle. Raises UserError for wrong arguments."""

    is_simple = True  # requests come as text with a function that returns the images

    def __init__(
        self,
        bundle: str,
        keep: int | str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        system: str | None = None,
        as_is: bool = False,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load the bundle.

        ``batch_size``, ``device`` and ``max_batch_size`` are lmms-eval's and are not used.

        Engines are compiled for one device and a batch of one.
        """
        super().__init__()
        if str(batch_size) != "1":
            raise UserError(
                f"a bundle answers one question at a time | got batch size {batch_size} | --batch_size 1",
                code=2,
            )
        self._pipe = Pipeline.load(bundle, engine, threads=threads)
        self._keep, self._as_is = keep, as_is
        self._system = VICUNA if system == "vicuna" else system

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers = []
        for request in tqdm(requests, disable=self.rank != 0, desc="foveate"):
            context, settings, doc_to_visual, doc_id, task, split = request.args
            images = [
                self._shown(image) for image in doc_to_visual(self.task_dict[task][split][doc_id]) or []
            ]
            answers.append(self._answer(context, images, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), answers[-1])
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "a bundle's decoder returns only the last token's logits: "
            "use tasks that generate (output_type: generate_until)"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not asked of foveate yet: use those of one")

    def _answer(self, context: str, images: list[Image.Image], settings: Mapping[str, Any]) -> str:
        if settings.get("num_beams") not in (None, 1):
            raise UserError(
                "foveate has no beam search "
                f"| got num_beams={settings['num_beams']} | --gen_kwargs num_beams=1"
            )
        stream = self._pipe.chat(self._system).stream(
            context.replace("<image>", "").strip(),
            images or None,
            keep=self._keep,
            options=_options(settings),
        )
        return stream.finish().text.strip()

    def _shown(self, image: Any) -> Image.Image:
        if not isinstance(image, Image.Image):
            raise UserError(
                f"foveate looks at images | the task shows {type(image).__name__} | choose an image task",
                code=2,
            )
        image = load_image(image)
        mean = self._pipe.manifest.image.get("mean", (0.5, 0.5, 0.5))
        return image if self._as_is else padded(image, mean)[0]


def _options(settings: Mapping[str, Any]) -> Options:
    """Return the generation options of a task.

    Greedy tasks often give sampling values, some of which are invalid. They are ignored.
    """
    until = settings.get("until") or ()
    asked = {
        "max_new_tokens": settings.get("max_new_tokens") or _NEW_TOKENS,
        "stop": [text for text in ([until] if isinstance(until, str) else until) if text] or None,
    }
    temperature = settings.get("temperature")
    if not temperature or settings.get("do_sample") is False:
        return Options(**asked)
    return Options(**asked, temperature=temperature, top_p=settings.get("top_p"), top_k=settings.get("top_k"))


def register() -> None:
    """Register ``foveate`` as a model of lmms-eval in this process."""
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    manifest = ModelManifest(model_id="foveate", simple_class_path="evaluation.lmms_eval_model.Foveate")
    MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)


def main() -> None:
    """Run lmms-eval with ``foveate`` among its models."""
    from lmms_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()

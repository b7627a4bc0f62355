"""Ask a method's bundle questions about held-out scenes, and record its answers, what it keeps and the cost.

Every method answers the same questions at every budget. An image goes through a bundle's vision encoder once,
for all of its questions and budgets. One process answers for one method at a time, with one thread.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.bundles import ready_bundle, slug
from evaluation.store import Log, version
from foveate.calib.scenes.questions import Question, Scene, make_scene, questions
from foveate.runtime.bundle.manifest import Manifest
from foveate.runtime.llm.budget import resolve_keep
from foveate.runtime.measuring import costs
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import Turn

__all__ = [
    "PER_SCENE",
    "UNPRUNED",
    "Asked",
    "Plan",
    "answer",
    "clock",
    "held_out",
    "open_log",
    "text_tokens",
]

PER_SCENE = 7
UNPRUNED = "none"
_FIELDS = ("seed", "index", "keep")
_NEW_TOKENS = 8  # an answer is one word


class Asked(NamedTuple):
    """A scene and the questions asked about it, each with its index among the scene's questions."""

    seed: int
    scene: Scene
    questions: list[tuple[int, Question]]


@dataclass(frozen=True)
class Plan:
    """The checkpoint, questions and budgets of a comparison, and the folder for bundles and answers."""

    model: str
    work: Path
    budgets: tuple[str, ...]
    questions: int
    kinds: tuple[str, ...]
    first_seed: int

    @property
    def folder(self) -> Path:
        """Folder of this checkpoint's bundles and answers.

        Other checkpoints of the same name have other folders.
        """
        root = Path(self.model)
        files = sorted(path for path in root.rglob("*") if path.suffix in (".safetensors", ".json"))
        digest = (
            hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8] if files else "hub"
        )
        return self.work / f"{root.name}-{digest}"

    def keeps(self, variant: str, manifest: Manifest) -> list[int]:
        """Return the budgets as numbers of tokens.

        It is all tokens without a method, and the bundle's own budget if that is fixed.
        """
        fixed = variant.partition("@")[0] == UNPRUNED or manifest.method.fixed_keep is not None
        budgets = (None,) if fixed else self.budgets
        return [resolve_keep(budget, manifest.num_visual_tokens, manifest.method) for budget in budgets]


@functools.cache
def held_out(count: int, first_seed: int, kinds: tuple[str, ...]) -> tuple[Asked, ...]:
    """Return ``count`` questions of ``kinds`` on scenes from ``first_seed`` on, drawn once."""
    asked, left, seed = [], count, first_seed
    while left > 0:
        scene = make_scene(seed)
        every = enumerate(questions(scene, np.random.default_rng(seed), PER_SCENE))
        chosen = [(index, question) for index, question in every if question.kind in kinds][:left]
        if chosen:
            asked.append(Asked(seed, scene, chosen))
        left, seed = left - len(chosen), seed + 1
    return tuple(asked)


def open_log(plan: Plan, variant: str) -> tuple[Log, Path]:
    """Return the stored answers of the variant's current bundle, and the bundle. Build it if necessary."""
    path = ready_bundle(plan.model, variant, plan.folder)
    return Log(plan.folder / f"{slug(variant)}.{version(path)}.jsonl", _FIELDS), path


def answer(plan: Plan, variant: str, tell: Callable[[int], Any] = lambda count: None) -> list[dict[str, Any]]:
    """Return a record per question and budget. Stored answers are not asked for again.

    ``tell`` gets the number of further records, scene by scene.
    """
    log, path = open_log(plan, variant)
    pipe = Pipeline.load(path, threads=1)
    keeps, known = plan.keeps(variant, pipe.manifest), []
    for asked in held_out(plan.questions, plan.first_seed, plan.kinds):
        cases = [(keep, index, question) for keep in keeps for index, question in asked.questions]
        missing = [case for case in cases if log.get(asked.seed, case[1], case[0]) is None]
        if missing:
            seen = pipe.see(asked.scene.image)
            log.add(_record(pipe, seen, asked.seed, *case) for case in missing)
        known += [log.get(asked.seed, index, keep) for keep, index, _ in cases]
        tell(len(cases))
    return known


def _record(
    pipe: Pipeline, seen: Any, seed: int, keep: int, index: int, question: Question
) -> dict[str, Any]:
    said = pipe.generate(seen, question.text, keep=keep, max_new_tokens=_NEW_TOKENS)
    text, parts = said.text.strip(), costs.measured(pipe.manifest, said.stages[0])
    return {
        "seed": seed,
        "index": index,
        "keep": keep,
        "kind": question.kind,
        "right": text.lower() == question.answer.lower(),
        "said": text,
        "rows": [count for _, count in parts],
        "tokens": costs.average_tokens(parts),
        "flops": costs.prefill_flops(pipe.manifest.decoder, parts, text_tokens(pipe, question.text)),
    }


def text_tokens(pipe: Pipeline, question: str) -> int:
    """Return the number of text tokens in the prompt, including those of the chat template."""
    segments = pipe.tokenizer.encode_turns([Turn("user", question, images=1)])
    return sum(len(segment) for segment in segments if isinstance(segment, np.ndarray))


def clock(
    plan: Plan, variant: str, rounds: int, tell: Callable[[int], Any] = lambda count: None
) -> dict[int, dict]:
    """Return the seconds from the encoded image to the first token (pruning and prefill) by budget.

    They are medians over ``rounds`` prompts, with the medians of the ratios to the unpruned model, which
    answers the same prompt in the same round. Times are stored like answers.
    """
    log, path = open_log(plan, variant)
    log = Log(log.path.with_suffix(".clock.jsonl"), ("keep", "rounds"))
    rounds = min(rounds, len(held_out(plan.questions, plan.first_seed, plan.kinds)) - 1)
    whole = Pipeline.load(ready_bundle(plan.model, UNPRUNED, plan.folder), threads=1)
    pipe = Pipeline.load(path, threads=1)
    keeps = plan.keeps(variant, pipe.manifest)
    missing = [keep for keep in keeps if log.get(keep, rounds) is None]
    if missing:
        times = list(islice(_rounds(plan, pipe, whole, missing, tell), rounds + 1))
        log.add(_medians(missing, times[1:], rounds))  # the first one warms up
    return {keep: log.get(keep, rounds) for keep in keeps}


def _rounds(
    plan: Plan, pipe: Pipeline, whole: Pipeline, keeps: Sequence[int], tell: Callable[[int], Any]
) -> Iterator[list[float]]:
    """Yield the seconds of one prompt: with the unpruned model, then at each of ``keeps``."""
    for asked in held_out(plan.questions, plan.first_seed, plan.kinds):
        _, question = asked.questions[0]
        both = whole.see(asked.scene.image), pipe.see(asked.scene.image)
        answers = [whole.generate(both[0], question.text, max_new_tokens=1)]
        answers += [pipe.generate(both[1], question.text, keep=keep, max_new_tokens=1) for keep in keeps]
        yield [said.timings.prune + said.timings.prefill for said in answers]
        tell(1)


def _medians(keeps: Sequence[int], times: Sequence[Sequence[float]], rounds: int) -> Iterator[dict[str, Any]]:
    for column, keep in enumerate(keeps, 1):
        yield {
            "keep": keep,
            "rounds": rounds,
            "seconds": statistics.median(row[column] for row in times),
            "share": statistics.median(row[column] / row[0] for row in times),
        }

"""Settings of generation: those that the bundle gives, and those that the caller asks for.

The bundle's are in ``generation`` of bundle.json, written by the export. Every key is optional, and older
bundles have none::

    {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3,     # count prompt and answer
     "suppress_tokens": [7], "begin_suppress_tokens": [9],      # never generated; never as the first token
     "min_new_tokens": 4, "max_new_tokens": 512,                # length of the answer
     "min_length": 10, "max_length": 4096,                      # length of prompt and answer together
     "stop_strings": ["USER:"],
     "sample": {"temperature": 0.7, "top_k": 20, "top_p": 0.8}} # settings of --sample

Answers are greedy unless the caller asks for sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from foveate.engines.errors import UserError
from foveate.runtime.bundle.settings import GenerationSettings
from foveate.runtime.llm.sampling import Sampling, misfit, wrong

__all__ = ["MAX_NEW_TOKENS", "Generation", "Options"]

MAX_NEW_TOKENS = 256
"""Largest number of tokens of an answer, if neither the checkpoint nor the caller gives one."""

_SAMPLE = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""Sampling settings of transformers that apply where a checkpoint gives none."""


@dataclass(frozen=True)
class Generation(GenerationSettings):
    """Settings with which an answer is generated: those of bundle.json, and the caller's.

    ``sample`` holds the settings of ``--sample``, ``sampling`` those in use. ``keep_special`` leaves special
    tokens in the text, except for stop ids.
    """

    sample: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    keep_special: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Generation:
        """Return the bundle's settings. Keys that this version does not know are left out."""
        known = {each.name for each in fields(GenerationSettings)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
            if name in known
        }
        return cls(**values)

    @property
    def drawing(self) -> dict[str, Any]:
        """Return the settings of ``--sample``: temperature, top_k and top_p."""
        return {**_SAMPLE, **self.sample}

    @property
    def misfits(self) -> dict[str, str]:
        """Return the checkpoint's sampling settings with which no sample can be drawn, as in transformers.

        The values tell what was expected. ``top_k`` 0 is allowed: it means no limit.
        """
        expected = {name: misfit(name, self.sample[name]) for name in _SAMPLE if self.sample.get(name)}
        return {name: text for name, text in expected.items() if text}

    def describe(self) -> list[str]:
        """Return the bundle's settings in words, for ``foveate inspect``.

        Settings without effect are left out.
        """
        words = {
            "repetition_penalty": "repetition penalty {}",
            "no_repeat_ngram_size": "no n-gram of {} tokens twice",
            "suppress_tokens": "never tokens {}",
            "begin_suppress_tokens": "first not tokens {}",
            "min_new_tokens": "at least {} tokens",
            "min_length": "at least {} tokens with the prompt",
            "max_new_tokens": "at most {} tokens",
            "max_length": "at most {} tokens with the prompt",
            "stop_strings": "stops at {}",
        }
        silent = Generation()
        return [
            text.format(_listed(getattr(self, name)))
            for name, text in words.items()
            if getattr(self, name) != getattr(silent, name)
        ]


def _listed(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Options:
    """Settings that the caller asks for; None stands for the bundle's.

    Raises UserError for values out of range.

    * ``max_new_tokens``, ``min_new_tokens``: the longest and the shortest answer, in tokens.
    * ``temperature``: 0 or None is greedy, unless ``sample`` is set.
    * ``top_k`` draws among the k likeliest tokens.
    * ``top_p`` draws among the smallest set of likeliest tokens whose probabilities add up to p.
    * ``sample`` uses the checkpoint's values for those of temperature, top_k and top_p that are None.
    * ``seed``: None uses a fresh seed.
    * ``repetition_penalty`` 1.0 and ``no_repeat_ngram_size`` 0 switch the bundle's off.
    * ``stop``: texts that end the answer, in place of the bundle's. They are not part of the answer.
    * ``keep_special`` leaves special tokens in the text, except for stop ids.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    sample: bool = False
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    keep_special: bool = False

    def __post_init__(self) -> None:
        Sampling(self.temperature or 0.0, self.top_p, self.top_k, self.seed)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise wrong("max-new-tokens", self.max_new_tokens, "1 or more")
        if self.min_new_tokens is not None and self.min_new_tokens < 0:
            raise wrong("min-new-tokens", self.min_new_tokens, "0 or more")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < float("inf"):
            raise wrong("repetition-penalty", self.repetition_penalty, "more than 0; 1 is none")
        if self.no_repeat_ngram_size is not None and self.no_repeat_ngram_size < 0:
            raise wrong("no-repeat-ngram-size", self.no_repeat_ngram_size, "0 (off) or more")
        if "" in self.texts:
            raise wrong("stop", "an empty text", "some text")
        if (self.top_p, self.top_k) != (None, None) and self.temperature is None and not self.sample:
            name = "top-p" if self.top_p is not None else "top-k"
            raise UserError(
                f"{name} alone does nothing "
                "| answers are greedy unless asked | add --sample or --temperature",
                code=2,
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def over(self, bundle: Generation) -> Generation:
        """Return the bundle's settings, replaced by those that the caller asks for.

        A limit on the answer's length replaces a limit on prompt and answer together, as in transformers.
        """
        asked = {
            name: value
            for name in ("max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size")
            if (value := getattr(self, name)) is not None
        }
        if self.stop is not None:
            asked["stop_strings"] = self.texts
        found = replace(bundle, **asked, sampling=self._sampling(bundle), keep_special=self.keep_special)
        if found.max_new_tokens is not None:
            found = replace(found, max_length=None)
        if found.min_new_tokens or self.min_new_tokens is not None:
            found = replace(found, min_length=0)
        return found

    def _sampling(self, bundle: Generation) -> Sampling:
        if not self.sample:
            return Sampling(self.temperature or 0.0, self.top_p, self.top_k, self.seed)
        if strange := sorted(bundle.drawing.keys() - _SAMPLE.keys()):
            raise UserError(
                f"cannot sample as the checkpoint does "
                f"| it has {', '.join(strange)}, which foveate does not have "
                "| give --temperature, --top-p and --top-k in place of --sample",
                code=2,
            )
        for name, expected in bundle.misfits.items():
            if getattr(self, name) is None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"cannot sample as the checkpoint does "
                    f"| its {name} is {bundle.sample[name]}, expected {expected} | give {option} as well",
                    code=2,
                )
        temperature, top_p, top_k = (
            bundle.drawing[name] if (own := getattr(self, name)) is None else own
            for name in ("temperature", "top_p", "top_k")
        )
        return Sampling(temperature, top_p, top_k or None, self.seed)

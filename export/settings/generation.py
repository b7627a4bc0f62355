"""A checkpoint's settings for answers: ``generation_config.json``, or the same keys in ``config.json``.

They give the ids that end an answer, and ``generation`` in bundle.json, the defaults of every answer. The
rules are those of transformers' ``GenerationConfig`` and ``generate``. If ``generation_config.json`` exists,
no other file is read, even for keys that it lacks. Otherwise the top level of ``config.json`` is read, and
``text_config`` for keys that are missing or null there.

A key that changes answers and is not supported is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from foveate.engines.errors import UserError
from foveate.export.checkpoints.directory import Source
from foveate.runtime.llm.generation import Generation

__all__ = ["IRRELEVANT", "KEYS", "REFUSED", "USED", "defaults", "notes", "stop_ids"]

_NONE = (None, False)

USED: dict[str, str] = {
    "eos_token_id": "ends an answer",
    "repetition_penalty": "a default of the bundle",
    "no_repeat_ngram_size": "a default of the bundle",
    "suppress_tokens": "a default of the bundle",
    "begin_suppress_tokens": "a default of the bundle",
    "min_length": "a default of the bundle",
    "min_new_tokens": "a default of the bundle",
    "max_length": "a default of the bundle",
    "max_new_tokens": "a default of the bundle",
    "stop_strings": "a default of the bundle",
    "temperature": "a default of --sample",
    "top_k": "a default of --sample",
    "top_p": "a default of --sample",
}
"""Keys that are used: what they do."""

_DRAWING = ("temperature", "top_k", "top_p")
"""The keys of ``--sample``."""

_SAMPLING: dict[str, tuple[tuple[Any, ...], str]] = {
    "min_p": (_NONE, "--sample supports temperature, top-k and top-p only"),
    "top_h": (_NONE, "--sample supports temperature, top-k and top-p only"),
    "typical_p": ((*_NONE, 1), "--sample supports temperature, top-k and top-p only"),
    "epsilon_cutoff": ((*_NONE, 0), "--sample supports temperature, top-k and top-p only"),
    "eta_cutoff": ((*_NONE, 0), "--sample supports temperature, top-k and top-p only"),
}
"""Keys that act on sampling only: their neutral values, and why ``--sample`` refuses others."""

_GREEDY: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((*_NONE, 1), "there is no beam search"),
    "num_beam_groups": ((*_NONE, 1), "there is no beam search"),
    "diversity_penalty": ((*_NONE, 0), "there is no beam search"),
    "constraints": (_NONE, "there is no beam search"),
    "force_words_ids": ((*_NONE, []), "there is no beam search"),
    "guidance_scale": ((*_NONE, 1), "it computes a second prompt beside the first"),
    "penalty_alpha": ((*_NONE, 0), "there is no contrastive search"),
    "dola_layers": (_NONE, "there is no decoding by contrasting layers"),
    "sequence_bias": ((*_NONE, {}, []), "there is no bias for sequences of tokens"),
    "bad_words_ids": ((*_NONE, []), "sequences cannot be forbidden; suppress_tokens forbids single tokens"),
    "forced_eos_token_id": ((None,), "the last token of an answer cannot be forced"),
    "encoder_repetition_penalty": ((*_NONE, 1), "words of the prompt cannot be preferred"),
    "encoder_no_repeat_ngram_size": ((*_NONE, 0), "word sequences of the prompt cannot be forbidden"),
    "exponential_decay_length_penalty": (_NONE, "there is no length-dependent bias for the end"),
    "watermarking_config": (_NONE, "there are no watermarks"),
    "token_healing": (_NONE, "the prompt's last token is not replaced"),
    "max_time": (_NONE, "there is no time limit for answers"),
}
"""Keys that act on greedy answers: their neutral values, and why others are refused."""

_BEAM = "it acts on beam search only"
_SPEED = "it changes how fast an answer comes, not its tokens"
_OUTPUT = "it says what generate returns besides the tokens"
IRRELEVANT: dict[str, str] = {
    "do_sample": "answers are greedy unless --sample is given",
    "early_stopping": _BEAM,
    "length_penalty": _BEAM,
    "low_memory": "it acts on contrastive search only",
    "num_return_sequences": "there is one answer",
    "forced_bos_token_id": "it acts on prompts of one token only",
    "remove_invalid_values": "NaN or infinite logits are an error",
    "renormalize_logits": "it changes neither the order of tokens nor their probabilities",
    "bos_token_id": "the tokenizer and the chat template put it in front",
    "pad_token_id": "one answer is not padded",
    "decoder_start_token_id": "it acts on encoder-decoder models only",
    **dict.fromkeys(
        (
            *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache"),
            *("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"),
            *("use_mtp", "speculation_type", "is_assistant", "num_assistant_tokens"),
            *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind"),
            *("assistant_early_exit", "assistant_ensemble_weight", "target_lookbehind"),
            *("prompt_lookup_num_tokens", "max_matching_ngram_size"),
        ),
        _SPEED,
    ),
    **dict.fromkeys(
        (
            *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
            "return_dict_in_generate",
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        ("transformers_version", "_from_model_config", "_commit_hash"), "it says where the file comes from"
    ),
}
"""Keys that change no answer: why."""

REFUSED: dict[str, str] = {name: reason for name, (_, reason) in (_SAMPLING | _GREEDY).items()}
"""Keys that are refused unless their values are neutral: why."""

KEYS = (*USED, *IRRELEVANT, *REFUSED)
"""Every key of transformers' ``GenerationConfig``."""

_UNSAID_LENGTH = 20
"""The ``max_length`` that transformers 4 writes if nobody set one."""


def stop_ids(source: Source, default: int) -> list[int]:
    """Return the ids that end an answer; empty if the checkpoint names none.

    ``default`` is the id for a dummy whose settings have no ``eos_token_id``. Raises UserError for values
    that are no token ids.
    """
    found, place = _settings(source)
    if source.load_format == "dummy" and "eos_token_id" not in found:
        return [default]
    value = found.get("eos_token_id")
    if value is None:
        return []
    return list(_ids(source, place, "eos_token_id", [value] if type(value) is int else value))


def defaults(source: Source) -> dict[str, Any]:
    """Return ``generation`` for bundle.json, without neutral values. Raises UserError for refused values."""
    found, place = _settings(source)
    for key, (neutral, reason) in _GREEDY.items():
        if (value := found.get(key)) not in neutral:
            raise UserError(
                f"{source.label}: {place} has {key} {value} | {reason} "
                "| remove the key in a copy of the checkpoint; answers are then greedy without it"
            )
    said = {}
    for key, (neutral, check) in _CHECKS.items():
        value = found.get(key)
        if value is not None and (value := check(source, place, key, value)) not in neutral:
            said[key] = value
    sample: dict[str, Any] = {key: said.pop(key) for key in _DRAWING if key in said}
    sample |= {key: found[key] for key, (neutral, _) in _SAMPLING.items() if found.get(key) not in neutral}
    return said | ({"sample": sample} if sample else {})


def notes(stop: list[int], generation: dict[str, Any]) -> list[str]:
    """Return notes for the user who builds: no token ends an answer, or ``--sample`` will be refused."""
    found = []
    if not stop:
        found.append(
            "no token ends an answer: the checkpoint's eos_token_id is null or missing, so answers end "
            "only at the length limit, as in transformers (set eos_token_id in generation_config.json and "
            "build again)"
        )
    unknown = [key for key in generation.get("sample", {}) if key in _SAMPLING]
    if unknown:
        found.append(
            f"--sample will be refused: the checkpoint samples with {', '.join(unknown)}, which foveate "
            "does not support; greedy answers, and answers with --temperature, are not affected"
        )
    sample = generation.get("sample", {})
    for name, expected in Generation(sample=sample).misfits.items():
        found.append(
            f"--sample will be refused unless --{name.replace('_', '-')} is given: the checkpoint's {name} "
            f"is {sample[name]}, expected {expected}; greedy answers are not affected"
        )
    return found


def _settings(source: Source) -> tuple[dict[str, Any], str]:
    """Return the keys of transformers' ``GenerationConfig`` for this checkpoint, and their file."""
    found = source.json("generation_config.json")
    if found is not None:
        return found, "generation_config.json"
    top = {key: value for key, value in source.config.items() if value is not None}
    inner: dict[str, Any] = next(
        (top[name] for name in ("decoder", "generator", "text_config") if top.get(name)), {}
    )
    return {key: value for key, value in (inner | top).items() if key in KEYS}, "config.json"


def _wrong(source: Source, place: str, key: str, got: Any, expected: str) -> UserError:
    return UserError(
        f"{source.label}: {place} has a wrong {key} | got {got!r}, expected {expected} "
        "| correct or remove the key in a copy of the checkpoint"
    )


def _ids(source: Source, place: str, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise _wrong(source, place, key, value, "token ids")
    return tuple(value)


def _texts(source: Source, place: str, key: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) and each for each in texts):
        raise _wrong(source, place, key, value, "a text or a list of texts, none of them empty")
    return tuple(texts)


def _number(expected: str, fits: Callable[[float], bool], whole: bool = False) -> Callable[..., float]:
    kinds = (int,) if whole else (int, float)

    def check(source: Source, place: str, key: str, value: Any) -> float:
        if type(value) not in kinds or not math.isfinite(value) or not fits(value):
            raise _wrong(source, place, key, value, expected)
        return value

    return check


def _top_p(source: Source, place: str, key: str, value: Any) -> float:
    """Return ``top_p``, at most 1: larger values are no limit in transformers either."""
    return min(1, _number("a number", lambda value: True)(source, place, key, value))


_COUNT = _number("a whole number, 0 or more", lambda value: value >= 0, whole=True)
_CHECKS: dict[str, tuple[tuple[Any, ...], Callable[..., Any]]] = {
    "repetition_penalty": ((1,), _number("a number above 0", lambda value: value > 0)),
    "no_repeat_ngram_size": ((0,), _COUNT),
    "suppress_tokens": (((),), _ids),
    "begin_suppress_tokens": (((),), _ids),
    "min_length": ((0,), _COUNT),
    "min_new_tokens": ((0,), _COUNT),
    "max_length": ((_UNSAID_LENGTH,), _COUNT),
    "max_new_tokens": ((), _number("a whole number, 1 or more", lambda value: value >= 1, whole=True)),
    "stop_strings": (((),), _texts),
    # The keys of --sample may be out of range, since greedy answers do not use them; ``notes`` reports it.
    "temperature": ((), _number("a number", lambda value: True)),
    "top_k": ((), _number("a whole number", lambda value: True, whole=True)),
    "top_p": ((1,), _top_p),
}
"""The keys that become defaults: their neutral values, and the check of other values."""

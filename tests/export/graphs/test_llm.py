"""The segments with their kv caches answer as one decoder that drops rows on its way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.export import methods
from foveate.export.build import build
from foveate.export.checkpoints.module_weights import fill
from foveate.export.models import llava
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.pipeline import Chat, Pipeline

QUESTION, MORE = "What is left of the bus?", "And what is right of it?"
VARIANTS = {
    "fastv": {},
    "feather": {},
    "pyramiddrop": {"layers": "1,3"},
    "uniform+pyramiddrop": {"layers": "2", "pyramiddrop.position_mode": "keep"},
}
PARTS = {"pyramiddrop": 4, "uniform+pyramiddrop": 3}  # cut between two pruners, and before and behind one


@pytest.fixture(scope="module")
def parts():
    return llava.tiny(layers=4)  # what methods share is traced once


@pytest.fixture(scope="module")
def pipes(tmp_path_factory, parts):
    root, found = tmp_path_factory.mktemp("inside"), {}

    def get(name: str) -> Pipeline:
        if name not in found:
            method = methods.load(name, VARIANTS[name])
            options = {"precision": "fp32", "dialects": ["ort"], "llm_parts": PARTS.get(name, 1)}
            build(parts, method, root / name, **options)
            compile_bundle(root / name)
            found[name] = Pipeline.load(root / name)
        return found[name]

    return get


@pytest.fixture(scope="module")
def decoder():
    parts = llava.tiny(layers=4)
    return fill(parts.decoder, parts.weights, "llm.").eval()


def images(count: int) -> list[Image.Image]:
    random = np.random.default_rng(count)
    return [Image.fromarray(random.integers(0, 256, (70, 90, 3), np.uint8)) for _ in range(count)]


@torch.no_grad()
def logits(decoder, pipe: Pipeline, chat: Chat, tokens: list[int]) -> torch.Tensor:
    """Return logits behind ``tokens``, which follow the conversation's first prompt.

    Everything is computed anew, without a cache, by a decoder that drops rows before the layers of the
    bundle's cuts.
    """
    table = torch.from_numpy(np.array(pipe.bundle.embeddings()))
    cached = chat._decoder._cached[: chat_prompt(chat)]
    embeds, source = [], []  # per row: what it is, and (image, row in it), None for text
    for each in cached:
        if isinstance(each.item, int):
            embeds.append(table[each.item])
            source.append(None)
        else:
            embeds += list(torch.from_numpy(each.item.tokens.numpy()))
            source += [(each, row) for row in range(len(each.item.tokens))]
    embeds += [table[token] for token in tokens]
    source += [None] * len(tokens)
    positions = list(range(len(embeds)))
    hidden, cuts = torch.stack(embeds)[None], [*pipe.manifest.method.cuts, 4]
    first = 0
    for stage, cut in enumerate(cuts):
        rows, start = hidden.shape[1], torch.zeros(1, dtype=torch.int64)
        past = [torch.zeros(1, 2, rows, 32) for _ in range(8)]
        hidden, _, _ = decoder.run(decoder.layers[first:cut], hidden, torch.tensor([positions]), start, past)
        if cut < 4:
            stays = [i for i, s in enumerate(source) if s is None or s[1] in s[0].left[stage]]
            hidden, source = hidden[:, stays], [source[i] for i in stays]
            positions = [positions[i] for i in stays]
            if pipe.manifest.method.position_mode_inside == "compact":
                positions = list(range(len(stays)))
        first = cut
    return decoder.logits(hidden, torch.tensor([hidden.shape[1] - 1]))[0, 0]


def chat_prompt(chat: Chat) -> int:
    """Number of items of the conversation that belong to its first prompt."""
    turns, chat.turns = chat.turns, chat.turns[:1]
    try:
        segments = chat._model.tokenizer.encode_turns(chat.turns)
        return sum(len(s) if isinstance(s, np.ndarray) else 1 for s in segments)
    finally:
        chat.turns = turns


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_segments_answer_as_one_decoder_that_drops_rows(pipes, decoder, name, count):
    pipe = pipes(name)
    chat = pipe.chat()
    answer = chat.ask(QUESTION, images(count), keep=20, max_new_tokens=12)
    assert len(answer.stages) == count and answer.finish == "length"
    for number, token in enumerate(answer.tokens):
        assert int(logits(decoder, pipe, chat, answer.tokens[:number]).argmax()) == token, number


@pytest.mark.parametrize("name", VARIANTS)
def test_later_turns_go_on_behind_what_is_left(pipes, decoder, name):
    """The second turn is text: it runs through every segment, behind a cache of another length in each."""
    pipe = pipes(name)
    chat = pipe.chat()
    chat.ask(QUESTION, images(1), keep=10, max_new_tokens=5)
    prompt = chat_prompt(chat)
    answer = chat.ask(MORE, max_new_tokens=6)
    assert answer.timings.reused_rows > 0
    behind = [item for item in chat._decoder.items[prompt:] if isinstance(item, int)]
    said = behind[: len(behind) - len(answer.tokens) + 1]
    for number, token in enumerate(answer.tokens):
        assert int(logits(decoder, pipe, chat, [*said, *answer.tokens[:number]]).argmax()) == token, number
    lengths = [segment.cache.length for segment in chat._decoder.segments]
    assert sorted(lengths, reverse=True) == lengths and lengths[-1] < lengths[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_in_a_later_turn_is_pruned_too(pipes, name):
    chat = pipes(name).chat()
    first = chat.ask(QUESTION, images(1), keep=10, max_new_tokens=3)
    second = chat.ask(MORE, images(1), keep=6, max_new_tokens=3)
    assert [stage.tolist() for stage in second.stages[0].values()] == [
        stage.tolist() for stage in first.stages[0].values()
    ]
    final = [len(stages[max(stages)]) for stages in second.stages]
    assert final[1] < final[0] or name == "feather"
    again = chat.ask(MORE, keep=6, reprune=True, max_new_tokens=3)
    assert len(again.kept[0]) <= len(first.kept[0]) and again.timings.reused_rows < 40


@pytest.mark.parametrize("name", ["pyramiddrop", "feather"])
def test_pruners_are_told_the_positions_that_their_segment_uses(pipes, name, monkeypatch):
    """Renumbered at every cut ("compact") or those of the whole prompt ("keep")."""
    chat, fed = pipes(name).chat(), []
    for segment in chat._decoder.segments:
        run = segment.engine.run
        monkeypatch.setattr(segment.engine, "run", lambda feeds, run=run: fed.append(feeds) or run(feeds))
        if segment.pruner is not None:
            prune = segment.pruner.run
            monkeypatch.setattr(
                segment.pruner, "run", lambda feeds, prune=prune: fed.append(feeds) or prune(feeds)
            )
    answer = chat.ask(QUESTION, images(1), keep=10, max_new_tokens=1)
    positions = [feeds["position_ids"][0] for feeds in fed if "position_ids" in feeds]
    whole = np.arange(answer.timings.prompt_rows)
    if name == "feather":  # its score is without rotary embedding: the three segments alone are told
        assert len(positions) == 3
        assert set(positions[1]) < set(whole) and positions[1][-1] == positions[2][-1] == whole[-1]
    else:  # two pruners and four segments
        assert len(positions) == 6
        for each in positions:
            np.testing.assert_array_equal(each, np.arange(len(each)))
        assert len(positions[2]) == len(positions[3]) == len(positions[4]) < len(whole)


def test_numbers_left_behind_every_cut(pipes):
    image = images(1)
    for keep in (1, 7, 64):
        fast = pipes("fastv").generate(image, QUESTION, keep=keep, max_new_tokens=1)
        assert len(fast.kept[0]) == len(fast.stages[0]["pruner.0"]) == keep
        drop = pipes("pyramiddrop").generate(image, QUESTION, keep=keep, max_new_tokens=1).stages[0]
        assert [len(drop[f"pruner.{i}"]) for i in range(2)] == [round((64 * keep) ** 0.5), keep]
        both = pipes("uniform+pyramiddrop").generate(image, QUESTION, keep=keep, max_new_tokens=1).stages[0]
        assert len(both["pruner"]) == min(64, max(1, int(1.5 * keep + 0.5)))
        assert len(both["pruner.0"]) == max(1, int(0.5 * keep + 0.5))
        assert set(both["pruner.0"]) <= set(both["pruner"])
    feather = pipes("feather").generate(image, QUESTION, keep=20, max_new_tokens=1).stages[0]
    grid = {row * 8 + column for row in range(0, 8, 3) for column in range(0, 8, 3)}
    assert grid <= set(feather["pruner.0"].tolist()) and 20 <= len(feather["pruner.0"]) <= 29
    assert set(feather["pruner.1"]) <= set(feather["pruner.0"])
    assert len(feather["pruner.1"]) == max(1, int(len(feather["pruner.0"]) * (20.5 / 64) ** 2))


def test_caches_are_as_long_as_what_they_hold(pipes):
    pipe = pipes("fastv")
    answer = pipe.generate(images(1), QUESTION, keep=8, max_new_tokens=4)
    row = 2 * 2 * 32 * 4  # bytes of a layer's keys and values, of two heads
    rows = answer.timings.prompt_rows
    assert answer.timings.cache_bytes_allocated == 2 * row * (rows + 4) + 2 * row * (rows - 64 + 8 + 4)

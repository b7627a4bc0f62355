"""The pipeline against the graphs stepped one by one in plain ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.runtime.bundle.compiled import choose, load_engines
from foveate.runtime.bundle.loading import load
from foveate.runtime.images.image_file import load_image
from foveate.runtime.images.processor import image_processor
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.chat_prompt import ChatTokenizer, ImageSlot, Turn

QUESTION = "What is left of the bus?"


class Naive:
    """No cache, no streaming: every token from a full pass over everything before it."""

    def __init__(self, root: Path) -> None:
        self.manifest = load(root).manifest
        self.sessions = {
            name: onnxruntime.InferenceSession(root / f"{name}.ort.onnx", providers=["CPUExecutionProvider"])
            for name in self.manifest.stages
        }
        self.table = np.load(root / "embed_tokens.npy")
        self.tokenizer = ChatTokenizer(root / "tokenizer.json", self.manifest.prompt)

    def visual(self, image: np.ndarray, text: str, keep: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = image_processor(self.manifest.image).preprocess(load_image(image))
        projected, tap = self.sessions["vision_encoder"].run(None, {"pixel_values": pixels})
        if "pruner" not in self.sessions:
            return projected[0], np.arange(len(projected[0]))
        words = self.table[self.tokenizer.encode_text(text)][None]
        feeds = {
            "keep": np.array(keep),
            "projected": projected,
            "cls_attention.1": tap,
            "text_embeds": words,
        }
        tokens, kept, count = self.sessions["pruner"].run(None, feeds)
        return tokens[0, : count[0]], kept[0, : count[0]]

    def answer(
        self,
        turns: list[Turn],
        visuals: list[tuple[np.ndarray, np.ndarray]],
        steps: int,
        forced: list[int] | None = None,
    ) -> list[int]:
        embeds, positions, at = [], [], 0
        for segment in self.tokenizer.encode_turns(turns):
            if isinstance(segment, ImageSlot):
                tokens, kept = visuals[segment.index]
                original = self.manifest.method.position_mode == "keep"
                embeds.append(tokens)
                positions.append(at + (kept if original else np.arange(len(tokens))))
                at += self.manifest.num_visual_tokens if original else len(tokens)
            else:
                embeds.append(self.table[segment])
                positions.append(at + np.arange(len(segment)))
                at += len(segment)
        x, ids, answer = np.concatenate(embeds), np.concatenate(positions), []
        for _ in range(steps):
            answer.append(int(self._logits(x, ids).argmax()))
            x, ids, at = np.vstack([x, self.table[answer[-1:]]]), np.append(ids, at), at + 1
        return answer

    def _logits(self, x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        spec = self.manifest.spec("llm", "ort")
        feeds = {
            "inputs_embeds": x[None],
            "position_ids": ids[None],
            "write_index": np.array([0]),
            "last": np.array([len(x) - 1]),
        }
        for _, past in spec.in_place:
            shape = [d if isinstance(d, int) else len(x) for d in spec.input(past).shape]
            feeds[past] = np.zeros(shape, np.float32)
        return self.sessions["llm"].run(["logits"], feeds)[0][0, 0]


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


@pytest.fixture(scope="module")
def naive(bundle: Path) -> Naive:
    return Naive(bundle)


def test_greedy_equals_naive_stepping(pipe: Pipeline, naive: Naive, pixels: np.ndarray) -> None:
    answer = pipe.generate(pixels, QUESTION, keep=5, max_new_tokens=20)
    tokens, kept = naive.visual(pixels, QUESTION, 5)
    expected = naive.answer([Turn("user", QUESTION, 1)], [(tokens, kept)], 20)
    assert len(set(expected)) > 3  # a constant answer would prove nothing
    assert answer.tokens == expected
    np.testing.assert_array_equal(answer.kept[0], kept)
    assert answer.finish == "length"


def test_several_images_each_get_the_budget(pipe: Pipeline, naive: Naive) -> None:
    random = np.random.default_rng(6)
    images = [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]
    answer = pipe.generate(images, QUESTION, keep="25%", max_new_tokens=8)
    visuals = [naive.visual(image, QUESTION, 4) for image in images]
    assert [len(kept) for kept in answer.kept] == [4, 4, 4]
    assert answer.tokens == naive.answer([Turn("user", QUESTION, 3)], visuals, 8)


def test_positions_of_survivors_are_kept(make_bundle, pixels: np.ndarray) -> None:
    from foveate.runtime.compiling.compile import compile_bundle

    root = make_bundle(mode="keep")
    compile_bundle(root)
    answer = Pipeline.load(root).generate(pixels, QUESTION, keep=4, max_new_tokens=12)
    naive = Naive(root)
    assert answer.tokens == naive.answer([Turn("user", QUESTION, 1)], [naive.visual(pixels, QUESTION, 4)], 12)
    compact = Naive(make_bundle(mode="compact"))
    assert answer.tokens != compact.answer(
        [Turn("user", QUESTION, 1)], [compact.visual(pixels, QUESTION, 4)], 12
    )


def test_without_a_pruner_every_token_stays(plain_bundle: Path, pixels: np.ndarray) -> None:
    pipe, naive = Pipeline.load(plain_bundle), Naive(plain_bundle)
    answer = pipe.generate(pixels, QUESTION, max_new_tokens=8)
    assert answer.kept[0].tolist() == list(range(16))
    assert answer.tokens == naive.answer([Turn("user", QUESTION, 1)], [naive.visual(pixels, QUESTION, 16)], 8)
    with pytest.raises(UserError, match="prunes nothing"):
        pipe.generate(pixels, QUESTION, keep=5)


def test_the_question_steers_the_pruner(pipe: Pipeline, pixels: np.ndarray) -> None:
    kept = {
        tuple(pipe.generate(pixels, q, keep=5, max_new_tokens=1).kept[0]) for q in ("a", "z", "Q", "#", "7")
    }
    assert len(kept) > 1


def test_an_image_seen_once_serves_every_question_and_budget(pipe: Pipeline, pixels: np.ndarray) -> None:
    seen = pipe.see(pixels)
    for text, keep in ((QUESTION, 5), ("Something else?", 9)):
        whole, again = (pipe.generate(image, text, keep=keep, max_new_tokens=6) for image in (pixels, seen))
        assert again.tokens == whole.tokens and (again.kept[0] == whole.kept[0]).all()
        assert again.timings.vision == again.timings.preprocess == 0 < whole.timings.vision
    pair = pipe.generate([seen, pixels], QUESTION, keep=5, max_new_tokens=6)
    assert pair.tokens == pipe.generate([pixels, pixels], QUESTION, keep=5, max_new_tokens=6).tokens


def test_streaming_equals_generate_and_is_valid_text(pipe: Pipeline, pixels: np.ndarray) -> None:
    whole = pipe.generate(pixels, QUESTION, max_new_tokens=40)
    stream = pipe.stream(pixels, QUESTION, max_new_tokens=40)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == pipe.tokenizer.decode(whole.tokens)
    assert stream.answer.tokens == whole.tokens
    assert len(pieces) > 2
    assert all(pieces)


def test_stop_ids_end_the_answer(pipe: Pipeline, pixels: np.ndarray) -> None:
    free = pipe.generate(pixels, QUESTION, max_new_tokens=20)
    stop = free.tokens[6]
    expected = free.tokens[: free.tokens.index(stop)]
    usual = pipe.tokenizer.stop_ids
    pipe.tokenizer.stop_ids = frozenset({stop})
    try:
        answer = pipe.generate(pixels, QUESTION, max_new_tokens=20)
    finally:
        pipe.tokenizer.stop_ids = usual
    assert answer.tokens == expected
    assert answer.finish == "stop"


def test_text_alone(pipe: Pipeline, naive: Naive) -> None:
    answer = pipe.generate(None, QUESTION, max_new_tokens=6)
    assert answer.tokens == naive.answer([Turn("user", QUESTION, 0)], [], 6)
    assert answer.kept == []


def test_timings_and_cache_bytes(pipe: Pipeline, pixels: np.ndarray) -> None:
    answer = pipe.generate(pixels, QUESTION, keep=5, max_new_tokens=10)
    t = answer.timings
    for name in ("preprocess", "vision", "prune", "prefill", "decode", "first_token", "tokens_per_second"):
        assert getattr(t, name) > 0, name
    assert t.preprocess + t.vision + t.prune + t.prefill <= t.first_token <= t.total
    row = 2 * 2 * 2 * 8 * 4  # layers, key and value, heads, width, bytes
    assert t.cache_bytes_allocated == (t.prompt_rows + 10) * row
    assert t.cache_bytes_used == (t.prompt_rows + 9) * row  # the last token is not fed
    more = pipe.generate(pixels, QUESTION, keep=15, max_new_tokens=10).timings
    assert more.cache_bytes_allocated - t.cache_bytes_allocated == 10 * row  # pruning saves cache


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max-new-tokens"),
        ({"prompt": "x" * 120}, "too long"),
        ({"keep": 17}, "wrong keep"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_runs(
    pipe: Pipeline, arguments: dict, words: str
) -> None:
    calls = {"prompt": QUESTION, **arguments}
    with pytest.raises(UserError, match=words):
        pipe.generate(b"what is no image would be refused when it is encoded", **calls)


def test_the_answer_ends_where_the_model_does(pipe: Pipeline, pixels: np.ndarray) -> None:
    answer = pipe.generate(pixels, "y" * 90, keep=4, max_new_tokens=1000)
    assert answer.timings.prompt_rows + len(answer.tokens) == 128
    assert answer.finish == "length"


def test_no_step_copies_the_cache(
    bundle: Path, pixels: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime warns when it copies, and here it has no reason to.

    tests/engines/ort/test_session.py shows that it warns.
    """
    opened = load(bundle)
    pipe = Pipeline(opened, load_engines(opened, choose(opened), {"log_severity": 2}))
    chat = pipe.chat()
    buffers = []
    for text in (QUESTION, "And right?"):
        chat.ask(text, pixels, keep=5, max_new_tokens=8)
        buffers.append(next(iter(chat._decoder.segments[0].cache.feeds().values())).numpy())
    assert buffers[1][:, :, : buffers[0].shape[2]].any()
    assert "in-place optimization not activated" not in capfd.readouterr().err


def test_sampling_repeats_with_its_seed(pipe: Pipeline, pixels: np.ndarray) -> None:
    def draw(seed: int) -> list[int]:
        return pipe.generate(pixels, QUESTION, max_new_tokens=12, temperature=1.5, seed=seed).tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)

"""``<image>`` in a typed prompt: only in ``run`` and ``chat``, only where the numbers agree."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.runtime import cli
from foveate.runtime.cli.typed_prompt import read_prompt
from foveate.runtime.pipeline import Pipeline
from foveate.runtime.text.turns import IMAGE

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    random, paths = np.random.default_rng(3), [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize(
    ("text", "images", "prompt"),
    [
        ("Is <image> like <image>?", 2, ["Is ", IMAGE, " like ", IMAGE, "?"]),
        ("<image>", 1, [IMAGE]),
        ("<image><image>What?", 2, [IMAGE, IMAGE, "What?"]),
        ("<image>\nWhat?", 1, [IMAGE, "What?"]),  # the line break that the format has anyway
        ("<image>\n\nWhat?", 1, [IMAGE, "\nWhat?"]),
        ("<image> What?", 1, [IMAGE, " What?"]),
        ("What?", 1, "What?"),
        ("What?", 0, "What?"),
        ("What is <image>?", 0, "What is <image>?"),
        ("What is <image>?", 2, "What is <image>?"),
        ("<image> <image>", 1, "<image> <image>"),
    ],
)
def test_prompts_are_cut_where_the_numbers_agree(pipe, text, images, prompt):
    assert read_prompt(text, images, pipe.tokenizer) == prompt


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("What?", 1, ""),
        ("Is <image>?", 1, ""),
        ("Is <image>?", 0, "the prompt holds 1 <image> for 0 images"),
        ("Is <image>?", 2, "the prompt holds 1 <image> for 2 images"),
        ("U: <image>\nWhat? A:", 1, "looks like a whole chat template, since it holds U: and A:"),
        ("<s>What?</s>", 0, "looks like a whole chat template, since it holds </s> and <s>"),
    ],
)
def test_probable_mistakes_are_reported(pipe, text, images, said):
    lines: list[str] = []
    read_prompt(text, images, pipe.tokenizer, lines.append)
    assert len(lines) == bool(said) and said in "".join(lines)


def test_run_puts_images_between_words(bundle, pipe, images, capsys):
    arguments = ["run", str(bundle), "Is <image> like <image>?", "--keep", "4", "--max-new-tokens", "6"]
    assert cli.main([*arguments, "--image", str(images[0]), "--image", str(images[1])]) == 0
    printed = capsys.readouterr()
    expected = pipe.generate(images, ["Is ", IMAGE, " like ", IMAGE, "?"], keep=4, max_new_tokens=6)
    assert (printed.out, printed.err) == (expected.text + "\n", "")
    assert cli.main([*arguments, "--image", str(images[0])]) == 0
    printed = capsys.readouterr()
    literal = pipe.generate(images[0], "Is <image> like <image>?", keep=4, max_new_tokens=6)
    assert printed.out == literal.text + "\n" != expected.text + "\n"
    assert (
        printed.err.startswith("foveate: the prompt holds 2 <image> for 1 image:")
        and printed.err.count("\n") == 1
    )


def test_chat_puts_the_images_of_a_turn_between_its_words(bundle, pipe, images, capsys, monkeypatch):
    lines = ["Is it <image>?", f"/image {images[1]}", "And <image>, too?", "What is <image>?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    options = ["--keep", "4", "--max-new-tokens", "5"]
    assert cli.main(["chat", str(bundle), "--image", str(images[0]), *options]) == 0
    printed = capsys.readouterr()
    chat = pipe.chat()
    answers = [
        chat.ask(["Is it ", IMAGE, "?"], images[0], keep=4, max_new_tokens=5),
        chat.ask(["And ", IMAGE, ", too?"], images[1], keep=4, max_new_tokens=5),
        chat.ask("What is <image>?", keep=4, max_new_tokens=5),
    ]
    assert printed.out == "".join(f"{answer.text}\n" for answer in answers)
    assert printed.err.count("the prompt holds 1 <image> for 0 images") == 1


def test_nothing_else_reads_prompts_so():
    """A prompt from elsewhere must not be able to add or move an image."""
    readers = set()
    for path in [
        p
        for folder in ("runtime", "jetson", "export", "calib", "scripts")
        for p in (ROOT / folder).rglob("*.py")
    ]:
        names = {
            node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        if "foveate.runtime.cli.typed_prompt" in names:
            readers.add(path.relative_to(ROOT).as_posix())
    assert readers == {"runtime/cli/run.py", "runtime/cli/chat.py"}


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_special_tokens_are_kept_on_request(bundle, pipe, capsys, monkeypatch, verb):
    options = ["--temperature", "3", "--max-new-tokens", "40", "--keep-special"]
    for seed in range(60):
        arguments = {"max_new_tokens": 40, "temperature": 3.0, "seed": seed}
        plain = pipe.generate(None, "What?", **arguments)
        kept = pipe.generate(None, "What?", keep_special=True, **arguments)
        if kept.text != plain.text:
            break
    else:
        pytest.fail("no special token in 60 answers")
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n"))
    prompt = ["What?"] if verb == "run" else []
    assert cli.main([verb, str(bundle), *prompt, *options, "--seed", str(seed)]) == 0
    assert capsys.readouterr().out == kept.text + "\n"

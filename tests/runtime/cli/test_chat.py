"""The verb chat: commands, the end of the input, and Ctrl-C."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import main


def test_chat(
    bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        f"/image {image}",
        "What?",
        "",
        "/reprune",
        "Why?",
        "/nonsense",
        "/help",
        "/image nowhere.png",
        "Who?",
        "/quit",
        "x",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main("chat", bundle, "--max-new-tokens", 3, "--keep", 4, "--timings") == 1  # a turn failed
    printed = capsys.readouterr()
    assert printed.err.count("first token") == 2
    assert "no such command: /nonsense" in printed.err
    assert "\n/image FILE shows an image with the next question" in printed.err, "/help"
    assert "cannot read the image nowhere.png" in printed.err


def test_chat_ends_with_its_input(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert main("chat", bundle, "--max-new-tokens", 2, "--system", "Be kind.") == 0
    assert capsys.readouterr().out.endswith("\n")


def test_ctrl_c_breaks_an_answer_off_and_the_chat_goes_on(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foveate.runtime.llm.decoder import Decoder

    step, calls = Decoder.step, []

    def interrupted(self: Decoder, token: int) -> np.ndarray:
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, token)

    monkeypatch.setattr(Decoder, "step", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nWhy?\n"))
    assert main("chat", bundle, "--max-new-tokens", 6, "--timings") == 0
    printed = capsys.readouterr()
    assert printed.out.count("[broken off]") == 1
    assert printed.err.count("first token") == 1
    assert len(calls) == 3 + 5


def test_ctrl_c_at_the_prompt_ends_the_chat(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(io.StringIO):
        def readline(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert main("chat", bundle) == 130
    assert "Traceback" not in capsys.readouterr().err

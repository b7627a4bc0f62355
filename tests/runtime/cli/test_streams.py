"""Standard streams that are closed, full or broken; bytes that are no UTF-8; options that do not exist."""

from __future__ import annotations

import io
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.runtime import cli
from foveate.runtime.pipeline import Pipeline

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture
def shell(bundle: Path, pixels: np.ndarray, tmp_path: Path):
    """``shell(command)`` runs in a folder with x.png and x.mjpeg, of eight seconds.

    $F is foveate, $B the bundle.
    """
    Image.fromarray(pixels).save(tmp_path / "x.png")
    frame = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(frame, "JPEG")
    (tmp_path / "x.mjpeg").write_bytes(frame.getvalue() * 200)
    run = f"{sys.executable} -m foveate.runtime.cli"

    def call(command: str, **environment: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "F": run, "B": str(bundle), **environment}
        words = ["bash", "-c", command]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False)

    return call


VERBS = {
    "run": '$F run "$B" "Why?" --image x.png --max-new-tokens 9',
    "run --json": '$F run "$B" "Why?" --image x.png --max-new-tokens 9 --json',
    "chat": '$F chat "$B" --max-new-tokens 9 < questions',
    "watch": '$F watch "$B" --video x.mjpeg --prompt "Why?" --max-new-tokens 9',
    "check": '$F check "$B"',
    "inspect": '$F inspect "$B"',
    "doctor": "$F doctor --json",
    "version": "$F --version",
    "help": "$F --help",
}


@FULL
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "where, reason", ((">&-", b"it is closed"), (">/dev/full", b"no space left on device"))
)
def test_an_answer_that_cannot_be_printed(verb, where, reason, shell, tmp_path):
    (tmp_path / "questions").write_text("What?\nWhy?\n")
    done = shell(f"{VERBS[verb]} {where}")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == b"" and len(lines) == 1 + (verb == "check"), done.stderr
    assert lines[-1].startswith(b"foveate: cannot write to the standard output | " + reason)


@FULL
@pytest.mark.parametrize(
    "where", (">&-", ">/dev/full", "| true", "2>&-", "2>/dev/full", ">/dev/full 2>/dev/full", "<&-")
)
def test_work_that_was_done_counts(where, shell, bundle, tmp_path):
    """``compile`` and ``pack`` make something: their exit code says whether it is there."""
    shutil.copytree(bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    done = shell(f"set -o pipefail; $F compile bundle {where}")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert len(list((tmp_path / "bundle" / "engines").glob("*/engine.json"))) == 1
    if ">" in where[:1] and "2>" not in where:
        assert b"cannot write to the standard output" in done.stderr and b"the work was done" in done.stderr
    done = shell(f"set -o pipefail; $F run bundle Why? --max-new-tokens 3 {where.replace('| true', '')}")
    assert b"Traceback" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream(shell, bundle):
    """Descriptor 1 is closed: the next file would get the number 1, and with it what a library prints."""
    code = (
        "import os, sys; from foveate.runtime import cli\n"
        "def verb(argv):\n"
        "    number = os.open('first', os.O_WRONLY | os.O_CREAT); os.system('echo lost'); return number\n"
        "cli._dispatch = verb; sys.exit(cli.main(['compile']))"
    )
    done = shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.returncode >= 3  # the number, behind those of the three


def test_progress_is_never_printed_into_the_answer(shell, pixels, bundle):
    """Python prints to the standard output what goes to a closed standard error."""
    want = Pipeline.load(bundle).generate(pixels, "Why?", max_new_tokens=3).text.encode() + b"\n"
    done = shell('$F run "$B" "Why?" --image x.png --max-new-tokens 3 --timings --overlay kept.png 2>&-')
    assert (done.returncode, done.stdout) == (0, want)


@FULL
def test_an_overlay_is_saved_although_the_answer_is_lost(shell, tmp_path):
    done = shell('$F run "$B" "Why?" --image x.png --overlay kept.png > /dev/full')
    assert done.returncode == 1 and (tmp_path / "kept.png").exists()


def test_a_reader_that_goes_away_is_no_fault(shell, tmp_path):
    (tmp_path / "questions").write_text("What?\n" * 9)
    for verb in ("run", "run --json", "chat", "check", "inspect"):
        done = shell(f"{VERBS[verb]} | true; exit ${{PIPESTATUS[0]}}")
        assert done.returncode in (0, 141), verb
        assert done.stderr == b"" or (verb == "check" and done.stderr.startswith(b"hashing")), done.stderr
    done = shell('$F inspect "$B" | head -1')
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""


@pytest.mark.parametrize("stdin, says", (("<&-", b"is closed"), ("0> x", b"readable|descriptor")))
def test_questions_that_cannot_be_read(stdin, says, shell):
    done = shell(f'$F chat "$B" {stdin}')
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
    assert any(each in done.stderr for each in says.split(b"|")), done.stderr


@pytest.mark.parametrize("encoding", ("utf-8", "ascii", "latin-1"))
def test_bytes_that_are_no_utf8_cost_one_turn(encoding, shell, bundle, tmp_path):
    """Bytes of Latin-1 are text in such a terminal alone; UTF-8 is understood where it claims ASCII, too."""
    (tmp_path / "q").write_bytes(b"Jos\xe9?\n/image \xe9.png\nWhy?\nJos\xc3\xa9?\n")
    shutil.copy(
        tmp_path / "x.png",
        os.fsencode(tmp_path) + (b"/\xe9.png" if encoding != "latin-1" else "/é.png".encode()),
    )
    done = shell('$F chat "$B" --max-new-tokens 3 < q', PYTHONIOENCODING=encoding)
    broken = encoding != "latin-1"
    assert done.stderr.count(b"\n") == broken and done.returncode == broken
    assert (b"the question is not valid text" in done.stderr) == broken
    chat = Pipeline.load(bundle).chat()
    answers = [] if broken else [chat.ask("José?", max_new_tokens=3).text]
    answers.append(chat.ask("Why?", tmp_path / "x.png", max_new_tokens=3).text)
    answers.append(chat.ask("JosÃ©?" if encoding == "latin-1" else "José?", max_new_tokens=3).text)
    assert done.stdout.count(b"\n") >= len(answers)
    assert done.stdout.decode(encoding, "replace") == "".join(
        text.encode(encoding, "replace").decode(encoding) + "\n" for text in answers
    )


def test_a_prompt_that_is_no_utf8_is_one_line(shell):
    done = shell("$F run \"$B\" $'Jos\\xe9?'")
    assert done.returncode == 1 and done.stderr.startswith(b"foveate: the text is not valid Unicode")
    assert done.stderr.count(b"\n") == 1


def test_a_terminal(bundle, pixels):
    """The prompt is shown, a turn that fails does not end the conversation."""
    near, far = pty.openpty()
    command = [sys.executable, "-m", "foveate.runtime.cli", "chat", str(bundle), "--max-new-tokens", "3"]
    with subprocess.Popen(command, stdin=far, stdout=far, stderr=far) as process:
        os.close(far)
        os.write(near, b"Jos\xe9?\nWhy?\n/quit\n")
        said = b""
        while process.poll() is None or b"/quit" not in said:
            try:
                said += os.read(near, 4096)
            except OSError:
                break
    os.close(near)
    assert process.returncode == 0
    assert b"the question is not valid text" in said and said.count(b"> ") == 3, said


@pytest.mark.parametrize(
    "argv, says",
    (
        (["run", "B", "x", "--imgae", "x.png"], "unknown option --imgae | did you mean --image?"),
        (["run", "B", "x", "-image", "x.png"], "unknown option -image | did you mean --image?"),
        (["run", "B", "x", "--max-tokens=3"], "unknown option --max-tokens | did you mean --max-new-tokens?"),
        (["run", "B", "What", "is", "this"], "too many arguments | got 2 more than expected: is this"),
        (["inspect", "B", "--zzz"], "unknown option --zzz | foveate inspect --help"),
    ),
)
def test_typos(argv, says, capsys):
    assert cli.main(argv) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    (
        ["run", "LONG", "x"],
        ["run", "B", "x", "--image", "LONG"],
        ["run", "B", "x", "--image", "x.png", "--overlay", "LONG/a.png"],
        ["compile", "LONG"],
        ["inspect", "LONG"],
        ["watch", "B", "--prompt", "x", "--video", "LONG"],
        ["watch", "B", "--prompt", "x", "--camera", "LONG"],
    ),
)
def test_names_that_are_too_long(argv, bundle, capsys):
    argv = [{"B": str(bundle)}.get(each, each.replace("LONG", "x" * 300)) for each in argv]
    assert cli.main(argv) in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith("foveate: ") and printed.count("\n") == 1 and len(printed) < 500

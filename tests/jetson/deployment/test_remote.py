"""A machine behind ssh: each reason for which it cannot be used has its own error, and output is streamed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.deployment.remote import Remote

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_ssh = pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="needs sshd and ssh")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_ssh
def test_an_address_that_does_not_answer_is_no_refused_login(sshd: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot reach 127\.0\.0\.1 .*refused"):
        Remote("127.0.0.1", "ssh -p 1").run("true")
    (tmp_path / "other").write_text("no key")
    port, _, options = sshd.partition("-i ")
    with pytest.raises(UserError, match=r"127\.0\.0\.1 refuses the login \| .*Permission denied"):
        others = options.split(maxsplit=1)[1]
        Remote("127.0.0.1", f"{port} -o IdentityAgent=none -o IdentityFile=none {others}").run("true")


@needs_ssh
def test_a_command_that_is_ended_there_is_no_lost_address(sshd: str) -> None:
    with pytest.raises(UserError, match=r"the command on 127\.0\.0\.1 was ended"):
        Remote("127.0.0.1", sshd).run("sh", "-c", "kill -9 $$")


def test_an_ssh_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ssh to jetson was ended \| by SIGTERM"):
        Remote("jetson", script(tmp_path / "ssh", "kill -TERM $$")).run("true")


def test_a_connection_has_a_time_limit_that_the_users_options_come_before(tmp_path: Path) -> None:
    shell = script(tmp_path / "ssh", 'echo "$@"')
    assert Remote("jetson", f"{shell} -p 2 -o ConnectTimeout=99").run("true").stdout.split() == [
        *("-p", "2", "-o", "ConnectTimeout=99", "-o", "ConnectTimeout=10", "jetson", "true"),
    ]


def test_lines_come_while_the_command_runs(tmp_path: Path) -> None:
    """The command waits for a file that only its first line's reader makes."""
    go = tmp_path / "go"
    shell = script(tmp_path / "ssh", f"echo one >&2; until [ -e {go} ]; do sleep 0.1; done\necho two; exit 3")
    lines: list[str] = []

    def each(line: str) -> None:
        lines.append(line)
        go.touch()

    done = Remote("jetson", shell).run("true", each=each)
    assert (lines, done.stdout, done.returncode) == (["one", "two"], "one\ntwo\n", 3)

"""A machine behind ssh: runs commands on it, sends files to it, and says why it cannot be reached."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from foveate.engines.errors import UserError

__all__ = ["Remote", "said"]

_CONNECT = 10  # seconds to wait for a connection
_LOGIN = ("Permission denied", "Too many authentication failures", "Host key verification failed")


@dataclass(frozen=True)
class Remote:
    """A machine behind ssh. ``shell`` is the ssh command with its options."""

    host: str
    shell: str = "ssh"

    def run(
        self, *command: str, each: Callable[[str], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` on the machine. ``each`` gets every line of its output as it comes.

        With ``each``, the result has all output, errors included, in ``stdout``. Raises UserError if the
        machine cannot be reached, refuses the login, or is lost meanwhile.
        """
        line = [*shlex.split(self.shell), *self._options, self.host, shlex.join(command)]
        try:
            done = _run(line) if each is None else _stream(line, each)
        except FileNotFoundError as error:
            raise UserError(
                "cannot reach a device | ssh is not installed here | install OpenSSH's client"
            ) from error
        if done.returncode < 0 or done.returncode == 255:
            raise self._failed(done)
        return done

    def send(self, source: str, target: str, *arguments: str) -> None:
        """Send ``source`` with rsync, which continues where it was interrupted. Raises UserError.

        A ``source`` that ends in / means the folder's content.
        """
        if shutil.which("rsync") is None:
            raise UserError("cannot send files | rsync is not installed here | install rsync")
        show = ["--info=progress2", "--no-inc-recursive"] if sys.stderr.isatty() else []
        shell = shlex.join([*shlex.split(self.shell), *self._options])
        command = ["rsync", "-rlt", "--partial", "--mkpath", "-e", shell, *show]
        done = subprocess.run(
            [*command, *arguments, source, f"{self.host}:{target}"],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            why = " ".join(done.stderr.split()[-30:])
            raise UserError(
                f"sending to {self.host} was cut off | {why} | run the same command again: it continues"
            )

    @property
    def _options(self) -> list[str]:
        """The time to connect. It comes last, since ssh takes the first value: that of ``shell`` wins."""
        return ["-o", f"ConnectTimeout={_CONNECT}"]

    def _failed(self, done: subprocess.CompletedProcess[str]) -> UserError:
        """Return the error for an ssh that was killed, or that ended with 255, its own exit code."""
        text = (done.stderr or done.stdout or "").strip()
        why = text.splitlines()[-1] if text else ""
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            return UserError(f"ssh to {self.host} was ended | by {name} | run the same command again")
        again = shlex.join([*shlex.split(self.shell), self.host])
        if any(each in text for each in _LOGIN):
            return UserError(
                f"{self.host} refuses the login | {why} | log in once by hand: {again}; "
                f"for a key: ssh-copy-id {self.host}"
            )
        if not why:  # a command that a signal ends gives this as well
            return UserError(
                f"the command on {self.host} was ended, or the connection was lost | ssh says nothing "
                "| look for memory that ran out there (dmesg), then run the same command again"
            )
        return UserError(
            f"cannot reach {self.host} | {why} | check its address and that it is on, then try: {again} true"
        )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of what a command said, in one line, or its exit code."""
    text = " ".join(f"{done.stdout or ''} {done.stderr or ''}".split())
    return text[-400:] or f"exit code {done.returncode}"


def _run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _stream(line: list[str], each: Callable[[str], None]) -> subprocess.CompletedProcess[str]:
    output = []
    with subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # a pipe was asked for
        for text in process.stdout:
            output.append(text)
            each(text.rstrip())
    return subprocess.CompletedProcess(line, process.returncode, "".join(output), "")

"""The command line, called in this process."""

from __future__ import annotations

from foveate.runtime import cli


def main(*argv: object) -> int:
    return cli.main([str(arg) for arg in argv])

"""``optimum-cli export foveate``: ``foveate build`` where users of Hugging Face's optimum look for it.

This file is installed as ``optimum/commands/register/register_foveate.py``. optimum-cli imports every file in
that folder and reads ``REGISTER_COMMANDS``. The folder belongs to the namespace packages of all distributions
that add commands, so there must be no ``__init__.py`` in it.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from foveate.export import build
from foveate.runtime.cli import perform, refuse_empty

__all__ = ["REGISTER_COMMANDS", "FoveateExportCommand"]


class FoveateExportCommand(BaseOptimumCLICommand):
    """The command. Its options are those of ``foveate build``, and the bundle's directory comes last."""

    COMMAND = CommandInfo("foveate", "Export a vision-language model with a visual-token pruner (foveate).")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the options to the parser that optimum made."""
        refuse_empty(parser)
        parser.description = build.PURPOSE
        build.add_options(parser)
        parser.add_argument("out", type=Path, metavar="OUT", help="The directory of the bundle (required).")

    def run(self) -> None:
        """Build the bundle and exit with the status of ``foveate build``."""
        sys.exit(perform("build", functools.partial(build.run, self.args)))


REGISTER_COMMANDS = [(FoveateExportCommand, ExportCommand)]

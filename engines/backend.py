"""The interface of a backend: it compiles graphs into files and loads these files as engines.

A backend is a sub-package of ``engines`` with a module ``target`` that defines ``TARGETS``. One backend can
serve several targets: names for ``foveate compile --target``. ``engines.targets`` finds them all. The module
``target`` imports nothing but this one, so help texts and checks of options need no backend's library.
How to add a backend: docs/adding-a-backend.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from foveate.engines.engine import Engine
from foveate.engines.errors import UserError
from foveate.engines.spec import GraphSpec
from foveate.engines.workarounds import Workaround

__all__ = ["MAX_CONTEXT", "Backend", "Machine", "Option", "Options", "Target"]

MAX_CONTEXT = 4096
"""Most rows of the kv cache in an engine that needs a fixed number, if the user asks for no number.

Such a backend has an option ``max_context`` whose default is None. Its value is set before ``compile_graph``
(``runtime.llm.cache_rows``).
"""

Options = Mapping[str, Any]
"""Values by option name.

``Any``, since each backend declares its own options. The value of an ``Option`` has the type that its
``kind`` says.
"""

Machine = dict[str, Any]
"""Facts of the machine that an engine depends on: text, or a list of texts. They are written to engine.json.

``Any``, since each backend records its own facts.
"""


@dataclass(frozen=True)
class Option:
    """An option for compiling: its values, its default, and the text that ``foveate compile --help`` shows.

    The value is an ``int`` if ``kind`` is "number", a ``str`` for "text", a list of upper-case ``str`` for
    "names" (separated by commas on the command line), and a ``bool`` for "switch". ``default`` None leaves
    the choice to the backend; a switch is off by default. ``least`` and ``most`` bound a number.
    """

    name: str
    help: str
    kind: Literal["number", "text", "names", "switch"] = "text"
    default: int | str | None = None
    least: int | None = None
    most: int | None = None
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """Name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def settled(self, given: Any) -> Any:
        """Return the value ``given``, or the default if it is None. Both have the type that ``kind`` says.

        Raises UserError for a number out of range.
        """
        if given is None:
            return False if self.kind == "switch" else self.default
        low, high = self.least, self.most
        if (low is not None and given < low) or (high is not None and given > high):
            words = f"{low} or more" if high is None else f"{low} to {high}"
            raise UserError(
                f"wrong {self.name.replace('_', ' ')} | got {given}, expected {words} "
                "| leave it out for the default",
                code=2,
            )
        return given


class Backend(Protocol):
    """Compiles graphs for one target, and loads what it compiled. Subclass it to get the defaults."""

    @property
    @abstractmethod
    def dialects(self) -> tuple[str, ...]:
        """Dialects of bundles that the installed version accepts, best first."""
        ...

    @property
    def workarounds(self) -> tuple[Workaround, ...]:
        """Workarounds for the installed version, in the order in which to try them."""
        return ()

    @abstractmethod
    def machine(self, options: Options) -> Machine:
        """Return the facts that must be equal when an engine is compiled and when it is loaded.

        "target" is one of them. Raises UserError if there can be no engine with these options.
        """
        ...

    @abstractmethod
    def key(self, machine: Machine) -> str:
        """Return a folder name for engines of ``machine``. It begins with the target's name."""
        ...

    @abstractmethod
    def compile_graph(self, source: Path, folder: Path, spec: GraphSpec, options: Options) -> list[str]:
        """Compile the ONNX file ``source`` into files in ``folder`` that ``load`` reads.

        ``spec`` is typed: it has no FLOAT placeholder. The files are named after ``spec.name``. Returns notes
        for the user. ``options["workarounds"]`` holds the names of the workarounds in use, if there are any.
        Raises UserError.
        """
        ...

    @abstractmethod
    def load(self, folder: Path, spec: GraphSpec, options: Options) -> Engine:
        """Load what ``compile_graph`` wrote for ``spec``.

        ``options`` are those of the compilation and those of this run: ``threads`` (None: all cores). Raises
        UserError.
        """
        ...

    def cannot_run(self, machine: Machine | None = None) -> str | None:
        """Return why this machine can compile but not execute engines, or None if it can.

        ``machine`` are the facts of the engines in question; None stands for any engines. " | what to do" may
        follow the reason.
        """
        return None

    def refused_dialect(self, name: str) -> str | None:
        """Return "reason | what to do" if the installed version refuses the dialect ``name``, else None."""
        return None

    def refusal(self, kinds: Collection[str], machine: Machine) -> str | None:
        """Return why weights of these precisions (``kinds``) cannot run on ``machine``, or None."""
        return None

    def rounds_activations(self, options: Options) -> bool:
        """True if engines round the activations of int4 products by themselves, which the graphs do not say.

        The self-test then allows larger differences.
        """
        return False

    def describe(self, folder: Path, graph: str) -> dict[str, Any]:
        """Return facts about a compiled graph, as in its file ``<graph>.json``, or nothing.

        "layers" counts layers by dtype, "peak_bytes" is the memory that compiling took, or None, and "bytes"
        is the size of the compiled graph. "scratch_bytes", optional, is the scratch memory of its largest
        call.
        """
        return {}


@dataclass(frozen=True)
class Target:
    """A name for ``foveate compile --target``, and what can be said of it without its library.

    ``title`` is the heading of its options in help texts; targets of one backend share it. ``libraries`` are
    the Python modules that only this backend imports. The first one is required, and ``install`` says how to
    get it. If several engines fit a machine, the one whose target has the smallest ``rank`` is loaded.
    ``make`` imports and returns the backend. It raises ModuleNotFoundError if the library is not installed.
    """

    name: str
    title: str
    libraries: tuple[str, ...]
    install: str
    rank: int
    options: tuple[Option, ...]
    make: Callable[[], Backend]

    def settled(self, given: Options) -> dict[str, Any]:
        """Return every option of this target, with its default where ``given`` holds None or nothing.

        Raises UserError for an option that the target does not have, and for a wrong value.
        """
        known = {option.name: option for option in self.options}
        for name, value in given.items():
            if value not in (None, False) and name not in known:
                raise UserError(
                    f"--{name.replace('_', '-')} is not an option of {self.name} "
                    f"| it has {', '.join(sorted(known))} | leave it out",
                    code=2,
                )
        return {name: option.settled(given.get(name)) for name, option in known.items()}

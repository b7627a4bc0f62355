"""Check that a bundle answers with the same tokens on emulated aarch64 as on this machine.

debootstrap makes an arm64 root file system of Debian under qemu's user emulation (Debian 12, bookworm, has
Python 3.11; 13, trixie, has 3.13). ``foveate pack`` makes a file for it, which is installed in a network
namespace without interfaces. There the bundle is compiled and checked. Then it answers questions about
synthetic scenes there and here. ``--work`` keeps the file systems for the next run. The last line of output
is one JSON document. Exit code 1 means that an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.calib.scenes.questions import HELD_OUT, make_scene, questions
from foveate.jetson.deployment.pack import pack
from foveate.jetson.deployment.wheels import Target
from foveate.runtime.compiling.compile import compile_bundle

BINFMT = Path("/proc/sys/fs/binfmt_misc")
EMULATOR = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")  # from Debian's qemu-user-static
PROBE = "import json, platform as p; print(json.dumps([p.machine(), p.python_version(), p.libc_ver()[1]]))"
ASK = """
import importlib.metadata as m, json, pathlib, sys
from foveate.runtime import Pipeline
pipe, folder = Pipeline.load(sys.argv[1]), pathlib.Path(sys.argv[2])
answers = []
for image, prompt, keep in json.loads((folder / "questions.json").read_text()):
    answer = pipe.generate(folder / image, prompt, keep=keep, max_new_tokens=24)
    answers.append([answer.text, answer.tokens, [kept.tolist() for kept in answer.kept]])
names = "onnxruntime", "numpy", "pillow", "tokenizers"
print(json.dumps({"answers": answers, "packages": {n: m.version(n) for n in names}}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="Folder of the bundle.")
    parser.add_argument(
        "--suite",
        nargs="+",
        default=["bookworm", "trixie"],
        help="Debian releases to test on (default: bookworm trixie).",
    )
    parser.add_argument(
        "--mirror", default="http://deb.debian.org/debian", help="Debian mirror (default: deb.debian.org)."
    )
    parser.add_argument(
        "--scenes", type=int, default=4, help="Number of images; each is asked about twice (default: 4)."
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="Folder for the file systems (default: a temporary one)."
    )
    args = parser.parse_args()
    emulate()
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).absolute()
        asked = ask_here(args.bundle, Path(folder), args.scenes)
        found = [on_debian(suite, args, work / suite, Path(folder), asked) for suite in args.suite]
    print(json.dumps(found))
    return 0 if all(each["same"] == each["asked"] for each in found) else 1


def emulate() -> None:
    """Register qemu with the kernel for aarch64 programs. Ends the program if that is not possible."""
    lacks = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    if os.geteuid() or lacks or not EMULATOR.is_file():
        sys.exit("as root, after: apt-get install debootstrap qemu-user-static")
    if not (BINFMT / "register").exists():
        run("mount", "-t", "binfmt_misc", "none", BINFMT)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(EMULATOR.read_text())


def ask_here(bundle: Path, folder: Path, scenes: int) -> dict[str, Any]:
    """Write images and questions to ``folder``.

    Return the answers of a copy of ``bundle`` that is compiled here.
    """
    asked = []
    for number in range(scenes):
        scene = make_scene(HELD_OUT + number)
        Image.fromarray(np.asarray(scene.image)).save(folder / f"{number}.png")
        for question, keep in zip(
            questions(scene, np.random.default_rng(number), 2), (None, "22.2%"), strict=True
        ):
            asked.append((f"{number}.png", question.text, keep))
    (folder / "questions.json").write_text(json.dumps(asked))
    copy = shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns("engines"))
    compile_bundle(copy)
    return json.loads(run(sys.executable, "-c", ASK, copy, folder))


def on_debian(
    suite: str, args: argparse.Namespace, root: Path, folder: Path, here: dict[str, Any]
) -> dict[str, Any]:
    """Install, compile, check and ask in the root file system ``root``. Return the results."""
    times: dict[str, float] = {}

    def step(name: str, *command: str | Path) -> str:
        start = time.perf_counter()
        said = run(*command)
        times[name] = round(time.perf_counter() - start, 1)
        print(f"{suite:<10}{name:<10}{times[name]:8.1f} s", flush=True)
        return said

    if not (root / "usr/bin/python3").exists():
        step(
            "system",
            "debootstrap",
            "--arch=arm64",
            "--variant=minbase",
            "--include=python3",
            suite,
            root,
            args.mirror,
        )
    machine, python, glibc = json.loads(run(*inside(root), "python3", "-c", PROBE))
    target = Target(machine, python.rpartition(".")[0], glibc)
    shutil.rmtree(root / "opt/foveate", ignore_errors=True)
    shutil.rmtree(root / "opt/asked", ignore_errors=True)
    shutil.copytree(folder, root / "opt/asked", ignore=shutil.ignore_patterns("bundle"))
    pack(args.bundle, target, root / "opt/pack.pyz")
    step("install", *inside(root), "python3", "/opt/pack.pyz", "--to", "/opt/foveate")
    (bundle,) = (root / "opt/foveate/bundles").iterdir()
    place, runtime = f"/opt/foveate/bundles/{bundle.name}", "/opt/foveate/runtime/bin"
    step("compile", *inside(root), f"{runtime}/foveate", "compile", place)
    step("check", *inside(root), f"{runtime}/foveate", "check", place)
    there = json.loads(step("ask", *inside(root), f"{runtime}/python", "-c", ASK, place, "/opt/asked"))
    pairs = list(zip(here["answers"], there["answers"], strict=True))
    for ours, theirs in pairs:
        print(f"{'' if ours == theirs else 'DIFFERS ':<10}{theirs[0]!r}, here {ours[0]!r}")
    return {
        "suite": suite,
        "machine": machine,
        "python": python,
        "glibc": glibc,
        "packages": there["packages"],
        "asked": len(pairs),
        "same": sum(ours == theirs for ours, theirs in pairs),
        "seconds": times,
    }


def inside(root: Path) -> list[str | Path]:
    """Return the command prefix that runs a command in ``root``, without network and with its own /proc."""
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    return ["unshare", "--net", "--mount", "sh", "-c", script, root]


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout

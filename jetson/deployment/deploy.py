"""``foveate deploy BUNDLE user@host``: brings a bundle to a device over ssh and gets its first answer.

1. Ask the device for its machine, Python and glibc.
2. Send wheels for it and the installer, and install them. The device needs no network.
3. Run ``foveate doctor`` on the device. A problem ends the deployment.
4. Send the bundle.
5. Install, compile and check it, and get one answer.

Every step may be interrupted at any moment, and the next run repeats it. rsync continues where it stopped.
The installer and ``compile`` put nothing in place before it is complete.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.engines.errors import UserError
from foveate.engines.targets import options_of
from foveate.jetson.deployment.first_question import DRAWN, OWN, FirstQuestion
from foveate.jetson.deployment.pack import add_wheels, contents, gather, installer, made_from
from foveate.jetson.deployment.remote import Remote, said
from foveate.jetson.deployment.wheels import Target
from foveate.jetson.device.devices import jetpack_of
from foveate.jetson.device.inventory import l4t_of
from foveate.runtime.bundle.loading import load
from foveate.runtime.cli import Parser, options
from foveate.runtime.llm.cache_rows import cache_rows, told

__all__ = ["deploy", "main", "roll_back"]

_PROBE = (
    "import json, os, platform, sys; "
    "print(json.dumps({'machine': platform.machine(), 'glibc': platform.libc_ver()[1], "
    "'python': '%d.%d' % sys.version_info[:2], 'root': os.path.expanduser(sys.argv[1]), "
    "'release': open(sys.argv[2]).read() if os.path.exists(sys.argv[2]) else ''}))"
)
_RELEASE = "/etc/nv_tegra_release"
# size of compiled engines relative to the bundle (measured: 10.6 GB for 6.2 GB)
_ENGINES = 1.8


def main(argv: list[str]) -> int:
    """Run the command and return its exit status. Raises UserError."""
    args = _parser().parse_args(argv)
    if args.image is not None and not args.image.is_file():
        raise UserError(f"cannot read the image {args.image} | no such file | leave --image out", code=2)
    remote = Remote(args.host, args.ssh)
    if args.rollback:
        roll_back(Path(args.bundle), remote, root=args.to, python=args.python)
        return 0
    deploy(
        Path(args.bundle),
        remote,
        root=args.to,
        python=args.python,
        target=args.target,
        max_context=args.max_context,
        image=args.image,
        prompt=args.prompt,
        wheels_in=args.wheels,
        video=args.video,
        force=args.force,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="foveate deploy", description="Bring a bundle to a device and get its first answer.")
    parser.add_argument("bundle", metavar="BUNDLE", help="The folder of a bundle on this machine.")
    parser.add_argument("host", metavar="USER@HOST", help="The device to deploy to, as ssh takes it.")
    parser.add_argument(
        "--to",
        default="~/foveate",
        metavar="ROOT",
        help="Install into this folder on the device (default: ~/foveate).",
    )
    parser.add_argument(
        "--ssh",
        default="ssh",
        metavar="COMMAND",
        help='Use this ssh command with its options, such as "ssh -p 2222" (default: ssh).',
    )
    parser.add_argument(
        "--python", default="python3", help="Use this Python on the device (default: python3)."
    )
    parser.add_argument(
        "--target",
        help="Compile for this library, as in `foveate compile` "
        "(default: tensorrt on a Jetson, onnxruntime elsewhere).",
    )
    parser.add_argument(
        "--max-context",
        type=int,
        metavar="N",
        help="Give the kv cache room for this many rows (default: that of `foveate compile`).",
    )
    parser.add_argument(
        "--image", type=Path, help="Ask about this image first (default: a red circle on grey)."
    )
    parser.add_argument(
        "--prompt",
        type=str,
        help=f'Ask this question first (default: "{DRAWN}", or "{OWN}" with --image).',
    )
    add_wheels(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="Continue even if `foveate doctor` finds problems on the device (default: stop).",
    )
    parser.add_argument(
        "--rollback",
        action="store_true",
        help="Put back the bundle that this one has replaced on the device, which is kept until this one has "
        "passed its check there (default: deploy).",
    )
    return parser


def roll_back(
    bundle: Path,
    remote: Remote,
    *,
    root: str = "~/foveate",
    python: str = "python3",
    say: Callable[[str], None] = options.say,
) -> None:
    """Put back the bundle that ``bundle`` has replaced on the device. Raises UserError if there is none."""
    name = load(bundle).manifest.name
    root = _probe(remote, python, root)["root"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "__main__.py").write_text(installer(), encoding="utf-8")
        remote.send(f"{folder}/", f"{root}/incoming/{name}/")
    command = [python, f"{root}/incoming/{name}/__main__.py", "--to", root, "--rollback", name]
    done = remote.run(*command, each=say)
    if done.returncode:
        raise UserError(f"nothing was put back on {remote.host} | {said(done)} | deploy the bundle again")


def deploy(
    bundle: Path,
    remote: Remote,
    *,
    root: str = "~/foveate",
    python: str = "python3",
    target: str | None = None,
    max_context: int | None = None,
    image: Path | None = None,
    prompt: str | None = None,
    wheels_in: Path | None = None,
    video: bool = False,
    force: bool = False,
    say: Callable[[str], None] = options.say,
) -> str:
    """Deploy ``bundle`` and return the first answer.

    ``target`` None means JetPack's TensorRT on a Jetson, and ONNX Runtime elsewhere. ``max_context`` is the
    number of rows of the kv cache; None is the default of ``foveate compile``, and the model's limit caps it.
    Raises UserError that names the step that failed.
    """
    manifest = load(bundle, full=True, progress=lambda name: say(f"checking {name}")).manifest
    there = _probe(remote, python, root)
    system, root = _target(there), there["root"]
    target = target or ("tensorrt" if system.cuda else "onnxruntime")
    settings = options_of(target, {"max_context": max_context})  # refused before anything is sent
    if "max_context" in settings:
        max_context = cache_rows(manifest, max_context)
        say(told(manifest, max_context))
    say(f"{remote.host}: {system.machine}, Python {system.python}, glibc {system.glibc}")
    incoming, place = f"{root}/incoming/{manifest.name}", f"{root}/bundles/{manifest.name}"
    foveate = f"{root}/runtime/bin/foveate"
    first = FirstQuestion(image, prompt)
    with tempfile.TemporaryDirectory() as folder:
        key = made_from(system, wheels_in, video)
        installed = remote.run("cat", f"{root}/runtime/complete")
        ready = installed.returncode == 0 and installed.stdout == key
        facts = _payload(Path(folder), bundle, manifest.name, system, wheels_in, video, key, ready)
        first.write(Path(folder))
        say("the runtime is there already" if ready else "sending the runtime")
        remote.send(f"{folder}/", f"{incoming}/", "--delete", "--exclude=/bundle")
    install = [python, f"{incoming}/__main__.py", "--to", root]
    if not ready:
        _step(remote, "installing the runtime", say, *install, "--only", "runtime")
    size = sum(entry["size"] for name, entry in facts["files"].items() if name.startswith("bundle/"))
    _doctor(remote, foveate, root, size, force, say)
    if not _has(remote, place, bundle):
        say(f"sending {size / 1e6:.0f} MB")
        # files that an earlier run moved into place, or that an older bundle has, are not sent again
        known = [
            f"--link-dest={root}/bundles/{each}"
            for each in (manifest.name, f".{manifest.name}.installing", f".{manifest.name}.previous")
        ]
        remote.send(f"{bundle}/", f"{incoming}/bundle/", "--delete", "--exclude=/engines", *known)
    _step(remote, "installing the bundle", say, *install, "--only", "bundle", "--keep-previous")
    rows = [] if max_context is None else ["--max-context", str(max_context)]
    _step(remote, f"compiling for {target}", say, foveate, "compile", place, "--target", target, *rows)
    _step(remote, "checking", say, foveate, "check", place)
    answer = remote.run(foveate, "run", place, *first.arguments(incoming), "--timings")
    if answer.returncode:
        raise UserError(f"the first answer failed | {said(answer)} | ssh {remote.host} {foveate} doctor")
    remote.run("rm", "-rf", incoming, f"{root}/bundles/.{manifest.name}.previous")
    say(answer.stderr.strip())
    print(answer.stdout.strip())
    say(f"next: {remote.shell} {remote.host} {foveate} run {place} ...")
    return answer.stdout.strip()


def _probe(remote: Remote, python: str, root: str) -> dict[str, Any]:
    done = remote.run(python, "-c", _PROBE, root, _RELEASE)
    if done.returncode == 127:  # a shell's exit code for a command that is not there
        raise UserError(
            f"there is no {python} on {remote.host} | {said(done)} | install it, or name one with --python"
        )
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise UserError(
            f"there is no usable {python} on {remote.host} | {said(done)} | name one with --python"
        ) from error


def _target(there: dict[str, Any]) -> Target:
    """Return the device's target. It has the CUDA of its JetPack if it is a known Jetson."""
    l4t = l4t_of(there["release"])
    jetpack = jetpack_of(l4t) if l4t else None
    return Target(there["machine"], there["python"], there["glibc"], jetpack.cuda if jetpack else None)


def _payload(
    folder: Path,
    bundle: Path,
    name: str,
    system: Target,
    wheels_in: Path | None,
    video: bool,
    key: str,
    ready: bool,
) -> dict[str, Any]:
    """Put everything but the bundle into ``folder``. Return the content of ``pack.json``.

    ``key`` is that of the wheels (``made_from``). ``ready``: they are on the device, and are left out.
    """
    place = None if ready else folder / "wheels"
    if place is not None and wheels_in is None:
        gather(system, place, video)
    elif place is not None and wheels_in is not None:
        shutil.copytree(wheels_in, place)
    facts = {**contents(bundle, name, place, system), "made_from": key}
    (folder / "__main__.py").write_text(installer(), encoding="utf-8")
    (folder / "pack.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def _doctor(
    remote: Remote, foveate: str, root: str, size: int, force: bool, say: Callable[[str], None]
) -> None:
    """Run ``foveate doctor`` on the device. Raises UserError if it finds a problem, unless ``force``."""
    disk = f"{size * (1 + _ENGINES) / 1e9:.3f}"
    done = remote.run(foveate, "doctor", "--json", "--disk", disk, "--path", root)
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"the runtime does not start on {remote.host} | {said(done)} | run it again"
        ) from error
    for finding in findings:
        say(f"{finding['kind']}: {finding['what']}\n    {finding['fix']}")
    problems = [finding for finding in findings if finding["kind"] == "problem"]
    if problems and not force:
        raise UserError(
            f"{remote.host} has problems | {problems[0]['what']} "
            f"| {problems[0]['fix']} on the device, or --force"
        )


def _has(remote: Remote, place: str, bundle: Path) -> bool:
    """Return True if this very bundle is installed at ``place``."""
    there = remote.run("cat", f"{place}/bundle.json")
    return there.returncode == 0 and there.stdout == (bundle / "bundle.json").read_text(encoding="utf-8")


def _step(remote: Remote, what: str, say: Callable[[str], None], *command: str) -> None:
    """Run ``command`` on the device and show its lines as they come. Raises UserError."""
    say(what)
    done = remote.run(*command, each=lambda line: say(f"    {line}"))
    if done.returncode:
        raise UserError(
            f"{what} failed on {remote.host} | {said(done)} | run the same command again; "
            "--rollback puts back a bundle that this one has replaced"
        )

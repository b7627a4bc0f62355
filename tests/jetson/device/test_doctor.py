"""The doctor on recorded machines (conftest.py has their sources) and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.device import doctor, system
from foveate.jetson.device.doctor import main
from foveate.jetson.device.findings import examine
from foveate.jetson.device.inventory import PowerMode, look
from foveate.jetson.device.system import System

DESKTOP = {"/etc/systemd/system/default.target": "/usr/lib/systemd/system/graphical.target"}


def findings(machine: System, **needs) -> dict[str, str]:
    """Return what doctor says, by kind and subject, with the command."""
    return {f"{f.kind}: {f.what}": f.fix for f in examine(look(machine, Path(".")), **needs)}


def test_a_machine_on_which_all_is_well_is_left_in_peace(recorded, monkeypatch, capsys):
    assert findings(recorded("agx")) == {}
    monkeypatch.setattr(doctor, "System", lambda: recorded("agx"))
    assert main([]) == 0
    assert capsys.readouterr().out.endswith("\n\nnothing is wrong\n")
    monkeypatch.setattr(doctor, "System", lambda: recorded("nano"))
    assert main([]) == 0
    assert "nothing is wrong" not in capsys.readouterr().out


def test_an_inventory_of_the_machine(recorded):
    here = look(recorded("nano"), Path("."))
    assert here.is_jetson and here.model.endswith("Developer Kit Super")
    assert (here.l4t, here.jetpack.jetpack, here.cuda, here.tensorrt) == (
        "36.4.3",
        "6.2",
        "12.6.11",
        "10.3.0",
    )
    assert (here.gpu, here.driver) == ("Orin (nvgpu)", "540.4.0")
    assert here.power == PowerMode(0, "15W") and here.power_modes[-1] == PowerMode(2, "MAXN_SUPER")
    assert here.clocks_locked is False and here.cma == 256 << 20 and here.zram == 2 * 1950800 * 1024
    assert here.memory == 7803200 * 1024 and here.onnxruntime == "1.23.2"
    seven = look(recorded("agx"), Path("."))
    assert (seven.l4t, seven.jetpack.jetpack, seven.tensorrt) == ("39.2.1", "7.2", "10.16.2")
    assert seven.clocks_locked is True


def test_a_nano_as_it_comes(recorded):
    found = findings(recorded("nano", links=DESKTOP))
    assert all(what.startswith("advice") for what in found)
    said = "\n".join(found)
    for word in (
        "15W; MAXN_SUPER is faster",
        "clocks follow",
        "desktop",
        "zram",
        "no swap on the disk",
        "256 MiB",
    ):
        assert word in said
    assert "sudo nvpmodel -m 2" in found.values() and "until the next boot" in "\n".join(found.values())
    assert len(found) == 5


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    (
        ({"files": {"/etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 0\n"}},
         "35.4.1 is older", "flash"),
        ({"files": {"/usr/local/cuda/version.json": None}}, "CUDA is not installed", "nvidia-jetpack"),
        ({"files": {"/usr/lib/aarch64-linux-gnu/libnvinfer.so.10": None,
                    "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.2": None}},
         "TensorRT is not installed", "python3-libnvinfer  # needs a network"),
        ({"outputs": {"find_gpu": '[null, "no GPU can be used: the driver knows none"]'}},
         "no GPU can be used: the driver knows none", "dmesg"),
        ({"outputs": {"find_gpu": '[null, "no GPU can be used: neither is installed; pip install x"]'}},
         "neither is installed", "pip install x  # needs a network"),
        ({"outputs": {"find_gpu": None}}, "the process that asked CUDA died", "dmesg"),
        ({"outputs": {"id -nG": "jetson sudo", "find_gpu": '[null, "no GPU can be used: refused"]'}},
         "refused; this user is not in the group video and render", 'usermod -aG video,render "$USER"'),
        ({"files": {"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 0\n"}},
         "36.4.7 is reported to fail large allocations", "r36.5"),
        ({"outputs": {"import tensorrt": None}}, "this Python does not see it", "--system-site-packages"),
        ({"outputs": {"ort.library": None, "distributions": "[]"}},
         "onnxruntime is not installed", "pip install onnxruntime"),
        ({"outputs": {"ort.library": None}}, "cannot be imported", "--force-reinstall"),
        ({"outputs": {
            "ort.library": '[null, [], "it is not whole | /site/onnxruntime: no library | rm -r it"]'}},
         "it is not whole, /site/onnxruntime: no library", "rm -r it"),
        ({"outputs": {"ort.library": '["1.22.1", ["CPUExecutionProvider"], null]'}},
         "1.22.1 is too old", "pip install -U"),
        ({"outputs": {"ort.library": '["1.24.4", ["CPUExecutionProvider"], null]'}},
         "lacks a kernel", "pip install -U"),
        ({"outputs": {"ort.library": '["1.27.0", ["CPUExecutionProvider"], null]'}},
         "answers wrongly from the second turn of a chat on in the dialect ort, expected 1.28 or newer",
         "pip install -U"),
        ({"outputs": {"distributions": '["onnxruntime", "onnxruntime-gpu"]'}},
         "both installed", "pip uninstall"),
        ({"free": 10**9}, "1.0 GB of disk are free, 5.0 GB are needed", "apt clean"),
    ),
)  # fmt: skip
def test_each_problem_has_its_command(recorded, change, what, fix):
    """One thing is broken on a machine on which all was well: one problem, and its command."""
    found = findings(recorded("agx", **change))
    assert len(found) == 1, found
    ((said, command),) = found.items()
    assert said.startswith("problem") and what in said and fix in command


def test_a_user_who_is_in_one_of_the_groups(recorded):
    """CUDA works, so it is advice. A group that this system lacks is not asked for, and root needs none."""
    ((said, command),) = findings(recorded("agx", outputs={"id -nG": "jetson render"})).items()
    assert said.startswith("advice") and "the group video:" in said and "usermod -aG video " in command
    lone = {"/etc/group": "video:x:44:\n"}
    assert findings(recorded("agx", files=lone, outputs={"id -nG": "jetson video"})) == {}
    assert findings(recorded("agx", outputs={"id -nG": "root", "id -u": "0"})) == {}


@pytest.fixture
def shell(tmp_path: Path):
    """Runs a fix by bash with ``/boot`` and ``/etc`` below a folder. Returns the root commands it ran."""
    for name in ("sudo", "fallocate", "mkswap", "swapon", "systemctl", "reboot"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        said = "" if name == "sudo" else f'echo "{name} $*" >> {tmp_path}/log\n'
        touch = f"touch {tmp_path}/swapfile\n" if name == "fallocate" else ""
        tool.write_text(f"#!/bin/sh\n{said}{touch}" + ('exec "$@"\n' if name == "sudo" else ""))
        tool.chmod(0o755)

    def run(fix: str) -> list[str]:
        for place in ("/boot/", "/etc/"):
            fix = fix.replace(place, f"{tmp_path}{place}")
        fix = fix.replace("chmod 600 /swapfile", f"chmod 600 {tmp_path}/swapfile")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        subprocess.run(["bash", "-ec", fix], env={"PATH": path}, check=True)
        return (tmp_path / "log").read_text().splitlines()

    return run


def fix_of(machine: System, word: str) -> str:
    """Return the fix of the one finding whose text has ``word``."""
    (fix,) = [f.fix for f in examine(look(machine, Path("."))) if word in f.what]
    return fix


def test_more_cma_is_appended_once_and_the_file_is_kept(recorded, shell, tmp_path):
    before = (
        "DEFAULT primary\nLABEL primary\n\tLINUX /boot/Image\n      APPEND ${cbootargs} quiet cma=512M x\n"
    )
    file = tmp_path / "boot/extlinux/extlinux.conf"
    file.parent.mkdir(parents=True)
    file.write_text(before)
    fix = fix_of(recorded("nano"), "CMA")
    for _ in range(2):
        assert shell(fix)[-1] == "reboot "
        assert file.read_text() == before.replace(" cma=512M x", " x cma=950M")
        assert file.with_name("extlinux.conf.before-cma").read_text() == before


def test_swap_comes_before_zram_goes_and_lasts(recorded, shell, tmp_path):
    nano = recorded("nano")
    (tmp_path / "etc/fstab").write_text("/dev/root / ext4 defaults 0 1\n")
    fix = fix_of(nano, "zram")
    ran = ["fallocate -l 16G /swapfile", "mkswap /swapfile", "swapon /swapfile"]
    ran += ["systemctl disable nvzramconfig", "reboot "]
    assert shell(fix) == ran
    shell(fix)
    assert (tmp_path / "etc/fstab").read_text() == (
        "/dev/root / ext4 defaults 0 1\n/swapfile none swap sw,nofail 0 0\n"
    )


@pytest.mark.parametrize(("free", "said"), ((14 * 10**9, "-l 8G "), (8 * 10**9, "apt clean")))
def test_swap_that_the_disk_has_room_for(recorded, free, said):
    fix = fix_of(recorded("nano", free=free), "no swap on the disk")
    assert said in fix and ("nvzramconfig" in fix) == ("fallocate" in fix)


def test_zram_beside_swap_on_the_disk(recorded):
    more = (recorded("nano").read("/proc/meminfo") or "").replace("SwapTotal: 3901600", "SwapTotal: 9901600")
    found = findings(recorded("nano", files={"/proc/meminfo": more}))
    assert "sudo systemctl disable nvzramconfig && sudo reboot" in found.values()
    assert not any("fallocate" in fix for fix in found.values())


def test_memory_that_a_bundle_needs(recorded):
    found = findings(recorded("agx"), memory=70e9)
    assert list(found) == ["problem: 61.4 GB of memory are free, 70.0 GB are needed"]


def test_a_desktop_gpu_without_a_driver(recorded):
    bus = {
        "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
    }
    ours = {"ort.library": '["1.32.0", ["CPUExecutionProvider"], null]', "distributions": '["onnxruntime"]'}
    assert list(findings(recorded(files=bus, outputs=ours))) == [
        "problem: there is an NVIDIA GPU and no driver for it"
    ]
    sound = {"/sys/bus/pci/devices/0000:01:00.0/class": "0x040300\n"}
    assert findings(recorded(files=bus | sound, outputs=ours)) == {}
    driver = ours | {"nvidia-smi": "NVIDIA GeForce RTX 4090, 580.65.06\n"}
    ((said, command),) = findings(recorded(files=bus, outputs=driver)).items()
    assert "does not use the NVIDIA GeForce RTX 4090" in said and "onnxruntime-gpu" in command


def test_problems_come_first(recorded):
    kinds = [f.kind for f in examine(look(recorded("nano", free=0), Path(".")))]
    assert kinds[0] == "problem" and kinds == sorted(kinds, key=lambda kind: kind != "problem")


def test_this_machine(capsys):
    """Whatever it is: real files and commands, and its ONNX Runtime, which the tests run with."""
    assert main(["--disk", "0", "--json"]) in (0, 1)
    facts = json.loads(capsys.readouterr().out)
    assert facts["machine"]["onnxruntime"] and "CPUExecutionProvider" in facts["machine"]["providers"]
    assert facts["machine"]["memory"] > facts["machine"]["memory_free"] > 0
    assert main(["--disk", "1e9"]) == 1
    out = capsys.readouterr().out
    assert "of disk are free" in out and "onnxruntime" in out
    with pytest.raises(UserError, match="no such folder"):
        main(["--path", "/nowhere/at/all"])


def test_a_command_that_fails_or_hangs_is_not_there(monkeypatch):
    monkeypatch.setattr(system, "_SECONDS", 0.2)
    assert system.run("no-such-command-anywhere") is None
    assert system.run(sys.executable, "-c", "import sys; sys.exit(3)") is None
    assert system.run(sys.executable, "-c", "import time; time.sleep(5)") is None

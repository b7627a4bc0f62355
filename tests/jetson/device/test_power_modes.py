"""Energy from recorded monitors, and power modes that are put back.

conftest.py has the sources of the records.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.device import power_modes
from foveate.runtime.cli import bench
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.measuring.energy import Rails, Sampler, find


def test_the_whole_module_is_vdd_in(recorded):
    rails = Rails(recorded("nano").root)
    assert len(rails) == 3
    assert rails() == pytest.approx(
        {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 0.9984, "VDD_SOC": 1.4976, "total": 6.0}
    )


def test_elsewhere_it_is_the_sum_of_the_rails(recorded):
    """The monitors of an AGX Orin; NC is not connected and the sum of the shunts is no rail."""
    watts = Rails(recorded("agx").root)()
    assert set(watts) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO", "total"}
    assert watts["VDD_GPU_SOC"] == pytest.approx(5.134, abs=0.01)
    assert watts["total"] == pytest.approx(sum(v for k, v in watts.items() if k != "total"))


def test_energy_is_power_over_time(recorded):
    """Constant watts: joules are watts times seconds, whatever the samples."""
    with Sampler(Rails(recorded("nano").root), every=0.01) as energy:
        time.sleep(0.12)
    assert energy.seconds >= 0.12 and energy.watts == pytest.approx(6.0)
    assert energy.joules == pytest.approx(6.0 * energy.seconds)
    assert energy.rail_joules["VDD_SOC"] == pytest.approx(1.4976 * energy.seconds)


def test_power_that_rises_is_integrated(monkeypatch):
    """0 W to 10 W in a straight line over 1 s by a clock of ours: 5 J by trapezoids, whatever the steps."""
    now = iter([0.0, 0.25, 1.0])
    monkeypatch.setattr("foveate.runtime.measuring.energy.time.perf_counter", lambda: next(now))
    watts = iter([{"total": 0.0}, {"total": 2.5}, {"total": 10.0}])
    sampler = Sampler(lambda: next(watts), every=10)
    with sampler:
        sampler._sample()
    assert sampler.joules == pytest.approx(5.0) and sampler.watts == pytest.approx(5.0)
    assert sampler.since(0.5)["total"] == pytest.approx(3.75)  # 5 W to 10 W in half a second
    assert sampler.since(0.1)["total"] == pytest.approx(4.95) and sampler.since(1.0) == {}


def test_a_monitor_that_is_busy_is_bridged(recorded):
    rails, calls = Rails(recorded("nano").root), []

    def read():
        calls.append(1)
        if len(calls) % 3 == 2:
            raise OSError(11, "Resource temporarily unavailable")
        return rails()

    with Sampler(read, every=0.01) as energy:
        while len(calls) < 5:
            time.sleep(0.01)
    assert energy.joules == pytest.approx(6.0 * energy.seconds)


def test_nothing_is_made_up_where_nothing_tells(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jtop", None)
    assert find(tmp_path) is None
    sampler = Sampler()
    sampler._read = None
    with sampler:
        pass
    assert (sampler.joules, sampler.watts, sampler.rail_joules) == (None, None, {})


def test_jetson_stats_where_there_is_no_ina3221(tmp_path, monkeypatch):
    """``jtop.power`` as its reference documents it: milliwatts, {"rail": {name: {...}}, "tot": {...}}."""
    reading = {
        "rail": {"VDD_GPU": {"volt": 5000, "curr": 400, "power": 2000}},
        "tot": {"name": "VIN", "power": 9500},
    }
    board = types.SimpleNamespace(start=lambda: None, power=reading)
    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace(jtop=lambda: board))
    assert find(tmp_path)() == {"VDD_GPU": 2.0, "total": 9.5}
    assert board.daemon  # jtop is a thread; no process of ours waits for it

    def refused():
        raise RuntimeError("The jtop.service is not active")

    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace(jtop=refused))
    assert find(tmp_path) is None


def test_bench_tells_joules(recorded, make_bundle, monkeypatch, capsys):
    """The board takes 6 W all the time: at least 6 J a second, and an answer takes more than its tokens."""
    root = make_bundle()
    compile_bundle(root)
    monkeypatch.setattr("foveate.runtime.measuring.energy.find", lambda: Rails(recorded("nano").root))
    found = bench.run([str(root), "--keep", "16", "4", "--new-tokens", "24", "--rounds", "2"])
    for row in found["rows"]:
        for whole, token, seconds in zip(row["joules"], row["joules_per_token"], row["step"], strict=True):
            assert whole > 24 * token > 24 * 6 * seconds
        assert row["joules"][1] > 6 * (row["first_token"][1] + 24 * row["step"][1])
    assert "| J per answer | J per token |" in capsys.readouterr().out
    monkeypatch.setattr("foveate.runtime.measuring.energy.find", lambda: None)
    (row,) = bench.run([str(root), "--keep", "4", "--rounds", "1"])["rows"]
    assert row["joules"] is row["joules_per_token"] is None and "J per" not in capsys.readouterr().out


def done(system, mode, clocks):
    """The commands that ``performance`` ran, with "..." for the block."""
    ran = []
    with power_modes.performance(
        mode, clocks, system=system, do=lambda c: ran.append(_shown(c)), say=lambda line: None
    ):
        ran.append("...")
    return ran


def _shown(command):
    return " ".join("FILE" if "/" in word else word for word in command)


ALL = [
    *("jetson_clocks --store FILE", "nvpmodel -m 2", "jetson_clocks", "..."),
    *("jetson_clocks --restore FILE", "nvpmodel -m 0"),
]


def test_mode_and_clocks_are_put_back(recorded):
    nano = recorded("nano")
    assert done(nano, "MAXN_SUPER", True) == ALL
    assert done(nano, "15W", False) == ["..."]  # it is in that mode already
    assert done(nano, None, True) == [ALL[0], ALL[2], "...", ALL[4]]


def test_they_are_put_back_when_the_block_fails(recorded):
    ran = []

    def do(command):
        ran.append(command[0:2])

    with (
        pytest.raises(KeyboardInterrupt),
        power_modes.performance("MAXN_SUPER", True, system=recorded("nano"), do=do, say=lambda line: None),
    ):
        raise KeyboardInterrupt
    assert ran[-2:] == [["jetson_clocks", "--restore"], ["nvpmodel", "-m"]]


@pytest.mark.parametrize("fail", ALL[:3])
def test_steps_are_undone_when_a_later_one_fails(recorded, fail):
    ran = []

    def do(command):
        ran.append(_shown(command))
        if ran[-1] == fail:
            raise UserError("it failed")

    with (
        pytest.raises(UserError, match="it failed"),
        power_modes.performance("MAXN_SUPER", True, system=recorded("nano"), do=do, say=lambda line: None),
    ):
        pytest.fail("the block ran")
    undone = {0: [], 1: [ALL[4]], 2: ALL[4:]}[ALL.index(fail)]
    assert ran == [*ALL[: ALL.index(fail) + 1], *undone]


def test_the_other_is_undone_when_one_cannot_be(recorded):
    ran = []

    def do(command):
        ran.append(command[:2])
        if command[:2] == ["jetson_clocks", "--restore"]:
            raise UserError("no such file")

    with (
        pytest.raises(UserError, match="no such file"),
        power_modes.performance("MAXN_SUPER", True, system=recorded("nano"), do=do, say=lambda line: None),
    ):
        pass
    assert ran[-1] == ["nvpmodel", "-m"]


def test_a_mode_that_is_not_there(recorded):
    with pytest.raises(UserError, match="did you mean MAXN_SUPER"):
        power_modes.steps(recorded("nano"), "MAXN_SUPR", False, "")


def test_a_machine_without_modes(recorded):
    with pytest.raises(UserError, match="no power mode to change"):
        power_modes.steps(recorded(), "MAXN", False, "")


def test_the_command(recorded, monkeypatch, capfd):
    monkeypatch.setattr(power_modes, "System", lambda: recorded("nano"))
    assert power_modes.main([]) == 0
    assert "15W (0)" in (out := capfd.readouterr().out) and "VDD_IN" in out
    assert power_modes.main(["--mode", "MAXN_SUPER", "--clocks", "--dry-run", "--", "foveate", "run"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        *("$ jetson_clocks --store FILE", "$ nvpmodel -m 2", "$ jetson_clocks", "$ foveate run"),
        *("$ jetson_clocks --restore FILE", "$ nvpmodel -m 0"),
    ]
    monkeypatch.setitem(power_modes.performance.__wrapped__.__kwdefaults__, "do", lambda command: None)
    assert (
        power_modes.main(["--mode", "MAXN_SUPER", "--", sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
    )
    assert "$ nvpmodel -m 0" in capfd.readouterr().err
    with pytest.raises(UserError, match="no command to run"):
        power_modes.main(["--mode", "MAXN_SUPER"])


MASKS = """\
< PARAM TYPE=FILE NAME=TPC_POWER_GATING >
TPC_PG_MASK /sys/devices/gpu.0/tpc_pg_mask
< POWER_MODEL ID=0 NAME=MAXN >
TPC_POWER_GATING TPC_PG_MASK 0
< POWER_MODEL ID=1 NAME=10W >
TPC_POWER_GATING TPC_PG_MASK 252
< POWER_MODEL ID=2 NAME=15W >
TPC_POWER_GATING TPC_PG_MASK 252
< PM_CONFIG DEFAULT=2 >
"""


def test_another_mask_of_tpcs_wants_a_reboot(recorded, monkeypatch, capsys):
    """As on an Orin NX, whose 15W has half of the TPCs; the numbers of the masks are ours."""
    board = recorded(
        "nano", files={"/etc/nvpmodel.conf": MASKS}, outputs={"nvpmodel -q": "NV Power Mode: 15W\n2\n"}
    )
    assert power_modes.reboots(board) == ["MAXN"]
    said = []
    for mode in ("10W", "MAXN"):
        with power_modes.performance(mode, system=board, do=lambda command: None, say=said.append):
            pass
    assert [line for line in said if "reboot" in line] == [said[2]] and said[2].startswith("MAXN is likely")
    monkeypatch.setattr(power_modes, "System", lambda: board)
    assert power_modes.main(["--mode", "MAXN", "--dry-run"]) == 0
    assert "# MAXN is likely to want a reboot" in capsys.readouterr().out
    assert power_modes.main([]) == 0
    assert "inferred" in capsys.readouterr().out
    assert power_modes.reboots(recorded("nano")) == []


def test_sudo_that_wants_a_password(tmp_path, monkeypatch):
    """The words are sudo's own, in its first language whatever the user's is."""
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\n[ "$LC_ALL" = C ] && echo "sudo: a password is required" >&2\nexit 1\n')
    sudo.chmod(0o755)
    monkeypatch.setattr(power_modes.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(UserError, match=r"wants a password \| sudo -v first.*sudo nvpmodel -m 2"):
        power_modes._sudo(["nvpmodel", "-m", "2"])


def test_the_facts_as_json(recorded, monkeypatch, capsys):
    monkeypatch.setattr(power_modes, "System", lambda: recorded("nano"))
    assert power_modes.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mode"]["name"] == "15W" and facts["watts"]["VDD_IN"] == pytest.approx(6.0)
    assert [mode["id"] for mode in facts["modes"]] == [0, 1, 2] and facts["reboot_likely"] == []
    with pytest.raises(UserError, match="--json has nothing to print"):
        power_modes.main(["--json", "--mode", "15W", "--", "true"])


def test_no_facts_as_json(recorded, monkeypatch, capsys):
    monkeypatch.setattr(power_modes, "System", lambda: recorded())
    assert power_modes.main(["--json"]) == 0
    none = {"mode": None, "modes": [], "reboot_likely": [], "watts": None}
    assert json.loads(capsys.readouterr().out) == none

"""The table of devices: complete, sourced, and in agreement with what NVIDIA publishes besides."""

from __future__ import annotations

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.device.devices import DEVICES, JETPACKS, device, in_mode, jetpack_named, jetpack_of

SPARSE_TOPS = {  # published for the GPU, with sparsity: twice the dense rate
    "orin-nano-4gb": 20,
    "orin-nano-8gb": 40,
    "orin-nano-8gb-super": 67,
    "agx-orin-64gb": 170,
}
# Published for GPU and DLAs together. DLAs of the NX 16GB give 40, of the NX 8GB 20, as Super 80 and 40.
WITH_DLA = {
    "orin-nx-8gb": 70 - 20,
    "orin-nx-16gb": 100 - 40,
    "orin-nx-8gb-super": 117 - 40,
    "orin-nx-16gb-super": 157 - 80,
}


def test_every_row_is_whole_and_says_where_it_is_from():
    assert {"orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb"} <= set(DEVICES)
    assert {"agx-orin-64gb", "agx-thor", "rtx-4090"} <= set(DEVICES)
    for row in DEVICES.values():
        assert row.sources and row.bandwidth > 3e10 and row.fp16 > 5e12 and row.int8 >= 2 * row.fp16 * 0.999
        assert row.memory % 2**30 == 0 and float(row.capability) >= 8
        assert (row.fp8 is None) == (float(row.capability) < 8.9)
        assert not any(word in " ".join(row.sources) for word in ("/work", "/tmp"))


@pytest.mark.parametrize(("name", "tops"), (SPARSE_TOPS | WITH_DLA).items())
def test_rates_follow_from_sms_and_clock(name, tops):
    assert device(name).int8 * 2 / 1e12 == pytest.approx(tops, rel=0.03)


def test_super_modes_differ_in_clock_and_bandwidth_alone():
    plain, fast = device("orin-nano-8gb"), device("orin-nano-8gb-super")
    assert (plain.memory, plain.capability) == (fast.memory, fast.capability)
    assert fast.fp16 / plain.fp16 == pytest.approx(1020 / 625)


def test_an_unknown_device_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean orin-nano-8gb"):
        device("orin-nano8gb")


def test_jetpacks_by_their_l4t():
    assert [jetpack_of(l4t).jetpack for l4t in ("36.4.3", "36.4.7", "36.5.0", "38.4.0", "39.2.1")] == [
        *("6.2", "6.2.1", "6.2.2", "7.1", "7.2"),
    ]
    assert jetpack_of("35.4.1") is None and jetpack_of("36.2.0") is None
    six, seven = jetpack_of("36.4.3"), jetpack_of("39.2.0")
    assert (six.tensorrt, six.python, six.glibc) == ("10.3", "3.10", "2.35")
    assert (seven.tensorrt, seven.python, seven.glibc) == ("10.16", "3.12", "2.39")
    assert all(each.sources for each in JETPACKS)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("6.2", "6.2"),
        ("6.2.3", "6.2.2"),
        ("6.1.1", "6.1"),
        ("7.0", "7.0"),
        ("7.2.1", "7.2"),
        ("7.2.0", "7.2"),
    ],
)
def test_a_patch_release_is_taken_as_its_family(asked: str, taken: str) -> None:
    assert jetpack_named(asked).jetpack == taken


@pytest.mark.parametrize("asked", ["5.1.2", "6", "6.0", "7.3", "7.2.x", "8.0.1", ""])
def test_other_jetpacks_are_refused_with_those_supported(asked: str) -> None:
    with pytest.raises(UserError, match=r"supported: 6\.1, 6\.2, .*7\.2, and patch releases") as refused:
        jetpack_named(asked)
    assert refused.value.code == 2 and "did you mean" not in str(refused.value)


def test_the_default_power_modes():
    defaults = {
        "orin-nx-16gb": "15W",
        "orin-nx-16gb-super": "40W",
        "orin-nx-8gb-super": "40W",
        "orin-nano-8gb-super": "25W",
    }
    assert {name: in_mode(device(name)).mode for name in defaults} == defaults
    for name in defaults:  # the mode of the table is one of its modes, with the same figures
        assert in_mode(device(name), device(name).mode) == device(name)
    assert in_mode(device("rtx-4090")) == device("rtx-4090")

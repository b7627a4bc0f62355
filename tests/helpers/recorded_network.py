"""Runs a command on a network of its own that leads nowhere, and records what the command sends into it.

    unshare --map-root-user --net --mount python recorded_network.py RECORD COMMAND ...

The network has an interface, addresses, default routes of IPv4 and IPv6, and a resolver that never answers:
programs that look whether there is a network find one. RECORD is a JSON file::

    {"exit": 0,                                # of the command, negative: the signal that ended it
     "names": ["example.org"],                 # that the resolver was asked for
     "packets": ["UDP to 192.0.2.53:53"],      # every packet that left, IPv4 and IPv6
     "files": ["/var/tmp/x"]}                  # left in /var/tmp and /dev/shm, which are the command's own

With ``--no-sockets`` the kernel also kills (SIGSYS) any process of the command that opens an IPv4 or IPv6
socket.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

INTERFACE = "recorded0"
RESOLVER = "192.0.2.53"
OWN = ("/var/tmp", "/dev/shm")

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP"}
_OF_THE_KERNEL = (0, 58)  # IPv6: hop-by-hop options and ICMPv6, with which a new interface looks for routers


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-sockets", action="store_true")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="to go on recording when the command ended"
    )
    parser.add_argument("record", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _resolver(Path(folder))
        packets = _network()
        for place in OWN:
            subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        guard = _forbid_sockets if args.no_sockets else None
        done = subprocess.run(args.command, check=False, preexec_fn=guard)
        time.sleep(args.seconds)
        files = [str(path) for place in OWN for path in Path(place).rglob("*")]
    names = sorted({name for packet in packets if (name := _asked(packet))})
    sent = [text for packet in packets if (text := _describe(packet))]
    args.record.write_text(
        json.dumps({"exit": done.returncode, "names": names, "packets": sent, "files": files})
    )
    return 0


def _resolver(folder: Path) -> None:
    """Names are asked of ``RESOLVER`` alone, whatever the system's file says."""
    place = folder / "resolv.conf"
    place.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", place, os.path.realpath("/etc/resolv.conf")], check=True)


def _network() -> list[bytes]:
    """Makes the interface; the list that its packets are appended to."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    _ip("link set lo up")
    _ip(f"addr add 192.0.2.1/24 dev {INTERFACE}")
    _ip(f"link set {INTERFACE} up")
    _ip(f"route add default dev {INTERFACE}")
    if Path("/proc/net/if_inet6").exists():
        _ip(f"-6 addr add 2001:db8::1/64 dev {INTERFACE} nodad")
        _ip(f"-6 route add default dev {INTERFACE}")
    packets: list[bytes] = []

    def read() -> None:
        while True:
            packets.append(os.read(device, 1 << 16))

    threading.Thread(target=read, daemon=True).start()
    return packets


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _parts(packet: bytes) -> tuple[int, str, bytes]:
    """Protocol, destination and payload of a packet."""
    if packet[0] >> 4 == 6:
        return packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[40:]
    return packet[9], socket.inet_ntoa(packet[16:20]), packet[(packet[0] & 15) * 4 :]


def _describe(packet: bytes) -> str | None:
    """Describe a packet, such as "UDP to 192.0.2.53:53"; None for those that the kernel sends by itself."""
    protocol, destination, payload = _parts(packet)
    if packet[0] >> 4 == 6 and protocol in _OF_THE_KERNEL:
        return None
    port = f":{int.from_bytes(payload[2:4], 'big')}" if protocol in (6, 17) else ""
    return f"{_PROTOCOLS.get(protocol, protocol)} to {destination}{port}"


def _asked(packet: bytes) -> str | None:
    """The name that a DNS question is about; None for other packets."""
    protocol, _, payload = _parts(packet)
    if protocol != 17 or payload[2:4] != (53).to_bytes(2, "big"):
        return None
    labels, at = [], 8 + 12  # behind the headers of UDP and DNS
    while length := payload[at]:
        labels.append(payload[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels)


def _forbid_sockets() -> None:
    """Install a filter of system calls, which children inherit.

    A process that calls socket(AF_INET or AF_INET6, ...) is killed.
    """
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    allow, kill = 0x7FFF0000, 0x80000000  # SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS
    program = [
        (load, 0, 0, 0),  # the number of the system call
        (equal, 0, 3, number),
        (load, 0, 0, 16),  # its first argument
        (equal, 2, 0, socket.AF_INET),
        (equal, 1, 0, socket.AF_INET6),
        (give, 0, 0, allow),
        (give, 0, 0, kill),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, filtered = 38, 22, 2
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (seccomp, filtered, ctypes.addressof(header), 0, 0)):
        if libc.prctl(*(ctypes.c_ulong(each) for each in arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())

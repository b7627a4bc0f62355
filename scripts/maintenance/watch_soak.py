"""Run ``foveate watch`` on a generated video: check that its memory is flat and that frames are new.

Prints resident memory every minute, the answers, and the age of a frame when its answer started. The last
line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

_FPS, _SIDE = 10, 160


def generate(path: Path, seconds: float) -> None:
    """Write a video of a bright square that moves over a grey background."""
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), _FPS, (_SIDE, _SIDE))
    for number in range(round(seconds * _FPS)):
        frame = np.full((_SIDE, _SIDE, 3), 100, np.uint8)
        left, top = number % (_SIDE - 40), (number // 3) % (_SIDE - 40)
        frame[top : top + 40, left : left + 40] = 230
        out.write(frame)
    out.release()


def resident(pid: int) -> float:
    """Return the resident memory in MiB, or 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="Folder of a compiled bundle.")
    parser.add_argument("--minutes", type=float, default=10, help="Minutes to run (default: 10).")
    parser.add_argument("--every", default="1", help="Seconds between answers (default: 1).")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip, said = Path(folder, "clip.avi"), Path(folder, "answers")
        generate(clip, args.minutes * 60)
        command = [
            sys.executable,
            "-m",
            "foveate.runtime.cli",
            "watch",
            str(args.bundle),
            "--video",
            str(clip),
        ]
        command += ["--prompt", "What is there?", "--max-new-tokens", "8", "--every", args.every, "--json"]
        with said.open("w") as file:
            process = subprocess.Popen(command, stdout=file)
        memory = []
        while process.poll() is None:
            time.sleep(5)
            memory.append(resident(process.pid))
            if len(memory) % 12 == 0:
                print(f"{len(memory) // 12:4} min {memory[-1]:9.1f} MiB", flush=True)
        answers = [json.loads(line) for line in said.read_text().splitlines()]
    memory = [each for each in memory if each][3:]  # after loading and the first answers
    ages = [answer["age"] for answer in answers]
    document = {
        "answers": len(answers),
        "code": process.returncode,
        "mib_start": round(memory[0], 1),
        "mib_end": round(memory[-1], 1),
        "mib_most": round(max(memory), 1),
        "age_ms_median": round(statistics.median(ages) * 1e3, 1),
        "age_ms_most": round(max(ages) * 1e3, 1),
        "frame_ms": 1000 / _FPS,
    }
    print(json.dumps(document))

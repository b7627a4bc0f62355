"""The measurement of quantization errors, on a small layer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "quantization_error.py"


def test_calibration_helps_where_there_are_outliers():
    command = [sys.executable, str(SCRIPT), "--hidden", "256", "--intermediate", "512", "--heads", "4"]
    command += ["--rows", "64", "--channels", "2", "--factor", "1", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])["errors"]
    plain, loud = errors["1"], errors["60"]
    assert 0.05 < plain["int4, to nearest"] < 0.25  # 15 levels of a normal distribution, three products deep
    assert plain["int4, AWQ"] < 1.02 * plain["int4, to nearest"]
    assert max(plain["int8, static"], plain["int8, dynamic"]) < 0.1 and plain["fp8"] < 0.15
    assert loud["int4, AWQ"] < 0.8 * loud["int4, to nearest"]
    for kind, share in (("static", 0.7), ("dynamic", 0.5)):
        assert loud[f"int8, {kind}, SmoothQuant"] < share * loud[f"int8, {kind}"]

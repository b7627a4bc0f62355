"""CLIP's text encoder as ONNX."""

from __future__ import annotations

import torch
from clip_runs import close, run_onnx

from foveate.export.checkpoints.module_weights import fill
from foveate.export.models import llava


def test_text_as_onnx_for_any_number_of_segments(tmp_path):
    parts = llava.tiny()
    text = fill(parts.text_encoder, parts.weights, "text_encoder.").eval()
    example, segments = torch.randint(0, 318, (3, 77)), torch.export.Dim("segments", min=1, max=8)
    run = run_onnx(text, (example,), tmp_path / "text.onnx", ["clip_text"], ({0: segments},))
    for count in (1, 5):
        ids = torch.randint(0, 318, (count, 77), generator=torch.Generator().manual_seed(count))
        ids[:, 20 + count :] = 319
        assert close(torch.from_numpy(run(ids)[0]), text(ids))

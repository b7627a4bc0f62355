"""The contact sheet: each method's patches are as bright as the share of layers that see them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluation import contact_sheet

SETTINGS = {"kind": "clip", "resize": [40, 40], "size": [40, 40]}


def test_a_patch_is_the_brighter_the_later_it_is_dropped():
    manifest = SimpleNamespace(grid=(4, 4), image=SETTINGS)
    stages = {"pruner.0": np.array([0, 5, 10, 15]), "pruner.1": np.array([5])}
    answer = SimpleNamespace(stages=[stages], kept=[stages["pruner.1"]], owners=[None])
    image = contact_sheet.faded(np.full((40, 40, 3), 200, np.uint8), answer, manifest)
    side = image.width // 4
    grey = np.asarray(image).reshape(4, side, 4, side, 3)[:, side // 2, :, side // 2].mean(-1).ravel()
    dim = 200 * 0.36 + 20
    assert grey[5] == 200
    assert grey[[0, 10, 15]] == pytest.approx((200 + dim) / 2, abs=1)
    assert np.delete(grey, [0, 5, 10, 15]) == pytest.approx(dim, abs=1)


def test_a_model_without_pruner_shows_the_image():
    manifest = SimpleNamespace(grid=(4, 4), image=SETTINGS)
    answer = SimpleNamespace(stages=[{}], kept=[np.arange(16)], owners=[None])
    image = contact_sheet.faded(np.full((40, 40, 3), 90, np.uint8), answer, manifest)
    assert (np.asarray(image) == 90).all()


def test_tokens_in_words():
    assert contact_sheet.tokens(((4, 64),)) == "64 tokens"
    assert contact_sheet.tokens(((2, 576), (2, 100), (4, 20))) == "576, 100, 20 tokens (mean 179)"


def test_answers_that_differ_are_marked_and_the_file_is_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    image = Image.fromarray(noise).convert("RGB").resize((640, 640), Image.Resampling.NEAREST)
    panels = [
        contact_sheet.Panel(f"method{i}", "64 tokens", "T" if i != 3 else "X", image) for i in range(25)
    ]
    drawn = contact_sheet.sheet(panels, 5, 320, "title")
    pixels = np.asarray(drawn).astype(int)
    marked = np.argwhere(np.abs(pixels - contact_sheet.WRONG).max(2) < 40)
    assert len(marked) and (marked[:, 1] // (drawn.width // 5) == 3).all()
    assert marked[:, 0].max() < drawn.height / 4
    contact_sheet.save(drawn, tmp_path / "new" / "sheet.png")
    assert (tmp_path / "new" / "sheet.png").stat().st_size < 600_000
    with Image.open(tmp_path / "new" / "sheet.png") as saved:
        assert saved.mode == "P"
        assert np.abs(np.asarray(saved.convert("RGB")).astype(int) - pixels).mean() < 8


def test_bundles_are_built_once_and_every_method_has_a_panel(tmp_path, monkeypatch, capsys):
    from foveate.export.models import llava

    out, built = tmp_path / "sheet.png", []
    real = contact_sheet.build
    monkeypatch.setattr(contact_sheet.models, "load", lambda name: llava.tiny())
    monkeypatch.setattr(contact_sheet, "build", lambda *a, **k: built.append(a[1].name) or real(*a, **k))
    line = ["contact_sheet.py", "--methods", "uniform", "none", "--keep", "16", "--tile", "160"]
    monkeypatch.setattr("sys.argv", [*line, "--work", str(tmp_path / "work"), "--out", str(out)])
    for _ in range(2):
        contact_sheet.main()
    assert built == ["none", "uniform"]
    said = capsys.readouterr().err
    assert f"{out}: 2 methods" in said and "64 tokens" in said and "16 tokens" in said
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 160 and sheet.height > 160

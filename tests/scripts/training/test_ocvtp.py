"""Training of OC-VTP's pruner: the published decoder, loss and schedule, and runs that stop and go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from foveate.calib.scenes.questions import HELD_OUT, make_scene
from foveate.engines.errors import UserError
from foveate.export.methods._ocvtp_network import SlotPruner
from training.ocvtp import features
from training.ocvtp.decoder import (
    Decoder,
    _looking_at,
    area_weighted_loss,
    draw_seen,
    load,
    nearest_error,
    reconstruction_errors,
    slot_share,
)
from training.ocvtp.features import FIRST_SCENE, collect, encode
from training.ocvtp.train import arguments
from training.ocvtp.trainer import Training, learning_rate

SCRIPTS = Path(__file__).parents[3] / "scripts"
SHAPES = SCRIPTS / "shapes"
SMALL = ["--count", "7", "--epochs", "2", "--batch", "3", "--slots", "3", "5", "--validation-slots", "4"]
SMALL += ["--train-share", "0.6", "--decoder-layers", "1", "--decoder-inner", "32", "--threads", "1"]


def shuffled(decoder, features, slots, order, count):
    """The decoder as published: tokens and positions are shuffled, then put back.

    All but the first ``count`` are hidden.
    """
    tokens = decoder.project1(features)[:, order].clone()
    tokens[:, count:] = decoder.mask_token
    query = decoder.norm0(tokens + decoder.posit_embed._pe[:, order])
    return decoder.backbone(query, decoder.project2(slots))[:, order.argsort()]


def test_the_decoder_tells_what_the_published_one_tells():
    torch.manual_seed(0)
    decoder, order = Decoder(16, 30, layers=2, heads=4).eval(), torch.randperm(30)
    features, slots = torch.randn(2, 30, 16), torch.randn(2, 5, 8)
    seen = torch.zeros(2, 30, dtype=torch.bool)
    seen[:, order[:7]] = True
    with torch.no_grad():
        told = decoder(features, slots, seen)
        torch.testing.assert_close(told, shuffled(decoder, features, slots, order, 7))
        hidden = features.clone()
        hidden[~seen] = 9.0  # what is not seen is not used
        assert torch.equal(decoder(hidden, slots, seen), told)
    assert decoder.backbone.layers[0].linear1.weight.shape == (64, 16)
    assert isinstance(decoder.backbone.layers[0].norm1, torch.nn.Identity)


def test_the_number_of_tokens_that_the_decoder_sees():
    torch.manual_seed(0)
    numbers = draw_seen(2000, 100).sum(1)
    few = (numbers == 24).float().mean()
    assert 0.46 < few < 0.55 and numbers.min() < 5 and numbers.max() > 90 and numbers.max() < 99
    assert (draw_seen(50, 100, share=0.0) != draw_seen(50, 100, share=0.0)).any()
    assert set(draw_seen(50, 10, share=0.0).sum(1).tolist()) == {9}


def literal_loss(told: np.ndarray, features: np.ndarray, attention: np.ndarray) -> float:
    losses = []
    for b in range(len(told)):
        count, size = attention[b].shape
        area = [sum(attention[b][:, n].argmax() == s for n in range(size)) / size for s in range(count)]
        weight = np.array([max(a, 1e-8) ** -0.5 for a in area])
        weight = np.minimum(weight / weight.mean(), 10)
        share = [sum(attention[b][s, n] * weight[s] for s in range(count)) for n in range(size)]
        errors = [((told[b, n] - features[b, n]) ** 2).mean() for n in range(size)]
        losses.append(sum(s * e for s, e in zip(share, errors, strict=True)) / sum(share))
    return float(np.mean(losses))


@pytest.mark.parametrize("slots", [3, 30])  # no slot is without a token; most are
def test_the_loss_is_weighted_by_area(slots):
    rng = np.random.default_rng(slots)
    told, features = rng.normal(size=(2, 2, 12, 4))
    attention = np.exp(3 * rng.normal(size=(2, slots, 12)))
    attention /= attention.sum(1, keepdims=True)
    inputs = [torch.from_numpy(x).requires_grad_() for x in (told, features, attention)]
    loss = area_weighted_loss(*inputs)
    assert loss.item() == pytest.approx(literal_loss(told, features, attention), rel=1e-6)
    loss.backward()
    assert inputs[0].grad is not None and inputs[2].grad is None


def test_the_learning_rate():
    args = arguments([])
    assert (args.epochs, args.warmup, args.batch, args.seed, args.patience) == (30, 4, 12, 42, 5)
    assert args.slots == [16, 32, 64, 128] and (args.decoder_layers, args.decoder_heads) == (4, 4)
    rates = [learning_rate(epoch, args) for epoch in (0, 2, 4, 15, 30)]
    cosine = [1e-8 + (1e-3 - 1e-8) * (1 + math.cos(math.pi * epoch / 30)) / 2 for epoch in (4, 15, 30)]
    assert rates == pytest.approx([1e-6, (1e-6 + 1e-3) / 2, *cosine])


def test_gradients_take_the_bi_level_path():
    """Gradients reach the start of the slots, and the tokens' projection, as through the last round alone."""
    torch.manual_seed(0)
    pruner = SlotPruner(16).reset()
    features, noise = torch.randn(1, 9, 16), torch.randn(1, 4, 8)
    pruner.train()
    pruner.aggregat.ffn.mlp[2].p = 0.0
    slots, attention = pruner.attend(features, noise)
    (slots * slots).sum().backward()
    found = pruner.initializ.mean.grad.clone(), pruner.aggregat.proj_k.weight.grad.clone()
    pruner.zero_grad()
    attend, part = pruner.encode_project(features), pruner.aggregat
    key, value = part.read(attend)
    start = pruner.initializ(noise)
    with torch.no_grad():
        before = start
        for _ in range(2):
            before = part.update(before, part.compete(before, key), value)
    last = before + start - start.detach()
    last = part.update(last, part.compete(last, key), value)
    (last * last).sum().backward()
    torch.testing.assert_close(last, slots)
    torch.testing.assert_close(pruner.initializ.mean.grad, found[0])
    torch.testing.assert_close(part.proj_k.weight.grad, found[1])
    pruner.eval()
    torch.testing.assert_close(pruner.attend(features, noise)[1], attention)


def test_training_stops_and_goes_on_to_the_same_weights(tmp_path, capsys):
    from training.ocvtp.train import main

    main([*SMALL, "--work", str(tmp_path / "whole")])
    whole = load_file(tmp_path / "whole" / "ocvtp.safetensors")
    assert "epoch 2/2" in capsys.readouterr().out
    main([*SMALL, "--work", str(tmp_path / "parts"), "--minutes", "0"])  # before the first image
    assert "same command goes on" in capsys.readouterr().out
    stop_after(3, main, [*SMALL, "--work", str(tmp_path / "parts")])
    main([*SMALL, "--work", str(tmp_path / "parts")])
    printed = capsys.readouterr().out
    assert "features" not in printed.rpartition("epoch 1/2")[2] and "epoch 2/2" in printed
    parts = load_file(tmp_path / "parts" / "ocvtp.safetensors")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    summary = json.loads((tmp_path / "parts" / "ocvtp.json").read_text())
    assert summary["steps"] == 4 and len(summary["losses"]) == 2
    assert set(summary["by_budget"]["64"]) == {"slots", "picks", "uniform", "random", "slot_share"}


def stop_after(steps: int, main, argv: list[str]) -> None:
    """A run that is told to stop when it has done so many steps."""
    step = Training.step

    def counted(self) -> None:
        step(self)
        if self.progress.step == steps:
            self.args.deadline = 0.0

    Training.step = counted
    try:
        main(argv)
    finally:
        Training.step = step


def test_held_out_images_are_not_trained_on(tmp_path):
    args = arguments(["--work", str(tmp_path), "--batch", "4"])
    args.deadline = math.inf
    features = np.random.default_rng(0).normal(size=(40, 25, 16)).astype(np.float16)
    training = Training(args, features, (5, 5))
    assert len(training.train) == 38 and not set(training.train) & set(training.held_out)
    seen = []
    training.batch = lambda images: (
        seen.append(images) or torch.from_numpy(features[images].astype(np.float32))
    )
    first = training.validate()
    assert np.concatenate(seen).tolist() == sorted(training.held_out)
    assert training.validate() == first  # the same noise, the same tokens seen
    seen.clear()
    for _ in range(training.per_epoch):
        training.step()
    assert sorted(np.concatenate(seen)) == sorted(training.train)


def test_images_of_a_folder(tmp_path):
    (tmp_path / "images" / "more").mkdir(parents=True)
    for number, size in enumerate([(300, 200), (40, 90)]):
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / ("more" if number else "") / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    options = {"layer": None, "work": tmp_path, "deadline": math.inf}
    table, grid = collect(str(SHAPES), tmp_path / "images", 100, **options)
    assert table.shape == (2, 576, 128) and grid == (24, 24) and np.isfinite(table).all()
    assert not np.array_equal(table[0], table[1])
    with pytest.raises(UserError, match="other images or of another layer"):
        collect(str(SHAPES), tmp_path / "images", 100, **options | {"layer": 2})
    with pytest.raises(UserError, match="no images in"):
        collect(str(SHAPES), tmp_path / "images" / "none", 100, **options)


def test_features_go_on_where_they_stopped(tmp_path, monkeypatch):
    """Also after a run that was killed: what is there is noted as it grows."""
    options = {"layer": None, "work": tmp_path}
    read = []

    class Slow(features.Encoder):
        def __call__(self, image):
            read.append(image)
            if len(read) == 3:
                raise KeyboardInterrupt
            return super().__call__(image)

    monkeypatch.setattr(features, "Encoder", Slow)
    monkeypatch.setattr(features, "NOTED", 2)
    with pytest.raises(KeyboardInterrupt):
        features.collect(str(SHAPES), None, 4, deadline=math.inf, **options)
    features.collect(str(SHAPES), None, 4, deadline=math.inf, **options)
    assert len(read) == 3 + 2 and json.loads((tmp_path / "features.json").read_text())["done"] == 4
    table = np.load(tmp_path / "features.npy")
    monkeypatch.undo()
    scene = make_scene(features.FIRST_SCENE + 2)
    again = features.encode(str(SHAPES), [scene.image])[0].numpy()
    np.testing.assert_allclose(table[2], again, atol=2e-3, rtol=2e-3)


def test_features_are_those_of_transformers(tmp_path):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    table, _ = collect(str(SHAPES), None, 1, layer=None, work=tmp_path, deadline=math.inf)
    tower = LlavaForConditionalGeneration.from_pretrained(SHAPES, dtype=torch.float32).model.vision_tower
    image = make_scene(FIRST_SCENE).image
    pixels = AutoProcessor.from_pretrained(SHAPES).image_processor(images=image, return_tensors="pt")
    with torch.no_grad():
        hidden = tower(**pixels, output_hidden_states=True).hidden_states[2][0, 1:]  # [0] is the embeddings
    np.testing.assert_allclose(table[0], hidden.numpy(), rtol=2e-3, atol=2e-3)
    assert FIRST_SCENE < HELD_OUT


def test_a_slot_that_looks_at_one_token_holds_nothing_of_the_others():
    torch.manual_seed(0)
    pruner = SlotPruner(16).reset().eval()
    features, noise = torch.randn(1, 9, 16), torch.randn(1, 3, 8)
    with torch.no_grad():
        slots = _looking_at(pruner, features, noise, torch.tensor([[0, 4, 4]]))
        features[:, 1:4] += 5.0
        features[:, 5:] += 5.0
        assert torch.allclose(_looking_at(pruner, features, noise, torch.tensor([[0, 4, 4]])), slots)
        assert not torch.allclose(_looking_at(pruner, features, noise, torch.tensor([[0, 5, 4]])), slots)


def test_the_published_file_becomes_safetensors(tmp_path, capsys):
    from training.ocvtp.convert import main

    torch.manual_seed(0)
    values = dict(SlotPruner(32).reset().named_parameters())
    stored = {
        name: (value.T if value.ndim == 2 else value).detach().clone() for name, value in values.items()
    }
    torch.save({"state_dict": stored | {"decode.mask_token": torch.ones(1, 1, 32)}}, tmp_path / "weights.pth")
    main([str(tmp_path / "weights.pth"), str(tmp_path / "ocvtp.safetensors")])
    found = load_file(tmp_path / "ocvtp.safetensors")
    assert found.keys() == stored.keys() and all(torch.equal(found[name], stored[name]) for name in stored)
    assert "for a tower of width 32" in capsys.readouterr().out
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="tensors of the pruner are missing"):
        main([str(tmp_path / "weights.pth"), str(tmp_path / "ocvtp.safetensors")])


def test_the_shipped_pruner():
    """The shipped pruner fits, and its card has its recipe.

    On scenes that it never saw its slots tell more than tokens chosen blindly.
    """
    with safe_open(SHAPES / "ocvtp.safetensors", "pt") as file:
        recipe = file.metadata()
    assert recipe["slots"] == "[16, 32, 64, 128]" and recipe["seed"] == "42"
    pruner, decoder = load(SHAPES)
    scenes = [make_scene(HELD_OUT + 500_000 + number).image for number in range(12)]
    features = encode(str(SHAPES), scenes)
    errors = reconstruction_errors(pruner, decoder, features, 64, grid=(24, 24))
    assert errors["slots"] < min(errors["random"], errors["uniform"], 1.0)
    assert 0.1 < slot_share(pruner, features, 64) <= 1
    everything = torch.arange(576).expand(12, -1)
    assert nearest_error(features, everything) < 1e-4 < nearest_error(features, everything[:, :64])

"""CLIP's vision encoder: tower and taps against transformers' own outputs, and as ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_runs import close, pixels, run_onnx, vision_of

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.models import llava
from foveate.export.networks.clip_text import TextEncoder

LAYERED = ("cls_attention", "cls_attention_heads", "received_attention", "keys", "hidden")


@pytest.fixture(scope="module")
def oracle(llava_checkpoint):
    """Our parts and what transformers' eager tower makes of two images: attentions, hidden states, keys."""
    path, model = llava_checkpoint()
    tower, keys = model.model.vision_tower, []
    hooks = [
        module.register_forward_hook(lambda _, __, out: keys.append(out))
        for name, module in tower.named_modules()
        if name.endswith("k_proj")
    ]
    with torch.no_grad():
        out = tower(pixels(2), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return models.load(str(path)), out, keys


def expected(out, keys, offer, layer):
    attention = out.attentions[layer]  # [B,H,N+1,N+1]
    return {
        "cls_attention": lambda: attention[:, :, 0, 1:].mean(1),
        "cls_attention_heads": lambda: attention[:, :, 0, 1:],
        "received_attention": lambda: attention.mean((1, 2))[:, 1:],
        "keys": lambda: keys[layer].unflatten(-1, (4, 16)).mean(2)[:, 1:],
        "hidden": lambda: out.hidden_states[layer + 1][:, 1:],
    }[offer]()


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("offer", LAYERED)
def test_taps_equal_transformers(oracle, offer, layer):
    parts, out, keys = oracle
    answer = vision_of(parts, (f"{offer}.{layer}",))(pixels(2))
    assert close(answer[f"{offer}.{layer}"], expected(out, keys, offer, layer))


def test_features_and_class_token(oracle):
    parts, out, _ = oracle
    answer = vision_of(parts, ("cls_feature", "features"))(pixels(2))
    assert close(answer["features"], out.hidden_states[-2][:, 1:])
    assert close(answer["cls_feature"], out.hidden_states[-2][:, :1])


def test_outputs_come_in_the_order_asked(oracle):
    taps = ("keys.1", "features", "cls_attention.2", "hidden.0", "cls_attention.0")
    answer = vision_of(oracle[0], taps)(pixels())
    assert tuple(answer) == ("projected", *taps)


def test_layers_behind_the_features_are_not_there(oracle):
    assert len(oracle[0].vision(()).tower.layers) == 3  # of 4: features are those of layer -2
    assert not any("joint" in name for name, _ in oracle[0].vision(()).named_parameters())


@pytest.mark.parametrize(
    "tap", ["cls_attention.3", "cls_attention", "keys.-1", "features.1", "cls_atention.1", "clip_image.0"]
)
def test_taps_that_are_not_there_are_refused(oracle, tap):
    with pytest.raises(UserError):
        oracle[0].vision((tap,))


@pytest.mark.parametrize("tap", [f"{offer}.1" for offer in LAYERED] + ["projected", "clip_image"])
def test_half_precision_stays_near(tap):
    parts = llava.tiny()
    module = vision_of(parts, (tap,) if tap != "projected" else ())
    truth = module(pixels())[tap]
    half = module.half()(pixels().half())[tap]
    assert half.dtype == torch.float16
    assert close(half.float(), truth, 2e-2)


def test_without_a_clip_there_is_no_joint_space(oracle):
    assert "clip_image" not in oracle[0].spec.taps
    assert oracle[0].text_encoder is None
    with pytest.raises(UserError, match="--clip"):
        oracle[0].vision(("clip_image",))


def test_vision_as_onnx(tmp_path):
    taps = (
        "clip_image",
        "cls_attention.1",
        "cls_attention_heads.0",
        "received_attention.1",
        "keys.1",
        "hidden.0",
    )
    module = vision_of(llava.tiny(), taps)
    run = run_onnx(module, (pixels(),), tmp_path / "vision.onnx", ["projected", *taps])
    for answer, truth in zip(run(pixels(seed=3)), module(pixels(seed=3)).values(), strict=True):
        assert close(torch.from_numpy(answer), truth)


def test_towers_trace_without_memory():
    parts = models.load("llava-1.5-7b", load_format="dummy")
    module = parts.vision(("cls_attention.22", "clip_image"))
    assert all(value.is_meta for value in module.parameters())
    example = torch.empty(1, 3, 336, 336, device="meta")
    program = torch.export.export(module, (example,))
    assert {tuple(value.meta["val"].shape) for value in program.graph.output_node().args[0]} == {
        (1, 576, 4096),
        (1, 576),
        (1, 576, 768),
    }
    assert isinstance(parts.text_encoder, TextEncoder)
    assert parts.text_encoder.context_length == 77


def test_a_constant_image_has_finite_taps():
    taps = tuple(f"{offer}.1" for offer in LAYERED)
    answer = vision_of(llava.tiny(), taps)(torch.zeros(1, 3, 56, 56))
    assert all(np.isfinite(value.numpy()).all() for value in answer.values())

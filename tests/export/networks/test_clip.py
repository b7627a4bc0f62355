"""CLIP: tower, taps and joint space against transformers' own outputs; both towers as ONNX."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.export import methods, models
from foveate.export.checkpoints.find import fill
from foveate.export.graphs.assemble import with_files_for
from foveate.export.models import llava
from foveate.export.networks import onnx_ops
from foveate.export.networks.clip import TAPS, TextEncoder

LAYERED = ("cls_attention", "cls_attention_heads", "received_attention", "keys", "hidden")


def close(answer, truth, tolerance=1e-4):
    assert answer.shape == truth.shape
    return (answer - truth).abs().max() <= tolerance * truth.abs().max()


def pixels(batch=1, side=56, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def vision_of(parts, taps):
    return fill(parts.vision(taps), parts.weights, "vision_encoder.").eval()


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


@pytest.mark.parametrize("eos", [2, 299])
def test_joint_space_equals_transformers(llava_checkpoint, clip_checkpoint, eos):
    """Texts, and patches in place of the class token, have the embeddings that CLIP gives them."""
    path, _ = llava_checkpoint()
    clip_path, clip = clip_checkpoint(eos)
    parts = models.load(str(path), clip=str(clip_path))
    ids = torch.randint(0, 297, (3, 16), generator=torch.Generator().manual_seed(2))
    ids[0, 4:] = 299  # padded with the end token
    ids[1, 15] = 299
    ids[2, 7], ids[2, 9] = 299, 299  # text behind the first end does not count
    text = fill(parts.text_encoder, parts.weights, "text_encoder.").eval()
    answer = vision_of(parts, ("clip_image", "features"))(pixels())
    with torch.no_grad():
        truth = clip.get_text_features(input_ids=ids).pooler_output
        assert close(text(ids), truth[None])
        patches = clip.visual_projection(clip.vision_model.post_layernorm(answer["features"]))
    assert close(answer["clip_image"], patches)
    assert parts.spec.vision.joint_size == 40
    assert parts.open_clip().files["clip_tokenizer.json"] == clip_path / "tokenizer.json"


def test_clip_beside_the_checkpoint_is_found(llava_checkpoint, clip_checkpoint, tmp_path):
    path = shutil.copytree(llava_checkpoint()[0], tmp_path / "copy")
    assert "clip_image" not in models.load(str(path)).spec.taps
    shutil.copytree(clip_checkpoint(2)[0], path / "clip")
    parts = models.load(str(path))
    assert parts.spec.taps == ("layers", *TAPS)
    assert "clip_tokenizer.json" not in parts.files  # nobody has asked for the joint space yet
    for name, reads in (("sppruner", False), ("trim", True)):
        opened = with_files_for(parts, methods.load(name))
        assert ("clip_tokenizer.json" in opened.files) == reads
    assert opened.files["clip_tokenizer.json"] == path / "clip" / "tokenizer.json"
    assert "clip_tokenizer.json" not in parts.files


def test_a_clip_of_another_tower_is_refused(clip_checkpoint):
    with pytest.raises(UserError, match=r"hidden_size is 64, expected 1024"):
        models.load("llava-1.5-7b", load_format="dummy", clip=str(clip_checkpoint(2)[0]))


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "projection_dim"])
def test_sizes_that_no_clip_has_are_refused(llava_checkpoint, clip_checkpoint, tmp_path, key):
    clip = shutil.copytree(clip_checkpoint(2)[0], tmp_path / "clip")
    values = json.loads((clip / "config.json").read_text())
    values[key] = values["text_config"][key] = 10**30
    (clip / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"CLIP.*{key} is not supported .*expected at most"):
        models.load(str(llava_checkpoint()[0]), clip=str(clip))


def test_checkpoints_that_are_no_clip_are_refused(llava_checkpoint):
    path, _ = llava_checkpoint()
    with pytest.raises(UserError, match="no CLIP checkpoint"):
        models.load(str(path), clip=str(path))


def test_without_a_clip_there_is_no_joint_space(oracle):
    assert "clip_image" not in oracle[0].spec.taps
    assert oracle[0].text_encoder is None
    with pytest.raises(UserError, match="--clip"):
        oracle[0].vision(("clip_image",))


def run_onnx(module, inputs, path, names, dynamic=None):
    torch.onnx.export(
        module,
        inputs,
        path,
        dynamo=True,
        opset_version=onnx_ops.OPSET,
        optimize=False,
        verbose=False,
        input_names=["input"],
        output_names=names,
        dynamic_shapes=dynamic,
        custom_translation_table=onnx_ops.TRANSLATIONS,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda value: session.run(names, {"input": value.numpy()})


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


def test_text_as_onnx_for_any_number_of_segments(tmp_path):
    parts = llava.tiny()
    text = fill(parts.text_encoder, parts.weights, "text_encoder.").eval()
    example, segments = torch.randint(0, 318, (3, 77)), torch.export.Dim("segments", min=1, max=8)
    run = run_onnx(text, (example,), tmp_path / "text.onnx", ["clip_text"], ({0: segments},))
    for count in (1, 5):
        ids = torch.randint(0, 318, (count, 77), generator=torch.Generator().manual_seed(count))
        ids[:, 20 + count :] = 319
        assert close(torch.from_numpy(run(ids)[0]), text(ids))


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

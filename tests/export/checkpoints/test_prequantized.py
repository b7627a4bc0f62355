"""Quantized checkpoints, written here from the formats' descriptions, are read without requantizing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.calib.schemes.quantized import Quantized
from foveate.engines.errors import UserError
from foveate.engines.ort.backend import onnxruntime
from foveate.engines.trt import backend as trt
from foveate.export import models
from foveate.export.bundling.precision import Precision
from foveate.export.bundling.write_graphs import write_graphs
from foveate.export.checkpoints.layered_weights import packed
from foveate.export.checkpoints.prequantized import packing
from foveate.export.graphs.llm import language_graphs

PREFIX = "language_model.model.layers."


def words(values: torch.Tensor, order=range(8)) -> torch.Tensor:
    """Pack values of 0..15 [R,8M] into int32 [R,M], lowest bits first.

    ``order`` gives the column that each nibble holds.
    """
    groups = values.to(torch.int64).reshape(values.shape[0], -1, 8)
    total = sum(groups[..., column] << (4 * nibble) for nibble, column in enumerate(order))
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def grid(weight: torch.Tensor, size: int, symmetric: bool, groups: torch.Tensor):
    """Quantize ``weight [N,K]``.

    Returns values 0..15 [N,K], scales [N,G] float16, zeros 0..15 [N,G], and the weight that these stand for.
    """
    count = weight.shape[1] // size
    low = torch.stack([weight[:, groups == g].amin(1) for g in range(count)], 1).clamp(max=0)
    high = torch.stack([weight[:, groups == g].amax(1) for g in range(count)], 1).clamp(min=0)
    if symmetric:
        scales = (torch.maximum(-low, high) / 7.5).half().float()
        zeros = torch.full_like(scales, 8)
    else:
        scales = ((high - low) / 15).half().float()
        zeros = (-low / scales).round().clamp(0, 15)
    values = ((weight / scales[:, groups]).round() + zeros[:, groups]).clamp(0, 15)
    return values, scales.half(), zeros, (values - zeros[:, groups]) * scales[:, groups]


def gptq(values, scales, zeros, groups, *, version=1, **_):
    stored = (zeros - int(version == 1)) % 16
    return {
        "qweight": words(values).T,
        "qzeros": words(stored.T),
        "scales": scales.T,
        "g_idx": groups.to(torch.int32),
    }


def awq(values, scales, zeros, groups, **_):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(values.T, order),
        "qzeros": words(zeros.T, order),
        "scales": scales.T,
    }


def compressed_tensors(values, scales, zeros, groups, *, symmetric, size, **_):
    found = {
        "weight_packed": words(values),
        "weight_scale": scales.to(torch.bfloat16) if symmetric else scales,
        "weight_shape": torch.tensor(values.shape),
    }
    if not symmetric:
        found["weight_zero_point"] = words(zeros.T).T
    if (groups != torch.arange(len(groups)) // size).any():
        found["weight_g_idx"] = groups.to(torch.int32)
    return found


def ct_config(symmetric: bool, size: int) -> dict:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }


GPTQ = {"quant_method": "gptq", "bits": 4}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
CASES = {  # packer, its options, quantization_config
    "gptq": (gptq, {"symmetric": True, "size": 32}, GPTQ | {"group_size": 32, "sym": True}),
    "gptq by importance": (
        gptq, {"symmetric": False, "size": 32, "shuffled": True}, GPTQ | {"desc_act": True},
    ),
    "gptq_v2": (
        gptq, {"symmetric": False, "size": 32, "version": 2}, GPTQ | {"checkpoint_format": "gptq_v2"},
    ),
    "gptq by column": (gptq, {"symmetric": True, "size": None}, GPTQ | {"group_size": -1}),
    "awq": (awq, {"symmetric": False, "size": 32}, AWQ),
    "compressed-tensors": (compressed_tensors, {"symmetric": True, "size": 32}, ct_config(True, 32)),
    "compressed-tensors with zeros": (
        compressed_tensors, {"symmetric": False, "size": 32, "shuffled": True}, ct_config(False, 32),
    ),
}  # fmt: skip


def quantize(source: Path, out: Path, packer, config, *, symmetric, size, shuffled=False, **options):
    """Copy the checkpoint with the decoder's matrices packed.

    Returns the matrices [N,K] that these stand for, by stored name.
    """
    shutil.copytree(source, out)
    tensors, meant = load_file(out / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(3)
    for name in [n for n in tensors if n.startswith(PREFIX) and "_proj" in n]:
        weight = tensors.pop(name).float()
        width = size or weight.shape[1]
        groups = torch.arange(weight.shape[1]) // width
        if shuffled:
            groups = groups[torch.randperm(len(groups), generator=generator)]
        values, scales, zeros, meant[name] = grid(weight, width, symmetric, groups)
        if packer is compressed_tensors and symmetric:  # its scales are in the model's dtype
            scales = scales.to(torch.bfloat16).half()
            meant[name] = (values - 8) * scales.float()[:, groups]
        made = packer(values, scales, zeros, groups, symmetric=symmetric, size=width, **options)
        tensors |= {
            f"{name.removesuffix('.weight')}.{part}": value.contiguous() for part, value in made.items()
        }
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return meant


@pytest.fixture(scope="module")
def checkpoints(llava_checkpoint, tmp_path_factory):
    """``checkpoints(case)`` -> directory, what its weights stand for."""
    made = {}

    def make(case: str):
        if case not in made:
            packer, options, config = CASES[case]
            out = tmp_path_factory.mktemp("packed") / "checkpoint"
            made[case] = out, quantize(llava_checkpoint()[0], out, packer, config, **options)
        return made[case]

    return make


@pytest.mark.parametrize("case", CASES)
def test_every_weight_stands_for_what_was_packed(checkpoints, case):
    path, meant = checkpoints(case)
    weights = models.load(str(path)).weights
    assert len(packed(weights)) == len(meant) == 14
    for name, value in meant.items():
        ours = "llm." + name.removeprefix("language_model.model.")
        assert torch.equal(weights.get(ours), value.T), name
        found = packed(weights)[ours]()
        assert (found.zeros is None) == CASES[case][1]["symmetric"]
        assert (found.order is None) != CASES[case][1].get("shuffled", False)
        assert found.block == 32 or (found.block == 64 and case == "gptq by column")


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_group_sizes(size):
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(size))
    groups = torch.arange(256) // size
    values, scales, zeros, meant = grid(weight, size, False, groups)
    arrays = {name: x.numpy() for name, x in gptq(values, scales.float(), zeros, groups).items()}
    found = packing({"quantization_config": GPTQ}, "here").read(arrays)
    assert found.block == min(size, 128)
    np.testing.assert_array_equal(found.dequantize(), meant.T.numpy())


@pytest.mark.parametrize("case", ["gptq by importance", "awq", "compressed-tensors"])
def test_graphs_answer_as_the_model_with_those_weights(checkpoints, llava_checkpoint, tmp_path, case):
    """The oracle is transformers with the weights that the packed ones stand for. TensorRT compiles them."""
    path, meant = checkpoints(case)
    parts = _once(llava_checkpoint, path)
    (graph,) = language_graphs(parts, None)
    write_graphs(tmp_path, parts, [graph], Precision("int4"), ["ort", "native"], lambda *_: None)
    model = llava_checkpoint()[1]
    embeds = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1)).half().float()
    original = {name: p.data.clone() for name, p in model.named_parameters() if _stored(name) in meant}
    try:
        for name, parameter in model.named_parameters():
            if _stored(name) in meant:
                parameter.data = meant[_stored(name)]
        with torch.no_grad():
            expected = model(inputs_embeds=embeds, logits_to_keep=1).logits[:, -1:].numpy()
    finally:
        for name, parameter in model.named_parameters():
            if name in original:
                parameter.data = original[name]
    assert len(original) == 14
    for dialect, dtype, tolerance in (("ort", np.float32, 1e-5), ("native", np.float16, 1e-2)):
        file = tmp_path / f"llm.{dialect}.onnx"
        onnx.checker.check_model(file, full_check=True)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32 products
        run = onnxruntime.InferenceSession(str(file), options)
        feeds = {
            i.name: np.zeros([d if isinstance(d, int) else 16 for d in i.shape], dtype)
            for i in run.get_inputs()
        }
        feeds |= {"inputs_embeds": embeds.numpy().astype(dtype), "position_ids": np.arange(9)[None]}
        feeds |= {"write_index": np.array([0]), "last": np.array([8])}
        logits = run.run(["logits"], feeds)[0]
        assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max(), dialect
    if case == "gptq by importance":  # zeros and order, both in what TensorRT takes
        plan = trt.compile_plan(tmp_path / "llm.native.onnx", graph.spec.typed("float16"), max_context=64)
        assert len(plan) > 10_000


def _stored(name: str) -> str:
    return name.replace("model.language_model.", "language_model.model.")


_PARTS = []


def _once(llava_checkpoint, path: Path):
    """The ModelParts of one model with the weights of another checkpoint of its sizes: traced once."""
    if not _PARTS:
        _PARTS.append(models.load(str(llava_checkpoint()[0])))
    return dataclasses.replace(_PARTS[0], weights=models.load(str(path)).weights)


REFUSED = {
    "another method": ({"quant_method": "bitsandbytes"}, "quant_method bitsandbytes"),
    "bits": (GPTQ | {"bits": 3}, "bits 3"),
    "marlin": (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format marlin"),
    "gemv": (AWQ | {"version": "gemv"}, "version gemv"),
    "format": (ct_config(True, 32) | {"format": "int-quantized"}, "format int-quantized"),
    "cache": (ct_config(True, 32) | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
}


@pytest.mark.parametrize(("config", "named"), REFUSED.values(), ids=REFUSED)
def test_unreadable_formats_are_refused_by_name(checkpoints, tmp_path, config, named):
    path = shutil.copytree(checkpoints("gptq")[0], tmp_path / "copy")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"quantization_config": config}))
    with pytest.raises(UserError, match=named) as error:
        models.load(str(path))
    assert str(error.value).count(" | ") == 2


def test_a_damaged_module_is_named(checkpoints, tmp_path):
    path = shutil.copytree(checkpoints("gptq")[0], tmp_path / "copy")
    tensors = load_file(path / "model.safetensors")
    name = f"{PREFIX}0.mlp.up_proj.scales"
    tensors[name] = tensors[name][:, :8].contiguous()
    save_file(tensors, path / "model.safetensors")
    weights = models.load(str(path)).weights
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj cannot be read as gptq"):
        weights.get("llm.layers.0.mlp.up_proj.weight")


def test_quantized_weights_are_not_quantized_again(checkpoints):
    found = packed(models.load(str(checkpoints("gptq")[0])).weights)
    with pytest.raises(UserError, match="quantized already"):
        Precision("int8").choose(found)
    choose = Precision("int4", head="int8").choose(found)
    assert choose(next(iter(found)), (64, 64)) == "int4"
    assert choose("llm.layers.7.of_another.weight", (64, 64)) is None
    assert choose("llm.lm_head.weight", (64, 320)) == "int8"
    assert Precision("fp16").choose(found)(next(iter(found)), (64, 64)) is None


def test_order_restores_the_inputs():
    order = np.array([2, 0, 1, 3])
    values = np.arange(4, dtype=np.int8)[:, None]
    found = Quantized(values, np.ones((1, 1), np.float32), None, order)
    np.testing.assert_array_equal(found.dequantize()[:, 0], [1, 2, 0, 3])

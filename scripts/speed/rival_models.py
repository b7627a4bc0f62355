"""Random models of LLaVA's form as GGUF files and as an OpenVINO model.

``speed.contenders`` and ``speed.first_token`` measure them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["gguf_file", "openvino_file", "projector_file"]

_BLOCK, _BLOCK_BYTES = 32, 18  # Q4_0: a float16 scale and 32 nibbles


def gguf_file(sizes: dict[str, Any], work: Path) -> Path:
    """Return a GGUF file with every matrix in Q4_0, written once. ``sizes`` is bundle.json's "decoder"."""
    from gguf import GGMLQuantizationType, GGUFWriter

    path = work / f"{_label(sizes)}.q4_0.gguf"
    if path.exists():
        return path
    hidden, inner, vocabulary = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    query, kv = (sizes[heads] * sizes["head_dim"] for heads in ("num_heads", "num_kv_heads"))
    unfinished = path.with_suffix(".part")
    writer = GGUFWriter(unfinished, "llama")
    writer.add_context_length(sizes["max_positions"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(sizes["num_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(sizes["num_heads"])
    writer.add_head_count_kv(sizes["num_kv_heads"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    _add_tokens(writer, vocabulary)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = random.integers(0, 256, (rows, columns // _BLOCK, _BLOCK_BYTES), np.uint8)
        blocks[..., :2] = np.array(0.22 * columns**-0.5, np.float16)[None].view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    matrix("token_embd.weight", vocabulary, hidden)
    matrix("output.weight", vocabulary, hidden)
    norm("output_norm.weight")
    for layer in range(sizes["num_layers"]):
        for name, rows, columns in (
            ("attn_q", query, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, query),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    _finish(writer)
    return unfinished.rename(path)


def projector_file(hidden_size: int, work: Path) -> Path:
    """Return a GGUF file with LLaVA-1.5's vision encoder and projector, written once.

    The encoder is CLIP ViT-L/14 at 336 pixels, and the projector leads to ``hidden_size``. Matrices are in
    float16, as published.
    """
    from gguf import GGUFWriter

    path = work / f"clip-{hidden_size}.gguf"
    if path.exists():
        return path
    width, inner, layers, patch, side = 1024, 4096, 24, 14, 24
    unfinished = path.with_suffix(".part")
    writer = GGUFWriter(unfinished, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for name, value in (
        ("image_size", patch * side),
        ("patch_size", patch),
        ("embedding_length", width),
        ("feed_forward_length", inner),
        ("projection_dim", 768),
        ("block_count", layers),
        ("attention.head_count", 16),
    ):
        writer.add_uint32(f"clip.vision.{name}", value)
    random = np.random.default_rng(0)

    def values(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        found = random.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        writer.add_tensor(name, found.astype(dtype))

    def linear(name: str, inputs: int, outputs: int) -> None:
        values(f"{name}.weight", (outputs, inputs), np.float16)
        values(f"{name}.bias", (outputs,))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        values(f"{name}.bias", (width,))

    values("v.class_embd", (width,))
    values("v.patch_embd.weight", (width, 3, patch, patch), np.float16)
    values("v.position_embd.weight", (side * side + 1, width))
    norm("v.pre_ln")
    for layer in range(layers):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"{block}.{name}", width, width)
        linear(f"{block}.ffn_up", width, inner)
        linear(f"{block}.ffn_down", inner, width)
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
    linear("mm.0", width, hidden_size)
    linear("mm.2", hidden_size, hidden_size)
    _finish(writer)
    return unfinished.rename(path)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: Any, size: int) -> None:
    """Add a meaningless vocabulary, since llama.cpp opens no model without one."""
    special, bytes_ = [b"<unk>", b"<s>", b"</s>"], [f"<0x{i:02X}>".encode() for i in range(256)]
    words = [f"w{i}".encode() for i in range(size - len(special) - len(bytes_))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *bytes_, *words])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])  # unknown, control, byte, normal
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def openvino_file(sizes: dict[str, Any], kind: str, work: Path) -> Path:
    """Return a stateful OpenVINO model, written once.

    nncf compresses its weights to ``kind``: "int4" (groups of 128) or "int8".
    """
    import nncf
    import openvino

    path = work / f"{_label(sizes)}.{kind}.xml"
    if path.exists():
        return path
    modes = nncf.CompressWeightsMode
    options = (
        {"mode": modes.INT4_SYM, "group_size": 128, "all_layers": True}
        if kind == "int4"
        else {"mode": modes.INT8_ASYM}
    )
    openvino.save_model(
        nncf.compress_weights(_openvino_model(sizes), **options), path, compress_to_fp16=False
    )
    return path


def _openvino_model(sizes: dict[str, Any]) -> Any:
    """Return the model: inputs_embeds [1,T,D], position_ids [1,T], beam_idx [1] (0) -> logits [1,1,V].

    The logits are those of the last row. Keys and values are the model's state.
    """
    import openvino
    from openvino import opset13 as op
    from openvino.op.util import Variable, VariableInfo

    hidden, inner, heads, depth = (
        sizes[name] for name in ("hidden_size", "intermediate_size", "num_heads", "head_dim")
    )
    assert sizes["num_kv_heads"] == heads, "grouped queries are not written here"
    random, sinks = np.random.default_rng(0), []
    embeds = op.parameter([1, -1, hidden], np.float32, name="inputs_embeds")
    positions = op.parameter([1, -1], np.int64, name="position_ids")
    beams = op.parameter(
        [-1], np.int32, name="beam_idx"
    )  # OpenVINO fuses attention with its cache only behind this

    def constant(value: Any) -> Any:
        return op.constant(np.asarray(value))

    def linear(x: Any, inputs: int, outputs: int) -> Any:
        weight = random.standard_normal((outputs, inputs), np.float32) * np.float32(inputs**-0.5)
        return op.matmul(x, op.constant(weight), False, True)

    def norm(x: Any) -> Any:
        mean = op.reduce_mean(op.power(x, constant(np.float32(2))), constant([-1]), keep_dims=True)
        scale = op.divide(constant(np.float32(1)), op.sqrt(op.add(mean, constant(np.float32(1e-5)))))
        return op.multiply(constant(np.ones((1, 1, hidden), np.float32)), op.multiply(x, scale))

    def split(x: Any) -> Any:  # [1,T,D] -> [1,H,T,Dh]
        return op.transpose(op.reshape(x, constant([0, 0, heads, depth]), True), constant([0, 2, 1, 3]))

    frequencies = (10000.0 ** (-np.arange(0, depth, 2) / depth)).astype(np.float32)
    angles = op.multiply(
        op.unsqueeze(op.convert(positions, "f32"), constant(-1)), constant(frequencies[None, None])
    )
    angles = op.unsqueeze(op.concat([angles, angles], -1), constant(1))
    cos, sin = op.cos(angles), op.sin(angles)

    def rotate(x: Any) -> Any:
        first, second = op.split(x, constant(-1), 2).outputs()
        turned = op.concat([op.multiply(second, constant(np.float32(-1))), first], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def remember(x: Any, name: str) -> Any:
        info = VariableInfo()
        info.data_shape, info.data_type = openvino.PartialShape([1, heads, -1, depth]), openvino.Type.f32
        info.variable_id = name
        variable = Variable(info)
        empty = op.constant(np.zeros((1, heads, 0, depth), np.float32))
        known = op.gather(op.read_value(empty, variable), beams, constant(0))
        joined = op.concat([known, x], 2)
        sinks.append(op.assign(joined, variable))
        return joined

    rows = embeds
    mask = _causal_mask(op, constant, embeds, positions)
    for layer in range(sizes["num_layers"]):
        x = norm(rows)
        query, key, value = (split(linear(x, hidden, hidden)) for _ in range(3))
        keys, values = remember(rotate(key), f"key.{layer}"), remember(value, f"value.{layer}")
        mixed = op.scaled_dot_product_attention(rotate(query), keys, values, mask, causal=False)
        mixed = op.reshape(op.transpose(mixed, constant([0, 2, 1, 3])), constant([0, 0, hidden]), True)
        rows = op.add(rows, linear(mixed, hidden, hidden))
        x = norm(rows)
        gated = op.multiply(op.swish(linear(x, hidden, inner)), linear(x, hidden, inner))
        rows = op.add(rows, linear(gated, inner, hidden))
    last = op.gather(rows, constant([-1]), constant(1))
    logits = linear(norm(last), hidden, sizes["vocab_size"])
    return openvino.Model([logits.output(0)], sinks, [embeds, positions, beams], "llm")


def _causal_mask(op: Any, constant: Any, embeds: Any, positions: Any) -> Any:
    """Return a float mask [1,1,T,S]: 0 for keys up to the query's position, else close to -infinity."""
    last = op.gather(op.squeeze(positions, constant([0])), constant(-1), constant(0))
    keys = op.range(constant(0), op.add(last, constant(1)), constant(1), output_type="i64")
    later = op.greater(op.unsqueeze(keys, constant([0, 1, 2])), op.unsqueeze(positions, constant([1, 3])))
    return op.select(later, constant(np.float32(-1e30)), constant(np.float32(0)))


def _label(sizes: dict[str, Any]) -> str:
    return f"{sizes['num_layers']}x{sizes['hidden_size']}"

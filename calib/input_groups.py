"""Groups of matrices in a decoder layer that read the same input. They share its statistics and factors."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GROUPS", "Group", "of_layer"]


@dataclass(frozen=True)
class Group:
    """The matrices of a decoder layer that read one input, and the module that makes it.

    Both are paths in the layer.
    """

    reads: tuple[str, ...]
    maker: str

    @property
    def name(self) -> str:
        """The matrix under whose name the input's statistics are stored."""
        return self.reads[0]


GROUPS = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Group(("self_attn.o_proj",), "self_attn.v_proj"),
    Group(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    Group(("mlp.down_proj",), "mlp.up_proj"),
)


def of_layer(name: str) -> tuple[str, str] | None:
    """Split ``llm.layers.3.mlp.up_proj.weight`` into ``llm.layers.3.`` and ``mlp.up_proj``.

    Returns None for a name outside the layers.
    """
    parts = name.split(".")
    if parts[:2] != ["llm", "layers"] or len(parts) < 5:
        return None
    return ".".join(parts[:3]) + ".", ".".join(parts[3:-1])

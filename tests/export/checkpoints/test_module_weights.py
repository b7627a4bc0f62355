"""The weights of modules: what ``fill`` puts where."""

from __future__ import annotations

import torch
from torch import nn

from foveate.export.checkpoints.module_weights import fill
from foveate.export.models import llava
from foveate.export.networks.decoder import Decoder, Linear, rope_tables


def test_fill_gives_every_parameter_its_value_and_the_decoder_its_tables():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.empty(3), requires_grad=False)
            self.linear = Linear(3, 2, bias=True)

    class Weights(dict):
        def get(self, name):
            return self[name]

    values = Weights({"p.own": torch.randn(3).half(), "p.linear.weight": torch.randn(3, 2)})
    values["p.linear.bias"] = torch.randn(2)
    with torch.device("meta"):
        module = Module()
    assert fill(module, values, "p.") is module
    assert module.own.dtype == torch.float32
    assert torch.equal(module.own, values["p.own"].float())
    assert torch.equal(module.linear.weight, values["p.linear.weight"])
    assert torch.equal(module.linear.bias, values["p.linear.bias"])
    parts = llava.tiny()
    decoder: Decoder = fill(parts.decoder, parts.weights, "llm.")
    assert not any(value.is_meta for value in (*decoder.parameters(), *decoder.buffers()))
    assert torch.equal(decoder.rope_sin, rope_tables(decoder.spec)[1])

"""Convert the published pruner of OC-VTP to safetensors.

It keeps its own names. The decoder, which only training needs, is left out.

`foveate build --method ocvtp` accepts either file with --pruner. It finds ocvtp.safetensors beside a
checkpoint itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.other_checkpoints import pruner_weights

WIDTH_FROM = "encode_project.mlp.0.weight"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", type=Path, help="File weights.pth of the hub repository GarryLarry0131/OC-VTP."
    )
    parser.add_argument("out", type=Path, help="File to write, .safetensors.")
    args = parser.parse_args(argv)
    found = pruner_weights.read(args.source)
    width = found[WIDTH_FROM].shape[0] if WIDTH_FROM in found else 1024
    network = pruner_weights.load(SlotPruner(width), args.source)
    pruner_weights.save(network, args.out, torch.float32, {"source": args.source.name})
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{args.out}: {count:,} parameters for a tower of width {width}")

"""CLIP's vision encoder from a model's parts, images for it, and networks as ONNX."""

from __future__ import annotations

import torch

from foveate.engines.ort.backend import onnxruntime
from foveate.export.checkpoints.module_weights import fill
from foveate.export.networks import onnx_ops


def close(answer, truth, tolerance=1e-4):
    assert answer.shape == truth.shape
    return (answer - truth).abs().max() <= tolerance * truth.abs().max()


def pixels(batch=1, side=56, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def vision_of(parts, taps):
    return fill(parts.vision(taps), parts.weights, "vision_encoder.").eval()


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

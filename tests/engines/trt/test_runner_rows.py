"""Rows that stay on the device: gathered there, from the encoder to the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_double import Cuda
from onnx import helper
from summing_engine import ROWS, WIDTH, loaded, on_device, save
from tensorrt_double.binding import Binding

from foveate.engines.row_gather import Rows
from foveate.engines.spec import GraphSpec, TensorSpec
from foveate.engines.trt.cuda.device import TrtBuffer, device
from foveate.engines.trt.runner import TrtEngine
from foveate.runtime.bundle.manifest import MethodInfo
from foveate.runtime.clock import Clock
from foveate.runtime.images.processor import image_processor
from foveate.runtime.images.token_layout import single
from foveate.runtime.llm.visual_tokens import VisualTokens
from foveate.runtime.vision.features import ImageFeatures
from foveate.runtime.vision.stages import VisionStages

Place, Gather = Callable[[np.ndarray], Any], Callable[[str, Rows], Any]


def gathering(folder: Path) -> TrtEngine:
    """An engine whose inputs are rows of WIDTH numbers."""
    shape = (1, ROWS, WIDTH)
    inputs = tuple(TensorSpec(name, "float32", shape) for name in ("rows", "projected"))
    graph = GraphSpec("any", inputs, (TensorSpec("sum", "float32", shape),))
    node = helper.make_node("Add", ["rows", "projected"], ["sum"])
    return loaded(Binding(device()._cuda), save(folder / "any.onnx", graph, [node]), graph)


def test_rows_on_the_device_are_gathered_there_run_by_run(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    home, random = device(), np.random.default_rng(0)
    one, other, table = (random.standard_normal((1, 6, WIDTH)).astype("float32") for _ in range(3))
    rows = Rows.join([Rows(on_device(home, one)), Rows(table), Rows(on_device(home, other))])
    index = np.array([1, 2, 3, 7, 11, 5, 14, 15, 12])  # 3 neighbours, 2 of the table, 1, then 2 and 1
    cuda.copied.clear()
    found = engine.gather("rows", rows.take(index))
    sizes = [(kind.removeprefix("cudaMemcpy"), size // (4 * WIDTH)) for kind, size in cuda.copied]
    assert sizes == [
        ("DeviceToDevice", 3),
        ("HostToDevice", 2),
        ("DeviceToDevice", 1),
        ("DeviceToDevice", 2),
        ("DeviceToDevice", 1),
    ]
    np.testing.assert_array_equal(found.numpy()[0], np.concatenate([one, table, other], axis=1)[0, index])


def test_rows_of_the_host_are_cast_and_stay_until_they_are_fed(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    cuda.copied.clear()
    found = engine.gather("rows", Rows(np.ones((1, 4, WIDTH), "float16")).take([2]))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (1, 1, WIDTH)
    assert not cuda.copied


def test_rows_on_the_device_have_the_dtype_of_the_input(cuda: Cuda, tmp_path: Path) -> None:
    engine = gathering(tmp_path)
    rows = Rows(on_device(device(), np.ones((1, 4, WIDTH), "float16")))
    with pytest.raises(ValueError, match=r"rows of rows on the device are float16 \| expected float32"):
        engine.gather("rows", rows)


class Host(np.ndarray):
    """A buffer of an engine whose memory is the host's."""

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


class Pruner:
    """An engine that leaves random rows of random tokens. ``place``: where it computes."""

    def __init__(self, place: Place, gather: Gather) -> None:
        keep = TensorSpec("keep", "int64")
        self.spec = GraphSpec(
            "pruner", (keep, *(TensorSpec(n, "float32") for n in ("view", "projected"))), ()
        )
        self.place, self.gather, self.random = place, gather, np.random.default_rng(1)
        self.fed: list[Any] = []

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.fed.append(feeds["projected"])
        share, size = int(feeds["keep"]), feeds["view"].size
        count = max(1, share - 1)  # as of a method that may leave less than its budget
        kept = np.full((1, share), -1)
        kept[0, :count] = np.sort(self.random.permutation(size)[:count])
        tokens = self.random.standard_normal((1, share, WIDTH)).astype("float32")
        found = {"tokens": tokens, "kept": kept, "count": np.array([count])}
        return {name: self.place(each) for name, each in found.items()}


def after_vision(
    kind: str, place: Place, gather: Gather, folder: Path
) -> tuple[list[VisualTokens], list[Any]]:
    """Encode two images in tiles, or in two steps if ``kind`` is "steps"; also return the pruner's feeds."""
    random = np.random.default_rng(2)
    method = MethodInfo("some", ("pruner",), fixed_keep=5 if kind == "merged" else None)
    np.save(folder / "image_newline.npy", random.standard_normal(WIDTH).astype("float16"))
    settings = {"kind": "anyres", "tile": 4, "pinpoints": [[4, 8], [8, 4], [8, 8]]}
    manifest = SimpleNamespace(image=settings, grid=(4, 4), method=method, num_visual_tokens=16)
    pruner = Pruner(place, gather)
    engines = {"vision_encoder": None} | ({"pruner": pruner} if kind in ("pruned", "steps") else {})
    bundle = SimpleNamespace(manifest=manifest, file=lambda name: folder / name)
    vision, found = VisionStages(bundle, engines, None, None), []
    for size in ((90, 61), (40, 80)):
        plan = image_processor(settings).token_layout(size, (4, 4))
        tokens = random.standard_normal((plan.tiles, 16, WIDTH)).astype("float32")
        outputs: dict[str, Any] = {"projected": place(tokens)}
        if kind == "steps":
            plan = single((8, 4))
            outputs = {"projected": Rows.join([Rows(place(tokens[:1])), Rows(place(tokens[1:2]))])}
        elif kind == "merged":
            kept = np.sort(random.permuted(np.tile(np.arange(16), (plan.tiles, 1)), axis=1)[:, :5], axis=1)
            left = {"tokens": tokens[:, :5].copy(), "kept": kept, "count": np.full(plan.tiles, 5)}
            owner = random.integers(-1, 5, (plan.tiles, 16))
            outputs = {name: place(each) for name, each in (left | {"owner": owner}).items()}
        found.append(vision.prune(ImageFeatures(outputs, plan, None), {}, plan.total - 1, Clock()))
    return found, pruner.fed


@pytest.mark.parametrize("kind", ["whole", "pruned", "merged", "steps"])
def test_tokens_stay_on_the_device_from_the_encoder_to_the_prompt(
    kind: str, cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are those that are put together where everything lies in the host's memory."""
    engine, whole = gathering(tmp_path), TrtBuffer.numpy
    home = device()
    text = Rows(np.random.default_rng(3).standard_normal((1, 9, WIDTH)).astype("float16"))

    def integers(buffer: TrtBuffer) -> np.ndarray:
        assert buffer.dtype == "int64", "tokens are copied to the host"
        return whole(buffer)

    def prompt(place: Place, gather: Gather) -> list[Any]:
        (one, other), fed = after_vision(kind, place, gather, tmp_path)
        rows = Rows.join([text.take([1, 2]), one.tokens, text.take([4]), other.tokens, text.take([0, 8])])
        parts = [gather("rows", rows.take(part)) for part in np.array_split(np.arange(len(rows)), 3)]
        return [*parts, *fed]

    with monkeypatch.context() as patch:
        patch.setattr(TrtBuffer, "numpy", integers)
        got = prompt(lambda array: on_device(home, array), engine.gather)
    expected = prompt(
        lambda array: array.view(Host), lambda name, rows: rows.numpy("float32")[None].view(Host)
    )
    assert all(isinstance(each, TrtBuffer) for each in got)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)

"""The exported graph of ocvtp makes the published selections, at full size too.

It is also compared with a literal transcription, and its own rules are tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from foveate.export import methods
from foveate.export.methods import ocvtp
from foveate.export.methods._ocvtp_network import SlotPruner
from foveate.export.other_checkpoints import pruner_weights

FOLDER = Path(__file__).parents[2] / "golden" / "ocvtp"
CASES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9].json"))
FILLS = {"meanq": "received", "cls": "cls"}
WEIGHTS = {name: torch.from_numpy(value) for name, value in np.load(FOLDER / "ocvtp_weights.npz").items()}


class Case:
    """A published selection: its arrays, the method with its options, a bench of its sizes."""

    def __init__(self, bench, name: str) -> None:
        given = json.loads((FOLDER / f"{name}.json").read_text())["hyperparameters"]
        self.arrays = dict(np.load(FOLDER / f"{name}.npz"))
        self.keep = int(self.arrays["keep"])
        options = {"top_k": given["top_k"], "fill": FILLS[given["att_selection_mode"]]}
        self.method = ocvtp.Method(**options)
        self.bench = bench((int(self.arrays["grid_h"]), int(self.arrays["grid_w"])), vision_width=64)
        object.__setattr__(self.bench.spec.vision, "depth", 23)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        found = self.bench.inputs(self.method, 0)
        hidden, fill = self.method.taps(self.bench.spec)
        assert (hidden, fill.partition(".")[2]) == ("hidden.8", "22")
        found[hidden] = torch.from_numpy(self.arrays["hidden_8"])
        received = self.arrays.get("received_attention")
        fills = {"received_attention.22": received}
        if self.method.fill == "cls":
            fills = {"cls_attention.22": self.arrays["cls_attention_with_cls"][:, 1:]}
        return found | {fill: torch.from_numpy(np.ascontiguousarray(fills[fill]))}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that all cases share, and this case's noise, from which its slots start."""
        found = {name: value.T.contiguous() if value.ndim == 2 else value for name, value in WEIGHTS.items()}
        start = torch.from_numpy(self.arrays["slots_init"])
        noise = torch.zeros(self.bench.size + 1, start.shape[2])
        noise[: start.shape[1]] = ((start - found["initializ.mean"]) / found["initializ.logstd"].exp())[0]
        return found | {"noise": noise}


@pytest.fixture(scope="module")
def graphs():
    return {}


@pytest.mark.parametrize("name", CASES)
def test_same_as_published(bench, graphs, tmp_path, name):
    case = Case(bench, name)
    key = case.bench.size, case.method
    if key not in graphs:
        case.bench.save(case.method, tmp_path / "pruner.onnx", weights=case.weights)
        graphs[key] = ir.load(tmp_path / "pruner.onnx")
    graphs[key].graph.initializers["pruner.noise"].const_value = ir.tensor(case.weights["noise"].numpy())
    ir.save(graphs[key], tmp_path / "case.onnx")
    session = case.bench.open(tmp_path / "case.onnx")
    tokens, kept, count = session(case.inputs, case.keep)
    assert kept[0].tolist() == case.arrays["expected_kept"][0].tolist() and int(count) == case.keep
    assert torch.equal(tokens[0], case.inputs["projected"][0, kept[0]])


@pytest.mark.parametrize("name", CASES)
def test_slots_and_picks_are_the_published_ones(bench, name):
    case = Case(bench, name)
    network = case.method.module(case.bench.spec).eval()
    network.load_state_dict(case.weights)
    count = case.arrays["slots_init"].shape[1]
    with torch.no_grad():
        slots, attention = network.attend(case.inputs["hidden.8"], case.weights["noise"][None, :count])
    np.testing.assert_allclose(slots, case.arrays["expected_slots_final"], rtol=1e-5, atol=1e-5)
    hits = ocvtp.picks(attention, case.method.top_k)[0].nonzero()[:, 0]
    assert hits.tolist() == case.arrays["expected_slot_hits"][0].tolist()


def published(attention: np.ndarray, fill: np.ndarray, keep: int, top_k: int) -> list[int]:
    """Return the published choice for one image, step by step: attention [S,N], fill [N].

    Of picks that are too many, those with the lowest fill go. The published code drops those that a Python
    set has last.
    """
    target = keep + 1
    pick = {0}
    for row in attention:
        pick |= {int(token) + 1 for token in np.argsort(-row, kind="stable")[:top_k]}
    order = [int(token) + 1 for token in np.argsort(-fill, kind="stable")]
    while len(pick) > target:
        pick.remove(next(token for token in reversed(order) if token in pick))
    rest = [token for token in order if token not in pick]
    pick |= set(rest[: target - len(pick)])
    return sorted(token - 1 for token in pick if token)


@pytest.mark.parametrize("fill", ["received", "cls"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_choice_is_that_of_a_literal_transcription(bench, top_k, fill):
    method, rng = ocvtp.Method(top_k=top_k, fill=fill), np.random.default_rng(top_k)
    for keep in (1, 2, 5, 17, 40, 63, 64):
        count = max(1, (keep + 1) // top_k)
        for sharp in (0.5, 8.0):  # many slots agree; nearly none do
            attention = rng.normal(size=(count, 64)) * sharp + rng.normal(size=64) * 2
            received = rng.random(64)
            taps = {"hidden": None, "fill": received, "slot_attention": np.exp(attention)}
            taps = {k: v if v is None else torch.from_numpy(v)[None].float() for k, v in taps.items()}
            _, kept, _ = method.reduce(torch.zeros(1, 64, 3), taps, keep, (8, 8))
            assert kept[0].tolist() == published(np.exp(attention), received, keep, top_k), (keep, sharp)


def test_the_least_attended_of_too_many_picks_goes():
    keep, size = 5, 16
    chosen = torch.tensor([1, 3, 4, 8, 9, 15])  # six slots, six picks
    received = torch.rand(1, size, generator=torch.Generator().manual_seed(0))
    received[0, 8] = 0.0
    taps = {"hidden": None, "fill": received, "slot_attention": torch.eye(size)[chosen][None]}
    _, kept, _ = ocvtp.Method().reduce(torch.zeros(1, size, 3), taps, keep, (4, 4))
    assert kept[0].tolist() == [1, 3, 4, 9, 15]


def test_equal_tokens_are_picked_in_order():
    """Copies whose attention differs by an engine's rounding tie; a larger difference does not."""
    attention = torch.tensor([[[0.2, 0.5, 0.5 * (1 + 1e-6), 0.1], [0.5, 0.2, 0.1, 0.5 * (1 + 1e-4)]]])
    assert ocvtp.picks(attention)[0].tolist() == [False, True, False, True]
    assert ocvtp.picks(torch.full((1, 3, 5), 1 / 3), top_k=2)[0].tolist() == [True, True, False, False, False]


def test_a_slot_that_gets_nothing_picks_the_first_token():
    assert ocvtp.picks(torch.zeros(1, 2, 4))[0].tolist() == [True, False, False, False]


def test_options_in_the_graph(bench, tmp_path):
    """The graph equals torch at every budget, also where (keep + 1) // top_k is 0.

    TensorRT-RTX compiles it.
    """
    here, method = bench((6, 6)), ocvtp.Method(top_k=4, fill="cls")
    session = here.session(method, tmp_path)
    for keep in (1, 2, 3, 8, 35, 36):
        inputs = here.inputs(method, keep)
        ours, theirs = here.reduce(method, inputs, keep), session(inputs, keep)
        assert all(map(torch.equal, ours, theirs)), keep
    trt = pytest.importorskip("foveate.engines.trt.backend")
    spec = here.save(method, tmp_path / "half.onnx", "float16")
    assert len(trt.compile_plan(tmp_path / "half.onnx", spec)) > 1000


def test_another_seed_is_another_noise_and_the_same_seed_the_same(bench):
    here = bench()
    inputs = here.inputs(ocvtp.Method(), 3)
    kept = [here.reduce(ocvtp.Method(seed=seed), inputs, 40)[1] for seed in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_large_activations_in_half_precision(bench, tmp_path):
    """CLIP has tokens with values in the hundreds; nothing may overflow up to the end of float16."""
    here, method = bench(), ocvtp.Method()
    session = here.session(method, tmp_path, "float16")
    inputs = here.inputs(method, 0, dtype="float16")
    hidden = method.taps(here.spec)[0]
    inputs[hidden] = inputs[hidden] * 100
    inputs[hidden][:, ::7] = 60000 * inputs[hidden][:, ::7].sign()
    ours, theirs = here.reduce(method, inputs, 48), session(inputs, 48)
    assert all(map(torch.equal, ours, theirs))
    network = method.module(here.spec).eval()
    network.load_state_dict(pruner_weights.dummy(network))
    with torch.no_grad():
        assert network(inputs, 48)["slot_attention"].isfinite().all()


def test_the_published_size():
    with torch.device("meta"):
        network = SlotPruner(1024)
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_616_512


def test_at_full_size_the_graph_keeps_what_torch_keeps(bench, tmp_path):
    """Width 1024, 576 tokens, slots 512 wide, 65 and 193 of them."""
    here, method = bench((24, 24), vision_width=1024), ocvtp.Method()
    session = here.session(method, tmp_path)
    for keep in (64, 192):
        inputs = here.inputs(method, keep)
        ours, theirs = here.reduce(method, inputs, keep), session(inputs, keep)
        assert torch.equal(ours[1], theirs[1])
        assert len(set(ours[1][0].tolist()) - set(most_attended(inputs, keep))) > keep // 8  # slots had a say


def most_attended(inputs: dict[str, torch.Tensor], keep: int) -> list[int]:
    received = next(value for name, value in inputs.items() if name.startswith("received"))
    return received[0].topk(keep).indices.tolist()


def test_the_layer_is_the_ninth_of_clip_and_in_proportion_elsewhere(bench):
    here = bench()
    for depth, layer in ((23, 8), (4, 1), (2, 1), (1, 0)):
        object.__setattr__(here.spec.vision, "depth", depth)
        assert methods.load("ocvtp").taps(here.spec) == (f"hidden.{layer}", f"received_attention.{depth - 1}")
    object.__setattr__(here.spec.vision, "depth", 23)
    assert methods.load("ocvtp", {"layer": "-2"}).taps(here.spec)[0] == "hidden.21"

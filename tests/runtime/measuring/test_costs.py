"""The formula against sums by hand, against published figures, and against what a bundle says of itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from foveate.engines.errors import UserError
from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import DecoderSizes, Manifest
from foveate.runtime.cli.inspect import describe
from foveate.runtime.measuring import costs

TERA, MIB = 1e12, 2**20
VICUNA = DecoderSizes(
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=11008,
    vocab_size=32064,
    max_positions=4096,
)
FASTV = costs.Convention(flops_per_mac=1, mlp_matrices=2, causal=False, head=False)  # 4nd^2 + 2n^2d + 2ndm
MACS = costs.Convention(flops_per_mac=1, causal=False)


def even(tokens: int) -> costs.Schedule:
    return ((32, tokens),)


def tera(plan: costs.Schedule, text: int, convention: costs.Convention = costs.EXACT) -> float:
    return costs.prefill_flops(VICUNA, plan, text, convention) / TERA


def left(plan: costs.Schedule, total: int, text: int, convention: costs.Convention = costs.EXACT) -> float:
    """The share of the unpruned FLOPs that is left."""
    return tera(plan, text, convention) / tera(even(total), text, convention)


def test_every_product_of_a_small_decoder_is_counted_once():
    """Multiply-adds counted one matrix and one pair of positions at a time."""
    d, m, heads, kv, width, vocab, text = 6, 10, 3, 1, 4, 17, 2
    sizes = {"num_heads": heads, "num_kv_heads": kv, "head_dim": width, "hidden_size": d}
    decoder = DecoderSizes(num_layers=3, intermediate_size=m, vocab_size=vocab, max_positions=99, **sizes)
    plan = ((1, 5), (2, 3))
    macs = d * vocab
    for visual in (5, 3, 3):
        n = visual + text
        for columns, rows in [(heads * width, d), (kv * width, d), (kv * width, d), (d, heads * width)]:
            macs += n * columns * rows
        macs += 3 * n * d * m
        macs += sum(2 * heads * width for i, j in product(range(n), repeat=2) if j <= i)
    assert costs.prefill_flops(decoder, plan, text) == 2 * macs
    more = sum(costs.prefill_flops(decoder, plan, text + step) * (-1) ** (1 - step) for step in (0, 1))
    assert (
        costs.decode_flops(decoder, plan, text) == more + 2 * d * vocab
    )  # one row more, with its own logits
    assert costs.cache_bytes(decoder, plan, text, "float32") == (7 + 5 + 5) * 2 * kv * width * 4


def test_published_fastvs_formula():
    n, d, m = 576, 4096, 11008
    assert costs.prefill_flops(VICUNA, even(n), 0, FASTV) == 32 * (
        4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m
    )


@pytest.mark.parametrize(("tokens", "published"), [(576, 8.63), (192, 3.56), (128, 2.71), (64, 1.87)])
def test_published_hiprune(tokens, published):
    """Two FLOPs per multiply-add, 80 text tokens."""
    assert tera(even(tokens), 80) == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize(
    ("tokens", "published"), [(576, 9.042), (64, 2.291), (64, 2.293), (64, 2.277)], ids=str
)
def test_published_fsr_cdpruner_vispruner(tokens, published):
    """FSR's table 7: 112 text tokens, or HiPrune's 80 with the vision tower and the projector counted too."""
    tower = costs.vision_flops(
        hidden=1024, intermediate=4096, layers=24, patches=576, patch_size=14, projected=4096
    )
    assert tower / TERA == pytest.approx(0.407, abs=0.001)
    assert tera(even(tokens), 112) == pytest.approx(published, rel=0.006)
    assert tera(even(tokens), 80) + tower / TERA == pytest.approx(published, rel=0.008)


def test_published_cache_of_fsr():
    """288 and 32 MB are MiB, fp16, of the visual tokens alone."""
    assert costs.cache_bytes(VICUNA, even(576), 0) == 288 * MIB
    assert costs.cache_bytes(VICUNA, even(64), 0) == 32 * MIB


def test_published_feather():
    """Share of FLOPs saved on Prismatic with 729 tokens, by FastV's formula without text.

    The union of the first stage has 218 to 299 tokens, and 275 where its overlap is what chance gives.
    """
    most, usual = ((8, 729), (8, 299), (16, 26)), ((8, 729), (8, 275), (16, 24))
    assert 1 - left(usual, 729, 0, FASTV) == pytest.approx(0.64, abs=0.005)
    assert 1 - left(most, 729, 0, FASTV) == pytest.approx(0.63, abs=0.005)
    fastv = ((3, 729), (29, 729 // 4))
    assert 1 - left(fastv, 729, 0, FASTV) == pytest.approx(0.68, abs=0.01)
    assert 1 - left(fastv, 729, 0) == pytest.approx(0.68, abs=0.005)


def test_published_swiftvlm():
    """Multiply-adds of every pair with 69 text tokens.

    Its "FEATHER 192" is FEATHER with its own settings, 217 then 19.
    """
    assert tera(even(576), 69, MACS) == pytest.approx(4.29, rel=0.002)
    assert tera(((2, 576), (30, 166)), 69, MACS) == pytest.approx(1.71, rel=0.003)
    assert tera(((8, 576), (8, 217), (16, 19)), 69, MACS) == pytest.approx(1.82, rel=0.005)


def test_published_feather_at_128_cannot_be():
    """1.44 T is below what eight full layers and the uniform grid alone cost."""
    assert tera(((8, 576), (8, 64), (16, 1)), 69, MACS) > 1.5


def test_published_sparsevlm():
    assert tera(even(576), 0, MACS) == pytest.approx(3.82, rel=0.002)


def test_published_sppruner():
    """67 % saved are 192 of 576 tokens without text; 128 tokens would need some 90 of text."""
    assert 1 - left(even(192), 576, 0, FASTV) == pytest.approx(0.67, abs=0.005)
    assert 1 - left(even(192), 576, 0) == pytest.approx(0.67, abs=0.005)
    assert 1 - left(even(128), 576, 92) == pytest.approx(0.67, abs=0.005)


def ocvtp_flops(tokens: int, slots: int) -> float:
    """FLOPs of OC-VTP's slot pruner.

    They are those of input projection, keys and values, three rounds of attention, GRU and MLP.
    """
    wide, d = 1024, 512
    once = tokens * (wide * 2048 + 2048 * d + 2 * d * d)
    each = slots * (d * d + 6 * d * d + 2 * d * 2048) + 2 * slots * tokens * d
    return 2 * (once + 3 * each)


def test_published_ocvtp():
    """Twice FastV's formula, with 32 text tokens and with 64 of 576 and 160 of 2,880 visual tokens.

    The shares include its own pruner.
    """
    twice = costs.Convention(mlp_matrices=2, causal=False, head=False)
    assert tera(even(2880), 32, twice) == pytest.approx(33.76, abs=0.005)
    assert tera(even(160), 32, twice) == pytest.approx(1.95, abs=0.005)
    for tokens, total, slots, published in ((64, 576, 65, 0.1549), (160, 2880, 161, 0.0585)):
        share = left(even(tokens), total, 32, twice)
        own = ocvtp_flops(total, slots) / TERA / tera(even(total), 32, twice)
        assert share < published
        assert share + own == pytest.approx(published, rel=0.003)


@pytest.fixture
def llava(bundle):
    """The manifest of LLaVA-1.5-7B that prunes before layers 8 and 16."""
    stages = ("vision_encoder", "llm.0", "pruner.0", "llm.1", "pruner.1", "llm.2")
    budgets = {"pruner.0": [[0.001, 0.01], [1.0, 1.0]], "pruner.1": [[0.001, 0.0001], [1.0, 1.0]]}
    manifest = replace(load(bundle).manifest, decoder=VICUNA, num_visual_tokens=576)
    return with_method(manifest, stages=stages, cuts=(8, 16), budgets=budgets)


def with_method(manifest: Manifest, **changes: object) -> Manifest:
    return replace(manifest, methods=(replace(manifest.method, **changes),))


def test_schedule_follows_cuts_and_budgets(llava):
    assert costs.segments(llava) == [("pruner", 8), ("pruner.0", 8), ("pruner.1", 16)]
    assert costs.schedule(llava, "100%") == ((8, 576), (8, 576), (16, 576))
    first, second = round(576 * (1 / 9) ** (2 / 3)), round(576 * (1 / 9) ** (4 / 3))
    assert costs.schedule(llava, 64) == ((8, 576), (8, first), (16, second))
    cost = costs.of(llava, 64, 40)
    assert cost.average_tokens == pytest.approx((8 * 576 + 8 * first + 16 * second) / 32)
    assert cost.flops == costs.prefill_flops(VICUNA, cost.schedule, 40)
    assert cost.decode_flops == costs.decode_flops(VICUNA, cost.schedule, 40) < cost.flops / 100
    assert cost.cache_bytes * 2 == costs.of(llava, 64, 40, "float32").cache_bytes


def test_schedule_of_a_pruner_before_the_decoder(bundle, plain_bundle):
    pruned, plain = load(bundle).manifest, load(plain_bundle).manifest
    assert costs.schedule(pruned, 5) == ((2, 5),)
    assert costs.schedule(plain) == costs.unpruned(plain) == costs.unpruned(pruned) == ((2, 16),)
    with pytest.raises(UserError, match="wrong keep"):
        costs.schedule(pruned, 17)


def test_two_stages_never_grow(llava):
    """A stage cannot bring back what the one before dropped, whatever it is told to keep."""
    both = with_method(llava, stages=("pruner", *llava.stages), budgets={"pruner": [[0.1, 0.05], [1.0, 0.5]]})
    assert costs.schedule(both, "100%") == ((8, 288), (8, 288), (16, 288))


def test_upper_bounds_of_stages_may_exceed_their_budgets(llava):
    """FEATHER's union: 172 to 236 tokens of 576, then at most 21; on Prismatic 218 to 299 of 729, then 26."""
    methods = pytest.importorskip("foveate.export.methods")
    parts = pytest.importorskip("foveate.export.spec")
    decoder = parts.DecoderSpec(4096, 11008, 32, 32, 32, 128, 32064, 1e-5, 1e4, 4096, False)

    def model(side: int):
        return parts.ModelSpec(
            "llava", parts.ClipVisionSpec(14 * side, 14, 64, 64, 1, 1, "gelu", 1e-5), decoder, ()
        )

    feather = methods.load("feather")
    assert feather.leaves(model(27), 218, 729) == {"pruner.0": 299, "pruner.1": 26}
    assert feather.leaves(model(24), 172, 576) == {"pruner.0": 236, "pruner.1": 21}
    budgets = pytest.importorskip("foveate.export.pruning.budgets")
    limits = budgets.sampled(576, lambda keep: feather.leaves(model(24), keep, 576))
    here = with_method(llava, budgets={}, limits=limits)
    for keep in (1, 32, 64, 172, 192, 300, 576):
        exact = feather.leaves(model(24), keep, 576)
        got = costs.schedule(here, keep)
        assert [count for _, count in got[1:]] == pytest.approx([*exact.values()], rel=0.02, abs=1)


@pytest.mark.parametrize("keep", [64, 96, 128, 192])
def test_the_clusters_of_sparsevlm_are_part_of_its_published_budgets(keep: int) -> None:
    """Only with them its lists come to the budgets that they are for, as the mean over 32 layers."""
    methods = pytest.importorskip("foveate.export.methods")
    parts = pytest.importorskip("foveate.export.spec")
    decoder = parts.DecoderSpec(4096, 11008, 32, 32, 32, 128, 32064, 1e-5, 1e4, 4096, False)
    model = parts.ModelSpec("llava", parts.ClipVisionSpec(336, 14, 64, 64, 1, 1, "gelu", 1e-5), decoder, ())
    left = methods.load("sparsevlm").leaves(model, keep, 576).values()
    layers = 2, 4, 9, 17  # the authors count a pruning layer as pruned
    assert costs.average_tokens(tuple(zip(layers, (576, *left), strict=True))) == pytest.approx(keep, abs=1)


def test_measured_schedule(llava):
    stages = {"pruner.0": np.arange(217), "pruner.1": np.arange(19)}
    assert costs.measured(llava, stages) == ((8, 576), (8, 217), (16, 19))
    assert costs.measured(llava, {"pruner": np.arange(96)} | stages)[0] == (8, 96)


def test_inspect_shows_what_budgets_cost(bundle, plain_bundle):
    facts = describe(load(bundle), text_tokens=4)["costs"]
    assert facts["text_tokens"] == 4
    assert [row["keep"] for row in facts["budgets"]] == ["100%", "33.3%", "22.2%", "11.1%", "5.6%"]
    whole, third, *_ = facts["budgets"]
    assert (whole["schedule"], whole["saved"]) == ([[2, 16]], 0)
    assert (third["schedule"], third["average_tokens"]) == ([[2, 5]], 5)
    assert third["saved"] == 1 - third["flops"] / whole["flops"] > 0.5
    assert third["cache_bytes"] == {"float32": 9 * 2 * 2 * 2 * 8 * 4}
    assert [row["keep"] for row in describe(load(plain_bundle))["costs"]["budgets"]] == ["100%"]


def test_inspect_prints_a_table(bundle, capsys):
    from foveate.runtime import cli

    assert cli.main(["inspect", str(bundle), "--text-tokens", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("costs "))
    assert "4 text tokens" in lines[start]
    assert lines[start + 1].split() == [
        *("keep", "layers", "0..1", "average", "GFLOPs", "saved", "float32", "cache")
    ]
    assert lines[start + 2].split()[:3] == ["100%", "16", "16"]
    assert len({len(line) for line in lines[start + 1 : start + 7]}) == 1
    assert cli.main(["inspect", str(bundle), "--text-tokens", "-1"]) == 2

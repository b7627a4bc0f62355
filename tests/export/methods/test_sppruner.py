"""sppruner against a slow transcription of its description, cue by cue and token by token, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods

VARIANTS = [
    {},
    {"relevance": "none"},
    {"relevance": "clip"},
    {"relevance": "clip", "sign": "positive", "pool": "max"},
    {"pool": "max", "sign": "negative"},
    {"saliency": "received", "layer": "0"},
    {"scale": "rank"},
    {"interplay": "product"},
    {"interplay": "max"},
    {"interplay": "noisy_or", "scale": "rank"},
    {"eta": "4"},
    {"rho": "0"},
    {"rho": "1"},
    {"rho": "0.3", "gamma": "2", "eps": "0.2"},
    {"gamma": "0"},
    {"gamma": "0.5", "structure": "projected"},
    {"window": "5", "proximity": "0"},
    {"proximity": "4"},
    {"path": "serpentine"},
    {"path": "raster"},
    {"mu": "0.5"},
    {"mu": "1", "path": "serpentine", "rho": "0.25"},
]

EXPORTED = [  # every branch of the code once
    {"relevance": "none", "path": "serpentine", "rho": "0"},
    {"relevance": "clip", "pool": "max", "interplay": "max"},
    {"scale": "rank", "interplay": "noisy_or", "gamma": "0.5"},
    {"structure": "projected", "window": "5", "proximity": "0", "path": "raster", "interplay": "product"},
    {"mu": "0.5", "rho": "0.3", "saliency": "received"},
]


# ------------------------------------------------------------------ the transcription, written as a walk


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def scaled(values: list[float], how: str) -> list[float]:
    if how == "rank":
        return [(sum(o < v for o in values) + sum(o == v for o in values) / 2) / len(values) for v in values]
    low, high = min(values), max(values)
    return [(v - low) / (high - low + 1e-6) for v in values]


def subject(method, tokens: np.ndarray, taps: dict[str, np.ndarray]) -> list[float]:
    attention = next(value for name, value in taps.items() if "attention" in name)
    s = scaled(list(attention), method.scale)
    if method.relevance == "none":
        return s
    clip = method.relevance == "clip"
    patches, words = (taps["clip_image"], taps["clip_text"]) if clip else (tokens, taps["text_embeds"])
    words = [word for word in words if word.any()]
    if not words:
        return s
    pool = {"mean": np.mean, "max": np.max}[method.pool]
    sign = {"auto": -1 if clip else 1, "positive": 1, "negative": -1}[method.sign]
    r = scaled([sign * pool([cosine(patch, word) for word in words]) for patch in patches], method.scale)
    join = {
        "sum_product": lambda a, b: (a + b) / 2 + method.eta * a * b,
        "product": lambda a, b: a * b,
        "max": max,
        "noisy_or": lambda a, b: 1 - (1 - a) * (1 - b),
    }[method.interplay]
    return [join(a, b) for a, b in zip(s, r, strict=True)]


def square(i: int, grid: tuple[int, int], window: int) -> list[int]:
    """The cells around cell ``i`` and itself."""
    rows, columns = grid
    y, x = divmod(i, columns)
    reach = range(-(window // 2), window // 2 + 1)
    return [
        (y + dy) * columns + x + dx
        for dy in reach
        for dx in reach
        if 0 <= y + dy < rows and 0 <= x + dx < columns
    ]


def divergence(features: np.ndarray, grid: tuple[int, int], window: int) -> list[float]:
    values = []
    for i in range(len(features)):
        others = [j for j in square(i, grid, window) if j != i]
        values.append(1 - np.mean([cosine(features[i], features[j]) for j in others]) if others else 1.0)
    return values


def hilbert(order: int) -> list[tuple[int, int]]:
    """Hilbert's curve of ``2^order`` cells a side as (row, column), by its L-system."""
    text = "A"
    for _ in range(order):
        text = "".join({"A": "+BF-AFA-FB+", "B": "-AF+BFB+FA-"}.get(c, c) for c in text)
    cells, heading = [(0, 0)], (0, 1)  # over the quadrants: down, right, up
    for c in text:
        if c == "F":
            cells.append((cells[-1][0] + heading[0], cells[-1][1] + heading[1]))
        elif c in "+-":
            heading = (heading[1], -heading[0]) if c == "+" else (-heading[1], heading[0])
    return cells


def path(kind: str, grid: tuple[int, int]) -> list[int]:
    rows, columns = grid
    if kind == "hilbert":
        cells = hilbert((max(grid) - 1).bit_length())
        return [y * columns + x for y, x in cells if y < rows and x < columns]
    lines = [list(range(y * columns, (y + 1) * columns)) for y in range(rows)]
    if kind == "serpentine":
        lines = [line[::-1] if y % 2 else line for y, line in enumerate(lines)]
    return [i for line in lines for i in line]


def level(weights: dict[int, float], shares: int) -> float:
    """Set heavy tokens aside, one share each, until the others fit into what is left."""
    rest, left = dict(weights), shares
    while True:
        share = sum(rest.values()) / left
        heavy = [i for i, w in rest.items() if w > share * (1 + 1e-12)]
        if not heavy:
            return share
        left -= len(heavy)
        for i in heavy:
            del rest[i]


def transcription(method, tokens, taps, keep, grid):
    """Rows, kept, and how near the closest decision was to falling the other way."""
    phi = subject(method, tokens, taps)
    order = sorted(range(len(phi)), key=lambda i: (-phi[i], i))
    in_focus = int(method.rho * keep + 0.5)
    focus = set(order[:in_focus])
    margin = phi[order[in_focus - 1]] - phi[order[in_focus]] if 0 < in_focus < len(phi) else np.inf
    rows = {i: tokens[i] for i in focus}
    shares = keep - in_focus
    if shares:
        d = scaled(divergence(taps.get("features", tokens), grid, method.window), method.scale)
        weights = {}
        for i in path(method.path, grid):
            if i not in focus:
                around = square(i, grid, 5)
                near = sum(j in focus for j in around) / len(around)
                weights[i] = (d[i] + method.eps) ** method.gamma * (1 + method.proximity * near)
        share = level(weights, shares)
        weights = {i: min(w, share) for i, w in weights.items()}
        share = sum(weights.values()) / shares
        covered, runs, samples = 0.0, [[] for _ in range(shares)], []
        for i, w in weights.items():
            runs[min(int((covered + w / 2) / share), shares - 1)].append(i)
            covered += w
            target = (len(samples) + 0.5) * share
            if covered >= target:
                samples.append(i)
            margin = min(margin, abs(covered - target) / share)
            margin = min(margin, abs(covered - w - target) / share)
        for i, run in zip(samples, runs, strict=True):
            rows[i] = (1 - method.mu) * tokens[i] + method.mu * np.mean(tokens[run], axis=0)
    kept = sorted(rows)
    return np.array([rows[i] for i in kept]), kept, margin


# ------------------------------------------------------------------ tests


def smooth_inputs(here, method, seed):
    """Random inputs whose features vary slowly in one part of the image and fast in another."""
    inputs = here.inputs(method, seed)
    weight = torch.linspace(0, 1, here.size)[None, :, None]
    for name in {"features", "projected"} & inputs.keys():
        inputs[name] = inputs[name] * weight + 0.5 * torch.ones_like(inputs[name])
    return inputs


@pytest.mark.parametrize("grid", [(12, 12), (9, 16)], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_equals_the_transcription(bench, options, grid):
    here, method = bench(grid), methods.load("sppruner", options)
    compared = 0
    for seed, keep in enumerate((1, 2, 16, 32, 48, 72, 100, 130, 143)):
        inputs = smooth_inputs(here, method, seed)
        literal = {name: value[0].double().numpy() for name, value in inputs.items()}
        tokens = literal["projected"]
        rows, kept, margin = transcription(method, tokens, literal, keep, grid)
        if margin < 2e-5:  # too near a tie for float32 to be held to
            continue
        compared += 1
        ours = here.reduce(method, inputs, keep)
        assert ours[1][0].tolist() == kept, (seed, keep)
        assert np.abs(ours[0][0].double().numpy() - rows).max() < 1e-5
    assert compared >= 7


@pytest.mark.parametrize("options", EXPORTED, ids=str)
def test_onnxruntime_keeps_what_torch_keeps(bench, options, tmp_path):
    here, method = bench(), methods.load("sppruner", options)
    session = here.session(method, tmp_path)
    for seed, keep in enumerate((1, 16, 32, 48, 96, 143, 144)):
        inputs = smooth_inputs(here, method, 50 + seed)
        ours, theirs = here.reduce(method, inputs, keep), session(inputs, keep)
        assert torch.equal(ours[1], theirs[1]), (seed, keep)
        assert (ours[0] - theirs[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options", [{"relevance": "clip", "mu": "0.5"}, {"scale": "rank", "pool": "max"}], ids=str
)
def test_tensorrt_rtx_compiles_the_other_branches(bench, options, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from foveate.engines.trt import backend as trt

    spec = bench((24, 24)).save(methods.load("sppruner", options), tmp_path / "pruner.onnx", "float16")
    assert len(trt.compile_plan(tmp_path / "pruner.onnx", spec)) > 1000


def test_blended_rows_leave_the_focus_and_the_full_set_alone(bench):
    here, method = bench(), methods.load("sppruner", {"mu": "0.5", "rho": "0.5"})
    inputs = here.inputs(method, 0, dtype="float16")
    tokens = inputs["projected"]
    assert torch.equal(here.reduce(method, inputs, here.size)[0], tokens)
    rows, kept, _ = here.reduce(method, inputs, 32)
    same = (rows[0] == tokens[0, kept[0]]).all(-1)
    assert same.sum() >= 16 and (~same).sum() >= 8


@pytest.mark.parametrize("relevance", ["embeddings", "clip"])
def test_without_a_question_relevance_is_left_out(bench, relevance):
    here = bench()
    method, plain = (methods.load("sppruner", {"relevance": r}) for r in (relevance, "none"))
    inputs = here.inputs(method, 0)
    text = "text_embeds" if relevance == "embeddings" else "clip_text"
    asked = here.reduce(method, inputs, 32)[1]
    padded = torch.cat([inputs[text], torch.zeros_like(inputs[text])], dim=1)
    assert torch.equal(here.reduce(method, inputs | {text: padded}, 32)[1], asked)
    silent = here.reduce(method, inputs | {text: torch.zeros_like(inputs[text][:, :1])}, 32)[1]
    assert torch.equal(silent, here.reduce(plain, inputs, 32)[1])
    assert not torch.equal(silent, asked)


def test_the_question_draws_the_focus(bench):
    here, method = bench(), methods.load("sppruner", {"rho": "1"})
    inputs = here.inputs(method, 0)
    inputs["cls_attention.2"] = torch.full_like(inputs["cls_attention.2"], 1 / here.size)
    inputs["projected"][0, 77] = inputs["text_embeds"][0].sum(0) * 3
    assert here.reduce(method, inputs, 1)[1].tolist() == [[77]]
    away = methods.load("sppruner", {"rho": "1", "sign": "negative"})
    assert 77 not in here.reduce(away, inputs, here.size - 1)[1][0]


def test_focus_can_be_switched_off(bench):
    here, method = bench(), methods.load("sppruner", {"rho": "0"})
    inputs = here.inputs(method, 0)
    other = inputs | {"cls_attention.2": inputs["cls_attention.2"].flip(1)}
    assert torch.equal(here.reduce(method, inputs, 32)[1], here.reduce(method, other, 32)[1])


def test_saliency_follows_what_the_family_offers(bench):
    spec = bench().spec
    assert methods.load("sppruner").taps(spec) == ("cls_attention.2", "features", "text_embeds")
    blind = type(spec)("qwen", spec.vision, spec.decoder, ("features", "received_attention"))
    assert methods.load("sppruner").taps(blind)[0] == "received_attention.2"
    assert methods.load("sppruner", {"layer": "0"}).taps(blind)[0] == "received_attention.0"


def literal_walk(d: list[float], order: list[int], eps: float) -> list[int]:
    """The sampler as described: stop, look at the structure here, jump by a stride that it sets."""
    kept, at = [], 0
    while at < len(order):
        kept.append(order[at])
        at += max(1, round((1 + eps) / (d[order[at]] + eps)))
    return kept


def test_sampling_is_as_dense_as_the_literal_walk(bench):
    """Over many images, regions of low and high divergence get tokens in the walk's proportions."""
    here, eps = bench((24, 24)), 0.2
    method = methods.load("sppruner", {"relevance": "none", "rho": "0", "eps": str(eps)})
    order, generator = path("hilbert", here.grid), torch.Generator().manual_seed(0)
    bands = np.tile(np.repeat([0, 1, 2], 8), 24)  # left flat, middle between, right structured
    walked, sampled = np.zeros(3), np.zeros(3)
    for seed in range(12):
        inputs = here.inputs(method, seed)
        noise = torch.randn(1, 24, 24, 32, generator=generator)
        amount = torch.tensor([0.1, 0.7, 3.0]).repeat_interleave(8)[None, None, :, None]
        inputs["features"] = (1 + amount * noise).reshape(1, 576, 32)
        d = scaled(divergence(inputs["features"][0].double().numpy(), here.grid, 3), "minmax")
        walk = literal_walk(d, order, eps)
        walked += np.bincount(bands[walk], minlength=3)
        sampled += np.bincount(bands[here.reduce(method, inputs, len(walk))[1][0]], minlength=3)
    assert sampled.sum() == walked.sum()
    assert walked[0] * 1.5 < walked[1] and walked[1] * 1.2 < walked[2], walked
    assert np.abs(sampled / walked - 1).max() < 0.25, (sampled, walked)

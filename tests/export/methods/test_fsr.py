"""fsr against a slow transcription of the paper's equations, token by token, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveate.export import methods

VARIANTS = [
    {},
    {"rho": "0.3"},
    {"relevance": "embeddings", "rho": "0.5"},
    {"relevance": "none", "rho": "0.2"},
    {"sign": "negative", "rho": "0.4", "kappa": "0.5"},
    {"alpha": "1", "beta": "2", "rho": "0.1", "kappa": "3"},
    {"kappa": "0", "rho": "0.3"},
    {"structure": "features", "layer": "0", "rho": "0"},
]
BUDGETS = (1, 2, 9, 16, 32, 48, 72, 100, 130, 144)


# ------------------------------------------------------------------ the transcription


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def stretched(values: list[float]) -> list[float]:
    return [(v - min(values)) / (max(values) - min(values) + 1e-6) for v in values]


def subject(method, tokens, taps) -> list[float]:
    """Equations 1 to 3."""
    saliency = next(value for name, value in taps.items() if "attention" in name)
    s = stretched(list(saliency))
    clip = method.relevance in ("auto", "clip")
    patches = taps["clip_image"] if clip else tokens
    text = taps["clip_text"] if clip else taps.get("text_embeds", [])
    text = [t for t in text if np.any(t)]
    if method.relevance == "none" or not text:
        return [x**method.beta for x in s]
    sign = {"positive": 1, "negative": -1}[method.sign]
    r = stretched([sign * np.mean([cosine(v, t) for t in text]) for v in patches])
    return [a**method.alpha * b**method.beta for a, b in zip(r, s, strict=True)]


def transcription(method, tokens, taps, keep):
    """Return rows by token, where each token went, and how close the closest decision was."""
    phi = subject(method, tokens, taps)
    order = sorted(range(len(phi)), key=lambda i: (-phi[i], i))
    margin, total, focus = np.inf, sum(phi), []
    for i in order:  # equation 4
        focus.append(i)
        held = sum(phi[j] for j in focus)
        margin = min(margin, abs(held - method.rho * total) / max(total, 1e-300))
        if held >= method.rho * total:
            break
    focus = focus[:keep]
    if len(focus) < len(order):
        margin = min(margin, phi[order[len(focus) - 1]] - phi[order[len(focus)]])
    v = taps["features"] if method.structure == "features" else tokens
    near = np.array([[cosine(a, b) for b in v] for a in v])
    scan = []
    while len(focus) + len(scan) < keep:  # equation 5
        rest = [i for i in range(len(v)) if i not in focus and i not in scan]
        gaps = {i: min(1 - near[i][j] for j in focus + scan) for i in rest}
        best = max(rest, key=lambda i: (gaps[i], -i))
        margin = min([margin, *(gaps[best] - gap for i, gap in gaps.items() if i != best)])
        scan.append(best)
    rows = {i: tokens[i].copy() for i in focus + scan}
    went = {i: i for i in rows}
    dropped = [i for i in range(len(v)) if i not in rows]
    if scan and dropped:  # equations 8 and 9
        anchor = {i: max(scan, key=lambda j: (near[i][j], -j)) for i in dropped}
        for i in dropped:
            margin = min([margin, *(near[i][anchor[i]] - near[i][j] for j in scan if j != anchor[i])])
        dropped.sort(key=lambda i: (-near[i][anchor[i]], i))
        merged = dropped[: int(method.kappa * len(scan))]
        if 0 < len(merged) < len(dropped):
            last, first = merged[-1], dropped[len(merged)]
            margin = min(margin, near[last][anchor[last]] - near[first][anchor[first]])
        weight = {j: phi[j] for j in scan}
        for i in merged:
            j = anchor[i]
            if weight[j] + phi[i] > 0:
                rows[j] = (weight[j] * rows[j] + phi[i] * tokens[i]) / (weight[j] + phi[i])
            if phi[i] > 0:
                went[i] = j
            weight[j] += phi[i]
    return rows, went, margin


# ------------------------------------------------------------------ tests


def literal(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value[0].double().numpy() for name, value in inputs.items()}


@pytest.mark.parametrize("grid", [(12, 12), (7, 19)], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_equals_the_transcription(bench, options, grid):
    here, method = bench(grid), methods.load("fsr", options)
    compared = mixed = 0
    for seed, keep in enumerate(min(budget, here.size) for budget in BUDGETS):
        inputs = here.inputs(method, seed)
        taps = literal(inputs)
        rows, went, margin = transcription(method, taps["projected"], taps, keep)
        if margin < 3e-6:  # too near a tie for float32 to be held to
            continue
        compared += 1
        ours = here.reduce(method, inputs, keep)
        order = sorted(rows)
        assert ours[1][0].tolist() == order, (seed, keep)
        assert ours[3][0].tolist() == [order.index(went[i]) if i in went else -1 for i in range(here.size)]
        assert np.abs(ours[0][0].double().numpy() - [rows[i] for i in order]).max() < 1e-5
        mixed += sum((rows[i] != taps["projected"][i]).any() for i in rows)
    assert compared >= 6
    assert mixed if method.kappa else not mixed


@pytest.mark.parametrize(
    "options", [{"rho": "0.3"}, {"relevance": "embeddings", "structure": "features", "rho": "0.5"}], ids=str
)
def test_onnxruntime_computes_what_torch_computes(bench, options, tmp_path):
    here, method = bench(), methods.load("fsr", options)
    session = here.session(method, tmp_path)
    for seed, keep in enumerate((1, 16, 32, 48, 96, 143, 144)):
        inputs = here.inputs(method, 50 + seed)
        ours, theirs = here.reduce(method, inputs, keep), session(inputs, keep)
        assert all(map(torch.equal, ours[1:], theirs[1:])), (seed, keep)
        assert (ours[0] - theirs[0]).abs().max() < 1e-5


def test_focus_rows_stay_as_they_are(bench):
    here, method = bench(), methods.load("fsr", {"rho": "0.3"})
    inputs = here.inputs(method, 0, dtype="float16")
    rows, kept, *_ = here.reduce(method, inputs, 48)
    phi = method.subject(inputs["projected"], {tap: inputs[tap] for tap in method.taps(here.spec)})
    focus = set(phi[0].topk(int(method.focus_size(phi))).indices.tolist())
    same = (rows[0] == inputs["projected"][0, kept[0]]).all(-1)
    assert focus <= set(kept[0].tolist()) and 0 < len(focus) < 48
    assert all(same[i] for i, token in enumerate(kept[0].tolist()) if token in focus)
    assert (~same).sum() >= 5


@pytest.mark.parametrize("relevance", ["clip", "embeddings"])
def test_without_a_question_relevance_is_left_out(bench, relevance):
    here = bench()
    method, plain = (methods.load("fsr", {"relevance": r, "rho": "0.5"}) for r in (relevance, "none"))
    inputs = here.inputs(method, 0)
    text = "clip_text" if relevance == "clip" else "text_embeds"
    asked = here.reduce(method, inputs, 32)[1]
    padded = torch.cat([inputs[text], torch.zeros_like(inputs[text])], dim=1)
    assert torch.equal(here.reduce(method, inputs | {text: padded}, 32)[1], asked)
    silent = here.reduce(method, inputs | {text: torch.zeros_like(inputs[text][:, :1])}, 32)
    assert torch.equal(silent[1], here.reduce(plain, inputs, 32)[1])
    assert not torch.equal(silent[1], asked)


def test_anchors_without_weight_are_no_division_by_zero(bench):
    """A constant cue makes every phi 0: nothing has a weight, so nothing is merged and nothing is NaN."""
    here, method = bench(), methods.load("fsr", {"relevance": "none"})
    inputs = here.inputs(method, 0)
    inputs["cls_attention.2"] = torch.full_like(inputs["cls_attention.2"], 0.1)
    rows, kept, *_ = here.reduce(method, inputs, 32)
    assert torch.equal(rows[0], inputs["projected"][0, kept[0]])


def test_taps_follow_what_the_family_offers(bench):
    spec = bench().spec
    assert methods.load("fsr").taps(spec) == ("cls_attention.2", "clip_image", "clip_text")
    blind = type(spec)("qwen", spec.vision, spec.decoder, ("features", "received_attention"))
    assert methods.load("fsr").taps(blind) == ("received_attention.2", "text_embeds")

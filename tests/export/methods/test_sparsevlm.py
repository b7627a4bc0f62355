"""sparsevlm against a slow transcription of the published code, token by token, in float64."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.engines.errors import UserError
from foveate.export import methods
from foveate.export.build import build
from foveate.export.checkpoints.module_weights import fill
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.llm.budget import stage_keep
from foveate.runtime.pipeline import Pipeline


class Margin:
    """The margin of the closest decision, as a share of the values compared."""

    def __init__(self) -> None:
        self.least = np.inf

    def best(self, score: dict[int, float], number: int) -> list[int]:
        """The ``number`` of highest score, in its order."""
        order = sorted(score, key=lambda i: (-score[i], i))
        self.between(*(score[i] for i in order[number - 1 : number + 1]))
        return order[:number]

    def between(self, *values: float) -> None:
        low, *high = sorted(values)
        if high:
            self.least = min(self.least, (high[0] - low) / max(abs(low), abs(high[0]), 1e-300))


def raters(known, margin: Margin) -> list[int]:
    visual = [i for rows in known.images for i in rows]
    text = list(range(visual[-1] + 1, len(known.image)))
    m = dict.fromkeys(text, 0.0)
    for i in visual:
        likeness = np.array([known.inputs_embeds[i] @ known.inputs_embeds[t] for t in text])
        weight = np.exp(likeness - likeness.max())
        for t, share in zip(text, weight / weight.sum(), strict=True):
            m[t] += share / len(visual)
    mean = sum(m.values()) / len(m)
    margin.least = min([margin.least, *(abs(value / mean - 1) for value in m.values())])
    return [t for t in text if m[t] > mean]


def scores(method, here, known, rate: list[int], margin: Margin) -> np.ndarray:
    attention = known.attention.copy()
    heads = list(range(len(attention)))
    if method.version == "2":
        half = here.spec.head_dim // 2
        angle = known.position_ids[:, None] / here.spec.rope_theta ** (np.arange(half) / half)
        for i in range(attention.shape[1]):
            for j in range(attention.shape[2]):
                alone = 2 * np.cos(angle[i] - angle[j]).sum() / np.sqrt(here.spec.head_dim)
                attention[:, i, j] /= alone
        visual = known.image >= 0
        mass = {h: attention[h][rate][:, visual].sum() for h in heads}
        heads = margin.best(mass, min(method.heads, len(mass)))
    return attention[heads][:, rate].mean((0, 1))


def clusters(hidden: np.ndarray, tokens: list[int], margin: Margin) -> list[np.ndarray]:
    """DPC-kNN: means of the clusters of ``tokens``, the most standing peak first."""
    number = int(len(tokens) / 10) + 1
    far = {
        (a, b): np.linalg.norm(hidden[a] - hidden[b]) / np.sqrt(hidden.shape[1])
        for a in tokens
        for b in tokens
    }
    density = {a: np.exp(-np.mean(sorted(far[a, b] ** 2 for b in tokens)[:number])) for a in tokens}
    for low, high in pairwise(sorted(density.values())):
        if low < high:  # of mutual neighbours both are equally dense
            margin.between(low, high)
    standing = {}
    for a in tokens:
        above = [far[a, b] for b in tokens if (-density[b], b) < (-density[a], a)]
        standing[a] = min(above, default=max(far.values())) * density[a]
    peaks = margin.best(standing, number)
    values = [standing[a] for a in peaks]
    for pair in pairwise(values):
        margin.between(*pair)
    groups: dict[int, list[int]] = {peak: [peak] for peak in peaks}
    for a in tokens:
        if a not in groups:
            ways = sorted(peaks, key=lambda peak: far[a, peak])
            margin.between(*(far[a, peak] for peak in ways[:2]))
            groups[ways[0]].append(a)
    return [np.mean([hidden[a] for a in groups[peak]], axis=0) for peak in peaks]


def pruned(method, here, feeds, layer: int, rate: list[int] | None) -> SimpleNamespace:
    """Rows and what each was (-1: a cluster), with the raters' new rows."""
    known, margin = here.reference(feeds, layer), Margin()
    rate = raters(known, margin) if rate is None else rate
    score = scores(method, here, known, rate, margin)
    rows, was = [], []
    for i in range(known.images[0][0]):
        rows, was = [*rows, known.hidden[i]], [*was, i]
    for number, image in enumerate(known.images):
        keep = int(known.keep[image[0]])
        stays = sorted(margin.best({i: score[i] for i in image}, min(keep, len(image))))
        rows, was = rows + [known.hidden[i] for i in stays], was + stays
        dropped = [i for i in image if i not in stays]
        if dropped and method.version == "1":
            taken = margin.best({i: score[i] for i in dropped}, int(len(dropped) * 0.3) + 1)
            made = clusters(known.hidden, taken, margin)
            rows, was = rows + made, was + [-1] * len(made)
        following = known.images[number + 1][0] if number + 1 < len(known.images) else len(known.hidden)
        for i in range(image[-1] + 1, following):
            rows, was = [*rows, known.hidden[i]], [*was, i]
    return SimpleNamespace(
        rows=np.array(rows), was=was, raters=[was.index(i) for i in rate], margin=margin.least
    )


def carried(feeds, rate: list[int]) -> torch.Tensor:
    flags = torch.zeros(feeds["image"].shape)
    flags[0, rate] = 1
    return flags


@pytest.mark.parametrize("options", [{}, {"version": "2", "heads": "2"}, {"version": "2"}], ids=str)
@pytest.mark.parametrize("layout", [(5, -64, 9), (3, -30, 4, -64, 6), (0, -40, 12), (2, -30, 190)], ids=str)
def test_equals_the_transcription(model, options, layout):
    method = methods.load("sparsevlm", options)
    here, compared = model(method), 0
    for seed, keep in enumerate((1, 6, 15, 23, 29)):
        for stage in (0, 1):
            feeds = here.prompt(10 * seed + stage, keep, layout)
            size = feeds["image"].shape[1]
            rate = list(range(size - max(2, layout[-1] - 90), size)) if stage else None
            feeds["carried.raters"] = carried(feeds, rate or [])
            expected = pruned(method, here, feeds, method.prune_layers(here.spec)[stage].scored, rate)
            if expected.margin < 2e-5:
                continue
            compared += 1
            found = here(feeds, stage)
            count = int(found["count"])
            assert found["kept"][0, :count].tolist() == expected.was, (seed, stage)
            assert (found["kept"][0, count:] == -1).all()
            assert np.abs(found["tokens"][0, :count].double().numpy() - expected.rows).max() < 1e-4
            assert torch.where(found["carry.raters"][0, :count] == 1)[0].tolist() == expected.raters
    assert compared >= 5


def test_clusters_compete_later(model):
    """A cluster that the raters look at stays, as a row that was a mixture already."""
    here = model(methods.load("sparsevlm"))
    feeds = here.prompt(0, keep=10)
    found = here(feeds)
    count = int(found["count"])
    kept = found["kept"][0, :count]
    mixtures = torch.where(kept == -1)[0].tolist()
    assert mixtures == [15, 16] and count == 5 + 12 + 9  # 54 dropped, 17 of them in 2 clusters
    later = here.prompt(1, keep=11, layout=(5, -12, 9)) | {
        "hidden": found["tokens"][:, :count],
        "carried.raters": found["carry.raters"][:, :count],
    }
    again = here.left(later, 1)
    assert len(again) == 5 + 11 + 1 + 9 and again.count(-1) == 1 and again[16] == -1


def test_a_stage_that_may_keep_all_changes_nothing(model):
    here = model(methods.load("sparsevlm"))
    for keep in (64, 100):
        feeds = here.prompt(0, keep)
        found = here(feeds)
        assert torch.equal(found["tokens"], feeds["hidden"])
        assert found["kept"][0].tolist() == list(range(78))


def test_words_alike_all_rate(model):
    """No token is above the mean: none is left out."""
    here = model(methods.load("sparsevlm"))
    feeds = here.prompt(0)
    feeds["inputs_embeds"][0, 69:] = 0.3
    assert here(feeds)["carry.raters"].sum() == 9
    silent = here.prompt(0, layout=(5, -64))
    assert torch.where(here(silent)["carry.raters"][0] == 1)[0].tolist() != []


@pytest.mark.parametrize("version", ["1", "2"])
def test_published_numbers(model, version):
    """Lists and the averages that the authors name; a cluster for every 33 dropped tokens or so."""
    method = methods.load("sparsevlm", {"version": version})
    points = method.budgets(None)
    lists = {
        "1": {64: [66, 30, 17], 96: [238, 48, 26], 128: [303, 110, 36], 192: [300, 200, 110]},
        "2": {64: [66, 34, 20], 96: [246, 54, 28], 128: [238, 108, 60], 192: [300, 200, 118]},
    }[version]
    for average, numbers in lists.items():
        assert [stage_keep(points[f"pruner.{stage}"], average, 576) for stage in range(3)] == numbers
        schedule, left = [576, 576], 576
        for number, layers in zip(numbers, (4, 9, 17), strict=True):
            merged = int((int((left - number) * 0.3) + 1) / 10) + 1 if version == "1" else 0
            left = number + merged
            schedule += [left] * layers
        assert abs(np.mean(schedule) - average) < 1
    assert [stage_keep(points[f"pruner.{stage}"], 576, 576) for stage in range(3)] == [576] * 3
    assert [stage_keep(points[f"pruner.{stage}"], 32, 576) for stage in range(3)] == [
        int(n / 2 + 0.5) for n in lists[64]
    ]


def test_positions_follow_the_version():
    assert methods.load("sparsevlm").position_mode == "compact"
    assert methods.load("sparsevlm", {"version": "2"}).position_mode == "keep"
    assert methods.load("sparsevlm", {"version": "2", "position_mode": "compact"}).position_mode == "compact"


def test_layers(model):
    method = methods.load("sparsevlm")
    assert [(c.layer, c.scored) for c in method.prune_layers(model(method, layers=32).spec)] == [
        (3, 2),
        (7, 6),
        (16, 15),
    ]
    for layers in ("2,6", "6,2,15", "2,2,6"):
        with pytest.raises(UserError, match="three layers") as error:
            model(methods.load("sparsevlm", {"layers": layers}))
        assert error.value.code == 2
    with pytest.raises(UserError, match="cannot prune before layer 16"):
        model(methods.load("sparsevlm", {"layers": "2,6,15"}))


@torch.no_grad()
def answered(here, method, prompt: torch.Tensor, behind: torch.Tensor, before: int, keep: int) -> int:
    """Return the token that follows: all rows go through all layers in torch.

    Pruners see the rows of ``prompt [1,T,D]`` alone, in which an image of 64 stands behind ``before`` rows.
    """
    decoder, cuts = here.parts.decoder, method.prune_layers(here.spec)
    hidden, size, first, known = torch.cat([prompt, behind], 1), prompt.shape[1], 0, {}
    image = torch.full((1, size), -1)
    image[:, before : before + 64] = 0
    positions = torch.arange(hidden.shape[1])[None]
    for stage, end in enumerate([*(cut.layer for cut in cuts), here.spec.num_layers]):
        length = hidden.shape[1]
        past = [torch.zeros(1, 2, length, 32) for _ in range(2 * here.spec.num_layers)]
        start = torch.zeros(1, dtype=torch.int64)
        layers = decoder.layers[first:end]
        hidden, entering, _ = decoder.run(layers, hidden, positions, start, past)
        if stage == len(cuts):
            return int(decoder.logits(hidden, torch.tensor([length - 1])).argmax())
        given = stage_keep(method.budgets(None)[f"pruner.{stage}"], keep, 64)
        known |= {
            "hidden": hidden,
            "scored": entering[cuts[stage].scored - first],
            "inputs_embeds": entering[0],
        }
        known |= {"image": image, "position_ids": positions, "keep": (image + 1) * given}
        found = here({name: value[:, :size] for name, value in known.items()}, stage)
        count = int(found["count"])
        hidden = torch.cat([found["tokens"][:, :count], hidden[:, size:]], 1)
        kept = found["kept"][0, :count].tolist()
        for row, was in enumerate(kept):
            kept[row] = kept[row - 1] if was < 0 else was  # a cluster stands where the row before it stands
        image = image[:, kept]
        positions = torch.cat([positions[:, kept], positions[:, size:]], 1)
        if method.position_mode == "compact":
            positions = torch.arange(hidden.shape[1])[None]
        known["carried.raters"], size, first = found["carry.raters"][:, :count], count, end


def test_the_runtime_hands_clusters_and_raters_on(model, tmp_path):
    method = methods.load("sparsevlm")
    here = model(method, layers=4)
    build(here.parts, method, tmp_path / "bundle", precision="fp32", dialects=["ort"])
    compile_bundle(tmp_path / "bundle")
    chat = Pipeline.load(tmp_path / "bundle").chat()
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    answer = chat.ask("What is left of the bus?", [Image.fromarray(noise)], keep=20, max_new_tokens=4)
    left = answer.stages[0]
    assert all(-1 in left[f"pruner.{stage}"] for stage in range(3))
    items = chat._decoder.items
    image = next(item for item in items if not isinstance(item, int))
    before = items.index(image)
    end = answer.timings.prompt_rows - 63
    table = torch.from_numpy(np.array(chat._model.bundle.embeddings()))
    text = table[items[:before]], torch.from_numpy(image.tokens.numpy()), table[items[before + 1 : end]]
    prompt = torch.cat(text)[None]
    fill(here.parts.decoder, here.parts.weights, "llm.")
    for number, token in enumerate(answer.tokens):
        behind = table[answer.tokens[:number]][None]
        assert answered(here, method, prompt, behind, before, 20) == token, number

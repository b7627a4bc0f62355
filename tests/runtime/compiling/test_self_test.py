"""``foveate check`` finds what is right right, and planted faults."""

from __future__ import annotations

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from often import often

from foveate.engines.errors import UserError
from foveate.runtime import cli
from foveate.runtime.bundle import manifest
from foveate.runtime.bundle.compiled import choose
from foveate.runtime.bundle.loading import load, write_manifest
from foveate.runtime.cli.check import main
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.comparison import LIMITS, Kept, Limits, NearTies, compare_kept, compare_logits
from foveate.runtime.compiling.compile import compile_bundle
from foveate.runtime.compiling.self_test import replay


def test_a_good_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert "fine: 8 files, 13 answers" in printed
    findings = list(replay(load(bundle), choose(load(bundle))))
    assert [(f.graph, f.answer) for f in findings] == [
        ("vision_encoder", "projected"),
        ("vision_encoder", "cls_attention.1"),
        ("pruner", "tokens, kept"),
        *(
            ("llm", f"{answer}{how}")
            for how in ("", ", in pieces")
            for answer in ("logits", *(f"present.{i}.{kind}" for i in range(2) for kind in ("key", "value")))
        ),
    ]
    assert all(f.error < 1e-5 for f in findings)
    assert {f.agreement for f in findings} == {None, 1.0}


def test_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["limits"]["llm"] == {"cosine": 0.99999, "error": 1e-3, "noise": 1e-4, "swaps": 0.01}


@pytest.mark.parametrize("fault", ["mask", "corner", "swap", "stale", "scale", "rope"])
@pytest.mark.parametrize("limits", often(LIMITS, ("float32", "float16, fp8")))  # the narrowest, the widest
def test_planted_faults(make_bundle: Any, fault: str, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under the limits that leave room for rounded activations."""
    root = make_bundle(fault=fault)
    monkeypatch.setitem(LIMITS, "float32", LIMITS[limits])
    with pytest.raises(UserError, match="the graph llm is wrong on this machine"):  # it proves itself
        compile_bundle(root)
    compile_bundle(root, self_test=False)
    with pytest.raises(UserError, match="the graph llm is wrong on this machine") as error:
        main([str(root)])
    assert error.value.code == 1


def test_a_mask_from_the_wrong_corner_shows_in_pieces_alone(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is right for a prompt at once and for single rows, so nothing else finds it."""
    root = make_bundle(fault="corner")
    compile_bundle(root, self_test=False)
    found = {f.answer: f.ok for f in replay(load(root), choose(load(root))) if f.graph == "llm"}
    assert not found["logits, in pieces"] and not found["present.1.key, in pieces"]
    assert all(ok for answer, ok in found.items() if "pieces" not in answer)


@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 5, 8, 9, 40, 620])
def test_pieces_of_a_prompt(prompt: int) -> None:
    """They cover it. A long one has single rows, and ends with a piece of several rows."""
    pieces = self_test._pieces(prompt)
    assert pieces[0][0] == 0 and pieces[-1][1] == prompt
    assert all(end == start for (_, end), (start, _) in pairwise(pieces))
    assert prompt == 1 or pieces[0] == (0, 1)
    sizes = [end - start for start, end in pieces]
    assert prompt < 8 or (sizes.count(1) >= 3 and sizes[1] > 2 and sizes[-1] > 1)
    assert len(pieces) <= 7


def test_a_prompt_longer_than_an_engine_takes_at_once(
    make_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded one has 9 rows."""
    monkeypatch.setattr(manifest, "PREFILL_ROWS", 4)
    compile_bundle(root := make_bundle())
    assert all(finding.ok for finding in replay(load(root), choose(load(root))))


def altered(bundle: Path, tmp_path: Path, change: Any) -> Path:
    """The bundle with another golden.npz."""
    root = shutil.copytree(bundle, tmp_path / "altered")
    with np.load(root / "golden.npz") as golden:
        arrays = dict(golden)
    change(arrays)
    np.savez(root / "golden.npz", **arrays)
    write_manifest(root, json.loads((root / "bundle.json").read_text()))
    return root


def first_wrong(root: Path) -> str:
    findings = list(replay(load(root), choose(load(root))))
    return next((f"{f.graph} {f.answer}" for f in findings if not f.ok), "")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vision_encoder.out.cls_attention.1", "vision_encoder cls_attention.1"),
        ("pruner.out.tokens", "pruner tokens, kept"),
        ("llm.out.logits", "llm logits"),
        ("llm.out.present.1.value", "llm present.1.value"),
    ],
)
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_one_wrong_number(bundle: Path, tmp_path: Path, name: str, wrong: str, value: float) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] += value

    assert first_wrong(altered(bundle, tmp_path, change)) == wrong


def pickled(root: Path) -> None:
    with np.load(root / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(root / "golden.npz", **arrays | {"llm.out.logits": np.array([{}, None], object)})


def edited(root: Path, change: Any, name: str = "golden.npz") -> None:
    (root / name).write_bytes(change((root / name).read_bytes()))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickled, "Object arrays"),
        (lambda root: edited(root, lambda content: content[:-200]), "zip"),
        (lambda root: edited(root, lambda content: content[:200] + b"?" * 99 + content[299:]), ""),
        (lambda root: edited(root, lambda content: b""), ""),
        (lambda root: edited(root, lambda content: pickle.dumps({})), "pickle"),
        (lambda root: np.save((root / "golden.npz").open("wb"), np.zeros(3)), "no archive"),
        (lambda root: np.savez(root / "golden.npz", other=np.zeros(3)), "it has no vision_encoder"),
    ],
)
def test_recorded_answers_that_cannot_be_read(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, words: str
) -> None:
    root = shutil.copytree(bundle, tmp_path / "damaged")
    damage(root)
    write_manifest(root, json.loads((root / "bundle.json").read_text()))
    assert cli.main(["check", str(root)]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "golden.npz is damaged | " in told and words in told and told.count(" | ") == 2


@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[:-9], lambda c: b"?" * 99 + c, pickle.dumps])
def test_a_table_of_embeddings_that_cannot_be_read(bundle: Path, tmp_path: Path, change: Any) -> None:
    root = shutil.copytree(bundle, tmp_path / "damaged")
    edited(root, change, "embed_tokens.npy")
    write_manifest(root, json.loads((root / "bundle.json").read_text()))
    with pytest.raises(UserError, match=r"embed_tokens\.npy is damaged"):
        load(root).embeddings()


def test_another_patch(bundle: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        kept = arrays["pruner.out.kept"]
        kept[0, -1] = next(i for i in range(16) if i not in kept)

    root = altered(bundle, tmp_path, change)
    assert first_wrong(root) == "pruner tokens, kept"


def test_a_few_swapped_patches_are_excused_by_the_limits() -> None:
    class Output:
        def __init__(self, value: Any) -> None:
            self.value = np.asarray(value)

        def numpy(self) -> np.ndarray:
            return self.value

    class Swapped:
        class spec:  # noqa: N801, an attribute of the stand-in
            inputs = ()

        def run(self, feeds: Any) -> dict[str, Output]:
            kept = np.delete(np.arange(101), 40)
            return {"tokens": Output(rows[None, kept]), "kept": Output(kept[None]), "count": Output([100])}

    rows = np.random.default_rng(0).standard_normal((101, 8))
    golden = {
        "pruner.out.kept": np.delete(np.arange(101), 60)[None],
        "pruner.out.tokens": np.delete(rows, 60, axis=0)[None],
        "pruner.out.count": np.array([100]),
    }
    (one,) = self_test._replay_pruner("pruner", Swapped(), golden, LIMITS["float32"])
    assert (one.ok, one.agreement, one.excused) == (True, 0.99, 1)
    (none,) = self_test._replay_pruner("pruner", Swapped(), golden, Limits(0.9, 0.1, 0.0, 0.0))
    assert not none.ok


def kept(*patches: int) -> Kept:
    """Return an answer that keeps these patches, with random tokens that belong to each patch."""
    table = np.random.default_rng(0).standard_normal((16, 8))
    return Kept(np.array(patches), table[list(patches)])


@pytest.mark.parametrize(
    ("got", "tied", "fine"),
    [
        (kept(0, 3, 5), [], True),
        (kept(0, 3, 6), [], False),
        (kept(0, 3, 6), [5, 6], True),
        (kept(0, 3, 6), [5], False),
        (kept(0, 4, 6), [5, 6], False),
        (kept(0, 3), [5], True),
        (kept(0, 3), [], False),
        (kept(0, 3, 5, 6), [6], True),
        (kept(7, 8, 9), [0, 3, 5, 7, 8, 9], False),  # nothing to compare
    ],
)
def test_choices_of_a_pruner(got: Kept, tied: list[int], fine: bool) -> None:
    finding = compare_kept(
        "pruner", got, kept(0, 3, 5), NearTies(np.array(tied), np.array([])), LIMITS["float32"]
    )
    assert finding.ok is fine


def test_a_mixture_that_hangs_on_a_near_tie() -> None:
    expected = Kept(np.array([0, -1]), np.ones((2, 8)))
    got = Kept(np.array([0, -1]), np.stack([np.ones(8), np.arange(8)]))
    none, tied = NearTies(np.array([]), np.array([])), NearTies(np.array([]), np.array([1]))
    assert not compare_kept("pruner", got, expected, none, LIMITS["float32"]).ok
    assert compare_kept("pruner", got, expected, tied, LIMITS["float32"]).ok


def test_a_wrong_choice_is_named(bundle: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["pruner.out.kept"][0, -1] = 15 if 15 not in arrays["pruner.out.kept"] else 14

    root = altered(bundle, tmp_path, change)
    wrong = next(finding for finding in replay(load(root), choose(load(root))) if not finding.ok)
    assert self_test.seen(wrong).endswith("% the same choice")


def test_near_ties_are_excused_and_others_not() -> None:
    limits = LIMITS["float32"]
    expected = np.array([[0.0, 10.0, 9.999], [10.0, 0.0, -3.0]])
    got = np.array([[0.0, 9.9985, 9.9995], [10.0, 0.0, -3.0]])
    tied = compare_logits("llm", "logits", got, expected, limits)
    assert (tied.ok, tied.agreement, tied.excused) == (True, 0.5, 1)
    loose = Limits(cosine=0.0, error=0.02, noise=0.0, swaps=0.0)
    far = compare_logits("llm", "logits", np.array([[0.0, 9.8, 9.9]]), np.array([[0.0, 10.0, 9.5]]), loose)
    assert not far.ok


def test_without_golden(bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(bundle, tmp_path / "copy")
    (root / "golden.npz").unlink()
    write_manifest(root, json.loads((root / "bundle.json").read_text()))
    with pytest.raises(UserError, match=r"no golden\.npz"):
        main([str(root)])


def test_a_changed_engine(bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(bundle, tmp_path / "copy")
    (file,) = (root / "engines").glob("*/llm.data")
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"llm\.data has changed since it was compiled.*foveate compile"):
        main([str(root)])

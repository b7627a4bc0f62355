"""Plans: the best budget, what fits, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.jetson.device.devices import device
from foveate.jetson.planner import model_sizes, roofline
from foveate.jetson.planner.memory import memory
from foveate.jetson.planner.plan import best_keep, main, plan
from foveate.runtime.measuring import costs

ROOT = Path(__file__).parents[3]
NANO, AGX = device("orin-nano-8gb"), device("agx-orin-64gb")


def test_fewer_tokens_are_sooner():
    """Vision does not change, prefill about in proportion to the rows."""
    m = model_sizes.model("llava-1.5-7b", "sppruner")
    many, few = (roofline.times(m, AGX, m.schedule(keep)) for keep in (576, 128))
    assert many.vision == few.vision and many.per_token > few.per_token
    assert 2.5 < many.prefill / few.prefill < (576 + 40) / (128 + 40)


def test_a_model_that_does_not_compile_whole_may_in_parts(capsys):
    m = model_sizes.model("llava-1.5-7b", "sppruner")
    needs = plan(m, NANO, max_context=1024)["memory"]
    parts = needs["llm_parts"]
    assert needs["fits"] and not needs["builds"] and parts > 1
    whole, more, fewer = (memory(m, NANO, max_context=1024, llm_parts=n) for n in (1, parts, parts - 1))
    assert whole.build == needs["build"] and more.build <= NANO.memory < fewer.build
    usual = ["--model", "llava-1.5-7b", "--method", "sppruner", "--device", "orin-nano-8gb"]
    assert main([*usual, "--max-context", "1024"]) == 0
    assert f"it does with `foveate build --llm-parts {parts}`" in capsys.readouterr().out
    assert plan(model_sizes.model("qwen3-vl-8b"), device("orin-nano-4gb"))["memory"]["llm_parts"] is None
    assert model_sizes.model("llava-1.5-7b", "fastv").most_layers == 30  # behind its cut


@pytest.mark.parametrize("method", ("sppruner", "pyramiddrop", "tome"))
def test_the_best_budget_is_the_largest_in_time(method):
    m = model_sizes.model("llava-1.5-7b", method)
    keep = best_keep(m, AGX, 0.25)

    def first(keep):
        return roofline.times(m, AGX, m.schedule(keep)).first_token

    assert 1 < keep < 576 and first(keep) <= 0.25 < first(keep + 1)
    assert best_keep(m, AGX, 0.01) is None and best_keep(m, AGX, 10) == 576
    assert best_keep(model_sizes.model("llava-1.5-7b"), AGX, 10) == 576


def test_precision_decides_what_fits_and_what_the_device_can():
    four, sixteen = (
        plan(model_sizes.model("llava-1.5-7b", precision=p), NANO, max_context=1024)["memory"]
        for p in ("int4", "fp16")
    )
    assert four["fits"] and not sixteen["fits"]
    with pytest.raises(UserError, match="has no FP8"):
        plan(model_sizes.model("llava-1.5-7b", precision="fp8"), NANO)
    assert plan(model_sizes.model("llava-1.5-7b", precision="fp8"), device("agx-thor"))["memory"]["fits"]


def test_no_fit_is_promised_that_is_none(capsys):
    """An Orin Nano has no room for a cache of 4,096 rows, 2.15 GB, beside weights and scratch."""
    usual = ["--model", "llava-1.5-7b", "--method", "sppruner", "--keep", "128", "--device", "orin-nano-8gb"]
    long = [*usual, "--max-context", "4096"]
    assert main([*long, "--json"]) == 0
    needs = json.loads(capsys.readouterr().out)["memory"]
    assert needs["cache"] == 2 * 32 * 4096 * 4096 * 2 and not needs["fits"] and not needs["builds"]
    context, m = needs["fitting_context"], model_sizes.model("llava-1.5-7b")
    for dialect in ("native", "primitive"):
        assert not plan(m, NANO, max_context=4096, dialect=dialect)["memory"]["fits"]
    assert plan(m, NANO, max_context=context)["memory"]["fits"]
    assert not plan(m, NANO, max_context=context + 256)["memory"]["fits"]
    assert main(long) == 0
    said = capsys.readouterr().out
    lack = (needs["run"] - needs["total"]) / 1e9
    wanted = f"does not fit: {lack:.2f} GB too little; it does with `foveate compile --max-context {context}`"
    assert wanted in said and "an estimate, for 1024 rows at once" in said
    assert "4096 rows, whatever is kept; this answer needs 232" in said
    with pytest.raises(UserError, match="the kv cache is too short"):
        main([*usual, "--max-context", "100"])


def test_a_shorter_cache_makes_tokens_sooner():
    """All its rows are read for each token, whatever is kept."""
    m = model_sizes.model("llava-1.5-7b", "sppruner")
    few, many = (plan(m, NANO, 128, max_context=rows)["tokens_per_second"] for rows in (256, 4096))
    assert few > many == plan(m, NANO, 576, max_context=4096)["tokens_per_second"]


def test_the_page_shows_what_is_printed(capsys):
    """docs/jetson.md's first example."""
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    block = page.split("```console\n$ foveate plan ", 1)[1].split("```", 1)[0]
    command, _, expected = block.partition("\n")
    assert main(command.split()) == 0
    assert capsys.readouterr().out == expected


def test_the_command(capsys):
    arguments = ["--model", "llava-1.5-7b", "--method", "sppruner", "--device", "orin-nano-8gb"]
    assert main([*arguments, "--keep", "128", "--ttft", "0.9", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schedule"] == [[32, 128]] and 128 < facts["ttft"]["keep"] < 576
    assert facts["seconds"]["first_token"] == pytest.approx(
        sum(facts["seconds"][stage] for stage in ("vision", "prune", "prefill"))
    )
    assert main([*arguments, "--ttft", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "no budget is small enough" in out and "estimates" in out


@pytest.mark.parametrize(
    ("extra", "message"),
    (
        (["--method", "vscan+pyramiddrop"], "a pair of methods is planned from its bundle"),
        (["--method", "fastw"], "did you mean fastv"),
        (["--keep", "9999"], "wrong keep"),
        (["--precision", "int3"], "unknown precision"),
        (["--visual-tokens", "100"], "576 visual tokens of every image"),
        (["--text-tokens", "-1"], "wrong text-tokens"),
    ),
)
def test_wrong_usage(extra, message):
    base = ["--model", "llava-1.5-7b", "--device", "orin-nano-8gb", "--method", "sppruner"]
    with pytest.raises(UserError, match=message) as error:
        main([*base, *extra])
    assert error.value.code == 2


def test_a_bundle_plans_itself(make_bundle, capsys):
    """A bundle of any model is planned by the sizes in its bundle.json. One without sizes is refused."""
    root = make_bundle()
    arguments = [str(root), "--device", "orin-nano-8gb", "--keep", "4", "--json"]
    with pytest.raises(UserError, match="does not tell the sizes of its vision encoder"):
        main(arguments)
    manifest = json.loads((root / "bundle.json").read_text())
    sizes = {"kind": "clip", "hidden": 16, "intermediate": 64, "layers": 2, "patch_size": 2, "patches": 16}
    (root / "bundle.json").write_text(json.dumps(manifest | {"vision": sizes}))
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == manifest["name"] and facts["schedule"] == [[2, 4]]
    assert model_sizes.model(str(root)).vision_flops == costs.vision_flops(
        **{key: value for key, value in sizes.items() if key != "kind"}, projected=32
    )


def test_the_power_mode_decides_the_times(capsys):
    """The times of an Orin NX 16GB in the review of its modes: a mode has its own SMs, clock and memory."""

    def planned(*more: str) -> dict:
        base = ["--model", "llava-1.5-7b", "--method", "sppruner", "--keep", "128", "--json"]
        assert main([*base, "--device", "orin-nx-16gb", *more]) == 0
        return json.loads(capsys.readouterr().out)

    default, least = planned(), planned("--mode", "10W")
    assert default["device"]["mode"] == "15W" and default == planned("--mode", "15W")
    first = [planned("--mode", each)["seconds"]["first_token"] for each in ("MAXN", "25W", "15W")]
    assert first == sorted(first) and first[2] / first[0] == pytest.approx(1102 / 376, rel=0.05)
    assert least["seconds"]["prefill"] == default["seconds"]["prefill"]  # the same GPU, slower memory
    assert least["tokens_per_second"] < 0.75 * default["tokens_per_second"]


@pytest.mark.parametrize(
    ("device", "known"),
    [("orin-nx-16gb", "MAXN, 10W, 15W, 25W"), ("orin-nano-8gb", "15W"), ("rtx-4090", "none")],
)
def test_an_unknown_power_mode_is_refused_with_those_known(device, known):
    with pytest.raises(UserError, match=f"known: {known} ") as error:
        main(["--model", "llava-1.5-7b", "--device", device, "--mode", "20W"])
    assert error.value.code == 2


def test_times_are_ranges_as_wide_as_the_error_of_the_fit():
    """An estimate that is off by a share e of the measured time was measured as estimate / (1 + e)."""
    facts = plan(model_sizes.model("llava-1.5-7b"), device("orin-nano-8gb"))
    ends, middle = facts["seconds_range"], facts["seconds"]
    assert ends["from"]["vision"] * 1.097 == pytest.approx(middle["vision"])
    assert ends["to"]["prefill"] * (1 - 0.102) == pytest.approx(middle["prefill"])
    decoding = facts["tokens_per_second_range"]
    assert decoding["from"] == pytest.approx(facts["tokens_per_second"] * (1 - 0.145))
    assert decoding["to"] == pytest.approx(facts["tokens_per_second"] * 1.145)
    assert ends["from"]["first_token"] < middle["first_token"] < ends["to"]["first_token"]

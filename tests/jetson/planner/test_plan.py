"""Plans: held to published measurements, to the methods themselves, and to a bundle's own manifest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.engines.errors import UserError
from foveate.engines.trt.profiles import settled
from foveate.export.models import families, family
from foveate.export.networks.qwen_vision_spec import WindowSpec
from foveate.export.spec import ClipVisionSpec
from foveate.jetson.device.devices import device
from foveate.jetson.planner import model_sizes, roofline
from foveate.jetson.planner.memory import memory
from foveate.jetson.planner.plan import best_keep, main, plan
from foveate.runtime.bundle.loading import load
from foveate.runtime.bundle.manifest import PrecisionInfo
from foveate.runtime.measuring import costs
from generated import fit_plan

ROOT = Path(__file__).parents[3]
NANO, AGX = device("orin-nano-8gb"), device("agx-orin-64gb")


def test_the_committed_efficiencies_are_those_of_the_published_measurements():
    assert fit_plan.fits() == roofline.fitted()


@pytest.mark.parametrize("stage", ("vision", "prefill", "decode"))
def test_errors_stay_below_20_percent_where_it_was_not_fitted(stage):
    """A row, or a whole device, left out of the fit."""
    rows = fit_plan.published()["fit"]
    for key in (id, lambda row: row["device"]):
        errors = [abs(e) for _, e in fit_plan.left_out(rows, stage, key)]
        assert len(errors) >= 7 and max(errors) < 0.2, errors


def test_other_engines_and_people_measured_much_the_same():
    errors = [
        fit_plan.error(roofline.fitted()[stage], sample)
        for row in fit_plan.published()["held_out"]
        for stage, take in fit_plan.STAGES.items()
        if (sample := take(row))
    ]
    assert len(errors) == 9 and max(map(abs, errors)) < 0.21


def test_a_wrong_power_mode_would_be_seen():
    """The modes of the rows are needed: the original NX and the Super Nano are off by more than a fifth."""
    for row in fit_plan.published()["fit"]:
        other = {"orin-nx-16gb-super": "orin-nx-16gb", "orin-nano-8gb": "orin-nano-8gb-super"}.get(
            row["device"]
        )
        if other:
            seconds = fit_plan.prefill(row | {"device": other})
            assert abs(fit_plan.error(roofline.fitted()["prefill"], seconds)) > 0.2


def test_a_schedule_is_that_of_the_bundle():
    """Depths other than 32 move the cuts that go by share, and only those."""
    assert model_sizes.model("llava-1.5-7b", "fastv").schedule(64) == ((2, 576), (30, 64))
    assert [layers for layers, _ in model_sizes.model("llava-1.5-13b", "pyramiddrop").schedule(64)] == [
        10
    ] * 4
    assert [layers for layers, _ in model_sizes.model("llava-1.5-13b", "fastv").schedule(64)] == [2, 38]
    assert model_sizes.model("llava-1.5-7b", "tome").schedule(64) == ((32, 64),)
    assert model_sizes.model("llava-1.5-7b").schedule(None) == ((32, 576),)


def test_sizes_by_hand():
    m = model_sizes.model("llava-1.5-7b", precision="fp16")
    assert m.layer_bytes == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert m.head_bytes == 2 * 32064 * 4096
    assert m.vision_bytes == 2 * (23 * (4 * 1024**2 + 2 * 1024 * 4096) + 1024 * 4096 + 4096**2)
    q = model_sizes.model("qwen2.5-vl-7b")
    assert q.patches == 4 * 391
    assert q.layer_bytes == round(28 * 3584 * (2 * (28 + 4) * 128 + 3 * 18944) * (0.5 + 2 / 128))


def test_a_config_json_is_as_good_as_a_name(tmp_path):
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
    }
    config = {"model_type": "llava", "vision_config": vision, "text_config": {"vocab_size": 32064}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file), "sppruner"), model_sizes.model("llava-1.5-7b", "sppruner")
    assert ours.vision == theirs.vision
    assert replace(ours.decoder, max_positions=0) == replace(theirs.decoder, max_positions=0)
    file.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="cannot plan from"):
        model_sizes.model(str(file))


@pytest.mark.parametrize("name", [name for each in families() for name in family(each).CONFIGS])
def test_the_config_of_every_model_that_is_known_by_name(name, tmp_path):
    """A file as good as the name: a family of known parts needs nothing in jetson."""
    (config,) = (family(each).CONFIGS[name] for each in families() if name in family(each).CONFIGS)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file)).manifest, model_sizes.model(name).manifest
    assert model_sizes.model(str(tmp_path)).manifest.decoder == ours.decoder, "its folder is as good"
    assert (ours.vision, ours.decoder, ours.num_visual_tokens) == (
        theirs.vision,
        theirs.decoder,
        theirs.num_visual_tokens,
    )


def test_images_in_tiles():
    """An image of 640 x 480 in LLaVA-NeXT is a tile and four more, and a newline behind each row.

    Padding of the tiles is not read.
    """
    m = model_sizes.model("llava-v1.6-mistral-7b")
    assert m.manifest.num_visual_tokens == 576 + 36 * (48 + 1)
    assert m.vision_flops == 5 * model_sizes.model("llava-1.5-7b").vision_flops
    assert model_sizes.model("llava-v1.6-mistral-7b", visual_tokens=1152).manifest.num_visual_tokens == 1152


def test_qwen_configs_as_published(tmp_path):
    """Sizes of Qwen3-VL-4B-Instruct and Qwen2.5-VL-7B-Instruct."""
    text = {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
    }
    tower = {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "out_hidden_size": 2560,
    }
    config = {
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": tower,
        "tie_word_embeddings": True,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ours, theirs = model_sizes.model(str(file)), model_sizes.model("qwen3-vl-4b")
    assert (ours.decoder, ours.vision) == (theirs.decoder, theirs.vision)
    assert ours.manifest.num_visual_tokens == 300
    flat = {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
    }
    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    file.write_text(json.dumps({"model_type": "qwen2_5_vl", **flat, "vision_config": tower}))
    ours, theirs = model_sizes.model(str(file)), model_sizes.model("qwen2.5-vl-7b")
    assert (ours.decoder, ours.vision) == (theirs.decoder, theirs.vision)


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


@pytest.mark.parametrize(
    ("dialect", "rows", "reported"),
    [("native", 4096, 371e6), ("native", 1024, 104e6), ("primitive", 4096, 5547e6)],
)
def test_scratch_is_what_the_compiler_reported(dialect, rows, reported):
    """TensorRT for RTX 1.7.1's "Total Activation Memory" of one layer of LLaVA-1.5-7B's sizes, for SM86."""
    needs = memory(model_sizes.model("llava-1.5-7b"), NANO, max_context=rows, dialect=dialect)
    assert needs.scratch == pytest.approx(reported, rel=0.1)


def test_the_cache_is_what_tensorrt_allocates(make_bundle):
    """Every row of ``max_context`` in every layer, whatever is kept."""
    manifest = load(make_bundle()).manifest
    spec = settled(manifest.graphs["llm"].typed("float16"), 96)
    caches = [tensor for tensor in spec.inputs if tensor.name.startswith("past.")]
    sizes = sum(math.prod(tensor.extent("max")) * 2 for tensor in caches)
    assert memory(model_sizes.Model(manifest), NANO, max_context=96).cache == sizes


def test_no_fit_is_promised_that_is_none(capsys):
    """An Orin Nano has no room for LLaVA-1.5-7B's default cache of 2.15 GB beside weights and scratch."""
    usual = ["--model", "llava-1.5-7b", "--method", "sppruner", "--keep", "128", "--device", "orin-nano-8gb"]
    assert main([*usual, "--json"]) == 0
    needs = json.loads(capsys.readouterr().out)["memory"]
    assert needs["cache"] == 2 * 32 * 4096 * 4096 * 2 and not needs["fits"] and not needs["builds"]
    context = needs["fitting_context"]
    for dialect in ("native", "primitive"):
        assert not plan(model_sizes.model("llava-1.5-7b"), NANO, dialect=dialect)["memory"]["fits"]
    assert plan(model_sizes.model("llava-1.5-7b"), NANO, max_context=context)["memory"]["fits"]
    assert not plan(model_sizes.model("llava-1.5-7b"), NANO, max_context=context + 256)["memory"]["fits"]
    assert main(usual) == 0
    said = capsys.readouterr().out
    assert f"does not fit: 6.06 GB too little; it does with `foveate compile --max-context {context}`" in said
    assert "an estimate, for 4096 rows at once" in said
    with pytest.raises(UserError, match="the kv cache is too short"):
        main([*usual, "--max-context", "100"])


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


def test_an_encoder_tells_its_sizes():
    """Sizes of the published towers are the table's, however written: a bundle is planned as its model."""
    table = json.loads((ROOT / "jetson" / "data" / "models.json").read_text())["models"]
    clip = ClipVisionSpec(336, 14, 1024, 4096, 16, depth=23, activation="quick_gelu", layer_norm_eps=1e-5)
    assert clip.sizes == table["llava-1.5-7b"]["vision"]
    qwen = WindowSpec(1280, 3420, 16, 32, (7, 15, 23, 31), window=4, patch_size=14, frames=2, max_tokens=4096)
    assert qwen.sizes == table["qwen2.5-vl-7b"]["vision"]


def test_tiles_are_encoded_one_by_one():
    """Five tiles cost five times one: images of LLaVA-NeXT."""
    m = model_sizes.model("llava-1.5-7b")
    five = model_sizes.Model(replace(m.manifest, num_visual_tokens=5 * 576))
    assert five.vision_flops == 5 * m.vision_flops and five.vision_bytes == m.vision_bytes


def test_quantized_models_need_less_memory():
    m = model_sizes.model("llava-1.5-7b")
    parts = PrecisionInfo("fp32", "int8", "int8")
    less = model_sizes.Model(replace(m.manifest, precision=parts))
    assert less.head_bytes * 2 == m.head_bytes and m.vision_bytes / 2 < less.vision_bytes < m.vision_bytes
    assert less.layer_bytes == model_sizes.model("llava-1.5-7b", precision="fp16").layer_bytes

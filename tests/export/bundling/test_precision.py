"""The precision of each part: what is chosen or refused, and that bundles answer as torch does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from foveate.calib import schemes
from foveate.engines.errors import UserError
from foveate.export import lowering, methods, models
from foveate.export.build import build
from foveate.export.bundling.graph_weights import require_ranges
from foveate.export.bundling.precision import SAFE, Precision, dialects
from foveate.export.calibration.calibrate import Calibration
from foveate.export.models import llava
from foveate.export.networks.decoder import Linear
from foveate.runtime.bundle.compiled import choose
from foveate.runtime.bundle.loading import Bundle, load
from foveate.runtime.bundle.manifest import PrecisionInfo
from foveate.runtime.compiling import self_test
from foveate.runtime.compiling.compile import compile_bundle

MATRIX = (64, 64)
NONE_SEEN = SimpleNamespace(inputs={}.__getitem__)


def test_head_and_vision_encoder_stay_in_the_graphs_dtype_unless_asked_for():
    pick = Precision("int8").choose()
    assert pick("llm.layers.0.mlp.up_proj.weight", MATRIX) == "int8"
    for name in ("llm.lm_head.weight", "vision_encoder.tower.layers.0.mlp.fc1.weight", "pruner.x.weight"):
        assert pick(name, MATRIX) is None
    assert Precision("int8").describe() == PrecisionInfo("int8", SAFE, SAFE)


def test_each_part_has_its_own():
    pick = Precision("int4", head="int8", vision="fp8").choose()
    assert pick("llm.layers.0.mlp.up_proj.weight", MATRIX) == "int4"
    assert pick("llm.lm_head.weight", MATRIX) == "int8"
    assert pick("vision_encoder.tower.layers.0.mlp.fc1.weight", MATRIX) == "fp8"
    assert pick("vision_encoder.projector.linear_1.weight", MATRIX) is None
    assert pick("vision_encoder.tower.layers.0.mlp.fc1.bias", (64,)) is None
    assert pick("llm.layers.0.mlp.up_proj.weight", (48, 64)) is None  # too narrow for a block
    with pytest.raises(UserError, match="48 inputs"):  # it was asked for by itself
        Precision("int4", head="int4").choose()("llm.lm_head.weight", (48, 64))


@pytest.mark.parametrize("family", models.families())
def test_every_family_has_a_vision_encoder_to_quantize(family):
    module = models.family(family).tiny().vision(())
    pick = Precision(vision="int8").choose()
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    chosen = {name for name, shape in shapes.items() if pick(f"vision_encoder.{name}", shape)}
    linear = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, Linear)}
    assert chosen and chosen == {name for name in linear if not name.startswith("projector.")}


@pytest.mark.parametrize("given", [("int5",), ("int4", "int9"), ("int4", None, "fp32")])
def test_unknown_names_are_refused(given):
    with pytest.raises(UserError, match="int8"):
        Precision(*given)


@pytest.mark.parametrize(
    ("precision", "asked", "calibrated", "found"),
    [
        (Precision("int4"), None, False, {"ort", "native"}),
        (Precision("int8"), None, False, {"ort"}),
        (Precision("int8"), None, True, {"ort", "native"}),
        (Precision("fp8"), ["native"], True, {"native"}),
        (Precision("int4", vision="int8"), None, False, {"ort"}),
        (Precision("fp16", head="int4"), None, False, {"ort", "native"}),
    ],
)
def test_dialects_that_can_have_it(precision, asked, calibrated, found):
    names, left_out = dialects(precision, asked, calibrated)
    assert found == set(names) & {"ort", "native"}
    assert set(names) | set(left_out) == set(asked or lowering.names())


@pytest.mark.parametrize(
    ("precision", "asked", "calibrated", "words"),
    [
        (Precision("fp8"), ["ort"], True, "no product of fp8"),
        (Precision("int8"), ["native"], False, "--calibrate"),
        (Precision("fp16", head="int8"), ["ort"], False, "--precision fp32"),
        (Precision("int4"), ["nativ"], False, "did you mean native"),
        (Precision("int4", prefill="int8"), ["native"], False, "--prefill-precision int8 has no dialect"),
    ],
)
def test_dialects_that_cannot_say_why(precision, asked, calibrated, words):
    with pytest.raises(UserError, match=words) as error:
        dialects(precision, asked, calibrated)
    assert error.value.code == 2


def test_every_dialect_answers_for_every_precision():
    for name in lowering.names():
        dialect = lowering.load(name)
        assert set(dialect.dtypes) | set(dialect.refuses) == {"fp32", "fp16", *schemes.names()}
        assert not set(dialect.dtypes) & set(dialect.refuses)


def test_a_range_that_calibration_has_not_seen_is_named():
    needs = [("vision_encoder.tower.layers.0.mlp.fc1.weight", "int8"), ("llm.norm.weight", "float16")]
    require_ranges(needs, lowering.form("ort", "int8"), None)
    require_ranges(needs[1:], lowering.form("native", "int8"), None)
    with pytest.raises(UserError, match=r"vision_encoder\.tower.*has not seen it"):
        require_ranges(needs, lowering.form("native", "int8"), NONE_SEEN)


@pytest.mark.parametrize(
    "precision",
    [Precision("int8", head="int8", vision="int8"), Precision("int4", head="int4", vision="int4")],
)
def test_the_compiled_bundle_answers_as_torch_with_its_weights(tmp_path, precision):
    build(llava.tiny(), methods.load("sppruner"), tmp_path / "b", precision=precision, dialects=["ort"])
    bundle = load(tmp_path / "b")
    assert bundle.manifest.precision == precision.describe()
    compile_bundle(tmp_path / "b")
    findings = list(self_test.replay(bundle, choose(bundle, None)))
    assert findings and not [finding for finding in findings if not finding.ok]


def test_dialects_that_round_differently_have_recordings_of_their_own(tmp_path):
    out, method = tmp_path / "b", methods.load("fastv", {"layer": "1"})
    build(llava.tiny(layers=3), method, out, precision="int8", calibration=Calibration("scenes", 3))
    bundle = load(out)
    recorded = {name: bundle.golden(name) for name in bundle.manifest.dialects}
    assert recorded["native"] == recorded["primitive"] != recorded["ort"]
    for dialect, other in (("ort", "native"), ("primitive", "ort")):
        compile_bundle(out, dialect=dialect, force=True, self_test=False)
        plan = choose(load(out))
        assert plan.dialect == dialect
        findings = list(self_test.replay(bundle, plan))
        assert findings and not [finding for finding in findings if not finding.ok]
        own = max(finding.error for finding in findings)
        dialects = bundle.manifest.dialects
        wrong = dialects | {dialect: replace(dialects[dialect], golden=recorded[other].name)}
        wrong_bundle = Bundle(bundle.path, replace(bundle.manifest, dialects=wrong))
        assert max(finding.error for finding in self_test.replay(wrong_bundle, plan)) > 1.5 * own


def test_dialects_whose_engines_cannot_sort_so_many_tokens_are_left_out():
    int4 = Precision("int4")
    assert dialects(int4, None, False, sorts=3840) == (["native", "ort", "primitive"], {})
    found, left_out = dialects(int4, None, False, sorts=3841)
    assert found == ["ort"] and "sort at most 3840" in left_out["native"]
    with pytest.raises(UserError, match=r"cannot have the dialect native \| an image may have 3841 tokens"):
        dialects(int4, ["native"], False, sorts=3841)

"""scripts/matrix.py: the page says what the results say, and no more."""

from __future__ import annotations

from foveate.export import methods
from maintenance import matrix


def test_every_method_and_precision_is_a_case_of_every_family() -> None:
    cases = set(matrix.cases())
    assert len(cases) == len(matrix.FAMILIES) * (len(methods.names()) - 1 + len(matrix.PRECISIONS))
    assert {("qwen2_5_vl", "feather", "fp16"), ("llava", "none", "fp8")} <= cases


def test_the_page_says_what_was_found() -> None:
    good = {"error": 0.0017, "compiled": "yes", "old": "yes"}
    results = {
        "llava/none/fp16": {
            "ort": {"error": 2e-4},
            "native": good,
            "primitive": {**good, "old": "llm: loops"},
        },
        "llava/fastv/fp16": {"native": {**good, "compiled": "pruner.0: no such kernel"}},
        "llava/none/int4": {"ort": {"error": "the graph llm is wrong"}, "native": good},
        "qwen2_5_vl/tome/fp16": {"refused": "qwen2_5_vl has no merging"},
    }
    page = matrix.page(results)
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    whole, precisions = page.split("## Precisions, without a method")
    assert "| `none` | **2e-03**+ | 2e-04 | **2e-03** | not tried |" in whole
    assert "| `fastv` | 2e-03, not compiled | none | none |" in whole
    assert "refused | refused | refused |" in rows["tome"]
    assert "| `int4` | **2e-03**+ | WRONG | none |" in precisions
    assert "- qwen2_5_vl, tome, fp16: qwen2_5_vl has no merging" in page
    assert "- llava/fastv/fp16, native, not compiled: pruner.0: no such kernel" in page
    assert "- llava/none/int4, ort: the graph llm is wrong" in page

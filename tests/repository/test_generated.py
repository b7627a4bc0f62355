"""Generated files are as the code says: README's tables, pages and data files."""

from __future__ import annotations

import pytest

from foveate.export import methods
from foveate.export.graphs.assemble import taps_of
from foveate.export.models import families, family
from foveate.export.pruning.taps import TEXT_TAPS
from generated import generate


@pytest.mark.parametrize("name", generate.FILES)
def test_generated_files_are_up_to_date(name):
    assert (generate.ROOT / name).read_text(encoding="utf-8") == generate.expected(name), "run make generated"


def test_a_method_that_reads_the_question_before_the_language_model_says_so():
    """Inside it no tap tells: tests/contracts/test_in_llm.py."""
    for name in methods.names():
        method = methods.load(name)
        if method.in_llm is None:
            taps = {tap for each in families() for tap in taps_of(family(each).tiny().spec, method)}
            assert method.reads_question == bool(taps & set(TEXT_TAPS)), name


def test_blocks_that_are_not_in_the_readme_are_noticed():
    with pytest.raises(generate.UserError, match=r"README\.md has 0 blocks families"):
        generate.FILES["README.md"]("# foveate\n")

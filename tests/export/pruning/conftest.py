"""Fixtures of the tests of methods: ``bench`` for pre-LLM pruners, ``model`` for in-LLM pruners."""

from in_llm_bench import model  # noqa: F401
from pre_llm_bench import bench  # noqa: F401

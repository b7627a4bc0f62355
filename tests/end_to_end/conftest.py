"""Fixtures of tests from end to end: bundles that are written by hand, without torch."""

from bundle_by_hand import bundle, make_bundle  # noqa: F401

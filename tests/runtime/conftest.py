"""Fixtures of the runtime: bundles that are written by hand, without torch."""

from bundle_by_hand import bundle, make_bundle, pixels, plain_bundle  # noqa: F401

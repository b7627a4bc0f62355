"""Fixtures of ONNX Runtime: a bundle that is written by hand, without torch."""

from bundle_by_hand import bundle, make_bundle  # noqa: F401

"""A backend in one folder: onnx's reference evaluator. docs/adding-a-backend.md explains it.

It is slow and runs on NumPy arrays. ``tests/end_to_end/test_an_added_backend.py`` compiles, checks and
runs a bundle with it.
"""

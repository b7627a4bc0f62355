"""Graphs of a model with a method: ``assemble`` and ``llm`` build them, ``trace`` exports them to ONNX."""

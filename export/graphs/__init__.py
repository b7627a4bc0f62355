"""Joins the modules of a model and a method to graphs (``assemble``, ``llm``) and traces them to ONNX (``trace``)."""

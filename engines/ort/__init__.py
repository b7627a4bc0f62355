"""ONNX Runtime: compiles a graph to an optimized model with prepacked weights, and runs it."""

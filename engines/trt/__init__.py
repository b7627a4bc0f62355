"""TensorRT and TensorRT for RTX: builds an engine from a graph, and runs it on the GPU."""

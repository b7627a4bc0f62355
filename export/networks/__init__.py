"""Torch modules that are traced to graphs: vision encoders, text encoder, decoder, and ONNX operators."""

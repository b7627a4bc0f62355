"""Torch modules that are traced to graphs: vision encoders, text encoder, decoder, and the ONNX operators that torch lacks."""

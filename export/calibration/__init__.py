"""Runs the model over samples and collects the statistics that quantization needs."""

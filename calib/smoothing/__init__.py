"""Makes weights easier to quantize: AWQ, SmoothQuant, and folding their factors into neighbouring layers."""

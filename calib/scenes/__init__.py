"""Synthetic scenes of coloured shapes: drawing them, and asking about them."""

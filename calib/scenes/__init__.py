"""Synthetic scenes of coloured shapes.

* ``draw``: an image and a list of the things in it, from a seed.
* ``questions``: questions with true answers about a scene.
"""

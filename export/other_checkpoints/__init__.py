"""Reads what a bundle takes from checkpoints other than the model's own.

* ``clip_joint_space``: projections and text tower of the CLIP that the vision tower comes from.
* ``pruner_weights``: the weights of a trained pruner.
"""

"""Images: sources, preprocessing, places of their visual tokens, and drawings of what a pruner kept.

* ``image_source``, ``image_url``: where an image comes from. ``image_file``: it is opened and decoded.
* ``processor``: what a kind of image must do. ``clip``, ``anyres``, ``windows``: one kind each. ``pixels``:
  the normalization that they share.
* ``token_layout``: the visual tokens of an image. ``view``: where they lie on it.
* ``overlay``: drawings.
"""

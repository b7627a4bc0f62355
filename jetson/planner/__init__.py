"""Estimates memory and speed of a model on a device before anything is built.

* ``plan``: the command
* ``model_sizes``, ``model_config``: sizes of a model, from a table, a bundle or a ``config.json``
* ``memory``: the memory that it needs, with the ``scratch`` of the builder
* ``roofline``: the time that it takes
"""

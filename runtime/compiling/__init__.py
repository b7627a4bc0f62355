"""Compiles a bundle for this machine, and tests the engines.

* ``compile``: a bundle into a folder with engines
* ``work_folder``: the folder that is written meanwhile, and the bundle's lock
* ``job``: one graph after another, the self-test, the workarounds
* ``self_test``: the replay of the reference answers that the build recorded
* ``comparison``: an answer beside its reference, and the allowed differences
* ``polygraphy_folder``: a folder with which NVIDIA's Polygraphy compares engines with the same answers, made
  by ``recorded_run``, ``polygraphy_json`` and ``polygraphy_commands``
"""

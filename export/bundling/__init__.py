"""Writes a bundle: graphs, weights, reference answers and settings, then puts it in its place.

``build_bundle`` runs the steps. ``write_graphs``, ``weight_store`` and ``precision`` write graphs and weights, ``reference_run`` records what
they must answer, ``ranges`` how large their values get. ``staging`` and ``publish`` guard the folder of ``--out``.
"""

"""Writes a bundle: graphs, weights, reference answers and settings, then puts it in its place.

``build_bundle`` runs the steps. ``write_graphs``, ``weight_store`` and ``precision`` write graphs and
weights. ``reference_run`` records the reference answers, ``ranges`` the largest values in them. ``staging``
and ``publish`` guard the folder of ``--out``.
"""

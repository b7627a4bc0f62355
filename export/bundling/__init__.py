"""Writes the files of a bundle, and puts it in its place. ``export/build_bundle.py`` runs the steps.

``write_graphs``, ``weight_store`` and ``precision`` write graphs and weights, ``write_files`` the other
files. ``reference_run`` and ``reference_graph`` record the reference answers, ``near_ties`` the choices of
pruners that rounding may change, ``ranges`` the largest values. ``json_schema`` describes ``bundle.json``.
``staging`` and ``publish`` guard the folder of ``--out``.
"""

"""Writes the files of a bundle, and puts it in its place. ``export/build_bundle.py`` runs the steps.

``write_graphs`` and ``precision`` write the graphs, ``weight_store`` their weights, and ``graph_weights``
connects them. ``write_files`` writes the other files. ``reference/`` records the reference answers.
``json_schema`` describes ``bundle.json``. ``staging`` and ``publish`` guard the folder of ``--out``.
"""

"""A bundle on disk.

``manifest`` and ``settings`` are the contents of ``bundle.json``, read and written by ``typed_json``.
``loading`` opens a bundle and checks its files, with ``stamps`` and ``inside``; ``rebuild`` is what it
advises for older formats. ``arrays`` reads arrays, ``licence`` puts licences into words, and ``compiled``
finds the engines compiled from it.
"""

"""A bundle on disk: its manifest and files (``loading``), and the engines compiled from it (``compiled``)."""

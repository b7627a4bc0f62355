"""Compile a bundle for this machine, each graph in its own process, and test the engines (``self_test``)."""

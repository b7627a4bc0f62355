"""Compiles a bundle for this machine, each graph in a process of its own, and proves the engines (``self_test``)."""

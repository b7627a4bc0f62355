"""Training of what the repository brings along.

ocvtp    the pruner of method ocvtp
shapes   the small checkpoint scripts/shapes
"""

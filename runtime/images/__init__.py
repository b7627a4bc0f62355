"""Images: sources, preprocessing, places of their visual tokens, and drawings of what a pruner kept."""

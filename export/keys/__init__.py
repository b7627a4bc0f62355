"""The tables of every key in a checkpoint's settings files: used, irrelevant for a reason, or refused."""

"""Brings a bundle and the runtime to a device, over ssh or as one file."""

"""A checkpoint's settings files as the settings of a bundle: sizes, images, videos, chat template, tokens, generation."""

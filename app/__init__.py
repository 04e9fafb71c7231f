"""Abdominal CT in, a mask of 13 organs out: the inference program of the image."""

__version__ = "1.0.0"

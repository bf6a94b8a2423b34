"""Puts this package's buffers in the place of arroyo's."""

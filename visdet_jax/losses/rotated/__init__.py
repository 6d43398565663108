"""Losses of rotated boxes."""

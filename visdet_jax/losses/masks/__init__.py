"""Losses of masks."""

"""Losses of numbers, element by element."""

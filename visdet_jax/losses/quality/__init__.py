"""Losses of class scores whose target is the quality of a box."""

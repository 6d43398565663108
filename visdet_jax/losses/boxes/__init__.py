"""Losses of boxes, by their overlap and by distributions over bins."""

"""Assigners: which ground truth each prior or query learns."""

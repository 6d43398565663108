"""Samplers: which priors take part in the losses."""

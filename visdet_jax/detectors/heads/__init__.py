"""Heads: from raw outputs and padded ground truth to the losses of a detector."""

"""Match costs: what it costs to match a prediction with a ground truth."""

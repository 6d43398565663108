"""The parts of the training example: data sources, network, FCOS, evaluation and pictures."""

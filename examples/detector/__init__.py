"""The parts of the training examples: data, network, training, evaluation and pictures."""

"""The parts of the training example: data, network, DETR's decoder, evaluation and pictures."""

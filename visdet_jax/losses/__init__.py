"""The losses, one file a loss or a family, in folders by kind."""

"""Programs for accelerators that are not at hand: compiling them, and reading what they do."""

"""Class-incremental learning: the command, and the training of a network over the steps."""

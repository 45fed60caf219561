"""Classes that come in steps: the command, and the training of a network through the steps."""

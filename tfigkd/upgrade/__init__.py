"""Models that Keras 2 saved as files of Keras 3: the command, what it reads, builds and compares."""

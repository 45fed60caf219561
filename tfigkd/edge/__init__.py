"""LiteRT files: convert, compare with Keras, describe, run and time. Only `convert` and `parity` need TensorFlow."""

"""LiteRT files: conversion, comparison with Keras, description, inference and timing.

Only `convert`, `quantizer` and `parity` need TensorFlow.
"""

"""LiteRT files: conversion, comparison with Keras, description, inference and timing.

Only `convert`, `ai_edge_quantizer` and `parity` need TensorFlow.
"""

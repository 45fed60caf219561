"""LiteRT files: conversion, comparison with Keras, description, inference and timing.

Only `convert` and `parity` need TensorFlow.
"""

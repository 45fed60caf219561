"""Smaller students: pruning, clustering, quantization-aware training.

`layers` holds the fake-quantized layers, `quantization` puts a model together from them; `pruning` and `channels` cut
weights and channels; `bridge` is the one way to tfmot; `stage` fine-tunes by the Distiller and leaves the result.
"""

"""Smaller students: pruning, clustering, quantization-aware training.

`layers` holds the fake-quantized layers, `quantization` puts a model together from them; `pruning` and `channels` cut
weights and channels; `bridge` is the one way to tfmot; `stage` fine-tunes by the Distiller and leaves the result.
"""

from typing import Any

_ROOMS = {
    "CompressConfig": "tfigkd.config.compress_fields",
    "MagnitudePruning": "tfigkd.compress.pruning",
    "cut_channels": "tfigkd.compress.channels",
    "fake_quantized": "tfigkd.compress.quantization",
    "sparsity": "tfigkd.compress.pruning",
}


def __getattr__(name: str) -> Any:
    """The names that users of the library want, imported when asked for: the fields must load without Keras."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ROOMS[name]), name)

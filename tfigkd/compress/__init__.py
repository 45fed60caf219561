"""Smaller students: pruning, clustering, quantization-aware training.

`methods` lists the phases of each method, and `finetune` trains each phase with the Distiller. `pruning` removes
weights, `channels` removes channels, `quantization` builds a model from the fake-quantized layers of
`tfigkd.models.fake_quant`, and `tfmot_bridge` is the only module that uses tfmot.
"""

import importlib
from typing import Any

_MODULES = {
    "CompressConfig": "tfigkd.config.compress_fields",
    "MagnitudePruning": "tfigkd.compress.pruning",
    "cut_channels": "tfigkd.compress.channels",
    "fake_quantized": "tfigkd.compress.quantization",
    "sparsity": "tfigkd.compress.pruning",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing this package does not load Keras."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

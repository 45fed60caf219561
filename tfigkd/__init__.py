"""Compress a Keras image classifier by distillation guided by Integrated Gradients, and take it to the edge.

Importing this package has no side effect and loads no TensorFlow; its modules are imported one by one
(`from tfigkd import models`).
"""

from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Distiller": "tfigkd.training.distiller",
    "OverlayStore": "tfigkd.store.overlay_store",
    "integrated_gradients": "tfigkd.attribution",
}


def __getattr__(name: str) -> Any:
    """Return one of the three names that most users want, imported when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)

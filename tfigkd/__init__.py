"""Compress a Keras image classifier by distillation guided by Integrated Gradients, and take it to the edge.

Importing this package has no side effect and loads no TensorFlow; what it offers is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see
    from tfigkd.attribution.integrated_gradients import integrated_gradients as integrated_gradients
    from tfigkd.edge.convert import convert as convert
    from tfigkd.store.overlay_store import OverlayStore as OverlayStore
    from tfigkd.training.distiller import Distiller as Distiller

__version__ = "0.1.0"

_MODULES = {
    "Distiller": "tfigkd.training.distiller",
    "OverlayStore": "tfigkd.store.overlay_store",
    "convert": "tfigkd.edge.convert",
    "integrated_gradients": "tfigkd.attribution",
}
_SUBPACKAGES = ("attribution", "compress", "losses", "models")
__all__ = [*_MODULES, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"tfigkd.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

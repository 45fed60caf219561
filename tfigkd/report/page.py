"""One self-contained HTML page from a template: it loads nothing, and every value in it is escaped.

The HTML and its sentences are in `templates/`; autoescaping is on, and a name that a template uses and nobody gives
is an error. The plotting library is in the page once, compressed; a content security policy admits it and `page.js`
by their hashes, and no request at all.
"""

import base64
import functools
import gzip
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tfigkd.runtime.text import counted, percent


def render(template: str, **values: Any) -> str:
    """Return the page of a template; equal values give an equal page.

    Args:
        template: File name in `templates/`.
        **values: What the template uses, as plain text, numbers, tables and charts.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    from plotly.offline import get_plotlyjs

    made = Environment(
        autoescape=True,
        loader=PackageLoader("tfigkd.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    made.filters |= {"percent": percent, "counted": counted, "grouped": "{:,}".format, "fixed": _fixed, "data": _data}
    style, script = (
        files("tfigkd.report").joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    library = get_plotlyjs()
    made.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": _hash(script),
        "library": base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode(),
        "library_hash": _hash(library),
    }
    return made


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _fixed(value: float, digits: int = 2) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def _data(figure: Any) -> Any:
    """Return a Plotly figure as plain values, without NumPy arrays."""
    return json.loads(figure.to_json())

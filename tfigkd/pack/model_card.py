"""The model card of a package, as Markdown with the metadata of Hugging Face's format at its head."""

import functools
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tfigkd.report.facts import Facts
from tfigkd.report.table import GOOD, caveats, lines
from tfigkd.runtime.text import counted, percent, shortened

NAMED = 20
"""Class names that the card lists; `labels.txt` of the package has all of them."""
NO_SOURCE: Mapping[str, Any] = {"version": "", "urls": [], "citation": ""}


def model_card(
    facts: Facts,
    package: str,
    sizes: Mapping[str, int],
    *,
    license: str | None = None,
    source: Mapping[str, Any] = NO_SOURCE,
) -> str:
    """Return the text of a model card; every figure in it is one of the run's.

    Args:
        facts: Of the run, with its `data`.
        package: File name of the package.
        sizes: Bytes of its models by name.
        license: Of the weights, an SPDX identifier; None where nobody stated it.
        source: `version`, `urls` and `citation` of the data set, as from `catalog.about`.
    """
    results, names = facts.evaluated["results"], facts.data["class_names"] if facts.data else []
    known = {name: results.get(name) or results.get(name.removesuffix(".keras")) for name in sizes}
    public = str(facts.config["data"]["name"])
    listed = shortened(names, NAMED)
    header, figures = lines(facts.roles, facts.evaluated["n_test"])
    return (
        _environment()
        .get_template("model_card.md")
        .render(
            facts=facts,
            package=package,
            sizes=sizes,
            license=license,
            source=source,
            data_name=public if source["urls"] else Path(public).name,  # of the user's own data no folder is named
            accuracies={name: found["accuracy"] for name, found in known.items() if found},
            names=names,
            named=listed,
            shape=facts.data["image_shape"] if facts.data else [],
            header=header,
            figures=figures,
            caveats=caveats(facts.row),
            good=GOOD,
        )
    )


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("tfigkd.pack"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "json": functools.partial(json.dumps, ensure_ascii=False),  # JSON is YAML
        "text": _text,
        "quoted": shlex.quote,
        "percent": percent,
        "counted": counted,
        "grouped": "{:,}".format,
    }
    return made


def _text(value: Any) -> str:
    """Return text that Markdown shows as it is: names of classes and of data sets may contain its signs."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))

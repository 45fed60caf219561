"""One self-contained HTML page: nothing is loaded, everything that comes from a user is escaped.

The plotting library is in the page once, compressed; a content security policy admits the scripts written here, by
their hashes, and no request at all.
"""

import base64
import functools
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and lines of a table; cells are text."""


@dataclass(frozen=True)
class Chart:
    """A figure and all that it says, for those who do not see it.

    Attributes:
        name: Short and unique in its page; letters and hyphens.
        title: What is drawn.
        text: What it shows, with the key numbers: the text alternative.
        figure: Traces and layout, as a Plotly figure; strings from users went through `label`.
        table: The numbers behind it.
        height: In CSS pixels.
    """

    name: str
    title: str
    text: str
    figure: Any
    table: Table
    height: int = 340


@dataclass(frozen=True)
class Section:
    """A part of a page: HTML, or a note that says what would fill it.

    Attributes:
        name: Short and unique in its page.
        title: The heading.
        body: HTML.
    """

    name: str
    title: str
    body: str


def escape(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def label(text: object, longest: int = 28) -> str:
    """Text as a label in a figure, where Plotly reads a few HTML tags; cut off where it is too long."""
    text = " ".join(str(text).split())
    return html.escape(text if len(text) <= longest else f"{text[: longest - 1]}…", quote=False)


def paragraph(*sentences: str) -> str:
    """Sentences of plain text as a paragraph."""
    return f"<p>{escape(' '.join(one for one in sentences if one))}</p>"


def bullets(lines: Sequence[str]) -> str:
    """Plain text as a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def code(text: str) -> str:
    """A block of code that can be scrolled and, by its button, copied."""
    button = '<button type="button" class="copy">Copy</button>'
    return f'<div class="code">{button}<pre tabindex="0">{escape(text)}</pre></div>'


def details(summary: str, body: str) -> str:
    """HTML that is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(content: Table, caption: str) -> str:
    """A table that scrolls in its own box where it is wider than the page.

    Args:
        content: Header and lines; the first cell of a line is its heading. A cell in `**` is bold.
        caption: What the table is, for screen readers as well.
    """
    header, lines = content
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{_cell(line[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in line[1:])}</tr>'
        for line in lines
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    bold = len(text) > 4 and text.startswith("**") and text.endswith("**")
    return f"<strong>{escape(text[2:-2])}</strong>" if bold else escape(text)


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Key figures: what, the figure, and what to know of it."""
    made = "".join(
        f"<div><dt>{escape(what)}</dt><dd><strong>{escape(value)}</strong><span>{escape(note)}</span></dd></div>"
        for what, value, note in values
    )
    return f'<dl class="cards">{made}</dl>'


def chart(one: Chart) -> str:
    """A figure with its title, its text alternative and its numbers."""
    content = json.dumps(json.loads(one.figure.to_json()), sort_keys=True, separators=(",", ":"))
    # a script element ends at the first "</", whatever its type
    content = content.replace("<", "\\u003c")
    return (
        f'<figure class="chart" aria-labelledby="{one.name}-title"><figcaption><b id="{one.name}-title">'
        f'{escape(one.title)}</b><span id="{one.name}-text">{escape(one.text)}</span></figcaption>'
        f'<div class="plot" id="{one.name}" data-chart="{one.name}-data" style="height:{one.height}px" role="group" '
        f'aria-label="{escape(one.title)}" aria-describedby="{one.name}-text"></div>'
        f'<script type="application/json" id="{one.name}-data">{content}</script>'
        f"{details('The numbers', table(one.table, one.title))}</figure>"
    )


def charts(several: Sequence[Chart | None]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="charts">{"".join(chart(one) for one in several if one is not None)}</div>'


def missing(what: str, stages: str) -> str:
    """What stands in the place of figures that are not there, and the stages that would make them."""
    return f'<p class="missing">{escape(what)}; <code>--stages {escape(stages)}</code> fills this in.</p>'


@functools.cache
def _library() -> tuple[str, str]:
    """Plotly's script, compressed and in base64, and the hash by which the policy admits it."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode(), _hash(script)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def document(title: str, lead: str, sections: Sequence[Section], *, marks: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        title: Plain text.
        lead: Plain text under the title.
        sections: In their order; each is in the table of contents.
        marks: Words beside the title, such as that it was a smoke run.
    """
    own = files("tfigkd.report")
    style, script = (own.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    library, library_hash = _library()
    policy: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": f"{_hash(script)} {library_hash}",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    rules = "; ".join(f"{name} {value}" for name, value in policy.items())
    contents = "".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in sections)
    body = "".join(
        f'<section id="{one.name}" aria-labelledby="{one.name}-heading"><h2 id="{one.name}-heading">'
        f"{escape(one.title)}</h2>{one.body}</section>"
        for one in sections
    )
    stamps = "".join(f' <span class="mark">{escape(mark)}</span>' for mark in marks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style>'
        f'</head><body><a class="skip" href="#main">Skip to the results</a><header><h1>{escape(title)}{stamps}</h1>'
        f'<p>{escape(lead)}</p><nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n<main id="main">'
        f'<noscript><p class="missing">Without JavaScript the figures are not drawn; their numbers are in the tables.'
        f"</p></noscript>{body}</main>\n"
        f'<script type="text/plain" id="library">{library}</script>\n<script>{script}</script></body></html>\n'
    )

"""HTML for notebooks: tables and text in the notebook's own colors, light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], most: int = 200) -> str:
    """A table; of very long ones the first rows.

    Example:
        >>> print(table("a < b", ["name"], [["x"]]).replace("><thead", ">\\n<thead"))
        <table><caption>a &lt; b</caption>
        <thead><tr><th>name</th></tr></thead><tbody><tr><td>x</td></tr></tbody></table>
    """
    shown = list(rows)
    left_out = len(shown) - most
    if left_out > 0:
        title = f"{title} (the first {most} of {len(shown)} rows)"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in shown[:most])
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def lines(texts: Iterable[str]) -> str:
    """A paragraph for each line of text.

    Example:
        >>> lines(["a & b"])
        '<p>a &amp; b</p>'
    """
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def folded(summary: str, inside: str) -> str:
    """A line that opens to show what is behind it.

    Example:
        >>> folded("more", lines(["x"]))
        '<details><summary>more</summary><p>x</p></details>'
    """
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"


def preformatted(text: str) -> str:
    """Text whose columns stay below one another.

    Example:
        >>> preformatted("a <- b")
        '<pre>a &lt;- b</pre>'
    """
    return f"<pre>{html.escape(text)}</pre>"

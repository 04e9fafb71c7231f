"""Tables and figures as HTML: what the page is built of."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from evaluation.report.views import Picture


class Cell(NamedTuple):
    """A table cell: its HTML, and a class of page.css ("text", "fair", "poor"); a plain string has none."""

    html: str
    style: str


def table(
    heads: Sequence[str | Cell],
    rows: Iterable[Sequence[str | Cell]],
    foot: Sequence[str | Cell] = (),
    caption: str = "",
    wide: bool = False,
) -> str:
    """A table; `wide` sets it in smaller type."""
    caption = f"<caption>{caption}</caption>\n" if caption else ""
    foot_html = f"<tfoot>{_row(foot, 'td')}</tfoot>\n" if foot else ""
    return (
        f'<div class="scroll"><table{" class=wide" if wide else ""}>\n{caption}<thead>{_row(heads, "th")}</thead>\n'
        f"<tbody>\n{''.join(_row(cells, 'td') for cells in rows)}</tbody>\n{foot_html}</table></div>\n"
    )


def _row(cells: Sequence[str | Cell], tag: str) -> str:
    styled = [cell if isinstance(cell, Cell) else Cell(cell, "") for cell in cells]
    html = (f"<{tag}{f' class={cell.style}' if cell.style else ''}>{cell.html}</{tag}>" for cell in styled)
    return f"<tr>{''.join(html)}</tr>\n"


def image(picture: Picture) -> str:
    width, height = picture.size
    return f'<img src="{picture.uri}" width="{width}" height="{height}" alt="{escape(picture.alt)}">'


def figure(pictures: Picture | Sequence[Picture], caption: str = "", style: str = "") -> str:
    """One or more pictures, one below the other, over a caption of HTML."""
    images = "".join(image(p) for p in ([pictures] if isinstance(pictures, Picture) else pictures))
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{f' class={style}' if style else ''}>{images}{caption}</figure>\n"


def key(colours: Mapping[str, tuple[int, int, int]]) -> str:
    """Coloured squares and what they mean."""
    squares = (
        f'<span class="entry"><span class="key" style="background:rgb{colour}"></span>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return " ".join(squares)


def bar(share: float, colour: str) -> str:
    """A horizontal bar of a share (0..1) of 220 px."""
    return f'<span class="bar" style="width:{max(1, round(220 * share))}px;background:{colour}"></span>'


def problems(lines: Sequence[str]) -> str:
    """A list of HTML lines that catches the eye; nothing if there are none."""
    return f'<ul class="problems">{"".join(f"<li>{line}</li>" for line in lines)}</ul>\n' if lines else ""

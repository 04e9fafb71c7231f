"""What the tables share: how they are written as Markdown, and how they name the machine."""

from collections.abc import Sequence


class TableError(Exception):
    """A result file or a block that cannot be used. `str` is one line."""


def markdown(heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table: its first column left-aligned, the others right-aligned."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def machine(result: dict) -> str:
    """The machine that a result file was made on."""
    processor = f"{result['processor']} ({', '.join(result['flags']) or 'none of AVX2, AVX-512, AMX'})"
    card = "" if result["device"] == result["processor"] else f"{result['device']}, "
    return f"{card}{processor}, torch {result['torch']}"

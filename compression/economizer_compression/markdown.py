"""Figures and tables as Markdown. Pure."""

from collections.abc import Iterable, Sequence

from economizer.variants.manifest import Interval

UNKNOWN = "unknown"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; whatever a cell holds stays in it."""
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell_text(cell) for cell in cells)} |"


def cell_text(text: str) -> str:
    """The text on one line, with nothing in it that ends a cell or begins HTML."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def number(value: float | None) -> str:
    """The value to four significant digits, without an exponent where that is readable."""
    if value is None:
        return UNKNOWN
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.10g}" if rounded == 0 or 1e-4 <= abs(rounded) < 1e10 else f"{rounded:g}"


def interval(value: Interval | None) -> str:
    """The value with its interval in brackets."""
    if value is None:
        return UNKNOWN
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"

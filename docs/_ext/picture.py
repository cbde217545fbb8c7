"""The picture of a server's processes: SVG in the page, in the color of its text."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flask_workersize.runtime.layout import Cell, Header, Slot

START, END = (f' marker-{side}="url(#picture-head)"' for side in ("start", "end"))
DASHED = f'{END} stroke-dasharray="4 4"'

# Corner, width, height and lines of text.
BOXES = [
    (20, 4, 150, 28, ["clients"]),
    (230, 4, 150, 28, ["probes, Prometheus"]),
    (20, 106, 138, 48, ["workers", "the app, metered"]),
    (250, 106, 130, 48, ["monitor", "guards memory"]),
    (20, 240, 360, 92, ["scoreboard (shared memory)"]),
    (32, 272, 106, 48, ["header", f"{Header.WORDS} words"]),
    (147, 272, 106, 48, ["rows", f"{Cell.WORDS} a worker"]),
    (262, 272, 106, 48, ["slots", f"{Slot.WORDS} a thread"]),
    (60, 426, 280, 48, ["launcher", "gunicorn's master, or all of waitress"]),
]
LINES = [
    ("M26 106 v-6 h138 v48 h-6 M32 100 v-6 h138 v48 h-6", ""),
    ("M95 32 V92", END),
    ("M315 32 V104", END),
    ("M250 130 H172", END),
    ("M70 154 V238", START + END),
    ("M334 154 V238", START + END),
    ("M200 426 V334", START + END),
    ("M60 450 H8 V130 H18", DASHED),
    ("M340 450 H392 V130 H382", DASHED),
]
LABELS = [
    (102, 66, "start", ["the app's port"]),
    (308, 66, "end", ["the health port"]),
    (211, 122, "middle", ["recycles"]),
    (77, 192, "start", ["write their rows", "and slots; read all"]),
    (327, 180, "end", ["reads all;", "writes memory and", "the workers wanted"]),
    (207, 364, "start", ["writes the header, assigns", "rows; reads the workers", "wanted"]),
    (15, 440, "start", ["forks"]),
    (385, 440, "end", ["forks"]),
]


def text(x: float, y: float, anchor: str, lines: list[str]) -> str:
    """Return lines of text, one below the other."""
    rows = (f'<tspan x="{x}" y="{y + 16 * i}">{escape(row)}</tspan>' for i, row in enumerate(lines))
    return f'<text text-anchor="{anchor}" stroke="none">{"".join(rows)}</text>'


def box(x: int, y: int, width: int, height: int, lines: list[str]) -> str:
    """Return a box and what it says."""
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill-opacity="0.05"/>'
    return rect + text(x + width / 2, y + 19, "middle", lines)


class Picture(SphinxDirective):
    """The picture; argument and content are title and description for those who cannot see it."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw it."""
        lines = [f'<path d="{path}" fill="none"{ends}/>' for path, ends in LINES]
        drawn = [*(box(*item) for item in BOXES), *lines, *(text(*item) for item in LABELS)]
        svg = f"""<svg viewBox="0 0 400 480" fill="currentColor" stroke="currentColor" role="img"
            aria-labelledby="picture-title picture-desc"
            style="font: 13px sans-serif; width: 100%; max-width: 30rem; height: auto">
            <title id="picture-title">{escape(self.arguments[0])}</title>
            <desc id="picture-desc">{escape(" ".join(self.content))}</desc>
            <marker id="picture-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"
            markerHeight="8" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker>
            {"".join(drawn)}</svg>"""
        return [nodes.raw("", svg, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}

"""The pictures of the docs: SVG that stands in the page, in the color of its text.

What a picture shows is in its title and description too, for those who cannot see it.
"""

from __future__ import annotations

from html import escape

from flask_workersize.runtime.layout import Cell, Header, Slot
from tests.plain import plan

START, END = (f' marker-{side}="url(#arrow)"' for side in ("start", "end"))
DASHED = f'{END} stroke-dasharray="4 4"'

BY_CPU = ' fill="#1f77b4" fill-opacity="0.3"'
BY_MEMORY = ' fill="#ff7f0e" fill-opacity="0.3" stroke-dasharray="4 3"'
"""Half transparent, so that they suit a light page and a dark one; the words say the same."""

CPUS = (0.5, 1.0, 2.0, 4.0, 8.0)
MEMORY_MB = (256, 512, 1024, 2048, 4096)


def svg(name: str, width: int, height: int, title: str, desc: str, *shapes: str) -> str:
    """Return a picture that is as wide as the text, and on a phone as the screen."""
    return "\n".join(
        [
            f'<svg viewBox="0 0 {width} {height}" fill="currentColor" stroke="currentColor"',
            f'  role="img" aria-labelledby="{name}-title {name}-desc"',
            f'  style="font: 13px sans-serif; width: 100%; max-width: {width * 1.2:.0f}px">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-desc">{escape(desc)}</desc>',
            '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker>',
            *shapes,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, anchor: str, lines: list[str], more: str = "") -> str:
    """Return lines of text, one below the other."""
    rows = (
        f'<tspan x="{x:g}" y="{y + 16 * i:g}">{escape(row)}</tspan>' for i, row in enumerate(lines)
    )
    return f'<text text-anchor="{anchor}" stroke="none"{more}>{"".join(rows)}</text>'


def box(
    x: float, y: float, width: float, height: float, lines: list[str], *, more: str = ""
) -> str:
    """Return a box and what is in it."""
    more = more or ' fill-opacity="0.05"'
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"{more}/>'
    return rect + text(x + width / 2, y + 19, "middle", lines)


def path(way: str, ends: str = "") -> str:
    """Return a line."""
    return f'<path d="{way}" fill="none"{ends}/>'


def processes() -> str:
    """Draw the processes of a server."""
    return svg(
        "processes",
        400,
        480,
        "The processes of a server and the memory they share",
        "Clients connect to the app's port, which the workers answer. Probes and Prometheus "
        "connect to the health port, which the monitor answers. Workers, monitor and launcher "
        "share the scoreboard: a header, a row for each worker and a slot for each thread. "
        "Workers write their rows and slots, and read all. The monitor reads all, and writes "
        "memory and the number of workers wanted. The launcher writes the header, assigns the "
        "rows, and reads the number of workers wanted. The monitor also recycles workers, by a "
        "signal. The launcher forks workers and monitor.",
        box(20, 4, 150, 28, ["clients"]),
        box(230, 4, 150, 28, ["probes, Prometheus"]),
        box(20, 106, 138, 48, ["workers", "the app, metered"]),
        box(250, 106, 130, 48, ["monitor", "guards memory"]),
        box(20, 240, 360, 92, ["scoreboard (shared memory)"]),
        box(32, 272, 106, 48, ["header", f"{Header.WORDS} words"]),
        box(147, 272, 106, 48, ["rows", f"{Cell.WORDS} a worker"]),
        box(262, 272, 106, 48, ["slots", f"{Slot.WORDS} a thread"]),
        box(60, 426, 280, 48, ["launcher", "gunicorn's master, or all of waitress"]),
        path("M26 106 v-6 h138 v48 h-6 M32 100 v-6 h138 v48 h-6"),
        path("M95 32 V92", END),
        path("M315 32 V104", END),
        path("M250 130 H172", END),
        path("M70 154 V238", START + END),
        path("M334 154 V238", START + END),
        path("M200 426 V334", START + END),
        path("M60 450 H8 V130 H18", DASHED),
        path("M340 450 H392 V130 H382", DASHED),
        text(102, 66, "start", ["the app's port"]),
        text(308, 66, "end", ["the health port"]),
        text(211, 122, "middle", ["recycles"]),
        text(77, 192, "start", ["write their rows", "and slots; read all"]),
        text(327, 180, "end", ["reads all;", "writes memory and", "the workers wanted"]),
        text(
            207, 364, "start", ["writes the header, assigns", "rows; reads the workers", "wanted"]
        ),
        text(15, 440, "start", ["forks"]),
        text(385, 440, "end", ["forks"]),
    )


def steps() -> str:
    """Draw the way from a machine and its settings to the plan, with the numbers of one."""
    gunicorn, waitress = plan({}, 4, 1024, "gunicorn"), plan({}, 4, 1024, "waitress")
    available, each = gunicorn.memory_available_mb, gunicorn.worker_memory_mb
    by_cpu, by_memory = gunicorn.cpu_bound, gunicorn.memory_bound
    return svg(
        "steps",
        520,
        322,
        "From the machine and the settings to the plan",
        f"The machine has 4 CPUs: 2 × 4 + 1 = {by_cpu}. It has {available} MB available, and a "
        f"setting assumes {each} MB for each worker: {available} / {each} = {by_memory}. The "
        f"lesser is {by_memory}, so memory sets the size. gunicorn gets {gunicorn.workers} workers "
        f"with 1 thread each, waitress {waitress.threads} threads.",
        box(10, 10, 150, 48, ["CPUs", "machine or quota: 4"]),
        box(180, 10, 160, 48, ["available memory", f"under the limit: {available} MB"]),
        box(360, 10, 150, 48, ["a worker's memory", f"setting or profile: {each}"]),
        box(10, 94, 150, 48, ["by CPU", f"2 × 4 + 1 = {by_cpu}"]),
        box(180, 94, 330, 48, ["by memory", f"{available} / {each} = {by_memory}"]),
        box(
            120,
            178,
            280,
            48,
            ["the lesser", f"{min(by_cpu, by_memory)}: limited by {gunicorn.limited_by}"],
        ),
        box(40, 262, 210, 48, ["gunicorn, 1 thread each", f"{gunicorn.workers} workers"]),
        box(270, 262, 210, 48, ["waitress, 1 process", f"{waitress.threads} threads"]),
        path("M85 58 V92", END),
        path("M260 58 V92", END),
        path("M435 58 V92", END),
        path("M140 142 L180 176", END),
        path("M345 142 V176", END),
        path("M200 226 L165 260", END),
        path("M320 226 L355 260", END),
    )


def bounds() -> str:
    """Draw the workers of gunicorn over CPUs and memory, and which bound has set each number."""
    cell_width, cell_height, left, top = 76, 40, 90, 60
    shapes = [text(left, 18, "start", ["available memory"]), text(80, 18, "end", ["CPUs"])]
    for column, memory in enumerate(MEMORY_MB):
        shapes.append(text(left + (column + 0.5) * cell_width, 46, "middle", [f"{memory} MB"]))
    words = []
    for row, cpus in enumerate(reversed(CPUS)):
        y = top + row * cell_height
        shapes.append(text(80, y + 19, "end", [f"{cpus:g}"]))
        found = []
        for column, memory in enumerate(MEMORY_MB):
            planned = plan({}, cpus, memory)
            by_cpu = planned.limited_by == "cpu"
            look = (
                ' fill="#1f77b4" fill-opacity="0.3"'
                if by_cpu
                else ' fill="#ff7f0e" fill-opacity="0.3" stroke-dasharray="4 3"'
            )
            x = left + column * cell_width + 2
            label = f"{planned.workers} {'CPU' if by_cpu else 'mem.'}"
            shapes.append(box(x, y, cell_width - 4, cell_height - 8, [label], more=look))
            found.append(f"{planned.workers} ({planned.limited_by}) at {memory} MB")
        words.append(f"CPUs {cpus:g}: {', '.join(found)}.")
    return svg(
        "bounds",
        480,
        top + cell_height * len(CPUS) + 6,
        "Workers of gunicorn by CPUs and available memory, and which of the two sets the number",
        " ".join(words),
        *shapes,
    )

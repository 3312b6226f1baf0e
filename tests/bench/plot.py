"""The picture of the field: stall and time to durable on a log scale, and the limits as lines.

Plain SVG with its own background, light or dark as the reader's system is.
"""

import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 900, 236, 184
TOP, STEP, BOTTOM = 78, 30, 48
STYLE = """
svg { --page: #ffffff; --text: #1f2328; --faint: #656d76; --grid: #d8dee4;
      --stall: #0969da; --durable: #bc4c00; --limit: #1a7f37; }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --text: #e6edf3; --faint: #8d96a0; --grid: #30363d;
        --stall: #58a6ff; --durable: #f0883e; --limit: #56d364; }
}
text { font: 13px system-ui, sans-serif; fill: var(--text); }
.faint { fill: var(--faint); font-size: 12px; }
.ours { font-weight: 700; }
.grid { stroke: var(--grid); }
.limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 5 4; }
.limit-name { fill: var(--limit); font-size: 12px; }
.span { stroke: var(--faint); stroke-width: 1.5; }
.stall { fill: var(--stall); } .durable { fill: var(--durable); }
.first { fill: none; stroke: var(--stall); stroke-width: 1.5; }
"""


def short(number):
    """Three digits, or all that stand before the point."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


class Scale:
    """Milliseconds to x."""

    def __init__(self, values):
        self.low = math.floor(math.log10(min(values)) * 2) / 2
        self.high = math.ceil(math.log10(max(values)) * 2 + 0.01) / 2
        if self.high - self.low < 1:
            self.high = self.low + 1

    def x(self, value):
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self):
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        every = (digit * 10.0**decade for decade in decades for digit in (1, 2, 5))
        return [tick for tick in every if self.low - 1e-9 <= math.log10(tick) <= self.high + 1e-9]


def draw(subjects, limits, title):
    """SVG text. `subjects`: dicts with name, ours, stall, durable and perhaps first, in ms;
    `limits`: (name, ms)."""
    values = [v for s in subjects for v in (s["stall"], s["durable"], s.get("first")) if v]
    scale = Scale(values + [value for _, value in limits])
    bottom = TOP + STEP * len(subjects)
    parts = [_axis(scale, bottom)]
    parts += [_limit(scale, name, value, bottom) for name, value in limits]
    parts += [_subject(scale, s, TOP + STEP * (i + 0.5)) for i, s in enumerate(subjects)]
    height = bottom + BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="6" style="fill: var(--page)"/>\n'
        f'<text x="16" y="26" class="ours">{escape(title)}</text>\n'
        + _legend()
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _legend():
    y, x = 48, 16
    parts = []
    for kind, words in (
        ("stall", "stall of a save"),
        ("first", "stall of the first save"),
        ("durable", "from the call until it is durable"),
    ):
        parts.append(_mark(kind, x + 6, y - 4) + f'<text x="{x + 18}" y="{y}">{words}</text>')
        x += 40 + 7 * len(words)
    return "\n".join(parts) + "\n"


def _axis(scale, bottom):
    parts = []
    for tick in scale.ticks():
        x = scale.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="faint" text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">'
            f"{tick:g}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="faint" text-anchor="middle" x="{middle}" y="{bottom + 36}">'
        "milliseconds, log scale: left is better</text>"
    )
    for x, words in ((WIDTH - 100, "stall"), (WIDTH - 20, "durable")):
        parts.append(f'<text class="faint" text-anchor="end" x="{x}" y="{TOP - 6}">{words}</text>')
    return "\n".join(parts)


def _limit(scale, name, value, bottom):
    x = scale.x(value)
    return (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 2}" y2="{bottom}"/>\n'
        f'<text class="limit-name" text-anchor="middle" x="{x:.1f}" y="{TOP - 6}">'
        f"{escape(name)}</text>"
    )


def _subject(scale, subject, y):
    stall, durable = scale.x(subject["stall"]), scale.x(subject["durable"])
    weight = ' class="ours"' if subject["ours"] else ""
    parts = [
        f'<text{weight} x="{LEFT - 14}" y="{y + 4}" text-anchor="end">'
        f"{escape(subject['name'])}</text>",
        f'<line class="span" x1="{stall:.1f}" x2="{durable:.1f}" y1="{y}" y2="{y}"/>',
        _mark("durable", durable, y),
        _mark("stall", stall, y),
    ]
    if subject.get("first"):
        parts.append(_mark("first", scale.x(subject["first"]), y))
    for x, key in ((WIDTH - 100, "stall"), (WIDTH - 20, "durable")):
        parts.append(
            f'<text{weight} text-anchor="end" x="{x}" y="{y + 4}">{short(subject[key])} ms</text>'
        )
    return "\n".join(parts)


def _mark(kind, x, y):
    if kind == "durable":
        return f'<rect class="durable" x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" rx="1"/>'
    radius = 7 if kind == "first" else 5
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="{radius}"/>'

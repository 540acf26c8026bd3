"""The look of the demo's report: one self-contained HTML page, no script, nothing loaded from anywhere.

In: sections of HTML. Out: the page. Every text that comes from data goes through `html.escape` here.
"""

from collections.abc import Sequence
from html import escape

CSS = """
:root { --ink: #1d2733; --soft: #66717e; --faint: #e3e8ed; --wash: #f6f8fa; --good: #1f7a5c; --bad: #b3352f; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 44px 28px 80px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; }
h2 { font-size: 20px; margin: 0 0 4px; letter-spacing: -0.01em; }
.eyebrow { color: var(--soft); font-size: 13px; letter-spacing: 0.07em; text-transform: uppercase; margin: 0 0 10px; }
.lead, section > p { color: var(--soft); margin: 0 0 18px; max-width: 76ch; }
.lead { font-size: 17px; margin-bottom: 28px; }
section { background: #fff; border: 1px solid var(--faint); border-radius: 12px; padding: 26px 30px; margin: 22px 0; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin: 0 0 22px; }
.card { background: #fff; border: 1px solid var(--faint); border-radius: 12px; padding: 18px 22px; }
.card b { display: block; font-size: 30px; line-height: 1.25; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 14px; }
svg { width: 100%; height: auto; display: block; margin: 6px 0 4px; }
svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; margin-top: 10px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; border-bottom: 1.5px solid var(--ink); padding: 6px 10px 6px 0; }
td { border-bottom: 1px solid var(--faint); padding: 7px 8px 7px 0; vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td:first-child, .number { white-space: nowrap; }
.number { text-align: right; padding-right: 14px; }
.interval { color: var(--soft); font-size: 12.5px; white-space: nowrap; }
tr.strong td { font-weight: 600; background: var(--wash); }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
ul.claims { list-style: none; margin: 0; padding: 0; }
ul.claims li { display: grid; grid-template-columns: 78px 1fr; gap: 4px 12px; padding: 9px 0; border-bottom: 1px solid var(--faint); }
ul.claims li:last-child { border-bottom: 0; }
.holds, .fails { font-weight: 700; font-size: 12.5px; border-radius: 20px; padding: 3px 0; text-align: center; height: 26px; }
.holds { color: var(--good); background: #e6f4ee; }
.fails { color: var(--bad); background: #fbe9e7; }
.evidence { color: var(--soft); font-size: 14px; }
footer { color: var(--soft); font-size: 13.5px; margin-top: 26px; }
@media (max-width: 720px) { .cards { grid-template-columns: 1fr; } section { padding: 20px 16px; } main { padding: 24px 12px; } }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{CSS}</style></head>\n<body><main>\n'
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, explanation: str, *content: str) -> str:
    """A titled panel; `explanation` says how to read it."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p>" + "\n".join(content) + "</section>"


def cards(entries: Sequence[tuple[str, str]]) -> str:
    """Large figures with what they are."""
    inner = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in entries
    )
    return f'<div class="cards">{inner}</div>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int = 1, strong: Sequence[int] = ()
) -> str:
    """A table whose first `num_text_columns` columns are text and whose others are figures. A cell may hold `figure|interval`,
    and a text cell between backticks is set as code. `strong` lists rows to stress."""
    head = "".join(f"<th{_class(i, num_text_columns)}>{escape(cell)}</th>" for i, cell in enumerate(header))
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td{_class(i, num_text_columns)}>{_cell(cell)}</td>" for i, cell in enumerate(row))
        body += f"<tr{' class=strong' if number in strong else ''}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def claim_list(claims: Sequence[tuple[str, bool, str]]) -> str:
    """(text, holds, evidence), each with a plain mark."""
    items = ""
    for text, holds, evidence in claims:
        mark = '<span class="holds">holds</span>' if holds else '<span class="fails">fails</span>'
        items += f'<li>{mark}<span>{escape(text)}<br><span class="evidence">{escape(evidence)}</span></span></li>'
    return f'<ul class="claims">{items}</ul>'


def _class(column: int, num_text_columns: int) -> str:
    return "" if column < num_text_columns else ' class="number"'


def _cell(text: str) -> str:
    if text.startswith("`") and text.endswith("`"):
        return f"<code>{escape(text[1:-1])}</code>"
    figure, bar, interval = text.partition("|")
    return escape(figure) + (f'<br><span class="interval">{escape(interval)}</span>' if bar else "")

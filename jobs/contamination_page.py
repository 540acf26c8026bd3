"""The contamination report as one HTML page that needs nothing else: each hit beside its item, the rates, and the reverse view.

In: a `dataplane.contamination_report.Report`. Out: HTML. Words of a match that the item has too are marked, by the words that decontamination
compares. A short script filters by task and source and turns hits into the view by item; without it the page shows everything.
"""

import re
from collections.abc import Iterable
from typing import Any

from dataplane.contamination_report import Report, summary
from jobs import demo_page

MOST_HITS = 2000
_WORD = re.compile(r"[^\W_]+(?:[.,'\u2019][^\W_]+)*")
CSS = """
.bar { display: flex; gap: 14px; flex-wrap: wrap; margin: 0 0 16px; font-size: 14px; }
.bar select { font: inherit; padding: 4px 8px; border: 1px solid var(--faint); border-radius: 7px; background: #fff; max-width: 300px; }
.hit { border-top: 1px solid var(--faint); padding: 14px 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; font-size: 14px; }
.pair > div { overflow-wrap: anywhere; white-space: pre-wrap; }
.hit header { font-size: 13px; color: var(--soft); margin-bottom: 8px; }
.hit header b { color: var(--ink); font-variant-numeric: tabular-nums; }
.side { color: var(--soft); } mark { background: #ffe9a8; color: inherit; border-radius: 3px; }
.answer { color: var(--good); } details summary { cursor: pointer; font-size: 14px; padding: 5px 0; }
@media (max-width: 720px) { .pair { grid-template-columns: 1fr; } }
"""
SCRIPT = """
const task = document.getElementById('task'), source = document.getElementById('source'), shown = document.getElementById('shown');
function filter() {
  let count = 0;
  for (const hit of document.querySelectorAll('[data-task]')) {
    const on = (!task.value || hit.dataset.task === task.value) && (!source.value || hit.dataset.source.split(' ').includes(source.value));
    hit.hidden = !on;
    count += on && hit.classList.contains('hit');
  }
  shown.textContent = count + ' hits shown';
}
task.onchange = source.onchange = filter; filter();
"""


def html(report: Report) -> str:
    """The page; hits by falling score, the first `MOST_HITS` of them."""
    said = summary(report)
    items = {(hit["task"], hit["item"]) for hit in report.hits}
    documents = sum(one["documents"] for one in said["sources"].values())
    flagged = sum(one["contaminated"] for one in said["sources"].values())
    figures = [
        (
            f"{len(items):,}",
            f"of {sum(one['items'] for one in said['tasks'].values()):,} evaluation items are in the documents",
        ),
        (f"{flagged:,}", f"of {documents:,} documents hold one"),
        (f"{len(report.hits):,}", f"pairs of a document and an item, preset {report.preset}"),
    ]
    lead = "A pair says that words are shared, not why. Read them: what both quote counts too."
    body = [
        f'<style>{CSS}</style><p class="eyebrow">contamination</p><h1>Evaluation items in training documents</h1><p class="lead">{lead}</p>',
        demo_page.cards(figures),
        demo_page.section("By task", "Distinct items with a hit.", _rates(said["tasks"], "task", "items")),
        demo_page.section("By source", "Documents with a hit.", _rates(said["sources"], "source", "documents")),
        demo_page.section(
            "Hits", _explanation(report), _filters(report), *(_hit(report, hit) for hit in report.hits[:MOST_HITS])
        ),
        demo_page.section("By item", "For an evaluation item, which documents hold it.", *_by_item(report)),
        f"<footer>made of {', '.join(f'<code>{demo_page.escape(one)}</code>' for one in report.parents)}</footer><script>{SCRIPT}</script>",
    ]
    return demo_page.page("Contamination", body)


def _explanation(report: Report) -> str:
    more = f" The first {MOST_HITS:,} of {len(report.hits):,} are shown." if len(report.hits) > MOST_HITS else ""
    return f"Left the document, right the item; marked are the words that both have. By falling score.{more}"


def _rates(counts: dict[str, dict[str, int]], name: str, unit: str) -> str:
    rows = [
        [key, f"{one['contaminated']:,}", f"{one[unit]:,}", f"{one['contaminated'] / max(1, one[unit]):.3%}"]
        for key, one in sorted(counts.items(), key=lambda pair: (-pair[1]["contaminated"], pair[0]))
    ]
    return demo_page.table((name, "contaminated", unit, "rate"), rows)


def _filters(report: Report) -> str:
    def options(values: Iterable[str]) -> str:
        return "".join(f"<option>{demo_page.escape(value)}</option>" for value in sorted(set(values)))

    tasks, sources = (options(hit[key] for hit in report.hits) for key in ("task", "source"))
    return (
        f'<div class="bar"><label>task <select id="task"><option value="">all</option>{tasks}</select></label>'
        f'<label>source <select id="source"><option value="">all</option>{sources}</select></label><span id="shown"></span></div>'
    )


def _words(text: str) -> set[str]:
    return {_folded(word) for word in _WORD.findall(text)}


def _folded(word: str) -> str:
    return re.sub(r"[.,'\u2019]", "", word).lower()


def _marked(text: str, others: set[str]) -> str:
    """The text as HTML, the words that `others` has marked; runs of them as one."""
    out, end = [], 0
    for word in _WORD.finditer(text):
        out.append(demo_page.escape(text[end : word.start()]))
        shown = demo_page.escape(word[0])
        out.append(f"<mark>{shown}</mark>" if _folded(word[0]) in others else shown)
        end = word.end()
    marked = "".join([*out, demo_page.escape(text[end:])])
    return re.sub(r"</mark>(\s+)<mark>", r"\1", marked)


def _hit(report: Report, hit: dict[str, Any]) -> str:
    question, answer, passage = report.tasks[hit["task"]].get(hit["item"], ("", "", ""))
    theirs, ours = _words(f"{question} {answer} {passage}"), _words(hit["match"])
    side = [f'<span class="side">{demo_page.escape(hit[part])}</span>' for part in ("before", "after")]
    item = [_marked(question, ours)]
    item += [f'\n<span class="answer">{_marked(answer, ours)}</span>'] if answer else []
    item += [f'\n<span class="side">{_marked(passage[:1000], ours)}</span>'] if passage else []
    escape = demo_page.escape
    return (
        f'<article class="hit" data-task="{escape(hit["task"])}" data-source="{escape(hit["source"])}">'
        f"<header><b>{hit['score']:.3f}</b> {escape(hit['source'])} <code>{escape(hit['document'])}</code> · "
        f"{escape(hit['task'])} <code>{escape(hit['item'])}</code></header>"
        f'<div class="pair"><div>{side[0]}{_marked(hit["match"], theirs)}{side[1]}</div><div>{"".join(item)}</div></div></article>'
    )


def _by_item(report: Report) -> list[str]:
    held: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for hit in report.hits:
        held.setdefault((hit["task"], hit["item"]), []).append(hit)
    escape, out = demo_page.escape, []
    for (task, item), hits in sorted(held.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        rows = [[hit["source"], f"`{hit['document']}`", f"{hit['score']:.3f}"] for hit in hits]
        table = demo_page.table(("source", "document", "score"), rows, num_text_columns=2)
        sources = " ".join(sorted({hit["source"] for hit in hits}))
        question = report.tasks[task].get(item, ("",))[0]
        out.append(
            f'<details data-task="{escape(task)}" data-source="{escape(sources)}"><summary>{escape(task)} <code>{escape(item)}</code>: '
            f"{len(hits):,} · {escape(question[:110])}</summary>{table}</details>"
        )
    return out

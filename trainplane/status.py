"""How a run stands, from what it has committed: (root, reference) -> figures, spike scores, and a page. Read only.

A run that is not finished is known by its checkpoints. Scores are in percent of steps, by the paper's definition and by OLMo-core's
(`stability`); they need 1,000 and 128 steps before the first value can count.
"""

import html
from collections import Counter
from typing import Any

from trainplane import checkpoint, curve, stability
from trainplane import plan as plans
from trainplane.ledger import Row
from triplane import artifact, storage
from triplane.artifact_format import MANIFEST
from triplane.errors import NotFound, UsageError

SERIES = ("loss", "grad_norm")


def find(root: str, reference: str) -> str:
    """run/name -> run/name@version: the newest finished one, else the only one begun. Raises NotFound, UsageError."""
    if "@" in reference:
        return reference
    kind, name, _ = artifact.split_reference(reference)
    if kind != "run":
        raise UsageError(f"{reference} is no run: write run/NAME or run/NAME@VERSION")
    if artifact.references(root, "run", name):
        return artifact.load(root, reference).reference
    begun = [f"run/{one}" for one in storage.folders(storage.join(root, "run")) if one.partition("@")[0] == name]
    if len(begun) > 1:
        raise UsageError(f"{reference} was begun more than once: name one of {', '.join(sorted(begun))}")
    return begun[0] if begun else artifact.load(root, reference).reference  # which says what is near


def rows(root: str, reference: str) -> list[Row]:
    """The committed rows of a run. Raises NotFound while there is none."""
    found = checkpoint.read_ledger(storage.join(root, reference))
    if not found:
        raise NotFound(f"{reference} at {root} has no committed step: check the name, or wait for its first checkpoint")
    return found


def spike_scores(of: list[Row]) -> dict[str, float]:
    """Percent of steps that spike: `{series}_{definition}`."""
    series = {name: [row[name] for row in of] for name in SERIES}
    scores = {f"{name}_paper_7s_1000": stability.spike_score_paper(values) for name, values in series.items()}
    return scores | {f"{name}_core_6s_128": stability.spike_score_core(values) for name, values in series.items()}


def missing_steps(of: list[Row]) -> list[int]:
    """Steps between the first and the last that no row tells of, or that two rows tell of: none, unless a ledger is damaged."""
    counts = Counter(row["step"] for row in of)
    return [step for step in range(of[0]["step"], of[-1]["step"] + 1) if counts[step] != 1]


def status(root: str, reference: str) -> dict[str, Any]:
    """Where a run is and how it went, as JSON values."""
    reference = find(root, reference)
    url, of = storage.join(root, reference), rows(root, reference)
    last, begun = of[-1], plans.started(url)
    tokens: Counter[str] = Counter()
    for row in of:
        tokens.update(row["tokens_by_source"])
    stop = begun.recipe["stop_tokens"] if begun else last["tokens_seen"]
    return {
        "run": reference,
        "finished": storage.exists(storage.join(url, MANIFEST)),
        "step": last["step"],
        "tokens_seen": last["tokens_seen"],
        "percent": round(100 * min(1.0, last["tokens_seen"] / stop), 1),
        "loss": last["loss"],
        "lr": last["lr"],
        "grad_norm": last["grad_norm"],
        "skipped_steps": sum(row["skipped"] for row in of),
        "masked_instances": sum(row["masked_instances"] for row in of),
        "world_sizes": sorted({row["world_size"] for row in of}),
        "missing_steps": missing_steps(of),
        "tokens_by_source": dict(tokens.most_common()),
        "spike_scores": spike_scores(of),
    }


def page(root: str, reference: str) -> str:
    """The same as a page of its own: loss and gradient norm with the paper's spikes, and the learning rate."""
    reference = find(root, reference)
    of = rows(root, reference)
    steps = [row["step"] for row in of]
    drawn = []
    for name in SERIES:
        values = [row[name] for row in of]
        drawn.append(curve.svg(name.replace("_", " "), steps, values, stability.spikes(values, 1000, 7.0, False)))
    drawn.append(curve.svg("learning rate", steps, [row["lr"] for row in of]))
    figures = "".join(
        f"<tr><td>{html.escape(k)}</td><td>{html.escape(_shown(v))}</td></tr>"
        for k, v in status(root, reference).items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(reference)}</title><style>body{{font:15px/1.5 sans-serif;'
        f"max-width:900px;margin:2rem auto;padding:0 1rem}}svg text{{font:12px sans-serif}}td{{padding:.15rem 1rem .15rem 0;vertical-align:top}}"
        f"</style><h1>{html.escape(reference)}</h1>{''.join(drawn)}<table>{figures}</table></html>\n"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)

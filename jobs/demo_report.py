"""The demo's report: what went in, what training did, what improved, where everything is.

In: a `Report`, plain figures gathered from committed artifacts. Out: one self-contained HTML page, and the two lines a
person looks for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs import demo_figures as figures
from jobs import demo_page as html
from jobs.demo_claims import Claim, Interval, Scored, accuracy_rise, bits_per_byte_change, check_claims


@dataclass(frozen=True)
class FunnelPart:
    """What became of some documents of one source: `fate` is kept, quarantined or the reason they were dropped for."""

    source: str
    fate: str
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class MixShare:
    """One source in one mix, in tokens."""

    mix: str
    source: str
    planned_tokens: int
    realised_tokens: int


@dataclass(frozen=True)
class Run:
    """One training run and its ledger, columns as arrays with one entry a step."""

    name: str
    tokens_seen: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    lr: np.ndarray
    spikes: np.ndarray
    spike_score_loss: float
    spike_score_grad_norm: float


@dataclass(frozen=True)
class Example:
    """One arithmetic item and what was answered before, after and by the soup."""

    question: str
    expected: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A step of the demo; `is_resumed`: its result was committed already, nothing was done again."""

    name: str
    seconds: float
    is_resumed: bool


@dataclass(frozen=True)
class Report:
    """All the report shows. `scored` is pretrained, the ingredients, the soup, in this order."""

    seed: int
    root: str
    num_parameters: int
    funnel: Sequence[FunnelPart]
    mix_shares: Sequence[MixShare]
    runs: Sequence[Run]
    scored: Sequence[Scored]
    examples: Sequence[Example]
    artifacts: Sequence[tuple[str, str, str]]  # what, reference, URL
    stages: Sequence[Stage]

    @property
    def pretrained(self) -> Scored:
        return self.scored[0]

    @property
    def ingredients(self) -> Sequence[Scored]:
        return self.scored[1:-1]

    @property
    def soup(self) -> Scored:
        return self.scored[-1]

    @property
    def claims(self) -> list[Claim]:
        return check_claims(self.pretrained, self.ingredients, self.soup)


def render(report: Report) -> str:
    """The page."""
    claims = [(claim.text, claim.holds, claim.evidence) for claim in report.claims]
    body = [
        '<p class="eyebrow">Triplane · demo</p><h1>From this machine’s own text to a scored language model</h1>',
        f'<p class="lead">{_lead(report)}</p>',
        html.cards(_headline(report)),
        html.section("Did it work?", "Each promise, checked on the figures below.", html.claim_list(claims)),
        _scores_section(report),
        _examples_section(report),
        _funnel_section(report),
        _mixture_section(report),
        _training_section(report),
        _artifacts_section(report),
        f"<footer>Seed {report.seed}. The same command goes on from what is committed; "
        "with nothing left to do, it only draws this page again.</footer>",
    ]
    return html.page("Triplane demo", body)


def final_lines(report: Report, report_url: str) -> tuple[str, str]:
    """What improved, and where the report is."""
    rise = accuracy_rise(report.soup, report.pretrained)
    lowest, highest = _range([scored.accuracy for scored in report.ingredients])
    failed = [claim.text for claim in report.claims if not claim.holds]
    improved = (
        f"improved: arithmetic {report.pretrained.accuracy:.1%} -> {lowest:.1%}..{highest:.1%} by mid-training, "
        f"soup {report.soup.accuracy:.1%} ({rise.mean:+.3f}, 95 % {rise.low:+.3f} to {rise.high:+.3f}); "
        f"bits per byte {report.pretrained.bits_per_byte():.3f} -> {report.soup.bits_per_byte():.3f}"
    )
    if failed:
        improved = f"did not hold: {'; '.join(failed)} (measured: {improved})"
    return improved, f"report: {report_url}"


def _lead(report: Report) -> str:
    documents = sum(part.documents for part in report.funnel)
    megabytes = sum(part.bytes for part in report.funnel) / 1e6
    steps = sum(len(run.loss) for run in report.runs)
    return (
        f"{documents:,} documents ({megabytes:.1f} MB) of source code, documentation and generated arithmetic became token "
        f"shards on Spark; a {report.num_parameters / 1e6:.1f}M-parameter OLMo 2 was pretrained and mid-trained three times "
        f"for {steps:,} steps on Ray; "
        f"five checkpoints were scored on text and problems no training saw. It took {_duration(sum(stage.seconds for stage in report.stages))}."
    )


def _headline(report: Report) -> list[tuple[str, str]]:
    lowest, highest = _range([scored.accuracy for scored in report.ingredients])
    mean = float(np.mean([scored.bits_per_byte() for scored in report.ingredients]))
    return [
        (
            f"{report.pretrained.accuracy:.0%} → {lowest:.0%}–{highest:.0%}",
            f"arithmetic before and after mid-training, {len(report.ingredients)} data orders",
        ),
        (f"{report.soup.accuracy:.0%}", "arithmetic of the soup (the average of their weights)"),
        (f"{report.soup.bits_per_byte():.3f} vs {mean:.3f}", "bits per byte: the soup against its ingredients’ mean"),
    ]


def _scores_section(report: Report) -> str:
    sources = list(report.soup.bits)
    header = [
        "checkpoint",
        "arithmetic",
        "change",
        *(f"bpb {source}" for source in sources),
        "bpb all",
        "change",
    ]
    rows = [_score_row(report, scored, sources) for scored in report.scored]
    return html.section(
        "Before, after mid-training, and the soup",
        f"Arithmetic is exact answers to {len(report.soup.correct)} problems whose names and nouns no training problem uses; "
        "bits per byte (bpb) is on held-out documents (lower is better). Changes are against the pretrained "
        "checkpoint on the same items, with paired 95 % intervals.",
        figures.points_figure(_score_panels(report), {"arithmetic accuracy": ".0%", "bits per byte": ".3f"}),
        html.table(header, rows, strong=[len(rows) - 1]),
    )


def _score_row(report: Report, scored: Scored, sources: Sequence[str]) -> list[str]:
    of_sources = [f"{scored.bits_per_byte([source]):.3f}" for source in sources]
    if scored is report.pretrained:
        changes = ("", "")
    else:
        changes = (
            _signed(accuracy_rise(scored, report.pretrained)),
            _signed(bits_per_byte_change(scored, report.pretrained)),
        )
    accuracy = f"{scored.accuracy:.1%}|{int(scored.correct.sum())} of {len(scored.correct)}"
    return [scored.name, accuracy, changes[0], *of_sources, f"{scored.bits_per_byte():.3f}", changes[1]]


def _score_panels(report: Report) -> dict[str, list[figures.Point]]:
    accuracy, text = [], []
    for scored, colour in zip(report.scored, _colours(report), strict=True):
        error = 1.96 * float(scored.correct.std()) / len(scored.correct) ** 0.5
        accuracy.append(
            figures.Point(scored.name, colour, scored.accuracy, scored.accuracy - error, scored.accuracy + error)
        )
        value = scored.bits_per_byte()
        text.append(figures.Point(scored.name, colour, value, value, value))
    return {"arithmetic accuracy": accuracy, "bits per byte": text}


def _examples_section(report: Report) -> str:
    rows = [[example.question, example.expected, *example.answers] for example in report.examples]
    header = ["problem", "expected", "pretrained", "mid-trained (order 1)", "soup"]
    answers = html.table(header, rows, num_text_columns=len(header))
    return html.section("Answers", "The first items of the arithmetic task, as they were answered.", answers)


def _funnel_section(report: Report) -> str:
    by_source: dict[str, list[tuple[str, int]]] = {}
    for part in sorted(report.funnel, key=lambda part: (part.source, part.fate != "kept", part.fate)):
        by_source.setdefault(part.source, []).append((part.fate, part.documents))
    ordered = sorted(report.funnel, key=lambda part: (part.source, part.fate != "kept", -part.documents))
    rows = [
        [part.source, part.fate.replace("_", " "), f"{part.documents:,}", f"{part.bytes:,}", f"{part.tokens:,}"]
        for part in ordered
    ]
    totals = [sum(getattr(part, field) for part in report.funnel) for field in ("documents", "bytes", "tokens")]
    rows.append(["all", "in", *(f"{total:,}" for total in totals)])
    return html.section(
        "The document funnel",
        "Every document that went in was kept, dropped for a named reason, or quarantined; the build fails if the sum differs. Coloured: kept.",
        figures.funnel_figure(by_source),
        html.table(
            ["source", "fate", "documents", "bytes", "tokens"], rows, num_text_columns=2, strong=[len(rows) - 1]
        ),
    )


def _mixture_section(report: Report) -> str:
    shares: dict[str, dict[str, tuple[float, float]]] = {}
    rows = []
    for mix in dict.fromkeys(share.mix for share in report.mix_shares):
        members = [share for share in report.mix_shares if share.mix == mix]
        planned, realised = (
            sum(getattr(share, field) for share in members) for field in ("planned_tokens", "realised_tokens")
        )
        shares[mix] = {
            share.source: (share.planned_tokens / planned, share.realised_tokens / realised) for share in members
        }
        rows += [[mix, share.source, f"{share.planned_tokens:,}", f"{share.realised_tokens:,}"] for share in members]
    return html.section(
        "Planned and realised mixture",
        "Outline: the share the recipe asks for. Filled: the share of the tokens the training steps really consumed, from the step ledger.",
        figures.mixture_figure(shares),
        html.table(["mix", "source", "planned tokens", "tokens trained on"], rows, num_text_columns=2),
    )


def _training_section(report: Report) -> str:
    curves = [
        figures.Curve(run.name, colour, run.tokens_seen, run.loss, run.grad_norm, run.lr, run.spikes)
        for run, colour in zip(report.runs, _colours(report)[:-1], strict=True)
    ]
    rows = [
        [
            *(run.name, f"{len(run.loss):,}", f"{run.tokens_seen[-1]:,}", f"{run.loss[-50:].mean():.3f}"),
            *(f"{run.spike_score_loss:.2%}", f"{run.spike_score_grad_norm:.2%}"),
        ]
        for run in report.runs
    ]
    return html.section(
        "Training",
        "Thin: every step; bold: smoothed. The dashed line is where pretraining stops and three anneals leave from the same "
        "checkpoint, each with its own data order. A spike is a value seven standard deviations from the mean of the thousand before it.",
        figures.training_figure(curves, int(report.runs[0].tokens_seen[-1])),
        html.table(
            ["run", "steps", "tokens seen", "last 50 steps’ loss", "spike score, loss", "spike score, gradient norm"],
            rows,
        ),
    )


def _artifacts_section(report: Report) -> str:
    rows = [[what, f"`{reference}`", f"`{url}`"] for what, reference, url in report.artifacts]
    stages = [
        [stage.name, "already committed" if stage.is_resumed else "", f"{stage.seconds:.1f} s"]
        for stage in report.stages
    ]
    return html.section(
        "Where everything is",
        f"All below {report.root}; each folder holds a manifest with inputs, recipe, checksums and parents.",
        html.table(["what", "artifact", "where"], rows, num_text_columns=3),
        html.table(["step", "", "time"], stages, num_text_columns=2),
    )


def _colours(report: Report) -> list[str]:
    """One colour a checkpoint, in the order of `scored`; runs use the same ones."""
    middle = [figures.ORDER_COLOURS[i % len(figures.ORDER_COLOURS)] for i in range(len(report.ingredients))]
    return [figures.PRETRAIN_COLOUR, *middle, figures.SOUP_COLOUR]


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f}|{interval.low:+.3f} to {interval.high:+.3f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def as_json(report: Report) -> Mapping[str, object]:
    """The report's figures for `--json`, without the curves."""
    return {
        "seed": report.seed,
        "root": report.root,
        "claims": [{"text": claim.text, "holds": claim.holds, "evidence": claim.evidence} for claim in report.claims],
        "scores": [
            {
                "checkpoint": scored.name,
                "accuracy": scored.accuracy,
                "items": len(scored.correct),
                "bits_per_byte": {source: scored.bits_per_byte([source]) for source in scored.bits}
                | {"all": scored.bits_per_byte()},
            }
            for scored in report.scored
        ],
        "stages": [
            {"name": stage.name, "seconds": round(stage.seconds, 3), "resumed": stage.is_resumed}
            for stage in report.stages
        ],
        "artifacts": {what: reference for what, reference, _ in report.artifacts},
    }

"""Watches a training run and evaluates each committed checkpoint once, together with whoever else does.

In: a run, a suite, who answers. Out, for each new checkpoint in the order of tokens: the evaluation, the report of all so far on storage, what
became worse against the checkpoint before it, and how far scores are behind training. The state is on storage alone, so that any number of
watchers and of schedules that fire twice, late or again come to one evaluation a checkpoint and suite; no wall clock orders anything.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from evalplane import decontamination, run, watch_regression, watch_report, watch_run, watch_shards
from evalplane.decontamination import OnContamination
from evalplane.run import Evaluation, Plan
from evalplane.task import Suite
from evalplane.watch_regression import Change
from evalplane.watch_report import Report
from evalplane.watch_run import Checkpoint, Found
from evalplane.watch_shards import Answers, Claimant, Damaged, Work
from triplane import artifact, metrics, storage
from triplane.errors import Corrupt
from triplane.progress import log

POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Asked:
    """What is watched and asked. `folders`: where data is looked for, before `root`. `width`: leases held at once, one a worker."""

    root: str
    run: str
    suite: Suite
    tokenizer: str | None = None
    limit: int | None = None
    folders: tuple[str, ...] = ()
    skip_corrupt: bool = False
    width: int = 1
    on_contamination: OnContamination = "refuse"


@dataclass(frozen=True)
class News:
    """A checkpoint whose evaluation was not in the report yet. `previous`: tokens of the one it is compared with; None for the first."""

    run: str
    tokens: int
    evaluation: dict[str, Any]
    previous: int | None
    regressions: tuple[Change, ...]
    report: str
    lag_tokens: int


@dataclass(frozen=True)
class Look:
    """What one look at the run came to. `skipped`: damaged checkpoints, by tokens, and what is wrong with each."""

    news: tuple[News, ...]
    finished: bool
    checkpoints: int
    lag_tokens: int
    skipped: Mapping[int, str]


@dataclass
class Watcher:
    """Looks at a run again and again. Data is read, requests are tokenized and a model is loaded once for all it comes to."""

    asked: Asked
    answers: Answers
    claimant: Claimant = field(default_factory=Claimant)
    progress: Any = None
    tell: Callable[[News], None] = lambda _: None
    wait: Callable[[float], None] = time.sleep
    plan: Plan | None = None
    found: Found = field(default_factory=Found)
    news: list[News] = field(default_factory=list)  # all that was told, whatever failed after it

    def look(self) -> Look:
        """Evaluates what is there now and is not in the report -> what was new. Waits for those who are at it already.

        Raises Damaged after everything else, unless such checkpoints are skipped; NotFound (data missing), Refused (trained on the items),
        UsageError (no tokenizer) and what evaluations raise.
        """
        asked = self.asked
        finished = watch_run.is_finished(asked.root, asked.run)
        looks = (asked.root, asked.run, asked.tokenizer, self.found)
        watch_run.look(*looks, only_one=True)  # enough to say what is asked, and so which report has the others
        news: list[News] = []
        known, lag = Report({}, {}), 0
        if self.found.sound:
            where = watch_report.place(self._plan(), asked.run)
            known = watch_report.newest(where)
            if not watch_report.is_shown(where):
                watch_report.publish(where, known)
            watch_run.look(*looks, told=known.evaluations)
            lag = self._say_lag(known)
            news = self._evaluate(where, known)
            lag = news[-1].lag_tokens if news else lag
        if self.found.damaged and not asked.skip_corrupt:
            raise Damaged(
                f"{len(self.found.damaged)} checkpoints of {asked.run} are damaged; {next(iter(self.found.damaged.values()))}: restore it, "
                f"or go on without it with --skip-corrupt"
            )
        skipped = {tokens: str(error) for tokens, error in self.found.damaged.items()}
        return Look(tuple(news), finished, len({*self.found.sound, *known.evaluations}), lag, skipped)

    def follow(self, interval_seconds: float) -> list[Look]:
        """Looks until the run is finished and its last checkpoint evaluated -> the looks that found something."""
        looks = []
        while not (one := self.look()).finished:
            looks += [one] if one.news else []
            self.wait(interval_seconds)
        return [*looks, one]

    def _plan(self) -> Plan:
        """What is asked of every checkpoint. The first look at the data is the only one."""
        if self.plan is None:
            asked, first = self.asked, watch_run.ascending(self.found)[0]
            options: dict[str, Any] = {"tokenizer": asked.tokenizer, "limit": asked.limit, "folders": asked.folders}
            self.plan = run.plan(first.url, asked.suite, asked.root, **options)
        return self.plan

    def _evaluate(self, where: str, known: Report) -> list[News]:
        """Every checkpoint that the report lacks, side by side with other watchers; told in the order of tokens."""
        todo = [one for one in watch_run.ascending(self.found) if one.tokens not in known.evaluations]
        plans = {one.tokens: run.of_model(self._plan(), one.model) for one in todo}
        if not plans:
            return []
        decontamination.check(self._plan().contamination, self.asked.run, self.asked.on_contamination)
        items = sum(shard.end - shard.start for shard in watch_shards.all_shards(self._plan())) * len(plans)
        name = f"{self.asked.suite.name} of {self.asked.run}"
        bar = nullcontext(None) if self.progress is None else self.progress.bar(name, items, "items")
        with bar as shown:
            advance = (lambda _: None) if shown is None else shown.advance
            width, policy = self.asked.width, self.asked.on_contamination
            left = {at: Work(made, self.claimant, self.answers, width, advance, policy) for at, made in plans.items()}
            return self._share(left, where, known)

    def _share(self, left: dict[int, Work], where: str, known: Report) -> list[News]:
        done: dict[int, Evaluation] = {}
        news: list[News] = []
        while left:
            worked = False
            for tokens, work in list(left.items()):
                try:
                    evaluation, did = work.go_on()
                except Damaged as error:
                    self._set_aside(tokens, error)
                    del left[tokens]
                    continue
                worked |= did
                if evaluation is not None:
                    done[tokens] = evaluation
                    del left[tokens]
            for tokens in sorted(done):
                if not left or tokens < min(left):
                    news.append(self._publish(tokens, done.pop(tokens), where, known))
            if left and not worked:
                self.wait(min(POLL_SECONDS, self.claimant.ttl_seconds / 4))
        return news

    def _set_aside(self, tokens: int, error: Corrupt) -> None:
        self.found.damaged[tokens] = error
        self.found.sound.pop(tokens, None)

    def _publish(self, tokens: int, evaluation: Evaluation, where: str, known: Report) -> News:
        """Adds one evaluation to the newest report there is: others may have added theirs."""
        asked, standing = self.asked, watch_report.newest(where)
        entry = self._entry(self.found.sound[tokens], evaluation)
        evaluations = {**known.evaluations, **standing.evaluations, tokens: entry}
        previous = max((one for one in evaluations if one < tokens), default=None)
        worse = () if previous is None else self._worse(evaluations[previous]["reference"], evaluation)
        regressions = {**standing.regressions, **({tokens: [str(one) for one in worse]} if worse else {})}
        made = Report(dict(sorted(evaluations.items())), regressions)
        page = watch_report.publish(where, made)
        lag = self._say_lag(made)
        told = News(asked.run, tokens, entry, previous, worse, page, lag)
        self.news.append(told)
        self.tell(told)
        return told

    def _entry(self, checkpoint: Checkpoint, evaluation: Evaluation) -> dict[str, Any]:
        """As `report.load_scores` has it."""
        spent = watch_run.trained(self.asked.root, self.asked.run, checkpoint.url)
        known = {} if spent is None else {"training": spent}
        return {"reference": evaluation.reference, **evaluation.manifest.metadata, **known}

    def _worse(self, before: str, after: Evaluation) -> tuple[Change, ...]:
        url = storage.join(self.asked.root, before)
        found = watch_regression.changes(self.asked.suite, Evaluation(url, artifact.load_url(url)), after)
        return tuple(one for one in found if one.is_regression)

    def _say_lag(self, known: Report) -> int:
        """Tokens by which scores are behind training, for whoever graphs it."""
        lag = watch_run.lag_tokens({*self.found.sound, *self.found.damaged, *known.evaluations}, known.evaluations)
        about = {"run": self.asked.run, "suite": self.asked.suite.name}
        log("evaluation lag", lag_tokens=lag, **about)
        metrics.gauge("evaluation_lag_tokens", lag, **about)
        return lag


def regressed(news: Sequence[News]) -> watch_regression.Regressed | None:
    """The alert: which checkpoints are worse than the ones before them, in which tasks, by how much. None where none is."""
    told = [
        f"at {one.tokens} tokens against {one.previous}: {', '.join(map(str, one.regressions))}"
        for one in news
        if one.regressions
    ]
    if not told:
        return None
    return watch_regression.Regressed(
        f"{news[0].run} became worse beyond the interval {'; '.join(told)}: look at the report {news[-1].report}"
    )


def here(device: str | None = None) -> Answers:
    """Answers in this process."""
    return watch_shards.Here(device).answer

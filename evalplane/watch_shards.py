"""One evaluation that several processes on several machines are at: its shards as leases on storage.

In: a plan, who answers shards, a claimant. Out: the shards nobody else holds, answered and committed; in the end the evaluation. A lease is
of a few shards, renewed while they are answered; whoever dies is replaced after its ttl, and who comes back after that writes nothing. What
counts is committed once whatever happens: a shard by its record, the evaluation by its manifest, each one put-if-absent. Leases save work.
"""

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from evalplane import run, shards
from evalplane.decontamination import OnContamination
from evalplane.models import Model
from evalplane.run import Evaluation, Plan
from evalplane.shards import Shard
from triplane import lease, storage
from triplane.artifact_format import RECORDS
from triplane.errors import Corrupt, NotFound, TriplaneError
from triplane.lease import Lease

TTL_SECONDS = 60.0
MAX_GROUP_SHARDS = 4  # of one lease
MANY_SHARDS = 32  # from twice as many on they are leased in groups, so that leases cost less than answers
COMMIT = "commit"


class Answers(Protocol):
    """Who answers: `Here.answer`, or `cluster.Pool.answer`. Commits no shard whose lease was taken over."""

    def __call__(
        self, made: Plan, todo: Sequence[Shard], advance: Callable[[Shard], None], leases: Mapping[str, Lease]
    ) -> None: ...


class Damaged(Corrupt):
    """A checkpoint whose model cannot be read, or answers what is no number."""


@dataclass(frozen=True)
class Claimant:
    """Who takes leases, for how long, and what it has seen of others'."""

    ttl_seconds: float = TTL_SECONDS
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    sightings: lease.Sightings = field(default_factory=lease.Sightings)

    @contextmanager
    def claimed(self, made: Plan, part: str) -> Iterator[Lease | None]:
        """The lease of a part of an evaluation, kept alive while the body runs and released after it; None while another has it."""
        name = f"{made.draft.reference}/{part}"
        held = lease.acquire(made.root, name, self.owner, self.ttl_seconds, sightings=self.sightings)
        if held is None:
            yield None
            return
        try:
            with held.heartbeat():
                yield held
        finally:
            with suppress(TriplaneError):  # it expires by itself
                held.release()


class Here:
    """Answers in this process. The model stays while its plan does, and what was tokenized from one model to the next."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.source: Model | None = None
        self.backend: Any = None
        self.asker: shards.Asker | None = None

    def answer(
        self, made: Plan, todo: Sequence[Shard], advance: Callable[[Shard], None], leases: Mapping[str, Lease]
    ) -> None:
        """`Answers`. Ends where a lease was lost: the rest is another's."""
        if self.source != made.source:
            before = getattr(self.backend, "tokenized", None)
            self.source = self.backend = self.asker = None  # the old weights go before the new ones come
            self.backend = run.load_backend(made.source, self.device, before)
            self.source = made.source
        if self.asker is None or self.asker.prepared is not made.prepared:
            self.asker = shards.Asker(made.prepared, self.backend)
        for shard in todo:
            if not shards.commit(made.draft, shard, self.asker.answer(shard), leases.get(shard.name)):
                return
            advance(shard)


@dataclass
class Work:
    """What is left of an evaluation. `width`: how many leases are taken at once. `advance` is told items, whoever answered them."""

    made: Plan
    claimant: Claimant
    answers: Answers
    width: int = 1
    advance: Callable[[int], None] = lambda _: None
    on_contamination: OnContamination = "refuse"
    groups: list[list[Shard]] = field(init=False)
    counted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.groups = grouped(all_shards(self.made))

    def go_on(self) -> tuple[Evaluation | None, bool]:
        """Answers what nobody else holds -> (the evaluation if it is committed, whether anything was done here).

        Raises Damaged where the model cannot be read, and what else keeps a shard from being answered.
        """
        if (committed := run.committed(self.made)) is not None:
            self._count({shard.name for group in self.groups for shard in group})
            return committed, False
        worked = False
        while True:
            done = self._recorded()
            open_groups = [i for i, group in enumerate(self.groups) if any(shard.name not in done for shard in group)]
            if not open_groups:
                return self._commit(), worked
            if not self._answer_some(open_groups, done):
                return None, worked
            worked = True

    def _answer_some(self, open_groups: Sequence[int], done: set[str]) -> bool:
        """Answers what is not done of up to `width` groups; False where others hold them all."""
        leases: dict[str, Lease] = {}
        with ExitStack() as held:
            taken: list[tuple[int, Lease]] = []
            for number in open_groups:
                found = held.enter_context(self.claimant.claimed(self.made, f"{number:05d}"))
                if found is not None:
                    taken.append((number, found))
                    leases |= {shard.name: found for shard in self.groups[number]}
                if len(taken) == self.width:
                    break
            # Who held it before may have finished it since the listing.
            done = self._recorded() if any(found.generation > 1 for _, found in taken) else done
            todo = [shard for number, _ in taken for shard in self.groups[number] if shard.name not in done]
            if todo:
                self._answer(todo, leases)
        return bool(taken)

    def _answer(self, todo: Sequence[Shard], leases: Mapping[str, Lease]) -> None:
        try:
            self.answers(self.made, todo, lambda shard: self._count({shard.name}), leases)
        except (Corrupt, NotFound, shards.Unanswered) as error:
            raise Damaged(f"{self.made.source.url} cannot be evaluated ({error})") from error

    def _commit(self) -> Evaluation | None:
        """Scores and commits, or None while another does: it costs several reads a shard, and once is enough."""
        with self.claimant.claimed(self.made, COMMIT) as held:
            if held is None:
                return None
            return run.committed(self.made) or run.complete(self.made, _nobody, None, self.on_contamination)

    def _recorded(self) -> set[str]:
        """Shards that stand, whoever answered them: their names only, one listing."""
        url = storage.join(self.made.draft.url, RECORDS)
        names = {name.removesuffix(".json") for name in storage.list_names(url)}
        self._count(names)
        return names

    def _count(self, names: set[str]) -> None:
        """For the progress bar only: a shard whose lease was lost on the way is told of too."""
        fresh = names - self.counted
        self.counted |= names
        if items := sum(shard.end - shard.start for group in self.groups for shard in group if shard.name in fresh):
            self.advance(items)


def all_shards(made: Plan) -> list[Shard]:
    """Those of every task, done or not, in the order in which they are asked. Reads the items."""
    sizes = {task.name: len(made.prepared[task.name].items) for task in made.suite.tasks}
    return [one for task in made.suite.tasks for one in shards.of_task(task.name, list(task.formats), sizes[task.name])]


def grouped(found: Sequence[Shard]) -> list[list[Shard]]:
    """Shards in the order given, a few a lease, the same for everybody: one of few shards, up to four of many."""
    size = min(MAX_GROUP_SHARDS, max(1, len(found) // MANY_SHARDS))
    return [list(found[start : start + size]) for start in range(0, len(found), size)]


def _nobody(made: Plan, todo: Sequence[Shard], advance: Callable[[Shard], None]) -> None:
    raise TriplaneError(
        f"{made.draft.url} lost the records of {len(todo)} shards while it was scored: run the same again"
    )

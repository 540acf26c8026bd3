"""Evaluation by several processes: Ray actors that stay, hold a model each, and answer shards. The only file of the evalplane that knows Ray.

In: a plan, its shards that have no record. Out: their records, committed by the actors. An actor keeps tokenized requests and puts the next
checkpoint's weights where the last one's were. One that dies is replaced and its shard asked again: a shard is written once, whoever writes
it, so neither a killed actor nor a killed driver loses or doubles an item. Without a cluster one is started inside this process.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from evalplane import models, shards
from evalplane.run import Plan, load_backend
from evalplane.shards import Shard
from triplane import cluster
from triplane.errors import TriplaneError, UsageError
from triplane.lease import Lease

MAX_DEATHS = 3  # of the actors that were asked one shard: then it is the shard
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # nothing leaves the machine


class Worker:
    """What runs in an actor: one model, what was tokenized, and the plan it answers for."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.source: models.Model | None = None
        self.backend: Any = None
        self.prepared: shards.Prepared | None = None
        self.asker: shards.Asker | None = None

    def hold(self, made: Plan, device: str | None) -> None:
        """Takes up a plan; its model where it is another one, its items where others were asked before."""
        if self.prepared is None or not shards.is_same(self.prepared.asked, made):
            self.prepared, self.asker = made.prepared, None
        if self.source != made.source:
            before = getattr(self.backend, "tokenized", None)
            self.asker = self.backend = self.source = None  # the old weights go before the new ones come
            self.backend = load_backend(made.source, device, before)
            self.source = made.source
        self.asker = self.asker or shards.Asker(self.prepared, self.backend)

    def answer(self, made: Plan, shard: Shard, lease: Lease | None) -> None:
        """Answers a shard and commits it, unless its lease was lost."""
        assert self.asker is not None
        shards.commit(made.draft, shard, self.asker.answer(shard), lease)

    def pid(self) -> int:
        return os.getpid()

    def tokenized_requests(self) -> int:
        return len(getattr(getattr(self.backend, "tokenized", None), "pairs", ()))


class Pool:
    """Actors that stay from one evaluation to the next. Made by `pool`."""

    def __init__(self, num_workers: int, device: str | None) -> None:
        self.device = device
        self.num_gpus = 1 if device == "cuda" or (device is None and ray.cluster_resources().get("GPU", 0)) else 0
        self.actors = [self._start() for _ in range(num_workers)]
        self.replaced = 0

    def _start(self) -> Any:
        return ray.remote(Worker).options(num_cpus=1, num_gpus=self.num_gpus).remote(1 if not self.num_gpus else 4)

    def answer(
        self,
        made: Plan,
        todo: Sequence[Shard],
        advance: Callable[[Shard], None],
        leases: Mapping[str, Lease] = MappingProxyType({}),
    ) -> None:
        """`run.Answer`; `leases` fence shards, by name. Raises what a shard raised (TriplaneError), or TriplaneError where actors die of one
        shard again and again."""
        plan = ray.put(dataclasses.replace(made))  # without the items: each actor reads its own
        waiting, deaths = deque(todo), dict[str, int]()
        asked: dict[Any, tuple[Any, Shard | None]] = {
            actor.hold.remote(plan, self.device): (actor, None) for actor in self.actors[: len(todo)]
        }
        while asked:
            (done,), _ = ray.wait(list(asked), num_returns=1)
            actor, shard = asked.pop(done)
            if not self._is_done(done):
                actor = self._replace(actor, shard, deaths)
                waiting.extendleft([shard] if shard is not None else [])
                asked[actor.hold.remote(plan, self.device)] = (actor, None)
                continue
            if shard is not None:
                advance(shard)
            if waiting:
                following = waiting.popleft()
                asked[actor.answer.remote(plan, following, leases.get(following.name))] = (actor, following)

    def _is_done(self, reference: Any) -> bool:
        """False where the actor died. Raises what its method raised."""
        try:
            ray.get(reference)
        except RayActorError:
            return False
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, TriplaneError) else error from None
        return True

    def _replace(self, actor: Any, shard: Shard | None, deaths: dict[str, int]) -> Any:
        name = shard.name if shard is not None else "the model"
        deaths[name] = deaths.get(name, 0) + 1
        if deaths[name] >= MAX_DEATHS:
            raise TriplaneError(
                f"{deaths[name]} workers died of {name}, out of memory perhaps: use fewer workers or a machine with more, and run the "
                "same again"
            )
        self.replaced += 1
        fresh = self._start()
        self.actors[self.actors.index(actor)] = fresh
        return fresh

    def pids(self) -> list[int]:
        return list(ray.get([actor.pid.remote() for actor in self.actors]))

    def tokenized_requests(self) -> list[int]:
        """How many requests each actor holds as tokens."""
        return list(ray.get([actor.tokenized_requests.remote() for actor in self.actors]))


@contextmanager
def pool(num_workers: int, device: str | None = None) -> Iterator[Pool]:
    """Actors for any number of evaluations; they end with the block. UsageError where Ray has fewer CPUs."""
    _start_ray(num_workers)
    made = Pool(num_workers, device)
    try:
        yield made
    finally:
        for actor in made.actors:
            ray.kill(actor)


def _start_ray(num_workers: int) -> None:
    """Uses the Ray of this process, else that of RAY_ADDRESS, else starts one here."""
    found = cluster.start_ray(SETTINGS, max(num_workers, os.cpu_count() or 1))
    if found < num_workers:
        raise UsageError(f"{num_workers} workers are asked for and Ray has {found} CPUs: lower --workers")

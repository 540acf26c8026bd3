"""The mix lock, and the global batch at a position: shares of sources -> which instance of which shard is trained on when.

A lock has a header, one row a source (order seed, instances taken) and one row a shard (its instance count); instance i is
computed, never listed, so a lock for 4T tokens is small. Three steps, each a pure function: position -> instance (a
permutation of the lock, another each epoch) -> (source, k-th taken) -> (shard, instance in it). A source's k-th instance
does not depend on how many are taken: a 50B mix is a prefix of the 100B mix; beyond num_available the copies begin again.

Source: arXiv 2501.00656 Tables 4 and 13 (shares, repetition); instances per file as in OLMo-core's `NumpyFSLDataset`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from triplane import artifact, hashing, storage, tokens
from triplane.errors import Corrupt, Refused, UsageError

SCHEMA_VERSION = 1
SHARE_TOLERANCE = 1e-6
MAX_REPETITIONS = 4.0  # the most OLMo 2 repeats any source (Table 13, 300B)


@dataclass(frozen=True)
class MixShard:
    """One token shard; paths are relative to the root, or URLs. num_instances = num_tokens // sequence_length.

    Without checksums (a shard of others, whose sha256 is empty) it is read unverified.
    """

    source: str
    tokens: str
    checksums: str | None
    mask: str | None
    mask_checksums: str | None
    provenance: str | None
    num_tokens: int
    num_instances: int
    sha256: str

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class MixSource:
    """One source: instances it has, instances the mix takes (above num_available: repeated), and its planned share."""

    name: str
    order_seed: int
    num_available: int
    num_taken: int
    share: float

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class MixLock:
    """A planned mix. Shards stand in the order of their sources."""

    name: str
    sequence_length: int
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    sources: tuple[MixSource, ...]
    shards: tuple[MixShard, ...]

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def num_instances(self) -> int:
        """Instances of one epoch, repetitions included."""
        return sum(source.num_taken for source in self.sources)

    @property
    def num_tokens(self) -> int:
        """Tokens of one epoch."""
        return self.num_instances * self.sequence_length

    @property
    def num_unverified(self) -> int:
        """Shards that have no checksums."""
        return sum(shard.checksums is None for shard in self.shards)

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal locks give equal bytes."""
        value = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(data: bytes, name: str = "mix lock") -> "MixLock":
        """Reads `to_bytes`. Raises Refused for an unknown schema version, Corrupt for anything a plan does not give."""
        try:
            value = json.loads(data)
            version = value.pop("schema_version", None)
        except (ValueError, AttributeError) as error:
            raise Corrupt(f"{name} is not a JSON object ({error}); plan the mix again") from error
        if version != SCHEMA_VERSION:
            raise Refused(
                f"{name} has schema_version {version}, this release reads {SCHEMA_VERSION}: use the matching release"
            )
        try:
            lock = _lock_adapter().validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise Corrupt(
                f"{name} is not a mix lock ({error.errors()[0]['loc']}: {error.errors()[0]['msg']})"
            ) from error
        _check_counts(lock, name)
        return lock


@lru_cache(1)
def _lock_adapter() -> TypeAdapter[MixLock]:
    return TypeAdapter(MixLock)


def _check_counts(lock: MixLock, name: str) -> None:
    order = [source.name for source in lock.sources]
    runs = [shard.source for i, shard in enumerate(lock.shards) if not i or lock.shards[i - 1].source != shard.source]
    if runs != order or len(set(order)) != len(order):
        raise Corrupt(f"{name}: its shards are of sources {runs}, its sources are {order}; plan the mix again")
    for shard in lock.shards:
        if shard.num_instances != shard.num_tokens // lock.sequence_length:
            raise Corrupt(
                f"{name}: {shard.tokens} cannot hold {shard.num_instances} instances of {lock.sequence_length}"
            )
    available = _available(lock.shards)
    for source in lock.sources:
        held, taken = available[source.name], source.num_taken
        if source.num_available != held or taken < 0 or (taken and not held):
            raise Corrupt(
                f"{name}: source {source.name} takes {taken} and counts {source.num_available}, its shards {held}"
            )


def _available(shards: Iterable[MixShard]) -> dict[str, int]:
    available: dict[str, int] = {}
    for shard in shards:
        available[shard.source] = available.get(shard.source, 0) + shard.num_instances
    return available


def plan(
    name: str,
    sequence_length: int,
    total_tokens: int,
    shares: Mapping[str, float],
    shards: Sequence[MixShard],
    seed: int,
    tokenizer_sha256: str,
    vocab_size: int,
    eos_id: int,
    max_repetitions: float = MAX_REPETITIONS,
) -> MixLock:
    """Plans total_tokens // sequence_length instances, each source within one instance of its share (largest remainder).

    Raises UsageError for shares that do not sum to 1 (within 1e-6), a share without a source or instances, shards cut to
    another sequence length, or a source that would be repeated more than max_repetitions times.
    """
    _check_shares(shares)
    names = sorted(shares)
    chosen = [shard for source in names for shard in shards if shard.source == source]
    available = _available(chosen)
    _check_shards(chosen, shares, available, sequence_length)
    taken = _apportion(shares, total_tokens // sequence_length)
    for source, count in taken.items():
        if count > max_repetitions * available[source]:
            raise UsageError(
                f"mix {name} would repeat {source} {count / available[source]:.2f} times, at most {max_repetitions} allowed: "
                f"it has {available[source] * sequence_length} tokens; lower its share or the total"
            )
    sources = [MixSource(s, _seed(seed, "source", s), available[s], taken[s], float(shares[s])) for s in names]
    header = (name, sequence_length, tokenizer_sha256, vocab_size, eos_id)
    return MixLock(*header, sources=tuple(sources), shards=tuple(chosen))


def _check_shares(shares: Mapping[str, float]) -> None:
    wrong = [f"{source} {share}" for source, share in shares.items() if not (0 < share <= 1)]
    if wrong:
        raise UsageError(f"shares must be above 0 and at most 1, not {', '.join(wrong)}")
    total = math.fsum(shares.values())
    if abs(total - 1) > SHARE_TOLERANCE:
        raise UsageError(f"the shares of {', '.join(shares) or 'no source'} sum to {total:.7g}: make them sum to 1")


def _check_shards(
    chosen: Sequence[MixShard], shares: Mapping[str, float], available: Mapping[str, int], length: int
) -> None:
    for source in shares:
        if source not in available:
            raise UsageError(f"there is a share for {source} but no shard of it: tokenize it or remove the share")
        if not available[source]:
            raise UsageError(f"{source} has no instance of {length} tokens: use a shorter sequence or larger shards")
    seen: set[str] = set()
    for shard in chosen:
        if shard.num_instances != shard.num_tokens // length:
            raise UsageError(
                f"{shard.tokens} was cut into {shard.num_instances} instances, not of {length} tokens: count again"
            )
        if shard.tokens in seen:
            raise UsageError(f"{shard.tokens} is listed twice: repetition is planned by share, not by listing")
        seen.add(shard.tokens)


def _apportion(shares: Mapping[str, float], seats: int) -> dict[str, int]:
    """Largest remainder (Hamilton), exactly: sums to seats; ties go to the first name."""
    exact = {source: Fraction(share) for source, share in shares.items()}
    total = sum(exact.values())
    quotas = {source: share * seats / total for source, share in exact.items()}
    taken = {source: math.floor(quota) for source, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda source: (taken[source] - quotas[source], source))
    for source in by_remainder[: seats - sum(taken.values())]:
        taken[source] += 1
    return taken


def _seed(seed: int, *what: object) -> int:
    """A 63-bit seed for one purpose."""
    return xxh3_64_intdigest("\0".join(map(str, (seed, *what)))) >> 1


class Order:
    """Where each position of training finds its instance, in constant memory.

    `lock` says what is there, `seed` shuffles it. Nothing here knows ranks or workers.
    """

    def __init__(self, lock: MixLock, seed: int) -> None:
        if not lock.num_instances:
            raise UsageError(f"mix {lock.name} has no instance: plan more than {lock.sequence_length} tokens")
        self.lock, self.seed = lock, seed
        self._source_ends = np.cumsum([source.num_taken for source in lock.sources])
        self._shuffles = [hashing.Feistel(max(source.num_available, 1), source.order_seed) for source in lock.sources]
        self._shard_counts = np.array([shard.num_instances for shard in lock.shards], np.int64)
        self._shard_ends = np.cumsum(self._shard_counts)
        available = np.array([source.num_available for source in lock.sources], np.int64)
        self._first_available = np.cumsum(available) - available

    def instances(self, start: int, count: int) -> np.ndarray:
        """Instance numbers, int64 [count], at positions [start, start + count) of training.

        Every epoch of `lock.num_instances` positions holds each number once, each epoch in another order.
        """
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, within = np.divmod(positions, self.lock.num_instances)
        out = np.empty(count, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            shuffle = hashing.Feistel(self.lock.num_instances, _seed(self.seed, "epoch", epoch))
            out[here] = shuffle.at(within[here])
        return out

    def batch(self, position: int, batch_instances: int) -> np.ndarray:
        """Instance numbers of the global batch at a position (from 0), int64 [batch_instances]; it may cross the end of an epoch."""
        return self.instances(position * batch_instances, batch_instances)

    def locate(self, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Instance numbers, int64 [n] -> (index into lock.shards, instance in that shard), int64 [n] each.

        The instance covers tokens [i * sequence_length, (i + 1) * sequence_length) of its shard.
        """
        instances = np.asarray(instances, np.int64)
        source_of = self.source_index(instances)
        at = np.empty(len(instances), np.int64)
        for source in np.unique(source_of).tolist():
            here = source_of == source
            planned = self.lock.sources[source]
            taken = instances[here] - (self._source_ends[source] - planned.num_taken)
            at[here] = self._first_available[source] + self._shuffles[source].at(taken % planned.num_available)
        shards = np.searchsorted(self._shard_ends, at, side="right")
        return shards, at - (self._shard_ends[shards] - self._shard_counts[shards])

    def source_index(self, instances: np.ndarray) -> np.ndarray:
        """Instance numbers, int64 [n] -> index into lock.sources, int64 [n]. Raises UsageError outside the lock."""
        instances = np.asarray(instances, np.int64)
        outside = instances[(instances < 0) | (instances >= self.lock.num_instances)]
        if len(outside):
            held = self.lock.num_instances
            raise UsageError(f"mix {self.lock.name} has {held} instances; number {outside[0]} is none of them")
        return np.searchsorted(self._source_ends, instances, side="right")


def order_hash(instances: np.ndarray) -> str:
    """32 hex digits (xxh3-128) of instance numbers in their order, for the ledger."""
    return xxh3_128_hexdigest(np.ascontiguousarray(instances, "<i8").data)


def load(url: str) -> MixLock:
    """The lock of a committed mix artifact (its folder), or of a lock file (`.json`). Raises as `MixLock.from_bytes`."""
    if url.endswith(".json"):
        return MixLock.from_bytes(storage.read(url), url)
    manifest = artifact.load_url(url)
    entry = next((file for file in manifest.files if file.name == manifest.metadata.get("lock")), None)
    if entry is None:
        raise Corrupt(f"{url} names no lock among its files: it is a {manifest.kind} artifact, not a mix")
    return MixLock.from_bytes(artifact.read(url, entry), storage.join(url, entry.name))


def require(lock: MixLock, sequence_length: int | None = None, tokenizer_sha256: str | None = None) -> None:
    """Refuses a lock planned for another sequence length or tokenizer than the caller trains with."""
    if sequence_length not in (None, lock.sequence_length):
        raise Refused(
            f"mix {lock.name} has instances of {lock.sequence_length} tokens, not {sequence_length}: plan it again"
        )
    if tokenizer_sha256 not in (None, lock.tokenizer_sha256):
        raise Refused(
            f"mix {lock.name} was tokenized by {lock.tokenizer_sha256[:12]}, not {str(tokenizer_sha256)[:12]}"
        )


def source_shards(
    root: str, manifest: artifact.Manifest, source: str, sequence_length: int, tokenizer_sha256: str
) -> list[MixShard]:
    """The rows of one source for `plan`, from its tokens artifact. Raises Refused if another tokenizer made it."""
    found = manifest.metadata["tokenizer"]["sha256"]
    if found != tokenizer_sha256:
        raise Refused(f"{manifest.reference} was made by tokenizer {found[:12]}, the mix needs {tokenizer_sha256[:12]}")
    folder = artifact.artifact_url(root, manifest.reference)
    digests = {storage.join(folder, entry.name): entry.sha256 for entry in manifest.files}

    def relative(url: str) -> str:
        return url.removeprefix(storage.join(root) + "/")

    return [
        MixShard(
            source=source,
            tokens=relative(shard.url_tokens),
            checksums=shard.url_checksums and relative(shard.url_checksums),
            mask=shard.url_mask and relative(shard.url_mask),
            mask_checksums=shard.url_mask_checksums and relative(shard.url_mask_checksums),
            provenance=shard.url_provenance and relative(shard.url_provenance),
            num_tokens=shard.num_tokens,
            num_instances=shard.num_tokens // sequence_length,
            sha256=digests[shard.url_tokens],
        )
        for shard in tokens.shards(root, manifest)
    ]


def token_shard(root: str, shard: MixShard) -> tokens.Shard:
    """What `tokens.Reader` opens for a row of the lock."""
    return tokens.Shard(
        url_tokens=_below(root, shard.tokens),
        url_checksums=shard.checksums and _below(root, shard.checksums),
        num_tokens=shard.num_tokens,
        url_mask=shard.mask and _below(root, shard.mask),
        url_mask_checksums=shard.mask_checksums and _below(root, shard.mask_checksums),
        url_provenance=shard.provenance and _below(root, shard.provenance),
    )


def _below(root: str, path: str) -> str:
    return path if "://" in path or path.startswith("/") else storage.join(root, path)


def summary(lock: MixLock) -> dict[str, dict[str, float]]:
    """Planned and realised tokens of each source, for manifests and reports."""
    return {
        source.name: {
            "available_tokens": source.num_available * lock.sequence_length,
            "planned_tokens": source.share * lock.num_tokens,
            "realised_tokens": source.num_taken * lock.sequence_length,
            "repetitions": source.num_taken / max(source.num_available, 1),
        }
        for source in lock.sources
    }

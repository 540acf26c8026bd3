"""Tensors of a checkpoint into live tensors, plain or sharded over any mesh: each rank reads the ranges of its own shards.

(folder URL, index, tensors to fill) -> the tensors filled in place. The load planner of torch.distributed.checkpoint says which part of
which chunk goes where; every part is read and checked by `triplane.lm.weights`. Nothing is exchanged, nothing is unpickled.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from triplane.errors import Refused
from triplane.lm import weights
from triplane.lm.tensor_index import DTYPES, TensorEntry

MOST_NAMED = 5


def refuse_other_tensors(url: str, what: str, index: Mapping[str, TensorEntry], wanted: Mapping[str, Tensor]) -> None:
    """Raises Refused, with the difference, unless names and shapes are the same."""
    differences = [f"{name} is missing" for name in wanted if name not in index]
    differences += [f"{name} is unexpected" for name in index if name not in wanted]
    differences += [
        f"{name} is {index[name].shape}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in index and index[name].shape != tuple(tensor.shape)
    ]
    if differences:
        more = f", and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
        raise Refused(
            f"{url} does not hold the {what} of this model: {'; '.join(differences[:MOST_NAMED])}{more}; use its own recipe"
        )


def read_into(url: str, index: Mapping[str, TensorEntry], tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors`, which have the names and shapes of the index. Raises Corrupt, NotFound."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), _metadata(index), is_coordinator=True)
    chunks = {(entry.name, chunk.offsets): (entry, chunk) for entry in index.values() for chunk in entry.chunks}

    @torch.no_grad()
    def read(item: ReadItem) -> None:
        offset = item.storage_index.offset or ()
        entry, chunk = chunks[item.storage_index.fqn, tuple(offset)]
        target = planner.resolve_tensor(item)
        offsets, lengths = tuple(item.storage_offsets), tuple(item.lengths)
        if not offsets:
            offsets, lengths, target = (0,), (1,), target.reshape(1)
        columns = tuple(slice(o, o + n) for o, n in zip(offsets[1:], lengths[1:], strict=True))
        for first, rows in weights.read_rows(url, entry, chunk, offsets[0], lengths[0]):
            part = rows.reshape(1) if rows.ndim == 0 else rows[(slice(None), *columns)]
            target[first - offsets[0] : first - offsets[0] + len(part)].copy_(part)

    with ThreadPoolExecutor(weights.READS_AT_ONCE) as pool:
        list(pool.map(read, planner.create_local_plan().items))


def _metadata(index: Mapping[str, TensorEntry]) -> Metadata:
    return Metadata(
        {
            entry.name: TensorStorageMetadata(
                TensorProperties(DTYPES[entry.dtype]),
                torch.Size(entry.shape),
                [ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.shape)) for c in entry.chunks],
            )
            for entry in index.values()
        }
    )

"""Any filter of datatrove as a tagger: slow, and there for rules that have no kernel here, and to compare.

Columns for each filter of the recipe: datatrove_{name}_keep int64 (1 or 0), datatrove_{name}_reason string (empty where it is kept). A
filter sees text, id and metadata; what it writes into the document is not kept. Filters that split words or sentences want spaCy installed.

Source: huggingface/datatrove `pipeline/filters/base_filter.py`.
"""

import importlib
import inspect
import json
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pydantic import Field

from dataplane.documents import Batch
from dataplane.tagger import Tagger
from triplane.errors import TriplaneError, UsageError
from triplane.recipe import Strict

ALLOWED = "datatrove.pipeline.filters."


class FilterParams(Strict):
    """filter: the dotted path of a class in datatrove.pipeline.filters. params: its arguments."""

    filter: str
    params: dict[str, Any]


class Params(Strict):
    """filters: by the name that their columns carry."""

    filters: dict[str, FilterParams] = Field(min_length=1)


def columns(params: Params | None) -> pa.Schema:
    fields = []
    for name in params.filters if params else ():
        if not name.isidentifier() or not name.islower():
            raise UsageError(
                f"tagger datatrove: {name} cannot be part of a column's name: use lower case letters and _"
            )
        fields += [(f"datatrove_{name}_keep", pa.int64()), (f"datatrove_{name}_reason", pa.string())]
    return pa.schema(fields)


@lru_cache(maxsize=16)
def _filter(path: str, params_json: str) -> Any:
    """The filter object, once a worker process. UsageError for what is not a filter of datatrove, or does not take these arguments."""
    from datatrove.pipeline.filters.base_filter import BaseFilter

    module, _, name = path.rpartition(".")
    if not path.startswith(ALLOWED):
        raise UsageError(f"tagger datatrove: {path} is not in {ALLOWED[:-1]}: name a filter of datatrove")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(f"tagger datatrove: {path} cannot be imported ({error}): check the path") from error
    if not inspect.isclass(found) or not issubclass(found, BaseFilter) or inspect.isabstract(found):
        raise UsageError(f"tagger datatrove: {path} is not a filter: name a class such as {ALLOWED}GopherQualityFilter")
    params = json.loads(params_json)
    if "exclusion_writer" in params:
        raise UsageError(f"tagger datatrove: {path} would write files of its own: leave out exclusion_writer")
    try:
        made = found(**params)
    except (TypeError, ValueError) as error:
        raise UsageError(f"tagger datatrove: {path} does not take these params ({error}): correct them") from error
    # One generator for all documents: what it decides would depend on which worker saw what before.
    if hasattr(made, "uniform") and getattr(made, "keep_fraction", None) != 0.0:
        raise UsageError(f"tagger datatrove: {path} draws at random: sample with rules on u(seed, key) or in the mix")
    return made


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    values: list[pa.Array] = []
    for one in params.filters.values():
        verdicts = _verdicts(batch, one)
        values.append(pa.array([int(keep) for keep, _ in verdicts], pa.int64()))
        values.append(pa.array([reason for _, reason in verdicts], pa.string()))
    return pa.record_batch(values, schema=columns(params))


def _verdicts(batch: Batch, one: FilterParams) -> list[tuple[bool, str]]:
    """(kept, reason) of each document. TriplaneError names the document at which a filter fails."""
    from datatrove.data import Document

    made = _filter(one.filter, json.dumps(one.params, sort_keys=True))
    metadata = batch.metadata.to_pylist() if batch.metadata is not None else [None] * batch.num_documents
    verdicts = []
    for id_, text, fields in zip(batch.id.to_pylist(), batch.text.to_pylist(), metadata, strict=True):
        try:
            known = json.loads(fields) if fields else None
            verdict = made.filter(Document(text=text, id=id_, metadata=known if isinstance(known, dict) else {}))
        except Exception as error:
            raise TriplaneError(
                f"datatrove filter {one.filter} failed on document {id_} ({type(error).__name__}: {error}): "
                "correct its params, or install what it needs"
            ) from error
        keep, reason = verdict if isinstance(verdict, tuple) else (verdict, "")
        verdicts.append((bool(keep), "" if keep else str(reason or "dropped")))
    return verdicts


TAGGER = Tagger("datatrove", 1, Params, columns, tag, needs_metadata=True)

"""fastText classifiers: is a page of high quality, is it mathematics, which language is it in.

Columns of `fasttext_quality` and `fasttext_math`: quality_score, math_score float64, the probability of `label`. Of `language_id`: language
string (the likeliest label, its prefix cut), language_score float64 (the probability of `label`). 0 for a text in which the model knows
nothing.

Text is scored as DCLM does: `" ".join(text.strip().splitlines())`, and with two labels as one minus the likelier where that is the other
one. Plain models go through `kernels/fasttext.py`, all others (subwords, quantised, other losses) through the library.

Sources: mlfoundations/dclm `baselines/mappers/enrichers/quality_prediction_enrichers_calc_fasttext.py` and
`baselines_configs/fasttext_filter.yaml` (0.018112, the top 10 %); OLMo 2 (arXiv 2501.00656, section 4.3): 0.03311014, the top 7 %.
"""

from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from dataplane.documents import Batch
from dataplane.kernels import fasttext as kernel
from dataplane.kernels import trimming
from dataplane.tagger import Rule, Tagger
from dataplane.taggers import models
from triplane.errors import UsageError
from triplane.recipe import Strict

LABEL_PREFIX = "__label__"
DCLM_BASELINE, DOLMINO = 0.018112, 0.03311014
ENGLISH_SCORE = 0.65
QUALITY_RULES = (Rule("dclm_quality", "quality_score", "<", DCLM_BASELINE),)
LANGUAGE_RULES = (Rule("language", "language_score", "<", ENGLISH_SCORE),)


class Params(Strict):
    """model: the URL of a `.bin` or `.ftz` file. sha256: of that file. label: the class whose probability is written, with or without `__label__`."""

    model: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    label: str


@lru_cache(maxsize=3)
def _load(url: str, sha256: str) -> Any:
    """A kernel model, or the library's where the kernel does not cover it; once a worker process."""
    with models.fetched(url, sha256) as path:
        try:
            return kernel.load(path)
        except kernel.Unsupported:
            from fasttext.FastText import _FastText

            return _FastText(str(path))


def _probabilities(batch: Batch, params: Params) -> tuple[tuple[str, ...], np.ndarray]:
    """(labels, float32 [documents, labels]); NaN where the model knows nothing."""
    model = _load(params.model, params.sha256)
    if isinstance(model, kernel.FasttextModel):
        offsets, data = trimming.trim(*batch.text_buffers(), batch.words)
        return model.labels, kernel.score(model, offsets, data, joins_lines=True)
    labels = tuple(model.get_labels())
    place = {label: i for i, label in enumerate(labels)}
    out = np.full((batch.num_documents, len(labels)), np.nan, np.float32)
    for document, text in enumerate(batch.text.to_pylist()):
        found, scores = model.predict(" ".join(text.strip().splitlines()), k=-1)
        out[document, [place[label] for label in found]] = scores
    return labels, out


def _place(labels: tuple[str, ...], params: Params) -> int:
    wanted = LABEL_PREFIX + params.label.removeprefix(LABEL_PREFIX)
    if wanted not in labels:
        raise UsageError(f"model {params.model} has no label {params.label}: use one of {', '.join(labels[:20])}")
    return labels.index(wanted)


def _label_scores(labels: tuple[str, ...], scores: np.ndarray, params: Params) -> np.ndarray:
    """float64 [documents]. With two labels it is what DCLM computes from the likelier alone: probabilities add up to 1.00002, not 1."""
    place = _place(labels, params)
    of_label = scores[:, place].astype(np.float64)
    if len(labels) == 2:
        other = scores[:, 1 - place].astype(np.float64)
        of_label = np.where(other > of_label, 1.0 - other, of_label)
    return np.nan_to_num(of_label)


def _columns(names: tuple[str, ...], params: Params) -> pa.Schema:
    return pa.schema([(name, pa.string() if name == "language" else pa.float64()) for name in names])


def _tag_score(schema: pa.Schema, batch: Batch, params: Params) -> pa.RecordBatch:
    return pa.record_batch([pa.array(_label_scores(*_probabilities(batch, params), params))], schema=schema)


def _tag_language(schema: pa.Schema, batch: Batch, params: Params) -> pa.RecordBatch:
    labels, scores = _probabilities(batch, params)
    names = [label.removeprefix(LABEL_PREFIX) for label in labels]
    likeliest = np.argmax(np.nan_to_num(scores, nan=-1.0), axis=1) if batch.num_documents else np.zeros(0, np.int64)
    known = ~np.isnan(scores).all(axis=1)
    language = [names[i] if is_known else "" for i, is_known in zip(likeliest.tolist(), known.tolist(), strict=True)]
    return pa.record_batch(
        [pa.array(language, pa.string()), pa.array(_label_scores(labels, scores, params))], schema=schema
    )


def _tagger(name: str, column_names: tuple[str, ...], tag: Any, rules: tuple[Rule, ...]) -> Tagger:
    columns = partial(_columns, column_names)
    return Tagger(name, 1, Params, columns, partial(tag, _columns(column_names, None)), rules)  # type: ignore[arg-type]


QUALITY = _tagger("fasttext_quality", ("quality_score",), _tag_score, QUALITY_RULES)
MATH = _tagger("fasttext_math", ("math_score",), _tag_score, ())
LANGUAGE = _tagger("language_id", ("language", "language_score"), _tag_language, LANGUAGE_RULES)

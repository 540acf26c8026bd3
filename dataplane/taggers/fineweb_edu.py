"""The FineWeb-Edu regression: how educational a page is, from 0 to 5, by a BERT-like classifier.

Columns: fineweb_edu_score float64, the model's one output rounded to three decimals; fineweb_edu_class int64, that score rounded, 0 to 5.

The documents of a `Batch` are scored longest first, `batch_documents` at a time, so that what is padded to what follows from the shard
alone; in float32, on the GPU if there is one. The weights are safetensors, pinned by their hash; no code of the model's repository is run.

Sources: Penedo et al. 2024 (arXiv 2406.17557, section 4); HuggingFaceFW/fineweb-edu-classifier (512 tokens); OLMo 2 (arXiv 2501.00656,
section 4.3): score >= 2.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from dataplane.documents import Batch
from dataplane.tagger import Rule, Tagger
from dataplane.taggers import models
from triplane import storage
from triplane.errors import NotFound, UsageError
from triplane.recipe import Strict

WEIGHTS = "model.safetensors"
DECIMALS, LOWEST, HIGHEST = 3, 0, 5
# What a tokenizer is shown of a text, for each token that the model may see: more would cost time and change nothing in text with words.
CHARACTERS_PER_TOKEN = 100
SCHEMA = pa.schema([("fineweb_edu_score", pa.float64()), ("fineweb_edu_class", pa.int64())])
RULES = (Rule("fineweb_edu", "fineweb_edu_score", "<", 2.0),)


class Params(Strict):
    """model: a folder on any store, or a Hub id (`revision` then says which commit). sha256: of its model.safetensors."""

    model: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    revision: str | None = None
    max_tokens: int = Field(default=512, gt=0)
    batch_documents: int = Field(default=32, gt=0)


def columns(params: Params) -> pa.Schema:
    return SCHEMA


@contextmanager
def _folder(params: Params) -> Iterator[Path]:
    """The model's folder, local."""
    if not storage.exists(storage.join(params.model, "config.json")):
        yield _from_hub(params)
    elif storage.is_local(params.model):
        yield storage.local_path(params.model)
    else:
        with tempfile.TemporaryDirectory(prefix="triplane-") as folder:
            for name in storage.list_names(params.model):
                storage.download(storage.join(params.model, name), Path(folder) / name)
            yield Path(folder)


def _from_hub(params: Params) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", WEIGHTS]
    try:
        return Path(snapshot_download(params.model, revision=params.revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise NotFound(
            f"model {params.model} is neither a folder with a config.json nor to be had from the Hub ({reason}): correct it, or fetch it first"
        ) from error


@lru_cache(maxsize=1)
def _load(params: Params) -> tuple[Any, Any]:
    """(tokenizer, model), once a worker process. Refused for other weights than the recipe's, UsageError for more than one output."""
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ModuleNotFoundError as error:
        raise UsageError(
            f"tagger fineweb_edu needs {error.name}, which is not installed: pip install 'triplane[data,train,eval]'"
        ) from error

    with _folder(params) as folder:
        models.check(folder / WEIGHTS, params.sha256, params.model)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    if model.config.num_labels != 1:
        raise UsageError(f"model {params.model} has {model.config.num_labels} outputs: use a regression with one")
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _scores(texts: list[str], params: Params) -> np.ndarray:
    """float64 [documents], as the model gives them."""
    import torch

    tokenizer, model = _load(params)
    shown = [text[: CHARACTERS_PER_TOKEN * params.max_tokens] for text in texts]
    ids = tokenizer(shown, truncation=True, max_length=params.max_tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda document: -len(ids[document]))  # stable: equals stay in order
    out = np.empty(len(texts), np.float64)
    for first in range(0, len(order), params.batch_documents):
        chosen = order[first : first + params.batch_documents]
        padded = tokenizer.pad({"input_ids": [ids[document] for document in chosen]}, return_tensors="pt").to(
            model.device
        )
        with torch.inference_mode():
            out[chosen] = model(**padded).logits[:, 0].double().cpu().numpy()
    return out


def tag(batch: Batch, params: Params) -> pa.RecordBatch:
    texts = batch.text.to_pylist()
    scores = np.round(_scores(texts, params), DECIMALS) if texts else np.zeros(0)
    classes = np.round(np.clip(scores, LOWEST, HIGHEST)).astype(np.int64)
    return pa.record_batch([pa.array(scores), pa.array(classes)], schema=SCHEMA)


TAGGER = Tagger("fineweb_edu", 1, Params, columns, tag, RULES)

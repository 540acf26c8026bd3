"""What was spent on a model that was evaluated: tokens, parameters, FLOPs.

In: a root and the URL of a checkpoint of ours. Out: `Training`, or None where the checkpoint does not say (a Hugging Face folder, a soup).
FLOPs are 6 x parameters x tokens, as in the paper's Table 6, both embeddings counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triplane import artifact
from triplane.errors import TriplaneError

_CHECKPOINT = re.compile(r"checkpoint/(?P<run>[^@]+@[^@]+)\.tokens-(?P<tokens>\d+)")
MAX_RUNS = 20  # a chain of runs longer than this is a loop


@dataclass(frozen=True)
class Training:
    """`tokens` counts those of the runs this one started from too; `run_tokens` its own, `run` is its name."""

    run: str
    run_tokens: int
    tokens: int
    parameters: int

    @property
    def flops(self) -> float:
        return 6.0 * self.parameters * self.tokens


def of_checkpoint(root: str, url: str) -> Training | None:
    """What the checkpoint's manifest and those of the runs before it say. None where one of them says nothing or is gone."""
    try:
        manifest = artifact.load_url(url)
        config, tokens = manifest.metadata.get("model_config"), manifest.metadata.get("tokens_seen")
        if not isinstance(config, dict) or not isinstance(tokens, int) or not manifest.parents:
            return None
        before = _tokens_before(root, manifest.parents[0])
        return Training(manifest.parents[0].split("/", 1)[1], tokens, tokens + before, num_parameters(config))
    except (TriplaneError, LookupError, TypeError):
        return None


def _tokens_before(root: str, run: str) -> int:
    """Tokens of the checkpoint a run started from, and of what that started from. Raises NotFound, LookupError."""
    total = 0
    for _ in range(MAX_RUNS):
        parent = artifact.load(root, run).inputs.get("parent")
        if parent is None:
            return total
        found = _CHECKPOINT.fullmatch(parent)
        if found is None:
            raise LookupError(f"{parent} is no checkpoint of a run")
        total += int(found["tokens"])
        run = f"run/{found['run']}"
    raise LookupError(f"{run} starts from itself")


def num_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of an OLMo 2 model from its config, both embeddings included (`triplane.lm.model.num_parameters`, without torch)."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_width = config["num_key_value_heads"] * (hidden // heads)
    attention = 2 * hidden * hidden + 2 * hidden * kv_width + (hidden + kv_width) * config.get("qk_norm", True)
    block = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return int(2 * config["vocab_size"] * hidden + config["num_hidden_layers"] * block + hidden)

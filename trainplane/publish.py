"""A checkpoint as it is published: a Hugging Face folder with a model card, and the commands that would push it. Nothing is sent.

Revisions are named as AI2's: `stage1-step{N}-tokens{T}B` and `stage2-ingredient{k}-step{N}-tokens{T}B`, T rounded up, but down in stage 2 of
the 7B and 13B; `main` is what a reader gets who names none. Source: the revisions of allenai/OLMo-2-0325-32B and allenai/OLMo-2-1124-7B.
"""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainplane import checkpoint
from trainplane import plan as plans
from trainplane.plan import resolve_parent
from triplane import artifact, storage
from triplane.artifact import Manifest
from triplane.artifact_format import MANIFEST
from triplane.errors import Corrupt, UsageError
from triplane.lm import export, weights
from triplane.lm.model import ModelConfig, num_parameters
from triplane.tokenizer_source import read as read_tokenizer

MAIN = "main"
STAGE = re.compile(r"main|stage1|stage2-ingredient[1-9][0-9]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
Rounding = Literal["up", "down"]


@dataclass(frozen=True)
class Revision:
    """One checkpoint and the name of the branch it gets."""

    name: str
    reference: str
    url: str
    step: int
    tokens_seen: int


@dataclass(frozen=True)
class Published:
    """A folder ready to be pushed, checked by reading it back, and the commands."""

    revision: Revision
    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]


def revision_name(stage: str, step: int, tokens_seen: int, rounding: Rounding = "up") -> str:
    """Raises UsageError for a stage that AI2's names do not have."""
    if not STAGE.fullmatch(stage):
        raise UsageError(f"stage {stage!r} is unknown: use main, stage1 or stage2-ingredient1, stage2-ingredient2, ...")
    billions = tokens_seen // 10**9 if rounding == "down" else -(-tokens_seen // 10**9)
    return MAIN if stage == MAIN else f"{stage}-step{step}-tokens{billions}B"


def revisions(root: str, reference: str, stage: str, rounding: Rounding, every: bool) -> list[Revision]:
    """The checkpoint a reference names, or every committed one of its run. Raises NotFound, UsageError."""
    url, _, pinned = resolve_parent(root, reference)
    if every and (not pinned.startswith("run/") or stage == MAIN):
        raise UsageError(
            f"{pinned} as {stage}: every checkpoint is published of a run, and as stage1 or stage2-ingredientN"
        )
    folder = url.rsplit("/", 1)[0]
    urls = [storage.join(folder, name) for name in sorted(storage.folders(folder))] if every else [url]
    found = [(one, artifact.load_url(one)) for one in urls if not every or _is_committed(one)]
    return [_revision(one, manifest, pinned, stage, rounding) for one, manifest in found]


def _is_committed(url: str) -> bool:
    return storage.exists(storage.join(url, MANIFEST))


def _revision(url: str, manifest: Manifest, reference: str, stage: str, rounding: Rounding) -> Revision:
    made = manifest.metadata
    step, tokens = int(made.get("step", 0)), int(made.get("tokens_seen", 0))
    return Revision(revision_name(stage, step, tokens, rounding), reference, url, step, tokens)


def publish(
    root: str,
    revision: Revision,
    folder: Path,
    repository: str,
    licence: str | None = None,
    tokenizer: str | None = None,
) -> Published:
    """Writes the folder and reads it back, weight by weight. Raises UsageError, Corrupt when what was written is not what was read."""
    check_repository(repository)
    model, info = weights.load_model(revision.url)
    export.to_huggingface(model, folder, _tokenizer_json(root, info, tokenizer))
    (folder / "README.md").write_text(card(root, revision, info, repository, licence))
    _refuse_what_differs(model.state_dict(), folder)
    files = tuple(sorted(path.name for path in folder.iterdir()))
    return Published(revision, folder, files, commands(repository, revision, folder))


def check_repository(repository: str) -> None:
    """Raises UsageError for what is no name on the Hub."""
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UsageError(f"{repository!r} is no repository: write ORGANISATION/NAME, of letters, digits and . _ -")


def _tokenizer_json(root: str, info: dict[str, Any], given: str | None) -> bytes:
    reference = given or (info.get("tokenizer") or {}).get("reference")
    if reference is None:
        raise UsageError(f"{info['url']} does not say where its tokenizer is: give one with --tokenizer")
    is_reference = reference.startswith("tokenizer/")
    return read_tokenizer(artifact.artifact_url(root, reference) if is_reference else reference)


def _refuse_what_differs(written: dict[str, torch.Tensor], folder: Path) -> None:
    read = export.from_huggingface(folder).state_dict()
    wrong = [name for name, tensor in written.items() if not torch.equal(tensor, read[name])]
    if wrong:
        raise Corrupt(f"{folder} read back has other weights in {', '.join(wrong[:3])}: write it again to a sound disk")


def commands(repository: str, revision: Revision, folder: Path) -> tuple[str, ...]:
    """What would push the folder, in order, for a shell. `hf` is of huggingface_hub."""
    name = shlex.quote(revision.name)
    upload = f"hf upload {repository} {shlex.quote(str(folder))} . --revision {name}"
    if revision.name == MAIN:
        return (f"hf repos create {repository} --exist-ok", upload)
    return (
        f"hf repos create {repository} --exist-ok",
        f"hf repos branch create {repository} {name} --exist-ok",
        upload,
    )


def card(root: str, revision: Revision, info: dict[str, Any], repository: str, licence: str | None) -> str:
    """The model card: what the artifacts say and nothing else."""
    config = ModelConfig.from_dict(info["model_config"])
    front = ["---", "library_name: transformers", "tags: [olmo2]", *([f"license: {licence}"] if licence else []), "---"]
    at = "" if revision.name == MAIN else f', revision="{revision.name}"'
    use = ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer",
           f'model = AutoModelForCausalLM.from_pretrained("{repository}"{at})',
           f'tokenizer = AutoTokenizer.from_pretrained("{repository}"{at})', "```"]  # fmt: skip
    sizes = [f"{num_parameters(config):,} parameters: {config.num_hidden_layers} layers, width {config.hidden_size}, "
             f"{config.num_attention_heads} heads ({config.num_key_value_heads} of keys and values), vocabulary {config.vocab_size}, "
             f"context {config.max_position_embeddings}."]  # fmt: skip
    ingredients = info.get("ingredients", [revision.reference])
    seen = None if "ingredients" in info else revision.tokens_seen
    runs = [_run(root, one, seen) for one in ingredients if one.startswith("run/")]
    lines = [*front, "", f"# {repository.split('/')[1]}", "", *sizes, "", *use, "", "## How it was made", ""]
    if "ingredients" in info:
        lines += [f"The uniform average of the weights of {len(info['ingredients'])} runs.", ""]
    for run in runs:
        lines += [*_run_lines(root, run), ""]
    lines += ["## Where it comes from", "", *(f"- `{one}`" for one in _lineage(revision, runs)), ""]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Run:
    """What a card tells of a run, finished or not, up to a checkpoint (`tokens_seen`; None: to its end)."""

    reference: str
    tokens_seen: int | None
    recipe: dict[str, Any]
    parents: tuple[str, ...]


def _run(root: str, reference: str, tokens_seen: int | None) -> _Run:
    reference, _, inside = reference.partition(f"/{checkpoint.CHECKPOINTS}/")
    if inside:
        tokens_seen = int(inside.removeprefix("tokens-"))
    url = artifact.artifact_url(root, reference)
    begun = None if _is_committed(url) else plans.started(url)
    if begun is not None:
        parents = tuple(v for k, v in begun.inputs.items() if not k.endswith("_identity"))
        return _Run(reference, tokens_seen, begun.recipe, parents)
    manifest = artifact.load_url(url)
    return _Run(manifest.reference, tokens_seen, manifest.recipe, manifest.parents)


def _run_lines(root: str, run: _Run) -> list[str]:
    """One run: its recipe's figures, and the tokens it was trained on by source, from its ledger up to the checkpoint."""
    ledger = checkpoint.read_ledger(artifact.artifact_url(root, run.reference))
    rows = [row for row in ledger if run.tokens_seen is None or row["tokens_seen"] <= run.tokens_seen]
    by_source: Counter[str] = Counter()
    for row in rows:
        by_source.update(row["tokens_by_source"])
    total, data, rates, o = (
        max(1, sum(by_source.values())),
        run.recipe["data"],
        run.recipe["schedule"],
        run.recipe["optimizer"],
    )
    return [
        f"**{run.reference}**: {rows[-1]['step']:,} steps of {data['global_batch_tokens']:,} tokens, data order seed {data['order_seed']}. "
        f"Learning rate up to {rates['peak_lr']:.4g}, {rates['decay']} to {rows[-1]['lr']:.4g}; AdamW ({o['beta1']}, {o['beta2']}), epsilon "
        f"{o['eps']:g}, decay {o['weight_decay']:g}; z-loss {run.recipe['z_loss']:g}.",
        "",
        "| source | tokens | share |",
        "| --- | ---: | ---: |",
        *(f"| {source} | {tokens:,} | {100 * tokens / total:.1f} % |" for source, tokens in by_source.most_common()),
    ]


def _lineage(revision: Revision, runs: Sequence[_Run]) -> list[str]:
    parents = [parent for run in runs for parent in run.parents]
    return list(dict.fromkeys([revision.reference, *(run.reference for run in runs), *parents]))

"""The whole path on text this machine has: corpus, tokenizer, data, pretraining, three anneals, a soup, evaluation, one report.

In: a root (folder or s3://) and a seed. Out: artifacts of every plane below the root, and `report.html` beside them. Each step commits before
the next begins, so the same command goes on from what is there. The settings are the recipes in `jobs/recipes/demo/`; what the report claims is
checked on what was measured (`demo_claims`), and `demo_report` draws it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zstandard

from dataplane import build
from dataplane.recipe import BuildRecipe
from evalplane import run as evaluation
from evalplane import task
from jobs import demo_arithmetic, demo_corpus, demo_report
from jobs.demo_claims import Scored
from jobs.demo_report import Report
from trainplane import cluster, soup, stability
from trainplane import recipe as run_recipe
from triplane import artifact, recipe, storage, vocabulary
from triplane.lm.model import ModelConfig, num_parameters
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

T = TypeVar("T")

STAGE_VERSION = 1
RECIPES = Path(__file__).parent / "recipes" / "demo"
SOURCES = ("code", "prose", "math")
BUDGET = demo_corpus.Budget(
    library_code_bytes=6_000_000,
    package_code_bytes=3_000_000,
    docstring_bytes=2_500_000,
    text_bytes=2_500_000,
    math_documents=16_000,
)
NUM_ITEMS = 256
NUM_ORDERS = 3
VOCAB_SIZE = 4096
NUMBER_LINES = 2000  # enough that every number up to 40 is learnt as one token
DOCUMENTS_PER_SHARD = 250
EXAMPLES_SHOWN = 6
NUM_STEPS = 7


@dataclass
class Demo:
    """Where the demo is: its root, its seed, and the steps done so far."""

    root: str
    seed: int
    progress: Progress
    committed_before: frozenset[str]
    stages: list[demo_report.Stage] = field(default_factory=list)

    def step(self, name: str, do: Callable[[], T], references: Callable[[T], Sequence[str]]) -> T:
        """Runs one step and notes its time, and whether all it gives (`references`) was committed before the demo began."""
        print(f"{len(self.stages) + 1}/{NUM_STEPS} {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = do()
        is_resumed = self.committed_before.issuperset(references(result))
        self.stages.append(demo_report.Stage(name, time.monotonic() - started, is_resumed))
        return result


@dataclass(frozen=True)
class Trained:
    """Every checkpoint of the demo in the report's order: name, reference, URL of the weights; and the runs' ledgers."""

    pretrained: cluster.RunResult
    ingredients: Sequence[cluster.RunResult]
    soup: soup.Soup

    @property
    def checkpoints(self) -> list[tuple[str, str, str]]:
        orders = [(f"order {n}", run.reference, run.checkpoint_url) for n, run in enumerate(self.ingredients, 1)]
        first = ("pretrained", self.pretrained.reference, self.pretrained.checkpoint_url)
        return [first, *orders, ("soup", self.soup.reference, self.soup.url)]


def run(root: str, seed: int, progress: Progress) -> tuple[Report, str]:
    """Walks all three planes -> the report and its URL. Raises TriplaneError from the step that failed."""
    root = storage.absolute(root)
    before = (reference for kind in artifact.KINDS for reference in artifact.references(root, kind))
    demo = Demo(root, seed, progress, frozenset(before))
    corpus = demo.step("corpus: this machine's text", lambda: make_corpus(demo), lambda made: [made.reference])
    tokenizer = demo.step("tokenizer", lambda: make_tokenizer(demo, corpus), lambda made: [made.reference])
    built = demo.step(
        "data: ingest, tag, select, tokenize, mix (Spark)",
        lambda: build_data(demo, corpus, tokenizer),
        lambda made: [*made.tokens.values(), *made.mixes.values()],
    )
    trained = train(demo, built)
    evaluations = demo.step(
        "evaluation of all checkpoints",
        lambda: evaluate(demo, corpus, built, trained),
        lambda made: [one.reference for one in made],
    )
    report = assemble(demo, tokenizer, built, trained, evaluations)
    url = storage.join(root, "report.html")
    storage.put(url, demo_report.render(report).encode())
    return report, url


def plan(root: str, seed: int) -> dict[str, Any]:
    """What `run` would read and make, for --dry-run: the corpus by source, the resolved recipes, tokens to train. Writes nothing."""
    texts = {source: [d["text"] for d in demo_corpus.documents(source, BUDGET, seed)] for source in SOURCES}
    pretrain, anneal = _run_recipe("pretrain", []), _run_recipe("anneal", [])
    return {
        "root": root,
        "seed": seed,
        "corpus": {s: {"documents": len(of), "bytes": sum(len(t.encode()) for t in of)} for s, of in texts.items()},
        "tokens_to_train": pretrain.stop_tokens + NUM_ORDERS * anneal.stop_tokens,
        "recipes": {
            "build": recipe.resolved(recipe.load(RECIPES / "build.yaml", BuildRecipe)),
            "pretrain": recipe.resolved(pretrain),
            "anneal": recipe.resolved(anneal),
        },
    }


def make_corpus(demo: Demo) -> artifact.Manifest:
    """Writes the documents as dolma JSONL.zst and the arithmetic items. Deterministic on one machine: the content names the version."""
    files = dict(corpus_files(demo.seed))
    draft = artifact.begin(
        demo.root,
        "corpus",
        "demo",
        inputs={name: sha256(data).hexdigest() for name, data in files.items()},
        recipe={"seed": demo.seed},
        stage_versions={"demo_corpus": STAGE_VERSION},
    )
    if (standing := artifact.committed(draft)) is not None:
        return standing
    for name, data in files.items():
        stem, suffix = name.split(".", 1)
        draft.record(stem, [draft.put_bytes(data, stem, f".{suffix}")], {})
    return draft.commit({"sources": list(SOURCES)})


def corpus_files(seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every document shard, and of the evaluation items."""
    compressor = zstandard.ZstdCompressor(level=3)
    for source in SOURCES:
        documents = demo_corpus.documents(source, BUDGET, seed)
        number = 0
        while batch := list(islice(documents, DOCUMENTS_PER_SHARD if source != "math" else 8000)):
            yield f"{source}/part-{number:05d}.jsonl.zst", compressor.compress(_json_lines(batch))
            number += 1
    yield "items.jsonl", _json_lines(demo_arithmetic.evaluation_items(NUM_ITEMS, seed))


def make_tokenizer(demo: Demo, corpus: artifact.Manifest) -> artifact.Manifest:
    """Trains the vocabulary on the whole corpus, and on lines of numbers."""
    draft = artifact.begin(
        demo.root,
        "tokenizer",
        "demo",
        inputs={"corpus": corpus.reference},
        recipe={"vocab_size": VOCAB_SIZE, "number_lines": NUMBER_LINES},
        stage_versions={"demo_tokenizer": STAGE_VERSION},
        parents=[corpus.reference],
    )
    if (standing := artifact.committed(draft)) is not None:
        return standing
    texts = (d["text"] for source in SOURCES for d in demo_corpus.documents(source, BUDGET, demo.seed))
    trained = vocabulary.train([*texts, *demo_arithmetic.number_lines(NUMBER_LINES)], VOCAB_SIZE)
    stored = draft.put_bytes(trained, "tokenizer", ".json")
    made = Tokenizer.load(storage.join(draft.url, stored.name))
    draft.record("tokenizer", [stored], {})
    return draft.commit({"sha256": made.sha256, "eos_id": made.eos_id, "vocab_size": made.vocab_size})


def build_data(demo: Demo, corpus: artifact.Manifest, tokenizer: artifact.Manifest) -> build.BuildResult:
    """Spark's part: from document shards to two mix locks and the held-out documents."""
    return build.run(build_recipe(demo, corpus, tokenizer), demo.root, demo.progress)


def build_recipe(demo: Demo, corpus: artifact.Manifest, tokenizer: artifact.Manifest) -> BuildRecipe:
    """`build.yaml` with this demo's corpus and tokenizer filled in."""
    overrides = [f"tokenizer={tokenizer.reference}", f"seed={demo.seed}"]
    folder = artifact.artifact_url(demo.root, corpus.reference)
    overrides += [f"sources.{n}.documents={storage.join(folder, source)}" for n, source in enumerate(SOURCES)]
    return recipe.load(RECIPES / "build.yaml", BuildRecipe, overrides)


def train(demo: Demo, built: build.BuildResult) -> Trained:
    """Stage 1, stage 2 with three data orders, and the average of the three."""
    pretrain = _run_recipe("pretrain", [f"data.mix={built.mixes['demo-pretrain']}", f"init_seed={demo.seed}"])
    pretrained = demo.step(
        "pretraining (Ray Train)",
        lambda: cluster.train(pretrain, demo.root, progress=demo.progress, on_change="fresh"),
        lambda made: [made.reference],
    )
    anneals = [anneal_recipe(built.mixes["demo-anneal"], pretrained.reference, order) for order in range(NUM_ORDERS)]
    ingredients = demo.step(
        "mid-training, three data orders (Ray Train)",
        lambda: cluster.train_many(anneals, demo.root, progress=demo.progress, on_change="fresh"),
        lambda made: [one.reference for one in made],
    )
    averaged = demo.step(
        "soup",
        lambda: soup.average(demo.root, "demo-soup", [one.reference for one in ingredients]),
        lambda made: [made.reference],
    )
    return Trained(pretrained, ingredients, averaged)


def anneal_recipe(mix: str, init_from: str, order: int) -> run_recipe.RunRecipe:
    """Stage 2 on `mix` in one data order, from the weights and optimizer of the run `init_from`."""
    return _run_recipe(
        "anneal",
        [f"name=demo-anneal-{order + 1}", f"data.mix={mix}", f"init_from={init_from}", f"data.order_seed={order}"],
    )


def evaluate(
    demo: Demo, corpus: artifact.Manifest, built: build.BuildResult, trained: Trained
) -> list[evaluation.Evaluation]:
    """Every checkpoint on unseen problems and held-out documents."""
    suite = demo_suite(items_url(demo, corpus), [built.heldout[source] for source in SOURCES])

    def one(checkpoint: tuple[str, str, str]) -> evaluation.Evaluation:
        return evaluation.evaluate(checkpoint[2], suite, demo.root, progress=demo.progress)

    with ThreadPoolExecutor(2) as pool:  # torch releases the GIL; two small models keep two cores busy
        return list(pool.map(one, trained.checkpoints))


def items_url(demo: Demo, corpus: artifact.Manifest) -> str:
    """Where the corpus keeps the arithmetic items."""
    name = next(file.name for file in corpus.files if file.name.startswith("items"))
    return storage.join(artifact.artifact_url(demo.root, corpus.reference), name)


def demo_suite(items_url: str, heldout: Sequence[str]) -> task.Suite:
    """Arithmetic on `items_url` and bits per byte on the held-out artifacts."""
    paths = {"arithmetic": [items_url], "held_out_bits_per_byte": list(heldout)}
    return task.load_suite("demo", [f"{name}.data.path={json.dumps(path)}" for name, path in paths.items()])


def scored(name: str, evaluated: evaluation.Evaluation) -> Scored:
    """A checkpoint's scores item by item, so that two checkpoints can be compared on the same items."""
    documents = evaluated.items("held_out_bits_per_byte").to_pandas()
    by_source = {source: documents[documents["source"] == source] for source in SOURCES}
    return Scored(
        name=name,
        correct=evaluated.items("arithmetic")["correct"].to_numpy(),
        bits={source: rows["bits"].to_numpy() for source, rows in by_source.items()},
        bytes={source: rows["bytes"].to_numpy().astype(np.float64) for source, rows in by_source.items()},
    )


def assemble(
    demo: Demo,
    tokenizer: artifact.Manifest,
    built: build.BuildResult,
    trained: Trained,
    evaluations: Sequence[evaluation.Evaluation],
) -> Report:
    """Everything the page shows, from the artifacts alone."""
    runs = [("pretraining", trained.pretrained), *((f"order {n}", r) for n, r in enumerate(trained.ingredients, 1))]
    mixes = [
        ("pretraining", "demo-pretrain", [trained.pretrained]),
        ("mid-training", "demo-anneal", trained.ingredients),
    ]
    before_tokens = trained.pretrained.tokens_seen
    return Report(
        seed=demo.seed,
        root=demo.root,
        num_parameters=num_parameters(_model_config(trained.pretrained)),
        funnel=[
            demo_report.FunnelPart(row.source, row.reason or row.fate, row.documents, row.bytes, row.tokens)
            for row in built.funnel
            if row.fate != "in"
        ],
        mix_shares=[share for name, mix, of_mix in mixes for share in _mix_shares(name, built.mix_tokens[mix], of_mix)],
        runs=[_curves(name, run, 0 if run is trained.pretrained else before_tokens) for name, run in runs],
        scored=[scored(checkpoint[0], e) for checkpoint, e in zip(trained.checkpoints, evaluations, strict=True)],
        examples=_examples(evaluations),
        artifacts=_artifacts(demo.root, tokenizer, built, trained, evaluations),
        stages=demo.stages,
    )


def _mix_shares(name: str, planned: dict[str, int], runs: Sequence[cluster.RunResult]) -> list[demo_report.MixShare]:
    """Planned tokens of a mix beside those its runs trained on, from their ledgers; for several runs both are the mean of one."""
    realised = dict.fromkeys(planned, 0)
    for run in runs:
        for row in run.ledger:
            for source, tokens in row["tokens_by_source"].items():
                realised[source] += tokens
    return [demo_report.MixShare(name, s, planned[s], round(realised[s] / len(runs))) for s in SOURCES]


def _curves(name: str, run: cluster.RunResult, tokens_before: int) -> demo_report.Run:
    columns = {key: [row[key] for row in run.ledger] for key in ("tokens_seen", "loss", "grad_norm", "lr")}
    return demo_report.Run(
        name=name,
        tokens_seen=np.array(columns["tokens_seen"]) + tokens_before,
        loss=np.array(columns["loss"]),
        grad_norm=np.array(columns["grad_norm"]),
        lr=np.array(columns["lr"]),
        spikes=stability.spikes(columns["loss"], 1000, 7.0, False),
        spike_score_loss=stability.spike_score_paper(columns["loss"]) / 100,
        spike_score_grad_norm=stability.spike_score_paper(columns["grad_norm"]) / 100,
    )


def _examples(evaluations: Sequence[evaluation.Evaluation]) -> list[demo_report.Example]:
    """The first items as the pretrained model, the first order and the soup answered them."""
    shown = [evaluations[0], evaluations[1], evaluations[-1]]
    rows = [e.items("arithmetic").slice(0, EXAMPLES_SHOWN).to_pylist() for e in shown]
    return [
        demo_report.Example(of[0]["question"], of[0]["expected"], tuple(row["answer"] for row in of))
        for of in zip(*rows, strict=True)
    ]


def _artifacts(
    root: str,
    tokenizer: artifact.Manifest,
    built: build.BuildResult,
    trained: Trained,
    evaluations: Sequence[evaluation.Evaluation],
) -> list[tuple[str, str, str]]:
    references = [("tokenizer", tokenizer.reference), ("selection and funnel", built.selection)]
    references += [(f"tokens, {source}", reference) for source, reference in built.tokens.items()]
    references += [(f"mix, {name.removeprefix('demo-')}", reference) for name, reference in built.mixes.items()]
    listed = [(what, reference, storage.join(root, reference)) for what, reference in references]
    listed += [(f"checkpoint, {name}", reference, url) for name, reference, url in trained.checkpoints]
    return listed + [(f"evaluation, {e.manifest.metadata['model']['name']}", e.reference, e.url) for e in evaluations]


def _model_config(run: cluster.RunResult) -> ModelConfig:
    return ModelConfig.from_dict(artifact.load_url(run.url).metadata["model_config"])


def _run_recipe(name: str, overrides: Sequence[str]) -> run_recipe.RunRecipe:
    return run_recipe.load(RECIPES / f"{name}.yaml", overrides, models=RECIPES)


def _json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

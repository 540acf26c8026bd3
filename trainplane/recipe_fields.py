"""What a run recipe may say: frozen fields, their types and units. `recipe` reads and checks them.

Every value is written out; only switches have a default, OLMo 2's own position or the plainest way to run. A value that no run can have is
refused where it is read.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from triplane.recipe import Strict, Tokens

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decaying = Annotated[float, Field(ge=0, lt=1)]
SomeTokens = Annotated[Tokens, Field(ge=1)]
AtLeast1 = Annotated[int, Field(ge=1)]


class ModelRecipe(Strict):
    """Hugging Face's names; `source` says where the numbers are from."""

    source: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    initializer_range: float
    eos_token_id: int
    pad_token_id: int | None
    norm_position: Literal["post", "pre"] = "post"
    qk_norm: bool = True
    initialization: Literal["normal", "scaled"] = "normal"


class DataRecipe(Strict):
    """`order`: feistel needs no index; olmo and olmo-core are those of allenai/OLMo and OLMo-core (in chunks), to replay their runs.
    `document_masks`: a token sees its own document only."""

    mix: str
    sequence_length_tokens: Annotated[Tokens, Field(ge=2)]
    global_batch_tokens: SomeTokens
    order_seed: Annotated[int, Field(ge=0)]
    instance_filter: bool
    order: Literal["feistel", "olmo", "olmo-core"] = "feistel"
    order_chunk_instances: AtLeast1 = 1
    document_masks: bool = False


class OptimizerRecipe(Strict):
    """`skip_step_bug`: the step counter never moves, as in OLMo-core before its PR 309: no bias correction that decays."""

    beta1: Decaying
    beta2: Decaying
    eps: Positive
    weight_decay: NotNegative
    decay_embeddings: bool
    decay_norms: bool
    max_grad_norm: Positive
    skip_step: bool
    skip_step_bug: bool = False


class ScheduleRecipe(Strict):
    peak_lr: Positive
    warmup_tokens: Annotated[Tokens, Field(ge=0)]
    decay: Literal["cosine", "linear"]
    decay_tokens: SomeTokens
    final_lr_fraction: Fraction


class ParallelRecipe(Strict):
    """How a model lies over ranks (`parallel`): `shard_ranks` share one copy of it, for hsdp; `memory_budget` is the part of a block's
    activations that is kept, for activation_checkpointing: memory_budget. `compile`: blocks and loss."""

    shard: Literal["none", "fsdp", "hsdp"] = "none"
    shard_ranks: AtLeast1 | None = None
    compile: bool = False
    activation_checkpointing: Literal["none", "full", "every_2", "every_4", "mlp", "memory_budget"] = "none"
    memory_budget: Fraction = 0.5


class RuntimeRecipe(Strict):
    """`num_workers` 0: in this process, without Ray. `min_workers`: with as few Ray may begin or go on, `num_workers` being the most. Checkpoints
    every `ephemeral_every_tokens` are removed once a newer one stands. Metrics of `metrics_every_steps` steps leave the device together:
    on GPUs 10 or so, as each time waits for the device. `collective_timeout_seconds`: a step that takes longer, on several ranks, is ended
    (`watchdog`) and counts as a failure."""

    num_workers: Annotated[int, Field(ge=0)]
    threads_per_worker: AtLeast1
    microbatch_instances: AtLeast1
    read_ahead_batches: Annotated[int, Field(ge=0)]
    checkpoint_every_tokens: SomeTokens
    measure_update_norm: bool
    max_failures: Annotated[int, Field(ge=-1)]  # -1: any number, as Ray has it
    ephemeral_every_tokens: SomeTokens | None = None
    min_workers: AtLeast1 | None = None
    metrics_every_steps: AtLeast1 = 1
    collective_timeout_seconds: AtLeast1 = 600
    parallel: ParallelRecipe = ParallelRecipe()


class Published(Strict):
    """What a publication says of one key where something else ran, and where it says so."""

    value: float | int | bool | str | None
    source: str


class RunRecipe(Strict):
    """`version` null: named by content. `init_from`: a run whose weights and optimizer this one starts from, null for fresh weights.
    `precision` is of products and activations; weights, gradients and optimizer state are fp32."""

    name: str
    version: str | None
    source: str
    init_seed: int
    init_from: str | None
    stop_tokens: SomeTokens
    z_loss: NotNegative
    model: ModelRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    runtime: RuntimeRecipe
    precision: Literal["fp32", "bf16"] = "fp32"
    published: dict[str, Published] = pydantic.Field(default_factory=dict)


class Variant(Strict):
    """Another recipe with some keys replaced: `base` is a path relative to this file, `change` dotted keys and their values."""

    base: str
    name: str
    source: str
    change: dict[str, Any]

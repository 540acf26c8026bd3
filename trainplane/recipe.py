"""The recipe of a training run: YAML -> frozen settings, and the check that live objects do what it says.

Every value is written out (no defaults) and carries its unit in its name. `runtime` says how to run, never what is computed: it is
not part of a run's identity. A model is written in place or named (`model: olmo2_7b` is a file in the folder of models).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from trainplane import optim
from trainplane.loop import LoopSettings
from trainplane.loss import head_loss
from trainplane.schedule import Schedule
from trainplane.step import StepSettings
from triplane import recipe as recipes
from triplane.errors import Refused, UsageError
from triplane.lm.model import ModelConfig
from triplane.recipe import Strict, Tokens


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


class DataRecipe(Strict):
    mix: str
    sequence_length_tokens: Tokens
    global_batch_tokens: Tokens
    order_seed: int
    instance_filter: bool


class OptimizerRecipe(Strict):
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decay_embeddings: bool
    decay_norms: bool
    max_grad_norm: float
    skip_step: bool


class ScheduleRecipe(Strict):
    peak_lr: float
    warmup_tokens: Tokens
    decay: Literal["cosine", "linear"]
    decay_tokens: Tokens
    final_lr_fraction: float


class RuntimeRecipe(Strict):
    """`num_workers` 0: in this process, without Ray."""

    num_workers: int
    threads_per_worker: int
    microbatch_instances: int
    read_ahead_batches: int
    checkpoint_every_tokens: Tokens
    measure_update_norm: bool
    max_failures: int


class RunRecipe(Strict):
    """`version` null: named by content. `init_from`: a run whose weights and optimizer this one starts from, null for fresh weights."""

    name: str
    version: str | None
    source: str
    init_seed: int
    init_from: str | None
    stop_tokens: Tokens
    z_loss: float
    model: ModelRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    runtime: RuntimeRecipe


def load(path: Path, overrides: Sequence[str] = (), models: Path | None = None) -> RunRecipe:
    """Reads a run's YAML. A model given by name is `{models}/{name}.yaml`, by default in `../models` beside the recipe's folder.
    Raises UsageError."""
    overrides = list(overrides)
    name = _model_name(path, overrides)
    if name is not None:
        folder = models or Path(path).parent.parent / "models"
        model = recipes.load(folder / f"{name}.yaml", ModelRecipe)
        overrides = [o for o in overrides if not o.startswith("model=")]
        overrides.insert(0, f"model={json.dumps(model.model_dump(mode='json'))}")
    recipe = recipes.load(Path(path), RunRecipe, overrides)
    check(recipe)
    return recipe


def _model_name(path: Path, overrides: Sequence[str]) -> str | None:
    """The model if it is named and not written in place: from the last `model=` override, else from the file."""
    for override in reversed(overrides):
        if override.startswith("model="):
            value = yaml.safe_load(override.removeprefix("model="))
            return value if isinstance(value, str) else None
    try:
        value = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError):
        return None  # the strict reader says what is wrong, and where
    model = value.get("model") if isinstance(value, dict) else None
    return model if isinstance(model, str) else None


def check(recipe: RunRecipe) -> None:
    """Raises UsageError for values that are each well typed and do not fit together."""
    data, schedule = recipe.data, recipe.schedule
    wrong = [
        (data.global_batch_tokens % data.sequence_length_tokens, "data.global_batch_tokens must be a multiple of data.sequence_length_tokens"),
        (data.sequence_length_tokens > recipe.model.max_position_embeddings, "data.sequence_length_tokens exceeds model.max_position_embeddings"),
        (schedule.decay_tokens <= schedule.warmup_tokens, "schedule.decay_tokens must exceed schedule.warmup_tokens"),
        (not 0 <= schedule.final_lr_fraction <= 1, "schedule.final_lr_fraction must be between 0 and 1"),
        (recipe.stop_tokens < 1 or data.sequence_length_tokens < 2, "stop_tokens and data.sequence_length_tokens must be positive"),
        (recipe.runtime.microbatch_instances < 1, "runtime.microbatch_instances must be at least 1"),
        (recipe.runtime.checkpoint_every_tokens < 1, "runtime.checkpoint_every_tokens must be at least 1"),
        (recipe.runtime.threads_per_worker < 1 or recipe.runtime.num_workers < 0, "runtime.threads_per_worker >= 1, num_workers >= 0"),
    ]  # fmt: skip
    for is_wrong, message in wrong:
        if is_wrong:
            raise UsageError(f"recipe {recipe.name}: {message}")
    model_config(recipe)


def identity_recipe(recipe: RunRecipe) -> dict[str, Any]:
    """The resolved recipe without what does not change the result: how it runs, its prose, its chosen version."""
    resolved = recipes.resolved(recipe)
    resolved["model"] = {key: value for key, value in resolved["model"].items() if key != "source"}
    return {key: value for key, value in resolved.items() if key not in {"runtime", "source", "version"}}


def difference(before: Any, after: Any, path: str = "") -> list[str]:
    """Lines `a.b: old -> new` for two JSON values."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [line for k in keys for line in difference(before.get(k), after.get(k), f"{path}.{k}" if path else k)]
    return [] if before == after else [f"{path}: {json.dumps(before)} -> {json.dumps(after)}"]


def model_config(recipe: RunRecipe) -> ModelConfig:
    """Raises UsageError."""
    try:
        return to_config(recipe.model)
    except ValueError as error:
        raise UsageError(f"recipe {recipe.name}: {error}") from None


def to_config(model: ModelRecipe) -> ModelConfig:
    """Raises ValueError for sizes that do not fit together."""
    return ModelConfig.from_dict({key: value for key, value in model.model_dump().items() if key != "source"})


def adamw_settings(recipe: RunRecipe) -> optim.AdamWSettings:
    o = recipe.optimizer
    return optim.AdamWSettings(o.beta1, o.beta2, o.eps, o.weight_decay, o.decay_embeddings, o.decay_norms)


def loop_settings(recipe: RunRecipe) -> LoopSettings:
    return LoopSettings(
        stop_tokens=recipe.stop_tokens,
        global_batch_tokens=recipe.data.global_batch_tokens,
        checkpoint_every_tokens=recipe.runtime.checkpoint_every_tokens,
        read_ahead_batches=recipe.runtime.read_ahead_batches,
        skip_step=recipe.optimizer.skip_step,
        step=StepSettings(
            schedule=Schedule(**recipe.schedule.model_dump()),
            z_loss=recipe.z_loss,
            max_grad_norm=recipe.optimizer.max_grad_norm,
            microbatch_instances=recipe.runtime.microbatch_instances,
            measure_update_norm=recipe.runtime.measure_update_norm,
        ),
    )


def effective(model: Any, optimizer: torch.optim.Optimizer, settings: LoopSettings) -> dict[str, Any]:
    """What will really happen, read from the live model, the live optimizer and the loss function itself."""
    return {
        "model": model.config.to_dict(),
        "optimizer": optim.effective(optimizer),
        "z_loss": measured_z_loss(settings.step),
        "max_grad_norm": settings.step.max_grad_norm,
    }


def measured_z_loss(settings: StepSettings) -> float:
    """The coefficient that the step's loss applies, measured: with one class and a logit of 1, cross-entropy is 0 and lse^2 is 1."""
    one = torch.ones(1, 1)
    return float(head_loss(one, one, torch.zeros(1, dtype=torch.long), settings.z_loss).total)


def assert_effective(recipe: RunRecipe, found: dict[str, Any]) -> None:
    """Raises Refused, naming each difference, unless the live values are the recipe's (OLMo's z-loss once was not)."""
    o = recipe.optimizer
    decays = {
        "matrices": o.weight_decay,
        "norms": o.weight_decay * o.decay_norms,
        "embeddings": o.weight_decay * o.decay_embeddings,
    }
    expected = {
        "model": model_config(recipe).to_dict(),
        "optimizer": {
            name: {
                "beta1": o.beta1,
                "beta2": o.beta2,
                "eps": o.eps,
                "weight_decay": decays[name],
                "num_parameters": group["num_parameters"],
            }
            for name, group in found["optimizer"].items()
        },
        "z_loss": recipe.z_loss,
        "max_grad_norm": o.max_grad_norm,
    }
    differences = difference({**expected, "z_loss": 0}, {**found, "z_loss": 0})
    if abs(found["z_loss"] - recipe.z_loss) > 1e-6 * recipe.z_loss:
        differences.append(f"z_loss: {recipe.z_loss} -> {found['z_loss']}")
    if differences:
        raise Refused(f"the live objects do not do what recipe {recipe.name} says: {'; '.join(differences)}")

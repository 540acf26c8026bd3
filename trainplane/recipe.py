"""The recipe of a training run: YAML -> frozen settings, and the check that live objects do what it says.

Every value is written out and carries its unit in its name; only switches have a default, OLMo 2's own position, and one at its default
is not part of a run's identity, so that a new switch renames no run. `runtime` says how to run, never what is computed: it is not part of
the identity either. What is written runs; `published` lists, with source, the keys of which a publication says something else, and a
recipe can be run as published. A model is written in place or named (`model: olmo2_7b` is a file in the folder of models). A file with
`base` and `change` is another recipe with some keys replaced.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import torch
import yaml

from trainplane import measured, optim
from trainplane.loop import LoopSettings
from trainplane.parallel import ParallelSettings
from trainplane.recipe_fields import ModelRecipe, RunRecipe, RuntimeRecipe, Variant
from trainplane.schedule import Schedule, lr_at
from trainplane.step import StepSettings
from triplane import recipe as recipes
from triplane import recipe_inspection
from triplane.errors import Refused, UsageError
from triplane.lm.model import ModelConfig
from triplane.recipe import Problem
from triplane.recipe_inspection import Inspection

__all__ = ["ModelRecipe", "RunRecipe", "RuntimeRecipe"]


def load(
    path: Path, overrides: Sequence[str] = (), models: Path | None = None, as_published: bool = False
) -> RunRecipe:
    """Reads a run's YAML, with the published values if asked to; overrides come last. A model given by name is `{models}/{name}.yaml`, by
    default in `models` beside the folder of runs. Raises UsageError."""
    path, inherited = _base_of(Path(path))
    folder = models or path.parent.parent / "models"
    if as_published:
        said = recipes.load(path, RunRecipe, _with_model(path, inherited, folder)).published
        inherited += ["published={}", *(f"{key}={json.dumps(one.value)}" for key, one in said.items())]
    recipe = recipes.load(path, RunRecipe, _with_model(path, [*inherited, *overrides], folder))
    check(recipe)
    return recipe


def inspect(path: Path, overrides: Sequence[str] = (), models: Path | None = None) -> Inspection[RunRecipe]:
    """As `load`, but all mistakes instead of the first: of the recipe, of the base it changes, of the model it names."""
    path, found = Path(path), list[Problem]()
    variant = recipe_inspection.inspect(path, Variant) if "base" in _top(path) else None
    if variant is not None and variant.problems:
        return Inspection(variant.problems, None, variant.document)
    try:
        path, inherited = _base_of(path)
    except UsageError as error:
        return Inspection((Problem(str(path), str(error)),), None, recipes.Document(str(path), {}))
    given, name = [*inherited, *overrides], _model_name(path, [*inherited, *overrides])
    in_place = ""
    if name is not None:
        folder = models or path.parent.parent / "models"
        model = recipe_inspection.of_named(folder / f"{name}.yaml", ModelRecipe, path, "model")
        found, in_place = list(model.problems), f"model={json.dumps(model.value)}"
        given = [in_place, *(one for one in given if not one.startswith("model="))]
    whole = recipe_inspection.inspect(path, RunRecipe, given)
    # What is wrong with a named model was said of its own file.
    whole = replace(
        whole, problems=tuple(one for one in whole.problems if not name or one.place != f"override {in_place}")
    )
    if name is not None:
        whole = whole.with_part(model.document, "model")
    if variant is not None:
        whole = whole.written_at({f"override {one}": _line_of(variant.document, one) for one in inherited})
    found += whole.problems
    if whole.likely is not None:
        in_doubt = ("model",) if any(key.startswith("model") for key in whole.broken) else ()
        misfitting = [
            message
            for message in misfits(whole.likely)
            if not whole.is_about_broken(message) and not message.startswith(in_doubt)
        ]
        found += [Problem(whole.place_of(message), message) for message in misfitting]
    return replace(whole, problems=tuple(found))


def _line_of(variant: recipes.Document, change: str) -> str:
    """Where a variant says a change that it makes to its base."""
    key = change.partition("=")[0]
    return variant.place(("change", key) if ("change", key) in variant.places else (key,))


def _with_model(path: Path, overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides, the first of them putting the model in place if it is named."""
    name = _model_name(path, overrides)
    if name is None:
        return list(overrides)
    model = recipes.load(folder / f"{name}.yaml", ModelRecipe)
    in_place = f"model={json.dumps(model.model_dump(mode='json'))}"
    return [in_place, *(one for one in overrides if not one.startswith("model="))]


def _base_of(path: Path) -> tuple[Path, list[str]]:
    """A variant's base and its changes as overrides; any other file is its own base. Raises UsageError."""
    if "base" not in _top(path):
        return path, []
    variant = recipes.load(path, Variant)
    base = (path.parent / variant.base).resolve()
    if "base" in _top(base):
        raise UsageError(f"{path}: its base {base} has a base itself: name the recipe at the end")
    change = {"name": variant.name, "source": variant.source, **variant.change}
    return base, [f"{key}={json.dumps(value)}" for key, value in change.items()]


def _top(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; nothing if it is none: the strict reader says what is wrong, and where."""
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _model_name(path: Path, overrides: Sequence[str]) -> str | None:
    """The model if it is named and not written in place: from the last `model=` override, else from the file."""
    for override in reversed(overrides):
        if override.startswith("model="):
            value = yaml.safe_load(override.removeprefix("model="))
            return value if isinstance(value, str) else None
    model = _top(path).get("model")
    return model if isinstance(model, str) else None


def published(recipe: RunRecipe) -> RunRecipe:
    """The recipe with the values of its `published` block, which is empty then. Raises UsageError for a key the recipe has not."""
    values = recipe.model_dump(mode="json", exclude={"published"})
    for dotted, said in recipe.published.items():
        *parents, last = dotted.split(".")
        here = values
        for parent in parents:
            here = here.get(parent, {}) if isinstance(here, dict) else {}
        if not isinstance(here, dict) or last not in here:
            raise UsageError(f"recipe {recipe.name}: published names {dotted}, which is no key of a run: correct it")
        here[last] = said.value
    try:
        return RunRecipe.model_validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"recipe {recipe.name}: published {where}: {first['msg']}: correct it") from error


def check(recipe: RunRecipe) -> None:
    """Raises UsageError for values that are each well typed and do not fit together."""
    for message in misfits(recipe):
        raise UsageError(f"recipe {recipe.name}: {message}")


def misfits(recipe: RunRecipe) -> list[str]:
    """All that `check` would refuse, each a sentence that names its keys."""
    data, schedule = recipe.data, recipe.schedule
    wrong = [
        (data.global_batch_tokens % data.sequence_length_tokens, "data.global_batch_tokens must be a multiple of data.sequence_length_tokens"),
        (data.sequence_length_tokens > recipe.model.max_position_embeddings, "data.sequence_length_tokens exceeds model.max_position_embeddings"),
        (schedule.decay_tokens <= schedule.warmup_tokens, "schedule.decay_tokens must exceed schedule.warmup_tokens"),
        (data.order_chunk_instances != 1 and data.order != "olmo-core", "data.order_chunk_instances needs data.order: olmo-core"),
        (_has_two_cadences(recipe.runtime), "runtime.checkpoint_every_tokens must be a multiple of runtime.ephemeral_every_tokens"),
        (_budget_without_compiler(recipe.runtime), "runtime.parallel.activation_checkpointing: memory_budget needs runtime.parallel.compile"),
        ((recipe.runtime.min_workers or 1) > max(1, recipe.runtime.num_workers), "runtime.min_workers exceeds runtime.num_workers"),
    ]  # fmt: skip
    found = [message for is_wrong, message in wrong if is_wrong] + _worker_misfits(recipe)
    try:
        model_config(recipe)
        if recipe.published and not found:
            check(published(recipe))
    except UsageError as error:
        found.append(str(error).removeprefix(f"recipe {recipe.name}: "))
    return found


def _worker_misfits(recipe: RunRecipe) -> list[str]:
    """The workers divide the batch, and groups of `shard_ranks` the workers; elastic runs use the numbers that do, and under `torchrun`
    (`num_workers` 0) the number is not known here."""
    found = []
    runtime, instances = recipe.runtime, recipe.data.global_batch_tokens // recipe.data.sequence_length_tokens
    workers, ranks = max(1, runtime.num_workers), runtime.parallel.shard_ranks
    if runtime.min_workers is None and instances % workers:
        found.append(
            f"{workers} workers cannot share a global batch of {instances} instances equally; set "
            f"runtime.num_workers to a divisor, such as {_divisor_below(instances, workers)}"
        )
    if (runtime.parallel.shard == "hsdp") != (ranks is not None):
        found.append("runtime.parallel.shard_ranks goes with shard: hsdp; set both or neither")
    if ranks is not None and runtime.num_workers and workers % ranks:
        found.append(
            f"groups of {ranks} ranks do not divide {workers} workers; set runtime.parallel.shard_ranks to a "
            f"divisor of runtime.num_workers, such as {_divisor_below(workers, ranks)}"
        )
    return found


def _divisor_below(number: int, most: int) -> int:
    return next(one for one in range(max(1, min(number, most)), 0, -1) if number % one == 0)


def _has_two_cadences(runtime: RuntimeRecipe) -> bool:
    ephemeral = runtime.ephemeral_every_tokens
    return ephemeral is not None and runtime.checkpoint_every_tokens % ephemeral != 0


def _budget_without_compiler(runtime: RuntimeRecipe) -> bool:
    return runtime.parallel.activation_checkpointing == "memory_budget" and not runtime.parallel.compile


# Where the learning rate is read back, as shares of a run: within any warm-up, after it, on the way, at the stop.
SAMPLED_SHARES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.25, 0.5, 0.75, 1.0)
NOT_COMPUTED = frozenset({"runtime", "source", "version", "published"})


def identity_recipe(recipe: RunRecipe) -> dict[str, Any]:
    """The recipe without what does not change the result: how it runs, its prose, its chosen version, switches at their default."""
    kept = without_default_switches(recipe)
    kept["model"] = {key: value for key, value in kept["model"].items() if key != "source"}
    return {key: value for key, value in kept.items() if key not in NOT_COMPUTED}


def without_default_switches(recipe: pydantic.BaseModel) -> dict[str, Any]:
    """JSON values of a recipe, fields that have a default and are at it left out."""
    values = recipes.resolved(recipe)
    for name, field in type(recipe).model_fields.items():
        inner = getattr(recipe, name)
        if isinstance(inner, pydantic.BaseModel):
            values[name] = without_default_switches(inner)
        elif not field.is_required() and inner == field.get_default(call_default_factory=True):
            del values[name]
    return values


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
    return optim.AdamWSettings(
        o.beta1, o.beta2, o.eps, o.weight_decay, o.decay_embeddings, o.decay_norms, o.skip_step_bug
    )


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
            document_masks=recipe.data.document_masks,
            compile_loss=recipe.runtime.parallel.compile,
        ),
        metrics_every_steps=recipe.runtime.metrics_every_steps,
    )


def parallel_settings(recipe: RunRecipe) -> ParallelSettings:
    return ParallelSettings(precision=recipe.precision, **recipe.runtime.parallel.model_dump())


def effective(
    model: Any, optimizer: torch.optim.Optimizer, settings: LoopSettings, batches: Any = None
) -> dict[str, Any]:
    """What will really happen, read from the live objects: a freshly initialised model, optimizer, loss, schedule, and the loader if given."""
    tokens = [max(settings.global_batch_tokens, int(settings.stop_tokens * share)) for share in SAMPLED_SHARES]
    rates = measured.learning_rates(optimizer, settings.step, tokens)
    found = {
        "model": model.config.to_dict(),
        "structure": measured.structure(model) | {"initialization": measured.initialization(model)},
        "precision": measured.precision(model),
        "optimizer": optim.effective(optimizer),
        "weight_decay": measured.weight_decay(model, optimizer),
        "lr": {str(count): rate for count, rate in zip(tokens, rates, strict=True)},
        "z_loss": measured.z_loss(settings.step),
        "max_grad_norm": measured.max_grad_norm(settings.step),
        "skip_step": settings.skip_step,
        "document_masks": settings.step.document_masks,
        "stop_tokens": settings.stop_tokens,
        "global_batch_tokens": settings.global_batch_tokens,
    }
    return found if batches is None else found | {"data": measured.data(batches)}


def assert_effective(recipe: RunRecipe, found: dict[str, Any]) -> None:
    """Raises Refused, naming each difference, unless the live values are the recipe's (OLMo's z-loss once was not)."""
    differences = difference(expected(recipe, found), found)
    if differences:
        raise Refused(f"the live objects do not do what recipe {recipe.name} says: {'; '.join(differences)}")


def expected(recipe: RunRecipe, found: dict[str, Any]) -> dict[str, Any]:
    """What `effective` would find if all were as the recipe says. A measured number within 1e-6 of the recipe's is taken for it."""
    o, model, data = recipe.optimizer, recipe.model, recipe.data
    decays = {"matrices": True, "norms": o.decay_norms, "embeddings": o.decay_embeddings}
    group = {"beta1": o.beta1, "beta2": o.beta2, "eps": o.eps}
    if o.skip_step_bug:
        group["skip_step_bug"] = True
    schedule = Schedule(**recipe.schedule.model_dump())
    values = {
        "model": model_config(recipe).to_dict(),
        "structure": {
            "num_hidden_layers": model.num_hidden_layers,
            "norm_position": model.norm_position,
            "qk_norm": model.qk_norm,
            "initialization": found["structure"]["initialization"] and model.initialization,
        },
        "optimizer": {
            name: {**group, "weight_decay": o.weight_decay * decays[name], "num_parameters": live["num_parameters"]}
            for name, live in found["optimizer"].items()
        },
        "weight_decay": {name: o.weight_decay * decays[_kind(name)] for name in found["weight_decay"]},
        "lr": {tokens: lr_at(int(tokens), schedule) for tokens in found["lr"]},
        "z_loss": recipe.z_loss,
        "max_grad_norm": o.max_grad_norm,
        "skip_step": o.skip_step,
        "document_masks": data.document_masks,
        "precision": found["precision"] and {"parameters": "fp32", "activations": recipe.precision},
        "stop_tokens": recipe.stop_tokens,
        "global_batch_tokens": data.global_batch_tokens,
        "data": {
            "order": data.order,
            "order_chunk_instances": data.order_chunk_instances,
            "order_seed": data.order_seed,
            "global_batch_instances": data.global_batch_tokens // data.sequence_length_tokens,
            "instance_filter": data.instance_filter,
        },
    }
    return {name: _settled(value, found[name]) for name, value in values.items() if name in found}


def _kind(name: str) -> str:
    """The optimizer group that OLMo 2 puts a parameter in, by its name."""
    return (
        "embeddings"
        if name.startswith("embed_tokens")
        else "norms"
        if name.split(".")[-2].endswith("norm")
        else "matrices"
    )


def _settled(value: Any, found: Any) -> Any:
    if isinstance(value, dict) and isinstance(found, dict):
        return {name: _settled(inner, found.get(name)) for name, inner in value.items()}
    is_close = isinstance(value, float) and isinstance(found, float) and math.isclose(value, found, rel_tol=1e-6)
    return found if is_close else value

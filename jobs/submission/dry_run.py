"""Everything wrong with a submission, found in one look before anything is sent: recipe, inputs, root, target, manifests, resources -> findings.

Nothing is written or started: files are read, objects listed, `kubectl kustomize` renders, and the target is asked one question. A mistake hides
no other where that can be helped: each part is looked at whatever the others gave.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.manifests import check, policy, references
from jobs.manifests.finding import Finding
from jobs.manifests.lines import Document, mapping
from jobs.submission import inputs, pins, resources, targets
from triplane import recipe_inspection, storage, storage_s3
from triplane.errors import TriplaneError
from triplane.recipe import Problem
from triplane.recipe_inspection import Inspection

LISTENS_SECONDS = 5
NOBODY = "triplane-dry-run"  # the id of no job: asking for it is asking whether the target answers


def findings(
    plane: str,
    recipe: Path,
    overrides: Sequence[str],
    root: str,
    target: str,
    manifests: Path | None,
) -> list[Finding]:
    """All mistakes, by file and line; `file` is the option where no file is to blame. `plane`: data, train or eval."""
    inspection = _inspected(plane, recipe, overrides)
    found = [inputs.finding(problem) for problem in inspection.problems]
    of_root = _root(root, target)
    found += of_root
    if isinstance(inspection.value, dict) and inspection.value:
        found += _INPUTS[plane](inspection, None if of_root else storage.absolute(root), _runs_in(target))
    if target == "k8s" and manifests is not None:
        found += _kubernetes(plane, inspection, manifests)
    found += _target(plane, target, manifests)
    return sorted(set(found))


def _inspected(plane: str, recipe: Path, overrides: Sequence[str]) -> Inspection[Any]:
    if plane == "data":
        from dataplane import catalogue
        from jobs.build_mix import SOURCES

        return catalogue.inspect(recipe, overrides, SOURCES if SOURCES.is_dir() else None)
    if plane == "train":
        from jobs.train import MODELS
        from trainplane import recipe as recipes

        return recipes.inspect(recipe, overrides, MODELS)
    from jobs.evaluate import EvaluationRecipe

    return recipe_inspection.inspect(recipe, EvaluationRecipe, overrides)


def _runs_in(target: str) -> inputs.RunsIn:
    if target == "k8s":
        return "pods"
    return "cluster" if target.startswith(("ray://", "http")) else "here"  # the driver of a build runs here


_INPUTS: dict[str, Callable[[Inspection[Any], str | None, inputs.RunsIn], list[Finding]]] = {
    "data": inputs.of_build,
    "train": inputs.of_run,
    "eval": inputs.of_evaluation,
}


def _root(root: str, target: str) -> list[Finding]:
    """A root that cannot be reached or written to, or not from there."""
    place = f"--root {root}"
    try:
        if target == "k8s" and storage.is_local(root):
            return [
                Finding(place, 0, "is a folder of this machine: pods need s3://bucket/prefix or gs://bucket/prefix")
            ]
        if root.startswith("s3://"):
            return [Finding(place, 0, message) for message in _bucket(root)]
        if not storage.is_local(root):
            storage.folders(root)
            return []
    except TriplaneError as error:
        return [Finding(place, 0, str(error))]
    path = Path(storage.absolute(root))
    nearest = next(one for one in (path, *path.parents) if one.exists())
    if not nearest.is_dir():
        return [Finding(place, 0, f"{nearest} is a file: name a folder")]
    may_write = os.access(nearest, os.W_OK | os.X_OK)
    return [] if may_write else [Finding(place, 0, f"{nearest} cannot be written to: choose another, or allow it")]


def _bucket(root: str) -> list[str]:
    """What keeps us from a bucket: no credentials, no answer, no bucket, no permission, another region."""
    bucket, _ = storage_s3.split(root)
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    session = boto3.session.Session()
    if session.get_credentials() is None:
        return ["no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"]
    here = session.region_name
    try:
        answer = storage_s3.client().head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError as error:
        return [f"no object store answers ({str(error).splitlines()[0]}): check endpoint, region and network"]
    about = answer["ResponseMetadata"]
    region, code = about.get("HTTPHeaders", {}).get("x-amz-bucket-region"), about.get("HTTPStatusCode")
    if region and here and region != here:
        return [f"bucket {bucket} is in {region}, the region set here is {here}: set AWS_DEFAULT_REGION={region}"]
    if code == 404:
        return [f"bucket {bucket} does not exist: make it, or correct the URL"]
    return [] if code == 200 else [f"bucket {bucket} answers {code}: check credentials and permissions"]


def _target(plane: str, target: str, manifests: Path | None) -> list[Finding]:
    """A target that is none, or does not answer, or does not let us in."""
    place = f"--to {target}"
    try:
        backend = targets.connect(target, plane, manifests)
        if target.startswith("spark://"):
            address = urlsplit(target)
            socket.create_connection((address.hostname or "", address.port or 0), LISTENS_SECONDS).close()
        else:
            backend.find(NOBODY)
    except (TriplaneError, ValueError) as error:
        return [Finding(place, 0, str(error).removeprefix(f"{place}: "))]
    except OSError as error:
        return [Finding(place, 0, f"no Spark master listens there ({error}): check the address, or start it")]
    return []


@dataclass(frozen=True)
class _Platform:
    """What a folder of job templates lies beside, as in infra/: the platform's overlay of the same name, the cloud's node groups. Templates
    `aws-efa` are for what `aws` names."""

    overlay: Path | None
    nodes: Path | None


def _platform(manifests: Path) -> _Platform:
    k8s, infra = pins.above(manifests, 2), pins.above(manifests, 3)
    if k8s is None or infra is None:
        return _Platform(None, None)
    whole = manifests.resolve().name
    name = whole if (k8s / "overlays" / whole).is_dir() else whole.partition("-")[0]
    overlay, nodes = k8s / "overlays" / name, infra / name / "cluster.yaml"
    return _Platform(overlay if overlay.is_dir() else None, nodes if nodes.is_file() else None)


def _kubernetes(plane: str, inspection: Inspection[Any], manifests: Path) -> list[Finding]:
    """The manifests by schema, rules and policy; the names they use; what the plane's job asks for."""
    platform = _platform(manifests)
    documents, found = check.read([manifests])
    images = pins.images(manifests)
    documents = [replace(one, value=pins.filled(one.value, images)) for one in documents]
    planes = [mapping(one.value, "metadata", "labels").get(resources.PLANE) for one in documents]
    jobs = [one for one, label in zip(documents, planes, strict=True) if label == plane]
    if documents and not jobs:
        found.append(Finding(str(manifests), 0, f"renders no job labelled {resources.PLANE}: {plane}: add it"))
    # The jobs of other planes are not sent.
    documents = [one for one, label in zip(documents, planes, strict=True) if label in (plane, None)]
    found += [*check.of_documents(documents), *policy.of_documents(documents)]
    if platform.overlay is None or not documents:
        return found
    beside, problems = check.read([platform.overlay])
    found += problems
    made = [_recipe_map(one) for one in jobs]
    names = {one.file for one in documents} | {source.file for one in documents for source in one.sources}
    found += [one for one in references.findings([*documents, *beside, *made]) if one.file in names]
    machines = resources.pools(platform.nodes) if platform.nodes else {}
    for job in jobs:
        found += resources.findings(job, beside, machines)
        found += _against_recipe(plane, inspection, job, machines)
    return found


def _recipe_map(job: Document) -> Document:
    """The ConfigMap that is sent beside a job."""
    about = {"name": f"{job.name}-recipe", "namespace": job.metadata.get("namespace", "default")}
    return Document("", {"kind": "ConfigMap", "metadata": about})


def _against_recipe(plane: str, inspection: Inspection[Any], job: Document, machines: Any) -> list[Finding]:
    """More workers than the template has places for; a model that no GPU of the pool holds."""
    keys = {"train": ("runtime", "num_workers"), "eval": ("workers",)}.get(plane, ())
    wanted = inspection.value
    for key in keys:
        wanted = wanted.get(key) if isinstance(wanted, dict) else None
    if not keys or not isinstance(wanted, int):
        return []
    threads = mapping(inspection.value, "runtime").get("threads_per_worker", 1)
    places = resources.workers(job, threads if isinstance(threads, int) else 1)
    found = []
    if places is not None and wanted > places:
        message = (
            f"asks for {wanted} workers, {job.kind} {job.name} has places for {places}: ask for fewer, or add pods"
        )
        found.append(inputs.finding(Problem(inspection.place(*keys), message)))
    if plane == "train" and inspection.likely is not None and not _shapes_memory(inspection.broken):
        found += _memory(inspection, inspection.likely, job, machines)
    return found


def _shapes_memory(keys: frozenset[str]) -> bool:
    """Whether any of the keys decides how much memory a GPU needs."""
    return any(key.split(".")[0] in ("model", "data", "runtime", "precision") for key in keys)


def _memory(inspection: Inspection[Any], recipe: Any, job: Document, machines: Any) -> list[Finding]:
    from jobs import train

    gpus = [
        machines[one.pool] for one in resources.pods_of(job) if one.asks.get(resources.GPU) and one.pool in machines
    ]
    if not gpus:
        return []
    pool = min(gpus, key=lambda one: one.machine.gpu_memory)
    try:
        needed = train.needs(recipe)["memory"]["total_estimate"]
    except TriplaneError as error:
        return [inputs.finding(Problem(inspection.place("runtime"), str(error)))]
    if needed <= pool.machine.gpu_memory:
        return []
    has = resources.shown("memory", pool.machine.gpu_memory)
    asked = f"{needed / resources.GIB:.0f} GiB"
    message = f"needs an estimated {asked} a GPU, a {pool.type} has {has}: shard over more GPUs, or lower microbatch_instances"
    return [inputs.finding(Problem(inspection.place("runtime", "microbatch_instances"), message))]

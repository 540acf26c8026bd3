"""`triplane data list-mix`: AI2's own list of token files becomes a mix that a run can name, to replay their order of data."""

from typing import Annotated

import typer

from jobs.cli.common import reports_errors
from jobs.cli.train_options import DryRun, Json, Root, show


@reports_errors
def list_mix(
    files: Annotated[str, typer.Argument(help="An OLMo configuration (.yaml), an OLMo-core mix, or one path a line.")],
    root: Root,
    name: Annotated[str, typer.Option(help="What the mix is called: mix/NAME@version.")],
    tokenizer: Annotated[
        str, typer.Option(help="What made the tokens: tokenizer/NAME, a folder, a tokenizer.json or a Hub id.")
    ],
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of an instance.")] = 4096,
    base: Annotated[
        str | None, typer.Option(help="Where paths lie that are no URL; below the root by default.")
    ] = None,
    tokenizer_path: Annotated[
        str | None, typer.Option(help="What {TOKENIZER} in paths stands for, as allenai/dolma2-tokenizer.")
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make a mix of the files of a list, each as often as it is named, in their order. They have no checksums: nothing can verify them."""
    from triplane import artifact, mixture, path_list, storage
    from triplane.tokenizer import Tokenizer

    text = storage.read(storage.absolute(files)).decode("utf-8", "replace")
    listed = path_list.below(base and storage.absolute(base), path_list.parse(text, files, tokenizer_path))
    is_reference = tokenizer.startswith("tokenizer/")
    made_with = Tokenizer.load(artifact.artifact_url(root, tokenizer) if is_reference else tokenizer)
    shape = (made_with.sha256, made_with.vocab_size, made_with.eos_id)
    lock = path_list.make_lock(listed, storage.absolute(root), name, sequence_length, *shape)
    reference = None if dry_run else path_list.commit(root, lock, files.rpartition("/")[2]).reference
    show(
        {
            "mix": reference,
            "files": len(lock.shards),
            "unverified_files": lock.num_unverified,
            "instances": lock.num_instances,
            "tokens": lock.num_tokens,
            "sources": {source: int(of["available_tokens"]) for source, of in mixture.summary(lock).items()},
        },
        json_,
    )

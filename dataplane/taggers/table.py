"""The taggers a recipe can name. A new one is a file beside this and a line here."""

from dataplane.tagger import Tagger
from dataplane.taggers import (
    c4,
    c4_lines,
    code_rules,
    contamination,
    datatrove,
    edited,
    fasttext,
    fineweb,
    fineweb_edu,
    gopher_quality,
    gopher_repetition,
    lengths,
    minhash,
    ngram_regions,
    ngram_repetition,
    refinedweb,
    text_hash,
)

TAGGERS: dict[str, Tagger] = {
    tagger.name: tagger
    for tagger in (
        lengths.TAGGER,
        gopher_quality.TAGGER,
        gopher_repetition.TAGGER,
        c4.TAGGER,
        c4_lines.TAGGER,
        fineweb.TAGGER,
        refinedweb.TAGGER,
        code_rules.TAGGER,
        ngram_repetition.TAGGER,
        ngram_regions.TAGGER,
        fasttext.LANGUAGE,
        fasttext.QUALITY,
        fasttext.MATH,
        fineweb_edu.TAGGER,
        text_hash.TAGGER,
        minhash.TAGGER,
        datatrove.TAGGER,
        contamination.TAGGER,
        edited.TAGGER,
    )
}

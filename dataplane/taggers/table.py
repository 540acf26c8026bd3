"""The taggers a recipe can name. A new one is a file beside this and a line here."""

from dataplane.tagger import Tagger
from dataplane.taggers import gopher_quality, gopher_repetition, lengths, minhash, ngram_repetition, text_hash

TAGGERS: dict[str, Tagger] = {
    tagger.name: tagger
    for tagger in (
        lengths.TAGGER,
        gopher_quality.TAGGER,
        gopher_repetition.TAGGER,
        ngram_repetition.TAGGER,
        text_hash.TAGGER,
        minhash.TAGGER,
    )
}

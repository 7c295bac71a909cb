"""The demo's tokenizer: CLIP's byte-level BPE with a vocabulary of its own, trained on captions.

All 256 bytes are in the vocabulary, within and at the end of words, so any text can be encoded; each word of the
captions is one token.
"""

import itertools
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .captions import random_caption
from .networks import MAX_TOKENS
from .training import training_scenes

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def new_tokenizer(seed: int, captions: int = 5000) -> CLIPTokenizer:
    """Learn the merges from captions of training scenes."""
    rng = random.Random(seed)
    texts = [random_caption(scene, rng) for scene in itertools.islice(training_scenes(seed), captions)]
    merges = _learn_merges(texts)
    return CLIPTokenizer(
        vocab=_vocabulary(merges),
        merges=merges,  # type: ignore[arg-type]
        model_max_length=MAX_TOKENS,
    )


def _learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """BPE merges in learning order, until every frequent word is one token."""
    pattern = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = pattern.normalizer, pattern.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=5, end_of_word_suffix=WORD_END, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Bytes, word-final bytes, merged tokens, start, end: in CLIP's order."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet), *("".join(merge) for merge in merges), START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the files of current and of older versions of transformers."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """Each text as MAX_TOKENS ids, truncated or padded with the end token."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return [list(ids) for ids in encoded.input_ids]

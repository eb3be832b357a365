"""CLIP's tokenizer, trained on captions deterministically."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"

_Word = tuple[str, ...]


def train_tokenizer(captions: Sequence[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) with CLIP's words, bytes and ends of words.

    The library's own training breaks ties at random, so runs with the same seed would train different text encoders.

    Args:
        captions: the captions to train on.
        vocabulary: the largest number of tokens, including start and end.
        length: length of a prompt, in tokens.
    """
    empty = CLIPTokenizer(vocab={_START: 0, _END: 1}, merges=[], model_max_length=length)
    words = _words(empty, captions)
    tokens = [_START, _END, *sorted(ByteLevel.alphabet()), *sorted({word[-1] for word in words})]
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocabulary and (pairs := _pairs(words)):
        pair = min(
            pairs, key=lambda pair: (-pairs[pair], pair)
        )  # the most common pair, and among equals the first by name
        merges.append(pair)
        tokens.append("".join(pair))
        words = Counter({_merged(word, pair): n for word, n in words.items()})
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=length)


def _words(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Counter[_Word]:
    """The frequency of each word, as bytes with the last one marked."""
    backend, words = tokenizer.backend_tokenizer, Counter[_Word]()
    for caption, n in Counter(captions).items():
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(caption)):
            words[(*word[:-1], f"{word[-1]}</w>")] += n
    return words


def _pairs(words: Counter[_Word]) -> Counter[tuple[str, str]]:
    pairs = Counter[tuple[str, str]]()
    for word, n in words.items():
        for pair in pairwise(word):
            pairs[pair] += n
    return pairs


def _merged(word: _Word, pair: tuple[str, str]) -> _Word:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)

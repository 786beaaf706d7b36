"""N-gram language models of small corpora: counted here, written as ARPA, read by KenLM.

Probabilities are those of interpolated Witten-Bell smoothing (Witten and Bell, 1991, "The zero-frequency
problem"; the form of Chen and Goodman, 1998, section 2.4): with c(h w) how often word w followed history h,
N(h) the sum over w, T(h) the number of different w, and h' the history without its first word,

    p(w | h) = (c(h w) + T(h) p(w | h')) / (N(h) + T(h)),

and below single words the uniform distribution over the vocabulary, the unknown word among it. That is a
back-off model with weight T(h) / (N(h) + T(h)), so ARPA holds it without loss. Unlike Kneser-Ney's discounts, it
needs no counts of counts, which the few thousand words of a small training split do not give.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featcache.errors import UsageError
from fusion import checkpoint

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""log10 of what is never predicted, as ARPA writes it."""
Gram = tuple[str, ...]


class NGram:
    """An interpolated Witten-Bell model of sentences.

    Args:
        sentences: each a sequence of words without white space; START, END and UNKNOWN are not words.
        order: words of the longest n-gram, at least 2.

    Raises:
        UsageError: no sentence, an order below 2, or a reserved word.
    """

    def __init__(self, sentences: Iterable[Sequence[str]], order: int) -> None:
        if order < 2:
            raise UsageError(f"order {order}: a language model needs n-grams of 2 words or more")
        self.counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
        for sentence in sentences:
            if {START, END, UNKNOWN} & set(sentence):
                raise UsageError(f"{START}, {END} and {UNKNOWN} are not words: take them out of the text")
            padded = (START, *sentence, END)
            for size, counter in enumerate(self.counts, start=1):
                counter.update(padded[i : i + size] for i in range(len(padded) - size + 1))
        if not self.counts[0]:
            raise UsageError("there is no text to make a language model of; check split.train and task.label")
        del self.counts[0][(START,)]  # it is given, never predicted
        self.counts = [counter for counter in self.counts if counter]
        self._followers: dict[Gram, int] = defaultdict(int)
        self._types: dict[Gram, int] = defaultdict(int)
        for counter in self.counts:
            for gram, count in counter.items():
                self._followers[gram[:-1]] += count
                self._types[gram[:-1]] += 1

    @property
    def order(self) -> int:
        """Words of the longest n-gram that the text has."""
        return len(self.counts)

    @property
    def words(self) -> list[str]:
        """The vocabulary, sorted, without the reserved words."""
        return sorted(gram[0] for gram in self.counts[0] if gram[0] != END)

    def backoff(self, history: Gram) -> float:
        """The weight of the shorter history after this one, of any length; 1 for one that nothing followed."""
        types = self._types.get(history, 0)
        return types / (self._followers[history] + types) if types else 1.0

    def probability(self, word: str, history: Gram = ()) -> float:
        """p(word | history); an unknown word is UNKNOWN."""
        history = history[-(self.order - 1) :]
        known = self._types.get(history, 0)
        if not history:
            shorter = 1.0 / (known + 1)  # all words, END and UNKNOWN
        else:
            shorter = self.probability(word, history[1:])
        if not known:
            return shorter
        count = self.counts[len(history)].get((*history, word), 0)
        return (count + known * shorter) / (self._followers[history] + known)

    def write(self, path: Path) -> None:
        """As ARPA, whole or not at all; the same text gives the same bytes."""
        checkpoint.write_bytes(path, "".join(self._lines()).encode())

    def _lines(self) -> Iterator[str]:
        grams = [sorted(counter) for counter in self.counts]
        grams[0] = [(START,), (UNKNOWN,), *grams[0]]
        yield "\\data\\\n"
        yield from (f"ngram {size}={len(listed)}\n" for size, listed in enumerate(grams, start=1))
        for size, listed in enumerate(grams, start=1):
            yield f"\n\\{size}-grams:\n"
            for gram in listed:
                chance = NEVER if gram == (START,) else math.log10(self.probability(gram[-1], gram[:-1]))
                weight = "" if size == self.order else f"\t{math.log10(self.backoff(gram)):.6f}"
                yield f"{chance:.6f}\t{' '.join(gram)}{weight}\n"
        yield "\n\\end\\\n"


__all__ = ["END", "START", "UNKNOWN", "NGram"]

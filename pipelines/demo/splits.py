"""Train, dev and test sets that share no sentence.

A prompt's id recurs across languages, and a sentence recurs under several ids. Two rows belong to one group
when they share an id or a sentence, directly or through others; a group goes to one split as a whole. Which
one follows from a hash of the group's first id, so that it depends on neither the rows' order nor chance.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

#: Shares of dev and test in percent; the rest is train.
DEV_PERCENT = 8
TEST_PERCENT = 12


def sentence_key(text: str) -> str:
    """What makes two sentences the same: their letters and digits, without case, accents, marks or spaces.

    Coarser than any text normalisation used for scoring, so that no choice of it can join the splits.
    """
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in folded if c.isalnum())


def groups(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The group of each row, named by the smallest prompt id in it.

    Rows are joined by prompt id and by sentence, whatever the language: "No" in one language is not held out
    from "No" in another. A row without a sentence is joined by its id alone.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for prompt, text in zip(prompts, texts, strict=True):
        root = find(("prompt", prompt))
        if key := sentence_key(text):
            other = find(("text", key))
            # "prompt" < "text", so a root is always the smallest prompt id of its group.
            low, high = min(root, other), max(root, other)
            parent[high] = low
    return [find(("prompt", prompt))[1] for prompt in prompts]


def split_rows(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """ "train", "dev" or "test" for each row.

    Groups are taken in the order of the SHA-256 of their names. Each goes to test while it fits into test's
    share of the rows, else to dev while it fits there, else to train.
    """
    names = groups(prompts, texts)
    sizes = Counter(names)
    room = {"test": TEST_PERCENT * len(names) // 100, "dev": DEV_PERCENT * len(names) // 100}
    split_of: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: (hashlib.sha256(name.encode()).digest(), name)):
        split_of[name] = next((split for split, left in room.items() if sizes[name] <= left), "train")
        if split_of[name] in room:
            room[split_of[name]] -= sizes[name]
    return [split_of[name] for name in names]

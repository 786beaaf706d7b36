"""Ids and labels as bytes with offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.index import MISSING, Texts, label_text, pack_text


@given(st.lists(st.text()))
def test_texts_come_back(texts: list[str]) -> None:
    packed = pack_text([t.encode("utf-8", "replace").decode() for t in texts])
    unpacked = Texts(packed["bytes"], packed["offsets"])
    expected = [t.encode("utf-8", "replace").decode() for t in texts]
    assert list(unpacked) == expected == unpacked[:] == [unpacked[i] for i in range(len(unpacked))]


def test_texts_index_like_a_list() -> None:
    packed = pack_text(["a", "", "ü"])
    texts = Texts(packed["bytes"], packed["offsets"])
    assert texts[-1] == "ü" and texts[1:] == ["", "ü"]
    with pytest.raises(IndexError):
        texts[3]


def test_labels_keep_absent_and_empty_apart() -> None:
    assert label_text(None) == MISSING != label_text("") == ""
    assert [label_text(v) for v in (1, 2.5, True, "x")] == ["1", "2.5", "true", "x"]

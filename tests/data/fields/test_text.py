"""Texts as tokens: bytes, or what a tokenizer's JSON makes of them."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bigtrain.data.fields.text import TextField
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.splits import describe, find_split
from bigtrain.errors import UserError
from tests.data.field_shards import make_shards

TEXTS = ["a red digit", "a green", "red red red red red", ""]
WORDS = {"[UNK]": 0, "a": 1, "red": 2, "digit": 3}


@pytest.fixture
def texts(tmp_path: Path) -> Index:
    return make_shards(
        tmp_path / "shards", {"caption": TextField("caption", ("txt",))}, [{"txt": t.encode()} for t in TEXTS]
    )


@pytest.fixture
def words(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


def read(index: Index, **text: object) -> tuple[Index, np.ndarray]:
    opened = find_split(DataOptions.model_validate({"train": str(index.path), "text": text}), "train")
    assert isinstance(opened, Index)
    ((_, batch),) = SplitLoader(opened, rank=0, world=1, batch=9, workers=1)
    return opened, batch["caption"].numpy()


def test_words_are_numbered_from_one_and_padded_with_zero(texts: Index, words: Path) -> None:
    opened, tokens = read(texts, tokenizer=str(words), length=4)
    assert tokens.tolist() == [[2, 3, 4, 0], [2, 1, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0]]
    assert describe(opened)["fields"]["caption"]["vocabulary"] == len(WORDS) + 1 > tokens.max()


def test_bytes_are_cut_at_the_length(texts: Index) -> None:
    opened, tokens = read(texts, length=3)
    assert tokens[0].tolist() == [ord("a") + 1, ord(" ") + 1, ord("r") + 1]
    assert describe(opened)["fields"]["caption"]["vocabulary"] == 257


def test_another_tokenizer_is_other_data(texts: Index, words: Path, tmp_path: Path) -> None:
    (tmp_path / "same.json").write_bytes(words.read_bytes())
    one, same = (read(texts, tokenizer=str(path))[0].fingerprint for path in (words, tmp_path / "same.json"))
    assert one == same
    assert len({one, read(texts)[0].fingerprint, read(texts, tokenizer=str(words), length=5)[0].fingerprint}) == 3


def test_what_is_no_tokenizer_is_refused(texts: Index, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.text\.tokenizer: .*none\.json: not a JSON of the library tokenizers"):
        read(texts, tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"data\.text\.tokenizer: nowhere\.json: there is no such file"):
        read(texts, tokenizer="nowhere.json")

"""Labelled text: what makes no classifier is refused in a line."""

from pathlib import Path

import pytest
from economizer_training.classify.text import Labelled, placed, read_pair
from economizer_training.errors import TrainingError

GOOD = "text,category\nhello,greeting\nbye,parting\n"


def written(folder: Path, train: str | bytes = GOOD, test: str | bytes = GOOD) -> tuple[Path, Path]:
    paths = folder / "train.csv", folder / "test.csv"
    for path, content in zip(paths, (train, test), strict=True):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return paths


def test_a_pair_of_files_is_texts_and_classes_whatever_other_columns_there_are(tmp_path: Path) -> None:
    train = '\ufeffid,category,text\n1,greeting,"hello, you"\n2,parting," bye\n"\n'
    found, asked = read_pair(*written(tmp_path, train))
    assert found == Labelled(texts=("hello, you", " bye\n"), classes=("greeting", "parting"))
    assert asked == Labelled(texts=("hello", "bye"), classes=("greeting", "parting"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("", GOOD, "train.csv has no column text: its first line is nothing"),
        ("text,label\nhello,greeting\n", GOOD, "train.csv has no column category: its first line is text,label"),
        ("text,category\n", GOOD, "train.csv has no rows after its first line"),
        ("text,category\nhello,greeting\n,parting\n", GOOD, "train.csv line 3: text is empty"),
        ("text,category\nhello\n", GOOD, "train.csv line 2: category is empty"),
        (b"text,category\n\xff,greeting\n", GOOD, "train.csv is not a CSV file in UTF-8"),
        ('text,category\n"hello,greeting\n', GOOD, "train.csv is not a CSV file in UTF-8: unexpected end of data"),
        ("text,category\nhello,greeting\nhi,greeting\n", GOOD, "train.csv has one class, 'greeting'"),
        (GOOD, GOOD + "why,question\n", "test.csv has 1 classes that"),
        (GOOD, "text,category\n", "test.csv has no rows after its first line"),
    ],
)
def test_files_of_which_no_classifier_comes_are_refused(
    tmp_path: Path, train: str | bytes, test: str | bytes, message: str
) -> None:
    with pytest.raises(TrainingError) as refused:
        read_pair(*written(tmp_path, train, test))
    assert message in str(refused.value)


def test_a_class_that_the_test_file_lacks_is_no_mistake(tmp_path: Path) -> None:
    found, asked = read_pair(*written(tmp_path, GOOD + "why,question\n"))
    assert set(found.classes) - set(asked.classes) == {"question"}


def test_a_file_that_is_not_there_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train: there is no file .*/a\.csv: give a CSV file with the columns"):
        placed("a.csv", tmp_path, "train")
    with pytest.raises(TrainingError, match=r"train: a\.csv: name the folder that it is in with --data DIR"):
        placed("a.csv", None, "train")
    train, _ = written(tmp_path)
    assert placed("train.csv", tmp_path, "train") == placed(str(train), None, "train") == train

import json
from datetime import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.data import Split, default_fractions, part_sizes, split_rows
from tuner.errors import DataError
from tuner.spec import SplitSection

THREE_CLASSES = np.repeat([0, 1, 2], [50, 30, 20])


def parts(split: Split) -> list[np.ndarray]:
    return [split.train, split.val, split.test]


def counts(split: Split, target: np.ndarray) -> list[list[int]]:
    """For each part, the number of rows of each class."""
    return [np.bincount(target[part], minlength=target.max() + 1).tolist() for part in parts(split)]


def section(train: float, val: float, test: float, stratify: bool | None = None) -> SplitSection:
    return SplitSection(train=train, val=val, test=test, stratify=stratify)


@pytest.mark.parametrize(
    ("n", "fractions"),
    [(3, (0.6, 0.2, 0.2)), (1_000_000, (0.6, 0.2, 0.2)), (1_000_001, (0.98, 0.01, 0.01)), (10**9, (0.98, 0.01, 0.01))],
)
def test_default_fractions(n: int, fractions: tuple[float, float, float]) -> None:
    assert default_fractions(n) == fractions


@pytest.mark.parametrize(
    ("n", "given_section", "sizes"),
    [
        (3, None, (1, 1, 1)),
        (1797, None, (1079, 359, 359)),
        (2_000_000, None, (1_960_000, 20_000, 20_000)),
        (50, section(0.42, 0.29, 0.29), (20, 15, 15)),  # 14.5 goes up; in binary 0.29 * 50 is below 14.5
        (10, section(0.5, 0.25, 0.25), (4, 3, 3)),
    ],
)
def test_part_sizes(n: int, given_section: SplitSection | None, sizes: tuple[int, int, int]) -> None:
    assert part_sizes(n, given_section) == sizes


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("given_section", [None, section(0.7, 0.1, 0.2), section(0.5, 0.2, 0.3, stratify=False)])
def test_every_row_is_in_exactly_one_part(task: str, given_section: SplitSection | None) -> None:
    target = THREE_CLASSES if task == "classification" else np.linspace(0, 1, 100)
    split = split_rows(target, task, given_section, seed=3)
    assert tuple(len(part) for part in parts(split)) == part_sizes(100, given_section)
    assert sorted(np.concatenate(parts(split)).tolist()) == list(range(100))
    for part in parts(split):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_the_seed_decides() -> None:
    first, again, other = (split_rows(THREE_CLASSES, "classification", None, seed) for seed in (1, 1, 2))
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.test, again.test)
    assert first.digest != other.digest
    assert first.test.tolist() != other.test.tolist()


def test_the_largest_seed() -> None:
    assert len(split_rows(THREE_CLASSES, "classification", None, 2**63 - 1).train) == 60


def test_digest_is_what_it_was() -> None:
    """Studies store the digest: neither it nor the split of a seed may change between versions or machines."""
    split = split_rows(THREE_CLASSES, "classification", None, seed=0)
    assert split.digest == "054e383d3b1cf06e81a60c4cc9f25190e7165042987a85231580d229dfe68b85"
    assert (
        split_rows(np.zeros(10), "regression", None, seed=0).digest
        == "6d2c8ab9dd7ebca35b1cdf6a8eb717efa656239032d40aa73543b79ed5468bff"
    )


def test_digest_tells_the_parts_apart() -> None:
    one, two, three = (np.array([i]) for i in range(3))
    assert Split.of(one, two, three).digest != Split.of(one, three, two).digest


def test_regression_ignores_the_values() -> None:
    first = split_rows(np.arange(20.0), "regression", None, seed=0)
    assert first.digest == split_rows(np.zeros(20), "regression", None, seed=0).digest


def test_stratified_proportions() -> None:
    split = split_rows(THREE_CLASSES, "classification", None, seed=0)
    assert counts(split, THREE_CLASSES) == [[30, 18, 12], [10, 6, 4], [10, 6, 4]]


def test_unstratified_proportions_are_left_to_chance() -> None:
    given_section = section(0.6, 0.2, 0.2, stratify=False)
    seen = {str(counts(split_rows(THREE_CLASSES, "classification", given_section, s), THREE_CLASSES)) for s in range(5)}
    assert len(seen) > 1


def test_a_rare_class_is_in_every_part() -> None:
    target = np.repeat([0, 1, 2], [990, 3, 7])
    for seed in range(5):
        dealt = counts(split_rows(target, "classification", None, seed), target)
        assert [sum(part) for part in dealt] == [600, 200, 200]
        assert [part[1] for part in dealt] == [1, 1, 1]
        assert min(part[2] for part in dealt) >= 1


def test_the_rows_of_a_class_are_shuffled() -> None:
    split = split_rows(np.repeat([0, 1], 50), "classification", None, seed=0)
    assert split.test.tolist() != [*range(10), *range(50, 60)]
    assert np.diff(split.train).max() > 1


@given(
    class_counts=st.lists(st.integers(3, 60), min_size=2, max_size=8),
    shares=st.sampled_from([(0.6, 0.2, 0.2), (0.34, 0.33, 0.33), (0.8, 0.1, 0.1), (0.2, 0.5, 0.3)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_stratified_split(class_counts: list[int], shares: tuple[float, float, float], seed: int) -> None:
    target = np.repeat(np.arange(len(class_counts)), class_counts)
    given_section = section(*shares)
    sizes = part_sizes(len(target), given_section)
    if min(sizes) < len(class_counts):
        with pytest.raises(DataError, match="every part needs a row of each of the"):
            split_rows(target, "classification", given_section, seed)
        return
    dealt = np.array(counts(split_rows(target, "classification", given_section, seed), target))
    assert dealt.sum(axis=1).tolist() == list(sizes)
    assert dealt.sum(axis=0).tolist() == class_counts
    assert dealt.min() >= 1
    share = np.outer(sizes, class_counts) / len(target)
    if share.min() >= 1:
        assert np.abs(dealt - share)[1:].max() < 1
        assert np.abs(dealt - share)[0].max() < 2


def refusal(target: np.ndarray, task: str, given_section: SplitSection | None, classes: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataError) as caught:
        split_rows(target, task, given_section, 0, classes=classes)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("class_counts", "classes", "message_parts"),
    [
        ([50, 1], ("ham", "spam"), ["class 'spam' has 1 row;", "stratify = false"]),
        ([50, 2, 30], ("a", "b", "c"), ["class 'b' has 2 rows;", "merge or drop"]),
        ([2, 1, 30], ("a", "b", "c"), ["class 'a' has 2 rows, and 1 more classes have too few"]),
        ([50, 1], (), ["class '1' has 1 row;"]),
    ],
)
def test_a_class_that_is_too_small(class_counts: list[int], classes: tuple[str, ...], message_parts: list[str]) -> None:
    target = np.repeat(np.arange(len(class_counts)), class_counts)
    message = refusal(target, "classification", None, classes)
    for part in message_parts:
        assert part in message


def test_a_class_that_is_too_small_is_fine_unstratified() -> None:
    target = np.repeat([0, 1], [50, 1])
    assert len(split_rows(target, "classification", section(0.6, 0.2, 0.2, stratify=False), 0).train) == 31


def test_a_part_with_fewer_rows_than_classes() -> None:
    message = refusal(np.repeat(np.arange(10), 10), "classification", section(0.9, 0.05, 0.05))
    assert "each of the 10 classes; val has 5 rows; give val a larger share" in message


@pytest.mark.parametrize(
    ("n", "given_section", "part"),
    [
        (2, None, "val = 0.2 of 2 rows is none; give more rows, or val a larger share"),
        (20, section(0.8, 0.19, 0.01), "test = 0.01 of 20 rows is none"),
        (5, section(0.05, 0.45, 0.5), "train = 0.05 of 5 rows is none"),
    ],
)
def test_an_empty_part(n: int, given_section: SplitSection | None, part: str) -> None:
    assert part in refusal(np.zeros(n), "regression", given_section)


def test_regression_cannot_be_stratified() -> None:
    assert "drop stratify = true" in refusal(np.arange(20.0), "regression", section(0.6, 0.2, 0.2, stratify=True))


def one(kind: str, name: str = "c", **rest: Any) -> SplitSection:
    return SplitSection(**{kind: name}, **rest)


def by_column(values: Any, given: SplitSection, target: np.ndarray | None = None, seed: int = 0) -> Split:
    column = pl.Series("c", values)
    return split_rows(np.zeros(len(column)) if target is None else target, "regression", given, seed, by=column)


def assert_whole(split: Split, n: int) -> None:
    """Every row is in test or in each fold, once."""
    for train, val in split.folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, val, split.test])), np.arange(n))


def test_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), rng.integers(1, 12, size=40))
    split = by_column([f"g{g}" for g in groups], one("group"))
    assert_whole(split, len(groups))
    parts = [set(groups[rows]) for rows in (split.train, split.val, split.test)]
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])
    for rows, share in ((split.train, 0.6), (split.val, 0.2), (split.test, 0.2)):
        assert abs(len(rows) - share * len(groups)) <= 12
    assert by_column([f"g{g}" for g in groups], one("group"), seed=1).digest != split.digest


def test_three_groups_are_enough_and_two_are_not() -> None:
    split = by_column(["a"] * 10 + ["b"] + ["c"], one("group"))
    assert_whole(split, 12)
    assert min(len(rows) for rows in (split.train, split.val, split.test)) >= 1
    with pytest.raises(DataError, match=r"column 'c' has 2 different values; train, val and test need one each"):
        by_column(["a"] * 10 + ["b"] * 3, one("group"))


@pytest.mark.parametrize(
    "moments",
    [
        np.random.default_rng(0).permutation(100),
        [f"2024-01-01T{i // 60:02}:{i % 60:02}" for i in np.random.default_rng(0).permutation(100)],
        np.random.default_rng(0).permutation(100).astype(str),
    ],
)
def test_time_goes_from_train_to_test(moments: Any) -> None:
    split = by_column(moments, one("time"))
    order = np.argsort(np.random.default_rng(0).permutation(100))
    for rows, expected in ((split.train, order[:60]), (split.val, order[60:80]), (split.test, order[80:])):
        np.testing.assert_array_equal(rows, np.sort(expected))


def test_rows_of_one_moment_stay_together() -> None:
    moments = np.repeat(np.arange(10), 7)
    split = by_column(moments, one("time", train=0.5, val=0.3, test=0.2))
    assert_whole(split, 70)
    assert moments[split.train].max() < moments[split.val].min()
    assert moments[split.val].max() < moments[split.test].min()


@pytest.mark.parametrize(
    ("moments", "part"),
    [
        ([0] * 40 + [1] * 40, "column 'c' has 2 different moments, and rows of one stay together, so"),
        (["2024-01-01", "monday", "2024-01-03"], "column 'c' is no date and no number in row 2 ('monday')"),
        ([1.0, None, 3.0], "column 'c' is missing in 1 row (first in row 2)"),
        ([1.0, float("nan"), 3.0], "column 'c' is missing in 1 row (first in row 2)"),
    ],
)
def test_bad_times(moments: Any, part: str) -> None:
    with pytest.raises(DataError) as caught:
        by_column(moments, one("time"))
    assert part in str(caught.value)


@pytest.mark.parametrize("key", ["group", "time", "column"])
@pytest.mark.parametrize("values", [[[1], [2], [3]], [time(1), time(2), time(3)]], ids=["lists", "times of day"])
def test_columns_that_nothing_is_split_by(values: Any, key: str) -> None:
    with pytest.raises(DataError, match=r"^data\.split: column 'c' holds .*; a split is by numbers, .*; convert it$"):
        by_column(values, one(key))


def test_a_column_says_it() -> None:
    split = by_column(["train", "VAL", "test", " valid", "train"], one("column"))
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 4], [1, 3], [2])


@pytest.mark.parametrize(
    ("said", "part"),
    [
        (["train", "val", "holdout"], "column 'c' says 'holdout' in row 3; every row needs train, val or test"),
        (["train", "train", "test"], "column 'c' gives no row to val"),
    ],
)
def test_bad_split_column(said: list[str], part: str) -> None:
    with pytest.raises(DataError) as caught:
        by_column(said, one("column"))
    assert part in str(caught.value)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_file_says_it(suffix: str, tmp_path: Path) -> None:
    parts = {"train": [4, 0], "val": [1, 3], "test": [2]}
    if suffix == "json":
        (tmp_path / "s.json").write_text(json.dumps(parts))
    else:
        np.savez(tmp_path / "s.npz", **{name: np.array(rows) for name, rows in parts.items()})
    split = split_rows(np.zeros(5), "regression", one("file", f"s.{suffix}"), 0, root=tmp_path)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 4], [1, 3], [2])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "is neither JSON nor NPZ"),
        ('{"train": [0]}', "needs the row numbers of train, val and test, and nothing else"),
        ('{"train": [0, 1], "val": [2], "test": [9]}', "row 9 is none of the table's 5 (the first is 0)"),
        ('{"train": [0, 1, 1], "val": [2], "test": [3]}', "it names 4 of the table's 5 rows, 5 times in all"),
        ('{"train": [0, 1, 2], "val": [], "test": [3, 4]}', "gives no row to val"),
        ('{"train": [[0, 1], [4]], "val": [2], "test": [3]}', "train in s.json is no list of row numbers"),
        ('{"train": "all", "val": [2], "test": [3]}', "train in s.json is no list of row numbers"),
    ],
)
def test_bad_split_file(content: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError) as caught:
        split_rows(np.zeros(5), "regression", one("file", "s.json"), 0, root=tmp_path)
    assert part in str(caught.value)


def test_no_split_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        split_rows(np.zeros(5), "regression", one("file", "s.json"), 0, root=tmp_path)


@pytest.mark.parametrize("stratify", [None, False])
def test_folds(stratify: bool | None) -> None:
    split = split_rows(THREE_CLASSES, "classification", SplitSection(folds=4, stratify=stratify), 0)
    assert_whole(split, 100)
    assert len(split.test) == 20
    assert len(split.folds) == 4
    validated = np.concatenate([val for _, val in split.folds])
    np.testing.assert_array_equal(np.sort(validated), split.development)
    if stratify is None:
        assert all(len(np.unique(THREE_CLASSES[val])) == 3 for _, val in split.folds)


def test_the_test_rows_of_folds_are_as_many_as_asked_for() -> None:
    assert len(split_rows(np.zeros(90), "regression", SplitSection(folds=3, test=0.1), 0).test) == 9


def test_folds_of_groups() -> None:
    groups = np.repeat(np.arange(20), 4)
    split = by_column(groups, one("group", folds=4))
    assert_whole(split, 80)
    assert not set(groups[split.test]) & set(groups[split.development])
    for train, val in split.folds:
        assert not set(groups[train]) & set(groups[val])


@pytest.mark.parametrize(
    ("target", "folds", "part"),
    [
        (np.repeat([0, 1], [40, 4]), 5, "class 'b' has 3 beside the test rows; take fewer folds"),
        (np.zeros(10), 6, "6 folds need 12 rows beside the test rows, 8 are left"),
    ],
)
def test_too_many_folds(target: np.ndarray, folds: int, part: str) -> None:
    task = "classification" if target.any() else "regression"
    with pytest.raises(DataError) as caught:
        split_rows(target, task, SplitSection(folds=folds), 0, classes=("a", "b"))
    assert part in str(caught.value)


NO_TEST: dict[str, Any] = {"train": 0.75, "val": 0.25, "test": 0}


@pytest.mark.parametrize(
    "given",
    [
        SplitSection(**NO_TEST),
        SplitSection(**NO_TEST, stratify=False),
        one("time", **NO_TEST),
        one("group", **NO_TEST),
        SplitSection(folds=4, test=0),
    ],
)
def test_there_may_be_no_test_rows(given: SplitSection) -> None:
    column = pl.Series("c", np.arange(100) // 2)
    split = (
        split_rows(THREE_CLASSES, "classification", given, 0, by=column)
        if given.time is None
        else by_column(column, given)
    )
    assert_whole(split, 100)
    assert len(split.test) == 0
    assert abs(len(split.val) - 25) <= 2


def test_a_class_that_no_train_row_has() -> None:
    target = np.repeat([0, 1], [50, 1])
    moments = pl.Series("c", range(51))
    with pytest.raises(DataError, match="no train row is of class 'b'"):
        split_rows(target, "classification", one("time"), 0, classes=("a", "b"), by=moments)

"""Brackets against the paper's arithmetic, and the promises that the rest of Tuner builds on."""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from tests.spaces import study
from tuner.search.hyperband import (
    Bracket,
    Rung,
    Standing,
    brackets,
    deal,
    largest_bracket,
    plan,
    promotable,
    rounds,
    slot_place,
    slots,
    survivors,
    total_epochs,
)
from tuner.spec import Direction, Pruner, SearchSection


def search(pruner: Pruner = "hyperband", *, eta: int = 3, min_epochs: int = 1, trials: int = 243) -> SearchSection:
    return SearchSection(pruner=pruner, eta=eta, min_epochs=min_epochs, trials=trials)


def rows(bracket: Bracket) -> list[tuple[int, int]]:
    """(n_i, r_i) of each rung, as the paper prints them."""
    return [(rung.size, rung.epochs) for rung in bracket.rungs]


# η from 2 to 5, R from 1 to 2,000, any smallest resource up to R.
resources = st.integers(1, 2000).flatmap(
    lambda top: st.tuples(st.just(top), st.integers(2, 5), st.one_of(st.just(1), st.integers(1, top)))
)
pruners: st.SearchStrategy[Pruner] = st.sampled_from(["none", "successive_halving", "asha", "hyperband"])


class TestBrackets:
    def test_algorithm_1_at_r_81(self) -> None:
        assert {bracket.index: rows(bracket) for bracket in brackets(search(), 81)} == {
            4: [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
            3: [(34, 3), (11, 9), (3, 27), (1, 81)],
            2: [(15, 9), (5, 27), (1, 81)],
            1: [(8, 27), (2, 81)],
            0: [(5, 81)],
        }

    def test_most_aggressive_first(self) -> None:
        assert [bracket.index for bracket in brackets(search(), 81)] == [4, 3, 2, 1, 0]

    def test_243_has_six_brackets(self) -> None:
        """Where ⌊log₃ 243⌋ in floating point says 4, not 5: the bracket that Optuna loses."""
        assert math.floor(math.log(243, 3)) == 4, "the float logarithm is exact here: choose another example"
        assert [bracket.size for bracket in brackets(search(), 243)] == [243, 98, 41, 18, 9, 6]

    @pytest.mark.parametrize(
        ("max_epochs", "eta", "min_epochs", "s_max"),
        [(1, 3, 1, 0), (2, 3, 1, 0), (3, 3, 1, 1), (242, 3, 1, 4), (243, 3, 1, 5), (81, 3, 2, 3), (2**40, 2, 1, 40)],
    )
    def test_largest_bracket_is_exact(self, max_epochs: int, eta: int, min_epochs: int, s_max: int) -> None:
        assert largest_bracket(max_epochs, eta, min_epochs) == s_max

    def test_epochs_are_rounded_down(self) -> None:
        assert rows(brackets(search(min_epochs=3), 100)[0]) == [(27, 3), (9, 11), (3, 33), (1, 100)]

    def test_promoted_trials_continue(self) -> None:
        """81 + 27·2 + 9·6 + 3·18 + 1·54, not 5 · 81."""
        assert brackets(search(), 81)[0].cost == 81 + 54 + 54 + 54 + 54

    def test_successive_halving_holds_every_slot(self) -> None:
        (bracket,) = brackets(search("successive_halving", trials=100), 81)
        assert bracket.index == 4
        assert rows(bracket) == [(100, 1), (33, 3), (11, 9), (3, 27), (1, 81)]

    def test_none_has_one_rung(self) -> None:
        (bracket,) = brackets(search("none", trials=7), 81)
        assert (bracket.index, rows(bracket)) == (0, [(7, 81)])

    def test_total_stands_in_for_trials(self) -> None:
        """A grid's total is its number of points."""
        grid = SearchSection(sampler="grid", pruner="none")
        assert rows(brackets(grid, 9, total=12)[0]) == [(12, 9)]
        with pytest.raises(ValueError, match=r"search\.trials is not set"):
            brackets(grid, 9)

    @pytest.mark.parametrize(("max_epochs", "eta", "min_epochs"), [(81, 1, 1), (81, 3, 0), (81, 3, 82), (0, 3, 1)])
    def test_impossible_resources_are_refused(self, max_epochs: int, eta: int, min_epochs: int) -> None:
        with pytest.raises(ValueError, match="needs to be"):
            largest_bracket(max_epochs, eta, min_epochs)

    @given(resources)
    def test_hyperband_is_the_paper(self, resource: tuple[int, int, int]) -> None:
        """n from the paper's line 2 with exact fractions, n_i and r_i from lines 5 and 6."""
        max_epochs, eta, min_epochs = resource
        found = brackets(search(eta=eta, min_epochs=min_epochs), max_epochs)
        s_max = len(found) - 1
        assert min_epochs * eta**s_max <= max_epochs < min_epochs * eta ** (s_max + 1)
        for bracket in found:
            s, n = bracket.index, bracket.size
            assert (n - 1) * (s + 1) < (s_max + 1) * eta**s <= n * (s + 1)
            assert rows(bracket) == [(n // eta**i, max_epochs * eta**i // eta**s) for i in range(s + 1)]

    @given(resources, pruners, st.integers(1, 5000))
    def test_rungs_climb_to_the_top(self, resource: tuple[int, int, int], pruner: Pruner, total: int) -> None:
        max_epochs, eta, min_epochs = resource
        for bracket in deal(total, brackets(search(pruner, eta=eta, min_epochs=min_epochs), max_epochs, total)):
            sizes, epochs = [rung.size for rung in bracket.rungs], [rung.epochs for rung in bracket.rungs]
            assert all(a < b for a, b in pairwise(epochs))
            assert epochs[0] >= min_epochs
            assert epochs[-1] == max_epochs
            assert all(b == max(1, a // eta) for a, b in pairwise(sizes))


class TestDeal:
    def test_again_and_again(self) -> None:
        round_of_81 = brackets(search(), 81)  # 81 + 34 + 15 + 8 + 5 = 143 slots
        assert [bracket.index for bracket in deal(243, round_of_81)] == [4, 3, 2, 1, 0, 4, 3]

    def test_the_last_is_short(self) -> None:
        last = deal(243, brackets(search(), 81))[-1]
        assert rows(last) == [(19, 3), (6, 9), (2, 27), (1, 81)]

    def test_a_short_bracket_reaches_the_top(self) -> None:
        assert rows(deal(4, brackets(search(), 81))[0]) == [(4, 1), (1, 3), (1, 9), (1, 27), (1, 81)]

    def test_a_short_bracket_keeps_eta(self) -> None:
        assert rows(deal(5, brackets(search(eta=2), 4))[1]) == [(1, 2), (1, 4)]

    def test_nothing_to_deal_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one trial"):
            deal(0, brackets(search(), 81))
        with pytest.raises(ValueError, match="no brackets"):
            deal(1, [])

    @given(resources, pruners, st.integers(1, 5000))
    def test_every_slot_once(self, resource: tuple[int, int, int], pruner: Pruner, total: int) -> None:
        max_epochs, eta, min_epochs = resource
        one_round = brackets(search(pruner, eta=eta, min_epochs=min_epochs), max_epochs, total)
        dealt = deal(total, one_round)
        assert sum(bracket.size for bracket in dealt) == total
        assert all(bracket == one_round[i % len(one_round)] for i, bracket in enumerate(dealt[:-1]))
        assert [number for place in slots(dealt) for number in place] == list(range(total))

    @given(st.integers(1, 500), st.data())
    def test_places_are_the_slots(self, total: int, data: st.DataObject) -> None:
        dealt = deal(total, brackets(search(), 81))
        number = data.draw(st.integers(0, total - 1))
        assert number in slots(dealt)[slot_place(number, dealt)]

    @pytest.mark.parametrize("number", [-1, 10])
    def test_no_such_slot(self, number: int) -> None:
        with pytest.raises(IndexError, match="10 slots"):
            slot_place(number, deal(10, brackets(search(), 81)))

    def test_total_epochs(self) -> None:
        two = [Bracket(index=0, rungs=(Rung(size=3, epochs=9),)), Bracket(index=0, rungs=(Rung(size=1, epochs=9),))]
        assert total_epochs(two) == 36

    def test_plan_of_a_study(self) -> None:
        spec = study("random")
        assert plan(spec) == deal(243, brackets(spec.search, 81))
        assert plan(study("grid", search={"pruner": "none"})) == deal(
            48, [Bracket(index=0, rungs=(Rung(size=48, epochs=81),))]
        )


Rule = Callable[[Mapping[int, float], int, Direction], list[int]]
Decision = tuple[list[tuple[int, float]], list[tuple[int, float]], int, Direction]

directions: st.SearchStrategy[Direction] = st.sampled_from(["minimize", "maximize"])
any_values = st.dictionaries(st.integers(0, 50), st.floats(), max_size=20)
few_values = st.dictionaries(st.integers(0, 50), st.sampled_from([0.0, -0.0, 0.5, math.nan, math.inf, -math.inf]))
# The rows of a rung, the same rows in another order, how many to keep, and which way is better.
decisions: st.SearchStrategy[Decision] = st.one_of(any_values, few_values).flatmap(
    lambda values: st.tuples(
        st.just(list(values.items())), st.permutations(list(values.items())), st.integers(0, 20), directions
    )
)


def broken_promises(rule: Rule, decision: Decision) -> list[str]:
    """What a rung's decision promises and does not hold in this case."""
    rows, shuffled, keep, direction = decision
    values = dict(rows)
    chosen = rule(values, keep, direction)
    finite = {number: value for number, value in rows if math.isfinite(value)}
    sign = 1 if direction == "minimize" else -1
    left = finite.keys() - set(chosen)
    kept = [number for number in chosen if number in finite]
    promises = {
        "diverged lanes lose": set(chosen) <= finite.keys(),
        "as many as asked for": len(chosen) == min(keep, len(finite)),
        "rows may come in any order": rule(dict(shuffled), keep, direction) == chosen,
        "the best, ties to the lower slot": all(
            (sign * values[a], a) < (sign * values[b], b) for a in kept for b in left
        ),
    }
    return [promise for promise, holds in promises.items() if not holds]


def nan_ranks_where_it_may(values: Mapping[int, float], keep: int, direction: Direction) -> list[int]:
    return sorted(values, key=lambda n: (values[n], n), reverse=direction == "maximize")[:keep]


def infinity_is_a_value(values: Mapping[int, float], keep: int, direction: Direction) -> list[int]:
    sign = 1 if direction == "minimize" else -1
    return sorted((n for n in values if not math.isnan(values[n])), key=lambda n: (sign * values[n], n))[:keep]


def ties_go_to_the_first_row(values: Mapping[int, float], keep: int, direction: Direction) -> list[int]:
    sign = 1 if direction == "minimize" else -1
    return sorted((n for n in values if math.isfinite(values[n])), key=lambda n: sign * values[n])[:keep]


def always_minimizes(values: Mapping[int, float], keep: int, direction: Direction) -> list[int]:  # noqa: ARG001
    return survivors(values, keep, "minimize")


FLAWED: list[Rule] = [nan_ranks_where_it_may, infinity_is_a_value, ties_go_to_the_first_row, always_minimizes]


class TestSurvivors:
    def test_the_best_first(self) -> None:
        values = {0: 0.3, 1: 0.1, 2: 0.2}
        assert survivors(values, 2, "minimize") == [1, 2]
        assert survivors(values, 2, "maximize") == [0, 2]

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_diverged_lanes_are_never_promoted(self, direction: Direction) -> None:
        values = {0: math.nan, 1: math.inf, 2: -math.inf, 3: 1e300}
        assert survivors(values, 3, direction) == [3]

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_ties_go_to_the_lower_slot(self, direction: Direction) -> None:
        assert survivors({7: 0.5, 3: 0.5, 5: 0.5}, 2, direction) == [3, 5]

    def test_negative_keep_is_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot keep -1"):
            survivors({}, -1, "minimize")

    @given(decisions)
    def test_promises(self, decision: Decision) -> None:
        assert broken_promises(survivors, decision) == []

    @pytest.mark.parametrize("rule", FLAWED, ids=lambda rule: rule.__name__)
    def test_a_flawed_rule_is_noticed(self, rule: Rule) -> None:
        decision = find(decisions, lambda decision: broken_promises(rule, decision) != [])
        assert broken_promises(rule, decision), "and its smallest case is a case"

    @given(any_values, st.integers(1, 20), directions)
    def test_a_better_value_never_hurts(self, values: dict[int, float], keep: int, direction: Direction) -> None:
        chosen = survivors(values, keep, direction)
        for number in chosen:
            better = values[number] - 1 if direction == "minimize" else values[number] + 1
            assert number in survivors({**values, number: better}, keep, direction)


class TestPromotable:
    def test_the_best_of_those_so_far(self) -> None:
        values = {n: n / 10 for n in range(9)}
        assert promotable(values, set(), 3, "minimize") == [0, 1, 2]
        assert promotable(values, set(), 3, "maximize") == [8, 7, 6]
        assert promotable(values, {0, 2}, 3, "minimize") == [1]
        assert promotable(values, {0, 1, 2}, 3, "minimize") == []

    def test_whoever_went_on_takes_a_place(self) -> None:
        """Slots that were promoted early, and would not be now, do not make room for more."""
        assert promotable({0: 0.9, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}, {0}, 3, "minimize") == [1, 2]

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_fewer_than_eta_promote_nobody(self, count: int) -> None:
        assert promotable(dict.fromkeys(range(count), 0.5), set(), 3, "minimize") == []

    def test_diverged_lanes_count_and_are_never_promoted(self) -> None:
        values = {0: math.nan, 1: math.nan, 2: math.inf, 3: 0.5, 4: math.nan, 5: math.nan}
        assert promotable(values, set(), 3, "minimize") == [3]

    @given(any_values, st.integers(2, 5), directions, st.data())
    def test_promises(self, values: dict[int, float], eta: int, direction: Direction, data: st.DataObject) -> None:
        promoted = set(data.draw(st.lists(st.sampled_from(sorted(values)), unique=True))) if values else set()
        found = promotable(values, promoted, eta, direction)
        best = survivors(values, len(values) // eta, direction)
        assert not promoted & set(found)
        assert set(found) == set(best) - promoted
        assert found == [number for number in best if number in found]

    @given(any_values, st.integers(2, 5))
    def test_in_the_end_at_least_as_many_as_of_one_decision(self, values: dict[int, float], eta: int) -> None:
        """Results that come one by one promote the final best, and sometimes more."""
        promoted: set[int] = set()
        seen: dict[int, float] = {}
        for number, value in values.items():
            seen[number] = value
            promoted |= set(promotable(seen, promoted, eta, "minimize"))
        assert promoted >= set(survivors(values, len(values) // eta, "minimize"))


class TestRounds:
    def test_one_without_refinement(self) -> None:
        assert rounds(study()) == (range(243),)

    @pytest.mark.parametrize(("trials", "count", "sizes"), [(10, 2, [5, 5]), (5, 3, [2, 2, 1]), (10, 4, [3, 2, 3, 2])])
    def test_consecutive_and_as_equal_as_can_be(self, trials: int, count: int, sizes: list[int]) -> None:
        spec = study(search={"trials": trials, "refine": {"rounds": count, "keep": 0.2}})
        parts = rounds(spec)
        assert [len(part) for part in parts] == sizes
        assert [number for part in parts for number in part] == list(range(trials))

    def test_no_bracket_spans_two(self) -> None:
        spec = study(search={"trials": 100, "refine": {"rounds": 3, "keep": 0.2}}, training={"max_epochs": 9})
        starts = {numbers.start for numbers in slots(plan(spec))}
        assert {part.start for part in rounds(spec)} <= starts
        assert sum(bracket.size for bracket in plan(spec)) == 100


def test_brackets_need_no_optuna() -> None:
    """``tuner check`` prints them; importing optuna and scipy would cost it a second."""
    code = "import sys, tuner.search.hyperband; print(*{'optuna', 'scipy', 'torch'}.intersection(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == ""


def test_late_names_are_there() -> None:
    import tuner.search

    assert all(hasattr(tuner.search, name) for name in tuner.search.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tuner.search.nothing


class TestStanding:
    """What is kept up as results come in is what the rule says of all of them."""

    @given(
        st.lists(st.dictionaries(st.integers(0, 30), st.floats(), max_size=8), max_size=6),
        st.sets(st.integers(0, 30)),
        st.integers(2, 4),
        directions,
    )
    def test_it_is_the_rule(
        self, packs: list[dict[int, float]], promoted: set[int], eta: int, direction: Direction
    ) -> None:
        rung, values = Standing(eta, direction), dict[int, float]()
        for pack in packs:
            fresh = {number: value for number, value in pack.items() if number not in values}
            rung.add(fresh)
            values |= fresh
            rung.remove(promoted)
            expected = promotable(values, promoted, eta, direction)
            assert rung.promotable(100) == expected
            assert rung.promotable(2) == expected[:2]

    def test_many_at_once_are_as_many_one_by_one(self) -> None:
        values = {n: (n * 7919) % 3001 / 10 for n in range(3000)}
        one, many = Standing(3, "maximize"), Standing(3, "maximize")
        many.add(values)
        for number, value in values.items():
            one.add({number: value})
        assert one.promotable(5000) == many.promotable(5000) == promotable(values, set(), 3, "maximize")

"""The rule: every row of its table, its boundaries, what must not change the class, and planted faults."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toyld.diagnosis import CLASSES, EXAMPLE_CLASSES, SEVERITY, Move, classify, classify_examples

FLOOR, ROOM = 1.0, 60.0
NAN = float("nan")


def kind(c, a, rejected=None, *, room=ROOM, rule=classify, half=0.0, floor=FLOOR):
    """The class of one run by its mean changes; `half`: half-width of every interval."""

    def move(x):
        x = np.asarray(float(x))
        return Move(x, x - half, x + half, np.asarray(floor))

    return str(rule(move(c), move(a), move(a - c), None if rejected is None else move(rejected), room))


# (chosen, argmax) -> class for rejected unknown, flat, up | rejected down; changes in nats, floor 1, room 60.
TABLE = {
    # chosen up
    (20, 40): ("squeezing", "squeezing"),  # G +20: half of argmax's own rise
    (20, 22): ("sft-normal", "healthy"),  # G +2: a tenth of it
    (20, 10): ("sft-normal", "healthy"),
    (20, 0): ("sft-normal", "healthy"),
    (20, -10): ("sft-normal", "healthy"),
    (60, 17): ("sft-normal", "healthy"),
    # chosen flat
    (0, 20): ("squeezing", "squeezing"),
    (-0.5, 2): ("squeezing", "squeezing"),
    (0.75, 1.5): ("not-learning", "rejection"),  # argmax up, but G = 0.75 is within the floor
    (0, 0): ("not-learning", "rejection"),
    (0, -20): ("not-learning", "rejection"),
    # chosen down
    (-20, 20): ("squeezing", "squeezing"),
    (-4, 20): ("squeezing", "squeezing"),
    (-20, 4): ("displacement", "displacement"),
    (-20, 0): ("displacement", "displacement"),
    (-20, -4): ("displacement", "displacement"),
    (-20, -10): ("divergence", "divergence"),
    (-3, -0.9): ("displacement", "displacement"),  # more than a quarter, but within the floor
}


def check_table(rule):
    """Every row of the table, for every kind of rejected."""
    for (c, a), (otherwise, down) in TABLE.items():
        for rejected, expected in ((None, otherwise), (0, otherwise), (15, otherwise), (NAN, otherwise), (-15, down)):
            assert kind(c, a, rejected, rule=rule) == expected, (c, a, rejected)


@pytest.mark.parametrize("rejected", [None, 0, 15, NAN, -15], ids=lambda r: f"rejected={r}")
@pytest.mark.parametrize(("c", "a"), TABLE, ids=lambda x: str(x))
def test_every_row_of_the_table(c, a, rejected):
    assert kind(c, a, rejected) == TABLE[c, a][rejected == -15]


def test_the_table_reaches_every_class_that_the_rule_can_give():
    reached = {name for pair in TABLE.values() for name in pair}
    assert reached == set(CLASSES) - {"cannot-tell", "wrong-reference"}


def test_the_published_runs_read_as_their_numbers_say():
    """Changes of the four runs with a sound argmax, in nats; starts −152.0 and −61.6."""
    assert kind(59.6, 17.1, room=61.6, floor=1.5) == "sft-normal"
    assert kind(-4.2, 20.4, room=61.6, floor=1.5) == "squeezing"
    assert kind(3.4, 7.2, room=61.6, floor=1.5) == "squeezing"
    assert kind(-25.1, 0.0, room=61.6, floor=1.5) == "displacement"


# --- boundaries ------------------------------------------------------------------------------------------------------


def test_a_quarter_is_not_small_and_less_is():
    assert kind(-20, -5) == "divergence"
    assert kind(-20, -4.999) == "displacement"
    assert kind(-20, 5) == "squeezing"
    assert kind(-20, 4.999) == "displacement"


def test_a_rise_that_takes_a_quarter_of_the_room_is_not_small():
    assert kind(-200, 20, room=60) == "squeezing"
    assert kind(-200, 20, room=100) == "displacement"
    assert kind(-200, 20, room=80) == "squeezing"


def test_chosen_lags_from_a_quarter_of_argmax_on():
    assert kind(30, 40) == "squeezing"
    assert kind(30.001, 40) == "sft-normal"


def test_a_move_counts_only_if_its_whole_interval_is_beyond_the_floor():
    assert kind(0, 5, half=3.9) == "squeezing"
    assert kind(0, 5, half=4.0) == "not-learning"
    assert kind(-5, 0, half=3.9) == "displacement"
    assert kind(-5, 0, half=4.0) == "not-learning"
    assert kind(5, 0, -9, half=3.9) == "healthy"
    assert kind(5, 0, -4, half=3.5) == "sft-normal"


def test_what_is_not_known_cannot_be_told():
    for c, a in ((NAN, 1), (1, NAN), (NAN, NAN)):
        assert kind(c, a, -10) == "cannot-tell"
    sure, open_ = (Move(*(np.asarray(v) for v in (-20.0, -20 - half, -20 + half, 1.0))) for half in (1.0, NAN))
    for c, a in ((sure, open_), (open_, sure)):
        assert classify(c, a, sure, None, ROOM) == "cannot-tell", "no interval where intervals are taken"


def test_arrays_are_judged_entry_by_entry():
    c, a = (np.array(x, float) for x in zip(*TABLE, strict=True))
    got = classify(Move.of(c, FLOOR), Move.of(a, FLOOR), Move.of(a - c, FLOOR), None, ROOM)
    assert got.tolist() == [pair[0] for pair in TABLE.values()]


# --- what must not change the class ----------------------------------------------------------------------------------

# Multiples of 1/8 below 2^8: sums, differences and products with powers of two are exact.
nats = st.integers(-800, 800).map(lambda k: k / 8)
floors = st.integers(0, 80).map(lambda k: k / 8)
rooms = st.integers(1, 1600).map(lambda k: k / 8)
powers = st.integers(-20, 20).map(lambda k: 2.0**k)
maybe = st.one_of(st.none(), nats)


@given(nats, nats, maybe, floors, rooms, floors, powers)
def test_common_scaling_changes_nothing(c, a, rejected, floor, room, half, k):
    once = kind(c, a, rejected, room=room, floor=floor, half=half)
    scaled = None if rejected is None else k * rejected
    assert kind(k * c, k * a, scaled, room=k * room, floor=k * floor, half=k * half) == once


@given(nats, nats, maybe, floors, rooms, rooms)
def test_the_level_matters_only_where_chosen_fell_and_argmax_rose(c, a, rejected, floor, room, other):
    if not (c < -floor and a > floor):
        assert kind(c, a, rejected, room=room, floor=floor) == kind(c, a, rejected, room=other, floor=floor)


@given(nats, nats, floors, rooms)
def test_unknown_rejected_reads_as_rejected_that_did_not_move(c, a, floor, room):
    assert kind(c, a, None, room=room, floor=floor) == kind(c, a, 0, room=room, floor=floor)


@given(nats, nats, maybe, rooms, floors)
def test_no_squeezing_where_the_gap_closed(c, a, rejected, room, floor):
    if a - c <= floor:
        assert kind(c, a, rejected, room=room, floor=floor) != "squeezing"


@given(st.lists(st.tuples(nats, nats, nats), min_size=1, max_size=20), floors, st.randoms(use_true_random=False))
def test_the_order_of_examples_changes_nothing(rows, floor, rng):
    order = list(range(len(rows)))
    rng.shuffle(order)
    c, a, r = np.array(rows).T
    names = classify_examples(c, a, r, floor)
    assert classify_examples(c[order], a[order], r[order], floor).tolist() == names[order].tolist()


@given(nats, nats, maybe, floors, powers)
def test_common_scaling_changes_no_example(c, a, rejected, floor, k):
    def one(scale):
        r = None if rejected is None else np.array([scale * rejected])
        return classify_examples(np.array([scale * c]), np.array([scale * a]), r, scale * floor)[0]

    assert one(1.0) == one(k)


# --- single examples -------------------------------------------------------------------------------------------------

EXAMPLES = [
    ((-2.0, 2.0, None), "squeezing"),
    ((-200.0, 2.0, None), "squeezing"),  # by signs alone, however small
    ((-20.0, -10.0, -5.0), "divergence"),
    ((-20.0, -4.0, None), "displacement"),
    ((-20.0, 0.5, None), "displacement"),
    ((2.0, 4.0, None), "lagging"),
    ((0.0, 4.0, -9.0), "lagging"),
    ((2.0, 2.5, -9.0), "healthy"),
    ((2.0, 0.0, None), "sft-normal"),
    ((2.0, 0.0, 9.0), "sft-normal"),
    ((0.0, 0.0, -9.0), "rejection"),
    ((0.5, -0.5, 0.5), "not-learning"),
    ((NAN, 1.0, None), "cannot-tell"),
    ((1.0, NAN, None), "cannot-tell"),
    ((2.0, 0.0, NAN), "sft-normal"),
]


@pytest.mark.parametrize(("moves", "expected"), EXAMPLES, ids=lambda x: str(x))
def test_every_kind_of_example(moves, expected):
    c, a, r = moves
    got = classify_examples(np.array([c]), np.array([a]), None if r is None else np.array([r]), 1.0)
    assert got.tolist() == [expected]


def test_every_example_has_one_of_the_listed_classes():
    values = (-30.0, -5.0, 0.0, 5.0, 30.0, NAN)
    for c, a, r in itertools.product(values, repeat=3):
        (got,) = classify_examples(np.array([c]), np.array([a]), np.array([r]), 1.0)
        assert got in {*EXAMPLE_CLASSES, "cannot-tell"}


def test_floors_may_differ_between_examples():
    two = np.array([2.0, 2.0])
    assert classify_examples(two, 0 * two, None, np.array([1.0, 3.0])).tolist() == ["sft-normal", "not-learning"]


def test_severity_lists_every_class_once():
    assert sorted(SEVERITY) == sorted(CLASSES)
    assert len(set(SEVERITY)) == len(SEVERITY)


# --- planted faults --------------------------------------------------------------------------------------------------


def negated(m):
    return None if m is None else Move(-m.value, -m.high, -m.low, m.floor)


def still(m):
    return Move.of(np.zeros_like(m.value), m.floor)


FAULTS = {
    "chosen and argmax swapped": lambda c, a, g, r, room: classify(a, c, negated(g), r, room),
    "arguments swapped, gap kept": lambda c, a, g, r, room: classify(a, c, g, r, room),
    "sign of chosen": lambda c, a, g, r, room: classify(negated(c), a, g, r, room),
    "sign of argmax": lambda c, a, g, r, room: classify(c, negated(a), g, r, room),
    "sign of the gap": lambda c, a, g, r, room: classify(c, a, negated(g), r, room),
    "sign of rejected": lambda c, a, g, r, room: classify(c, a, g, negated(r), room),
    "gap forgotten": lambda c, a, g, r, room: classify(c, a, still(g), r, room),
    "rejected forgotten": lambda c, a, g, r, room: classify(c, a, g, None, room),
    "no quarter": lambda c, a, g, r, room: classify(c, a, g, r, room, thresholds=_flat(0.0)),
    "a half for a quarter": lambda c, a, g, r, room: classify(c, a, g, r, room, thresholds=_flat(0.6)),
    "no floor": lambda c, a, g, r, room: classify(*(m and m._replace(floor=0 * m.floor) for m in (c, a, g, r)), room),
    "argmax alone": lambda c, a, g, r, room: classify(still(c), a, a, r, room),
}


def _flat(value):
    from dataclasses import replace

    from toyld.diagnosis import DEFAULT

    return replace(DEFAULT, flat=value)


def test_the_table_holds():
    check_table(classify)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_turn_the_table_red(fault):
    with pytest.raises(AssertionError):
        check_table(FAULTS[fault])


@pytest.mark.parametrize(("argmax", "kind"), [(-2.4, "displacement"), (-2.6, "divergence"), (-4.0, "divergence")])
def test_an_example_diverges_from_a_quarter_of_its_fall_on(argmax, kind):
    assert classify_examples(np.array([-10.0]), np.array([argmax]), None, 0.01).tolist() == [kind]

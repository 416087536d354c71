"""Claims on lifts between digits: each turns with the numbers it speaks of, and says why a table is none of its."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims import lifts as chapter
from toyld.claims.runs import evaluate_on, try_on
from toyld.trajectory import trajectory

CLAIMS = {id: one for id, one in claims.every().items() if id.startswith("lifts.")}
N = 10


def made(stage, columns, steps):
    rng = np.random.default_rng(5)
    noisy = {
        f"eval_{name}": np.asarray(value, float) * np.ones((N, steps)) + rng.normal(0, 1e-3, (N, steps))
        for name, value in columns.items()
    }
    return trajectory(
        noisy, step=list(range(steps)), probe=["chosen"], seed=list(range(N)), world="digits", stage=stage,
        attrs={"experiment": "lifts"},
    )  # fmt: skip


def steps(**changes):
    columns = {f"lift_{i}": [0.1, 0.1, 0.2] for i in range(10)} | {"lift_9": [0.3, 0.3, 0.3]}
    columns |= {"partner_lift": [0.1, 0.1, 0.1], "partner_gain": [0.1, 0.1, 0.1], "error": [0.02, 0.02, 0.05]}
    return made("steps", columns | changes, 3)


def lessons(**changes):
    columns = {"alike": 0.8, "alike_first": 0.7, "unexplained": 0.1}
    columns |= {f"on_four_{c}_9": -0.5 for c in range(9)} | {f"on_four_4_{j}": -2.0 for j in range(10)}
    columns |= {f"on_four_{c}_{j}": -0.5 for c in range(10) for j in range(10) if c != 4}
    columns |= {f"on_four_{j}_{j}": 3.0 for j in range(10)} | {f"lifted_{i}_9": 1.0 for i in range(10)}
    columns |= {"lifted_4_9": 3.0, "lifted_9_9": 9.0}
    for i in range(10):
        columns |= {f"pi_{i}_{j}": 0.02 for j in range(10)} | {f"logpi_{i}_{j}": -6.0 for j in range(10)}
    for i, j in ((4, 9), (5, 8), (7, 9), (3, 5)):
        columns |= {f"pi_{i}_{j}": 0.1, f"logpi_{i}_{j}": -3.0}
    return made("lessons", columns | changes, 1)


TURNED = {
    "lifts.four-lifts-nine": steps(lift_0=[0.1, 0.1, 0.4]),
    "lifts.four-lifts-all": steps(lift_6=[0.1, -0.1, 0.2]),
    "lifts.partner-is-lifted": steps(partner_lift=[0.1, 0.1, -0.1]),
    "lifts.partner-gains": steps(partner_gain=[-0.1, 0.1, 0.1]),
    "lifts.first-order-foretells": steps(error=[0.02, 0.2, 0.02]),
    "lifts.lessons-add-up": lessons(unexplained=0.4),
    "lifts.accumulated": lessons(lifted_2_9=30.0),
    "lifts.own-lessons-raise": lessons(on_four_2_7=4.0),
    "lifts.four-pushes-all": lessons(on_four_4_6=0.5),
    "lifts.first-lift-foretells-likeness": lessons(alike_first=-0.3),
    "lifts.lifts-explain-likeness": lessons(alike=-0.3),
    "lifts.top-partner-of-four": lessons(logpi_4_6=-2.0),
    "lifts.top-partner-of-five": lessons(pi_5_1=0.4),
    "lifts.top-partner-of-seven": lessons(pi_7_4=0.4),
    "lifts.top-partner-of-three": lessons(logpi_3_8=-2.0),
}


def test_every_claim_of_the_chapter_is_tried_here():
    assert set(CLAIMS) == set(TURNED)
    for one in CLAIMS.values():
        assert (one.experiment, one.rungs) == ("lifts", ("digits",)), one.id


@pytest.mark.parametrize("id", TURNED)
def test_a_claim_turns_with_its_numbers(id):
    as_stated = steps() if TURNED[id].attrs["stage"] == "steps" else lessons()
    assert evaluate_on(CLAIMS[id], {"run": as_stated}).summary == "holds"
    assert evaluate_on(CLAIMS[id], {"run": TURNED[id]}).summary == "refuted"


def test_effects_are_the_numbers_they_speak_of():
    def effect(id, ds):
        return evaluate_on(CLAIMS[id], {"run": ds}).effect.value

    assert effect("lifts.four-lifts-nine", steps()) == pytest.approx(0.1, abs=2e-3)  # late: .3 − .2
    assert effect("lifts.accumulated", lessons()) == pytest.approx(2.0, abs=2e-3)  # 9s do not count
    assert effect("lifts.accumulated", lessons(lifted_4_9=0.5, lifted_0_9=-3.0)) == pytest.approx(0.0, abs=2e-3)
    assert effect("lifts.own-lessons-raise", lessons(on_four_3_5=2.0)) == pytest.approx(1.0, abs=2e-3)
    assert effect("lifts.four-pushes-all", lessons(on_four_4_3=-1.0)) == pytest.approx(1.0, abs=2e-3)
    assert effect("lifts.top-partner-of-four", lessons(pi_4_7=0.08)) == pytest.approx(np.log(0.1 / 0.08), abs=0.02)
    assert effect("lifts.top-partner-of-five", lessons(pi_5_8=0.02, pi_5_3=0.1, logpi_5_3=-2.5)) > 1.0
    assert effect("lifts.lessons-add-up", lessons()) == pytest.approx(0.15, abs=2e-3)


@pytest.mark.parametrize(
    ("id", "ds", "why"),
    [
        ("lifts.four-lifts-nine", lessons(), "a table of lessons; the claim is about single steps"),
        ("lifts.accumulated", steps(), "a table of steps; the claim is about a whole run"),
        ("lifts.lifts-explain-likeness", lessons().drop_vars("eval_alike"), "not measured: alike"),
    ],
)
def test_premises_say_why_a_table_says_nothing(id, ds, why):
    (trial,) = try_on(CLAIMS[id], {"run": ds})
    assert (trial.effect, trial.why) == (None, why)
    assert chapter.needs_steps()(steps()) is None

"""Claims on images with wrong labels: each turns with the numbers that it speaks of."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims import zigzag as chapter
from toyld.claims.runs import evaluate_on, try_on
from toyld.trajectory import trajectory

CLAIMS = {id: one for id, one in claims.every().items() if id.startswith("zigzag.")}
N, NAN = 10, float("nan")


def made(stage, columns, steps):
    rng = np.random.default_rng(6)
    noisy = {
        f"eval_{name}": np.asarray(value, float) * np.ones((N, steps)) + rng.normal(0, 1e-3, (N, steps))
        for name, value in columns.items()
    }
    return trajectory(
        noisy, step=list(range(steps)), probe=["chosen"], seed=list(range(N)), world="digits", stage=stage,
        attrs={"experiment": "zigzag"},
    )  # fmt: skip


def path(**changes):
    columns = {
        "log_true": [-2.3, -1.5, -0.7, -2.0, -3.0],
        "own_true": [0.0, -0.2, -0.5, -3.0, -6.0],
        "others_true": [0.0, 1.0, 2.1, 3.3, 5.3],
        "foretold_true": [0.0, 1.1, NAN, NAN, NAN],
        "as_true": [0.1, 0.4, 0.7, 0.3, 0.1],
        "as_given": [0.1, 0.1, 0.2, 0.6, 0.9],
    }
    return made("path", columns | changes, 5)


def students(**changes):
    columns = {"detour_flipped": 3.0, "detour_clean": 1.5, "harder": 0.3, "harder_flipped": -0.4}
    columns |= {
        f"accuracy_{x}": v for x, v in (("given", 0.7), ("smoothed", 0.8), ("stopped", 0.82), ("filtered", 0.9))
    }
    return made("students", columns | changes, 1)


TURNED = {
    "zigzag.truth-first": path(log_true=[-1.0, -1.5, -1.7, -2.0, -3.0]),
    "zigzag.corrects-the-labels": path(as_true=[0.1, 0.3, 0.4, 0.3, 0.1]),
    "zigzag.memorises": path(as_given=[0.1, 0.9, 0.9, 0.9, 0.4]),
    "zigzag.others-pull-to-the-truth": path(others_true=[0.0, 1.0, 2.1, 3.3, 1.3]),
    "zigzag.first-order-foretells": path(foretold_true=[0.0, 1.6, NAN, NAN, NAN]),
    "zigzag.true-labels-go-straighter": students(detour_clean=3.5),
    "zigzag.harder-goes-further-round": students(harder=-0.3),
    "zigzag.harder-hears-less-truth": students(harder_flipped=0.3),
    "zigzag.filter-beats-labels": students(accuracy_filtered=0.6),
    "zigzag.filter-beats-smoothing": students(accuracy_filtered=0.75),
    "zigzag.filter-beats-stopping": students(accuracy_filtered=0.81),
}


def test_every_claim_of_the_chapter_is_tried_here():
    assert set(CLAIMS) == set(TURNED)
    for one in CLAIMS.values():
        assert (one.experiment, one.rungs) == ("zigzag", ("digits",)), one.id


@pytest.mark.parametrize("id", TURNED)
def test_a_claim_turns_with_its_numbers(id):
    as_stated = path() if TURNED[id].attrs["stage"] == "path" else students()
    assert evaluate_on(CLAIMS[id], {"run": as_stated}).summary == "holds"
    assert evaluate_on(CLAIMS[id], {"run": TURNED[id]}).summary == "refuted"


def test_effects_are_the_numbers_they_speak_of():
    def effect(id, ds):
        return evaluate_on(CLAIMS[id], {"run": ds}).effect.value

    assert effect("zigzag.truth-first", path()) == pytest.approx(1.6, abs=0.01)  # −.7 above −2.3
    assert effect("zigzag.corrects-the-labels", path()) == pytest.approx(0.2, abs=0.01)
    assert effect("zigzag.others-pull-to-the-truth", path()) == pytest.approx(0.5, abs=0.01)  # own lessons, early
    assert effect("zigzag.first-order-foretells", path()) == pytest.approx(1 / 3 - 0.1, abs=0.01)
    own_up = path(own_true=[0.0, 0.2, 0.5, -3.0, -6.0])
    assert effect("zigzag.others-pull-to-the-truth", own_up) == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize(
    ("id", "ds", "why"),
    [
        ("zigzag.truth-first", students(), "a table of students; the claim is about a path"),
        ("zigzag.memorises", students(), "a table of students; the claim is about a path"),
        ("zigzag.true-labels-go-straighter", path(), "a table of path; the claim is about students"),
        ("zigzag.harder-goes-further-round", students().drop_vars("eval_harder"), "not measured: harder"),
    ],
)
def test_premises_say_why_a_table_says_nothing(id, ds, why):
    (trial,) = try_on(CLAIMS[id], {"run": ds})
    assert (trial.effect, trial.why) == (None, why)
    assert chapter.needs_path(path()) is None

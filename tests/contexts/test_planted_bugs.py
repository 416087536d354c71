"""The test of the tests: one-line mistakes planted into the engine, each of which must turn named tests red."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toyld import contexts
from toyld.contexts import engine, hidden, kernels, rows, world
from toyld.objectives import DPO

HERE = Path(__file__).parent


def load(name: str):
    """A module of tests, to run its functions under a bug."""
    spec = importlib.util.spec_from_file_location(f"planted_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TESTS = {name: load(name) for name in ("test_engine", "test_head_only", "test_kernels", "test_world")}


def run(test: str, **arguments) -> None:
    """One test by its name, module::function."""
    module, function = test.split("::")
    found = getattr(TESTS[module], function)
    (found.hypothesis.inner_test if hasattr(found, "hypothesis") else found)(**arguments)


def sign_of_the_update_flipped(patch):
    right = rows.Rows.residual
    patch.setattr(rows.Rows, "residual", lambda self, z, /, **k: -right(self, z, **k))


def kernel_without_its_off_diagonal(patch):
    right = kernels.Features.block

    def block(self, r, c, /):
        return right(self, r, c) * kernels._eye(self.features, r, c, self.features.shape[1])

    patch.setattr(kernels.Features, "block", block)
    patch.setattr(engine, "_features_pay", lambda *_: False)


def push_of_sft_instead_of_dpo(patch):
    """β(1 − a) dropped: every pair pulled with strength 1."""
    patch.setattr(DPO, "strength", lambda self, h: 1.0 + 0.0 * h)


def strength_without_beta(patch):
    right = DPO.strength
    patch.setattr(DPO, "strength", lambda self, h: right(self, h) / self.beta)


def a_prefix_counted_twice(patch):
    """The first context of every row twice in the sum of pushes, once in the labels."""
    right = rows._add_at

    def add_at(target, index, values):
        right(target, index, values)
        if len(target) < 100:  # k_c, not the labels
            right(target, index[:1], values[:1])

    patch.setattr(rows, "_add_at", add_at)


def a_repeated_context_counted_once(patch):
    """target[index] += values, which keeps the last of several labels."""

    def add_at(target, index, values):
        target[index] += values

    patch.setattr(rows, "_add_at", add_at)


def a_shared_prefix_split(patch):
    """Every text gets contexts of its own, so that shared ones are trained as if they were two."""
    right = world._first_seen

    def first_seen(all_rows):
        tagged = np.concatenate([np.arange(len(all_rows))[:, None], all_rows], axis=1)
        seen, number = right(tagged)
        return seen[:, 1:], number

    patch.setattr(world, "_first_seen", first_seen)


def reference_overwritten_by_the_policy(patch):
    right = rows.Rows._push

    def push(self, sides, logp, *rest):
        return right(self, {n: replace(s, reference=logp[n] + 0.0) for n, s in sides.items()}, logp, *rest)

    patch.setattr(rows.Rows, "_push", push)


def label_shifted_by_one(patch):
    right = rows._used
    patch.setattr(rows, "_used", lambda w, s: [r._replace(token=(r.token + 1) % w.size[2]) for r in right(w, s)])


def state_before_the_head_off_by_one(patch):
    """The hidden state of the token itself predicts it."""
    right = hidden._checked

    def checked(*given):
        states, ids, mask = right(*given)
        return contexts.kernels.array_namespace(states).roll(states, -1, axis=1), ids, mask

    patch.setattr(hidden, "_checked", checked)


def rows_not_averaged(patch):
    right = rows.Rows.residual
    patch.setattr(rows.Rows, "residual", lambda self, z, /, **k: right(self, z, **k) * self.number)


def momentum_restarts_every_step(patch):
    patch.setattr(contexts.Optimizer, "direction", lambda self, g, memory: g)


def other_contexts_do_not_follow(patch):
    patch.setattr(engine, "_follow", lambda w, a, b: None if a >= b else lambda state: w.logits[:, a:b, :])


AUTOGRAD = "test_engine::test_every_objective_equals_autograd", {"name": "dpo", "form": "kernel"}
REPEATS = "test_engine::test_every_objective_equals_autograd", {"name": "sft", "form": "feature"}
FORMULA = "test_engine::test_one_formula_of_every_entry", {}
HEAD_ONLY = (
    "test_head_only::test_head_only_training_of_a_random_model_is_the_closed_form",
    {"how": "descent", "bias": False, "form": "kernel"},
)
MOMENTUM = HEAD_ONLY[0], {"how": "momentum", "bias": True, "form": "feature"}
ORDER = "test_engine::test_stochastic_order_equals_autograd_on_the_same_rows", {}
GRAM = "test_kernels::test_gram_features_and_measured_agree_and_follow_their_worlds", {}
TRIE = "test_world::test_a_trie_is_a_dictionary_of_prefixes", {"seed": 0}
DUAL = "test_engine::test_the_dual_carries_the_policy_from_stage_to_stage", {}

RED = {
    sign_of_the_update_flipped: [AUTOGRAD, FORMULA, HEAD_ONLY],
    kernel_without_its_off_diagonal: [AUTOGRAD, GRAM, HEAD_ONLY],
    push_of_sft_instead_of_dpo: [AUTOGRAD, HEAD_ONLY],
    strength_without_beta: [AUTOGRAD, HEAD_ONLY],
    a_prefix_counted_twice: [AUTOGRAD, REPEATS, FORMULA],
    a_repeated_context_counted_once: [AUTOGRAD, REPEATS, FORMULA, HEAD_ONLY],
    a_shared_prefix_split: [TRIE],
    reference_overwritten_by_the_policy: [AUTOGRAD, HEAD_ONLY],
    label_shifted_by_one: [AUTOGRAD, FORMULA, HEAD_ONLY],
    state_before_the_head_off_by_one: [HEAD_ONLY],
    rows_not_averaged: [AUTOGRAD, FORMULA, HEAD_ONLY],
    momentum_restarts_every_step: [MOMENTUM, ("test_engine::test_heavy_ball_has_a_kernel_form", {})],
    other_contexts_do_not_follow: [AUTOGRAD, HEAD_ONLY, DUAL],
}


def is_red(test, arguments) -> bool:
    """Whether a test fails by what it asserts. A crash does not count."""
    with np.errstate(all="ignore"):
        try:
            run(test, **arguments)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_tests_red(bug, monkeypatch):
    assert not [test for test, how in RED[bug] if is_red(test, how)], "green before the bug is planted"
    bug(monkeypatch)
    green = [test for test, how in RED[bug] if not is_red(test, how)]
    assert not green, f"still green with the bug: {green}"

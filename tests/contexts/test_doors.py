"""What the doors of toyld.contexts refuse, in one line, and that nothing slips past them; other devices and dtypes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import Features, Gram, Optimizer, Responses, World, languages
from toyld.contexts.flow import flow
from toyld.contexts.policy import respond, with_texts
from toyld.contexts.sweep import Grid
from toyld.contexts.world import on_host

B, C, N, P, V = 3, 14, 12, 5, 7  # worlds, contexts, of which N train, rows, classes
SFT, DPO = objectives.get("sft"), objectives.get("dpo")


def make_world(seed: int = 0, *, contexts: int = C, trained: int = N) -> World:
    """Random logits, features and rows on random contexts."""
    rng = np.random.default_rng(seed)
    rows = {}
    for kind, top in (("chosen", trained), ("rejected", trained), ("probe", contexts)):
        mask = np.arange(4) < rng.integers(1, 5, (B, P, 1))
        mask[:, 0] = True
        rows[kind] = Responses(rng.integers(top, size=(B, P, 4)), rng.integers(V, size=(B, P, 4)), mask)
        rows[kind].context[:, 0, 0] = top - 1
    phi = rng.normal(size=(B, contexts, 6)) / np.sqrt(6)
    return World(2.0 * rng.normal(size=(B, contexts, V)), Features(phi), rows, trained, (1000, 1001, 1002))


def test_what_cannot_be_trained_is_one_clear_line():
    world, sft = make_world(), objectives.get("sft")
    options: dict[str, Any] = {"lr": 0.1, "steps": 1}
    with pytest.raises(BadInput, match=r"12 trained contexts, got one on context 1[23]; name its kind in `train`"):
        contexts.train(world, sft, chosen="probe", **options)
    with pytest.raises(BadInput, match=r"reads batch.anchor, which is None: pass anchor="):
        contexts.train(world, objectives.get("slic"), rejected="rejected", **options)
    with pytest.raises(BadInput, match=r"reads batch.rejected, which is None"):
        contexts.train(world, objectives.get("dpo"), **options)
    with pytest.raises(BadInput, match=r"expected kinds among .*got nothing"):
        contexts.train(world, sft, chosen="nothing", **options)
    with pytest.raises(BadInput, match=r"kinds: expected some of chosen, .*got other; name what is there"):
        contexts.train(world, sft, kinds=["chosen", "other"], **options)
    with pytest.raises(BadInput, match="no side at all"):
        contexts.train(world, sft, chosen=None, **options)
    with pytest.raises(BadInput, match=r"expected updates from 0 to 1, got 0 to 5"):
        contexts.train(world, sft, at=[0, 5], **options)
    with pytest.raises(BadInput, match=r"beta: expected a number, or one a world \(3,\), got \(2,\)"):
        contexts.train(world, objectives.get("dpo", beta=np.ones(2)), rejected="rejected", **options)
    with pytest.raises(BadInput, match="expected the rows of 1 updates, got 0"):
        contexts.train(world, sft, order=np.zeros((0, 2), int), **options)
    gram = replace(world, kernel=Gram(world.kernel.block(slice(0, C), slice(0, C))))
    with pytest.raises(BadInput, match="take form='kernel'"):
        contexts.train(gram, sft, form="feature", **options)


STAGES: dict[str, tuple[dict[str, Any], str]] = {
    "an optimiser's name": ({"optimizer": "adam"}, r"optimizer: expected an Optimizer, got 'adam'"),
    "no such form": ({"form": "nonsense"}, "form: expected one of auto, kernel, feature, got 'nonsense'"),
    "a rate that is no number": ({"lr": float("nan")}, r"lr: expected a finite number, or one a world \(3,\), got nan"),
    "a word for a rate": ({"lr": "fast"}, "lr: expected a finite number"),
    "an endless rate among others": ({"lr": np.array([1.0, np.inf, 1.0])}, r"lr: .*got float64 \(3,\), \[ 1\. inf"),
    "rates of other worlds": ({"lr": np.ones(2)}, r"lr: .* one a world \(3,\), got float64 \(2,\)"),
    "losses of other worlds": ({"until": np.ones(2)}, r"until: .* one a world \(3,\)"),
    "half an update": ({"at": [0.5]}, "at: expected updates from 0 to 1, got 0.5 to 0.5; whole numbers"),
    "a row that is not there": ({"order": np.array([[0, 5]])}, "order: expected rows from 0 to 4, got 0 to 5"),
    "a row from behind": ({"order": np.array([[-1]])}, "order: expected rows from 0 to 4, got -1 to -1"),
    "rows of two worlds": ({"order": np.zeros((1, 2, 2), int)}, r"order: expected the numbers of rows \(steps, m\)"),
    "rows by weight": ({"order": np.ones((1, 2))}, "order: expected the numbers of rows .* got float64"),
    "a side that is not there": ({"advantages": {"foo": 1.0}}, "advantages: expected sides among chosen, got foo"),
    "a preconditioner of all": (
        {"precondition": np.eye(C)[None]},
        r"precondition: expected P \(3, 12, 12\), got \(1, 14",
    ),
}


@pytest.mark.parametrize("what", STAGES)
def test_a_bad_stage_is_one_line(what):
    options, words = STAGES[what]
    with pytest.raises(BadInput, match=words):
        contexts.train(make_world(), SFT, **{"lr": 0.1, "steps": 1, **options})


@pytest.mark.parametrize("run", [contexts.train, flow])
def test_names_and_classes_are_no_objectives_and_policies_belong_to_their_world(run):
    world = make_world()
    for objective in ("dpo", objectives.OBJECTIVES["dpo"], None):
        with pytest.raises(BadInput, match=r"objective: expected one of toyld.objectives.*objectives.get\(NAME\)"):
            run(world, objective, lr=0.1, steps=1, rejected="rejected")
    other = contexts.start(make_world(1, contexts=16, trained=13))
    for name in ("state", "reference"):
        with pytest.raises(BadInput, match=r"policy of this world, \(3, 12, 7\), got \(3, 13, 7\)"):
            run(world, SFT, lr=0.1, steps=1, **{name: other})
    with pytest.raises(BadInput, match=r"beta: expected a number, or an array with one a world .* got a list"):
        contexts.train(world, objectives.get("dpo", beta=[0.1, 0.2, 0.3]), lr=0.1, steps=1, rejected="rejected")
    with pytest.raises(BadInput, match=r"at: expected updates from 0 to 4, got 2.5 to 2.5; whole numbers"):
        run(world, SFT, lr=0.1, steps=4, at=[2.5])


def test_a_run_names_what_it_has():
    run = contexts.train(make_world(), SFT, lr=0.1, steps=1, kinds=["chosen"])
    assert run.value("argmax_logp", "chosen").shape == (2, B, P)
    with pytest.raises(BadInput, match=r"variable: expected one of logp, argmax_logp, .*got 'argmax'"):
        run.value("argmax", "chosen")
    with pytest.raises(BadInput, match=r"kind: expected one of chosen, got 'choosen'"):
        run.value("logp", "choosen")


def test_a_gram_matrix_is_symmetric():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(2, 300, 70)).astype(np.float32)
    assert Gram(phi @ np.swapaxes(phi, 1, 2)).block(slice(0, 2), slice(0, 3)).shape == (2, 2, 3)  # rounding passes
    assert Gram(np.zeros((1, 2, 2))).features is None
    skew = np.stack([np.eye(3), np.eye(3)])
    skew[1, 0, 2] = 0.25
    with pytest.raises(BadInput, match=r"symmetric S, got 0.25 between S and its transpose in world 1"):
        Gram(skew)
    with pytest.raises(BadInput, match="finite symmetric S, got nan"):
        Gram(np.full((1, 2, 2), np.nan))
    with pytest.raises(BadInput, match=r"expected S \(B, C, C\), got shape \(3, 3\)"):
        Gram(np.eye(3))


def test_a_grid_takes_values_in_tuples():
    for name, value in (("beta", 0.1), ("seeds", 3), ("sft", "40")):
        with pytest.raises(BadInput, match=rf"{name}: expected several values, got .*; write \("):
            Grid(**{name: value})
    with pytest.raises(BadInput, match=r"lr, sft_lr: expected rates up to 1e\+06, got 1e\+09"):
        Grid(lr=(24.0, 1e9))
    assert Grid(seeds=range(3), lr=np.array([6.0, 12.0])).runs == 3 * 2 * 2 * 3


def test_the_policy_of_an_adaptive_optimiser_is_not_carried_over_half():
    world = languages.facts(seeds=[1000], concepts=4, prompts=3, length=4, kernel={"token": 1.0})
    adam = contexts.train(world, SFT, lr=0.1, steps=2, optimizer=Optimizer("adam")).state
    assert adam.weights is not None
    with pytest.raises(BadInput, match="plain or heavy-ball descent, got one with weights"):
        with_texts(world, adam, {"rejected": world.language.texts["rejected"]})


def test_the_package_has_what_its_docstring_names():
    code = "from toyld import contexts; print(contexts.predict.terms.__name__, contexts.sweep.Grid.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["terms", "Grid"]
    for name in ("predict.terms", "predict.foresee", "sweep.sweep", "from_hidden"):
        assert f"`{name}`" in contexts.__doc__


# ------------------------------------------------------------------ one number a world, other dtypes and devices


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("each", [False, True], ids=["one", "own"])
def test_until_stops_every_world_at_its_own_time(each, library):
    world, how = make_world(14), {"lr": 2.0, "steps": 100, "at": range(101)}
    if library == "torch":
        world = world.to(torch.zeros(1, dtype=torch.float64))
    whole = contexts.train(world, SFT, **how)
    levels = 0.9 * float(whole.loss[0].min()) * (np.array([1.0, 0.7, 0.4]) if each else np.ones(B))
    run = contexts.train(world, SFT, until=levels if each else float(levels[0]), **how)
    stops = [int(np.argmax(whole.loss[:, b] <= level)) for b, level in enumerate(levels)]
    assert len(set(stops)) > 1
    for b, stop in enumerate(stops):
        assert stop > 0
        assert_array_equal(run.loss[: stop + 1, b], whole.loss[: stop + 1, b])
        assert np.all(run.loss[stop:, b] == run.loss[stop, b])
        assert run.loss[-1, b] <= levels[b]


def test_a_run_leaves_its_world_and_its_start_alone():
    world = make_world(16)
    before, start = world.logits.copy(), contexts.train(world, SFT, lr=0.3, steps=3).state
    copies = start.logits.copy(), start.dual.copy()
    contexts.train(world, DPO, lr=0.3, steps=3, state=start, rejected="rejected")
    assert_array_equal(world.logits, before)
    assert_array_equal(start.logits, copies[0])
    assert_array_equal(start.dual, copies[1])


def test_parameters_take_the_dtype_of_their_world():
    given = {"lr": 0.1, "steps": 4, "rejected": "rejected"}
    objective = objectives.get("dpo", beta=np.array([0.05, 0.1, 0.5]))
    double = contexts.train(make_world(), objective, **given)
    single = contexts.train(make_world().to(torch.zeros(1, dtype=torch.float32)), objective, **given)
    assert single.state.logits.dtype == torch.float32
    assert_allclose(single.state.logits.numpy(), double.state.logits, atol=1e-5)


class Far(torch.Tensor):
    """A tensor that numpy cannot read before it is moved, as on an accelerator."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert to numpy: move it first")

    def cpu(self, *_: Any, **__: Any) -> Any:
        return self.as_subclass(torch.Tensor)


def far(array: Any) -> Any:
    return torch.as_tensor(np.asarray(array)).as_subclass(Far)


def check_table_and_back(there: World, world: World) -> None:
    """A run elsewhere gives the table of the run here, and the world comes back."""
    given = {"lr": 0.1, "steps": 4, "rejected": "rejected"}
    table, wanted = (contexts.train(w, DPO, **given).table("dpo", "baseline") for w in (there, world))
    for name in wanted.data_vars:
        assert_allclose(table[name].values, wanted[name].values, rtol=1e-9, atol=1e-9, err_msg=name)
    back = there.to(np.zeros(1))
    assert_array_equal(back.logits, world.logits)
    assert_array_equal(back.kernel.features, world.kernel.features)
    assert_array_equal(back.responses["chosen"].mask, world.responses["chosen"].mask)


def test_tables_and_worlds_come_back_from_where_numpy_cannot_read():
    world = make_world()
    rows = {kind: Responses(*(far(a) for a in r)) for kind, r in world.responses.items()}
    there = replace(world, logits=far(world.logits), kernel=Features(far(world.kernel.features)), responses=rows)
    with pytest.raises(TypeError, match="move it first"):
        np.asarray(there.logits)
    check_table_and_back(there, world)
    said = languages.markov(seeds=[1000], vocab=8, prompts=3, length=4)
    state = contexts.train(said, SFT, lr=1.0, steps=9).state
    moved = contexts.State(far(state.logits), far(state.dual))
    assert_array_equal(respond(said, moved, seed=0), respond(said, state, seed=0))


@pytest.mark.gpu
def test_tables_and_worlds_come_back_from_an_accelerator():
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    world = make_world()
    there = world.to(torch.zeros(1, dtype=torch.float64, device="cuda"))
    assert there.logits.is_cuda
    check_table_and_back(there, world)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_order_of_logits_in_memory_changes_nothing(library):
    world = languages.facts(seeds=range(2))
    if library == "torch":
        world = world.to(torch.zeros(1, dtype=torch.float64))

    def turned(array):
        if library == "torch":
            return array.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        return np.asfortranarray(array)

    def end(one, **options):
        run = contexts.train(one, SFT, lr=5.0, steps=5, **options)
        return run.values["logp"][-1], on_host(run.state.dual)

    expected, state = end(world), contexts.start(world)
    for found in (
        end(replace(world, logits=turned(world.logits))),
        end(world, state=contexts.State(turned(state.logits), turned(state.dual))),
    ):
        for got, want in zip(found, expected, strict=True):
            assert_allclose(got, want, rtol=0, atol=1e-12)

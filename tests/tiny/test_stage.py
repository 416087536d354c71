"""A stage against what was not written for it: plain torch on one module, and the closed form of the head."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts.kernels import Gram, centred
from toyld.objectives import Batch
from toyld.objectives.base import OBJECTIVES
from toyld.tiny import Centre, Models, Optimizer, Shape, Sizes, Transformer, ask, draw, probe, scene, start, train
from toyld.tiny import with_rejected as with_negatives

SEEDS = (1000, 1001, 1002)
SHAPE = Shape(39, 8, width=12, depth=2, heads=2)
SIDES = {"chosen": "chosen", "rejected": "rejected", "anchor": "irr_hum"}


def shaken(models, seed, size=0.3):
    """The same models with every parameter away from where it was."""
    draws = torch.randn(models.flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dataclasses.replace(models, flat=models.flat + size * draws)


@pytest.fixture(scope="module")
def models():
    return shaken(start(SHAPE, SEEDS, dtype=torch.float64), 0)


@pytest.fixture(scope="module")
def old(models):
    """Another policy: the reference, so that log-ratios are not 0."""
    return shaken(models, 1, 0.05)


@pytest.fixture(scope="module")
def data(models):
    data = ask(draw(Sizes(), SEEDS), prompts=4)
    negatives = models.sample(data.language, data.prompts["chosen"], seed=0)
    negatives[:, -1, 2:] = -1  # short ones last, so that no row reads the last position of all
    negatives[:, -1, 1] = 0
    return with_negatives(data, negatives)


# ---- plain torch on one module ------------------------------------------------------------------------------------


def tokens_of(data, member, kind):
    """(inputs, labels, mask) of one member's rows: the label of slot t is predicted at position t + 1."""
    text = torch.from_numpy(data.texts[kind][member])
    asked = torch.from_numpy(data.language.ask(data.prompt(kind)[member]))
    return torch.cat([asked, text[:, :-1].clamp(min=0)], 1), text.clamp(min=0), text >= 0


def log_probs(module, data, member, kind):
    inputs, labels, _ = tokens_of(data, member, kind)
    return module(inputs)[:, 1:].log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def loss_of(objective, module, reference, data, member, sides, rows=slice(None), **more):
    """The mean loss, written with the objective's own `loss` and autograd."""
    given = {}
    if objective.kind == "target":
        kind = sides.get("rejected", "chosen")
        inputs, labels, mask = tokens_of(data, member, kind)
        return objective.loss(module(inputs)[:, 1:].log_softmax(-1), labels, mask=mask).mean()
    for side, kind in sides.items():
        before = log_probs(reference, data, member, kind).detach()
        given |= {side: log_probs(module, data, member, kind), f"ref_{side}": before}
        given[f"{side}_mask"] = tokens_of(data, member, kind)[2]
        if side != "anchor":
            given |= {f"old_{side}": before, f"{side}_advantage": before[:, 0] * 0 + (1 if side == "chosen" else -1)}
    return objective.loss(Batch(**{name: value[rows] for name, value in (given | more).items()})).mean()


def by_torch(models, reference, data, objective, peer, *, steps, sides, rows=None):
    """Parameters (S, P) after so many updates of torch's own optimiser, one member after another."""
    found = []
    for s in range(len(models)):
        module, before = models.module(s), reference.module(s)
        optimizer = peer(module.parameters())
        for k in range(steps):
            optimizer.zero_grad()
            part = slice(None) if rows is None else torch.from_numpy(rows[k][s])
            loss_of(objective, module, before, data, s, sides, part).backward()
            optimizer.step()
        found.append(parameters_to_vector(module.parameters()).detach())
    return torch.stack(found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_push_of_every_objective_is_autograd_of_its_loss_through_the_network(models, old, data, name):
    objective = objectives.get(name)
    run = train(
        models, data, objective, lr=1.0, steps=1, reference=old, rejected="rejected", anchor="irr_hum", kinds=[]
    )
    pushed = run.models.flat - models.flat
    for s in range(2):
        module = models.module(s)
        loss = loss_of(objective, module, old.module(s), data, s, SIDES)
        assert abs(loss.item() - run.loss[0, s]) <= 1e-11 * (1 + abs(loss.item()))
        g = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
        wanted = -torch.cat([part.flatten() for part in g])
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(pushed[s], wanted, rtol=0.0, atol=1e-11 * float(1 + wanted.abs().max()))


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_a_stage_is_torchs_loop_on_every_module(models, old, data, name):
    rule, peer = {
        "sgd": (Optimizer("sgd", momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        "rmsprop": (Optimizer("rmsprop"), lambda p: torch.optim.RMSprop(p, lr=0.001)),
        "adamw": (Optimizer("adamw", decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=0.1)),
    }[name]
    lr = {"sgd": 0.01, "rmsprop": 0.001, "adamw": 0.003}[name]
    objective, sides = objectives.get("dpo"), {"chosen": "chosen", "rejected": "rejected"}
    run = train(
        models, data, objective, lr=lr, steps=5, optimizer=rule, reference=old, rejected="rejected", kinds=["chosen"]
    )
    wanted = by_torch(models, old, data, objective, peer, steps=5, sides=sides)
    # √ of a small second moment magnifies rounding, by 1/ε of the optimiser at most where g is of rounding's size.
    torch.testing.assert_close(run.models.flat, wanted, rtol=0.0, atol=1e-9)
    assert (run.models.flat - models.flat).abs().max() > 1e-3
    own = log_probs(run.models.module(1), data, 1, "chosen")
    summed = torch.where(tokens_of(data, 1, "chosen")[2], own, 0.0).sum(-1)
    np.testing.assert_allclose(run.value("logp", "chosen")[-1, 1], summed.detach(), rtol=1e-11)


# ---- the closed form of the head (K1), centring (K6), the common component (K4) -----------------------------------


def world_of(models, data, member, common=None):
    """(closed form of one member's head, weights of its contexts in the mean over positions)."""
    module, found = models.module(member), {}
    for kind in ("chosen", "rejected"):
        inputs, _, mask = tokens_of(data, member, kind)
        text = torch.from_numpy(data.texts[kind][member]).clamp(min=0)
        ids, known = torch.cat([inputs[:, :2], text], 1), torch.cat([torch.zeros(4, 2, dtype=torch.bool), mask], 1)
        found[kind] = (module.hidden(inputs).detach().numpy(), ids.numpy(), known.numpy())
    world = contexts.from_hidden(found, weight=module.head.weight.detach().numpy())
    if common is not None:
        n = world.size[1]
        gram = world.kernel.block(slice(0, n), slice(0, n)) + common**2
        world = dataclasses.replace(world, kernel=Gram((gram + gram.transpose(0, 2, 1)) / 2))
    return world


def counted(world, kinds):
    """How often the rows of these kinds stand on each context, over all: the weights of its mean, (1, n)."""
    hits = np.concatenate([world.responses[kind].context[world.responses[kind].mask] for kind in kinds])
    return np.bincount(hits, minlength=world.trained)[None] / len(hits)


STAGES = {
    "sft": (objectives.get("sft"), {"chosen": "chosen"}, 0.05),
    "dpo": (objectives.get("dpo"), {"chosen": "chosen", "rejected": "rejected"}, 0.5),
}


@pytest.mark.parametrize("common", [None, 2.0])
@pytest.mark.parametrize("stage", STAGES)
def test_training_the_head_alone_is_the_closed_form(models, data, stage, common):
    objective, sides, lr = STAGES[stage]
    own = models if common is None else models.take(range(3), common=[common] * 3)
    given = {"rejected": sides.get("rejected"), "at": range(0, 81, 20), "kinds": ["chosen", "rejected"]}
    run = train(own, data, objective, lr=lr, steps=80, layers="head", **given)
    assert torch.equal(run.models.flat[:, : SHAPE.head], models.flat[:, : SHAPE.head])
    for s in range(3):
        closed = contexts.train(world_of(models, data, s, common), objective, lr=lr, steps=80, **given)
        for kind in ("chosen", "rejected"):
            wanted = closed.value("logp", kind)[:, 0]
            np.testing.assert_allclose(run.value("logp", kind)[:, s], wanted, rtol=1e-10, atol=1e-10)
        assert abs(closed.value("logp", "chosen")[-1] - closed.value("logp", "chosen")[0]).min() > 0.1
        np.testing.assert_allclose(run.loss[:, s], closed.loss[:, 0], rtol=1e-10)
        if common is None:
            moved = (run.models.flat - models.flat)[s, SHAPE.head :].view(39, 12)
            change = contexts.head(closed.world, closed.state)[0].T
            np.testing.assert_allclose(moved, change, rtol=0, atol=1e-10)


@pytest.mark.parametrize("common", [None, 2.0])
@pytest.mark.parametrize("how", ["subtract", "project"])
@pytest.mark.parametrize("layers", ["head", "all"])
def test_a_centred_head_is_the_centred_closed_form(models, data, how, layers, common):
    objective, sides, lr = STAGES["dpo"]
    own = models if common is None else models.take(range(3), common=[common] * 3)
    run = train(
        own, data, objective, lr=lr, steps=30 if layers == "head" else 1, layers=layers, rejected="rejected",
        centre=Centre("head", how), kinds=["chosen", "rejected"],
    )  # fmt: skip
    for s in range(3):
        world = world_of(models, data, s, common)
        weights, n = counted(world, sides.values()), world.trained
        if how == "subtract":
            p = centred(weights)
        else:  # features without their part along μ = Φᵀw: S P = S − (S w)(S w)ᵀ / wᵀS w
            gram = world.kernel.block(slice(0, n), slice(0, n))
            pull = gram @ weights[..., None]
            p = np.eye(n) - weights[..., None] * pull.mT / (weights[:, None] @ pull)
        if layers == "all":  # one update of the head, seen in its weights; what else moved is not in them
            closed = contexts.train(
                world, objective, lr=lr, steps=1, rejected="rejected", precondition=p, kinds=["chosen"], form="kernel"
            )
            if common is None:
                moved = (run.models.flat - models.flat)[s, SHAPE.head :].view(39, 12)
                change = -(np.matrix_transpose(world.kernel.features) @ closed.state.dual)[0].T
                np.testing.assert_allclose(moved, change, rtol=0, atol=1e-12)
            continue
        closed = contexts.train(world, objective, lr=lr, steps=30, rejected="rejected", precondition=p)
        for kind in ("chosen", "rejected"):
            wanted = closed.value("logp", kind)[:, 0]
            np.testing.assert_allclose(run.value("logp", kind)[:, s], wanted, rtol=1e-10, atol=1e-10)
        plain = contexts.train(world, objective, lr=lr, steps=30, rejected="rejected")
        assert abs(plain.value("logp", "rejected") - closed.value("logp", "rejected"))[-1].max() > 0.01


def test_a_centred_head_learns_nothing_of_what_is_common_to_all(models, data):
    with_it, without = models.take(range(3), common=[3.0] * 3), models
    options = {"lr": 0.5, "steps": 4, "rejected": "rejected", "centre": Centre("head"), "kinds": ["chosen"]}
    a, b = (train(m, data, objectives.get("dpo"), **options).models.flat for m in (with_it, without))
    torch.testing.assert_close(a[:, : SHAPE.parameters], b, rtol=0, atol=1e-12)
    assert a[:, SHAPE.parameters :].abs().max() < 1e-12


# ---- members, minibatches, pieces ---------------------------------------------------------------------------------

DPO = {"rejected": "rejected", "kinds": ["chosen"]}


def test_a_member_alone_is_the_same_member_in_a_stack(models, data):
    options = {"steps": 6, "optimizer": Optimizer("rmsprop"), "batch": 3, "warmup": 3, **DPO}
    lr, beta = np.array([1e-3, 2e-3, 5e-4, 1e-3]), np.array([0.1, 0.3, 0.1, 1.0])
    members = [0, 1, 2, 1]
    stack = train(models.take(members), data.take(members), objectives.get("dpo", beta=beta), lr=lr, **options)
    for place, member in enumerate(members):
        alone = train(
            models.take([member]), data.take([member]), objectives.get("dpo", beta=beta[place]), lr=lr[place], **options
        )
        torch.testing.assert_close(stack.models.flat[place], alone.models.flat[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(stack.value("logp", "chosen")[:, place], alone.value("logp", "chosen")[:, 0])
    assert (stack.models.flat[1] - stack.models.flat[3]).abs().max() > 1e-4


@pytest.mark.parametrize("layers", ["all", "head"])
@pytest.mark.parametrize("centre", [None, Centre("all")])
def test_a_batch_of_all_rows_in_any_order_is_the_full_batch(models, data, layers, centre, monkeypatch):
    options = {"lr": 0.1, "steps": 3, "layers": layers, "centre": centre, "reference": shaken(models, 2, 0.1), **DPO}
    full = train(models, data, objectives.get("dpo"), **options)
    turned = np.array([[2, 0, 3, 1], [1, 3, 0, 2], [3, 2, 1, 0]])
    monkeypatch.setattr("toyld.tiny.stage._Order.of", lambda self, update: np.roll(turned, update, axis=1))
    part = train(models, data, objectives.get("dpo"), **options)
    torch.testing.assert_close(part.models.flat, full.models.flat, rtol=0, atol=1e-12)


def test_minibatches_are_torchs_loop_on_the_rows_that_were_drawn(models, old, data, monkeypatch):
    drawn = []
    real = train.__globals__["_Order"].of
    monkeypatch.setattr("toyld.tiny.stage._Order.of", lambda self, k: drawn.append(real(self, k)) or drawn[-1])
    run = train(models, data, objectives.get("dpo"), lr=0.1, steps=4, batch=2, reference=old, **DPO)
    wanted = by_torch(
        models, old, data, objectives.get("dpo"), lambda p: torch.optim.SGD(p, lr=0.1), steps=4,
        sides={"chosen": "chosen", "rejected": "rejected"}, rows=drawn,
    )  # fmt: skip
    torch.testing.assert_close(run.models.flat, wanted, rtol=0, atol=1e-11)
    for s in range(3):  # a pass sees every row once
        assert sorted(np.concatenate([drawn[0][s], drawn[1][s]])) == [0, 1, 2, 3]
        assert sorted(np.concatenate([drawn[2][s], drawn[3][s]])) == [0, 1, 2, 3]
    assert len({tuple(map(tuple, np.sort(rows, -1))) for rows in drawn}) > 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_in_two_pieces_is_training_in_one_bit_by_bit(models, data, name):
    rule = Optimizer(name, momentum=0.9) if name == "sgd" else Optimizer(name)
    options = {"lr": 0.002, "optimizer": rule, "batch": 3, "warmup": 5, **DPO}
    whole = train(models, data, objectives.get("dpo"), steps=7, **options)
    first = train(models, data, objectives.get("dpo"), steps=3, **options)
    kept = {key: value.clone() for key, value in first.memory.items()}
    second = train(
        first.models, data, objectives.get("dpo"), steps=4, done=3, memory=first.memory, reference=models, **options
    )
    assert torch.equal(second.models.flat, whole.models.flat)
    assert all(torch.equal(value, whole.memory[key]) for key, value in second.memory.items())
    assert all(torch.equal(value, first.memory[key]) for key, value in kept.items())
    np.testing.assert_array_equal(second.value("logp", "chosen")[-1], whole.value("logp", "chosen")[-1])
    fresh = train(first.models, data, objectives.get("dpo"), steps=4, done=3, reference=models, **options)
    assert not torch.equal(fresh.models.flat, whole.models.flat)


def test_the_rate_rises_over_the_warmup(models, data):
    one = train(models, data, objectives.get("sft"), lr=0.01, steps=1, kinds=[]).models.flat - models.flat
    quarter = train(models, data, objectives.get("sft"), lr=0.01, steps=1, warmup=4, kinds=[]).models.flat - models.flat
    late = train(models, data, objectives.get("sft"), lr=0.01, steps=1, warmup=4, done=2, kinds=[]).models.flat
    torch.testing.assert_close(quarter, one / 4, rtol=0, atol=1e-15)
    torch.testing.assert_close(late - models.flat, one * 3 / 4, rtol=0, atol=1e-15)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_member_that_has_come_down_stays_where_it_is(models, data, batch):
    options = {"lr": 0.05, "at": range(13), "batch": batch, "kinds": ["chosen"]}
    free = train(models, data, objectives.get("sft"), steps=12, **options)
    goal = free.loss[6].mean()
    goals = np.array([goal, -1.0, 1e9])
    run = train(models, data, objectives.get("sft"), steps=12, until=goals, **options)
    reached = int(np.argmax(free.loss[:, 0] <= goal))
    assert 0 < reached < 12
    np.testing.assert_allclose(run.loss[: reached + 1, 0], free.loss[: reached + 1, 0], rtol=1e-12)
    assert len(set(run.loss[reached:, 0])) == 1
    np.testing.assert_allclose(run.loss[:, 1], free.loss[:, 1], rtol=1e-12)
    assert torch.equal(run.models.flat[2], models.flat[2])


def test_head_only_training_leaves_the_rest_alone_whatever_the_optimiser_remembers(models, data):
    rule = Optimizer("adamw", decay=0.5)
    before = train(models, data, objectives.get("sft"), lr=0.01, steps=2, optimizer=rule, kinds=[])
    run = train(
        before.models, data, objectives.get("sft"), lr=0.01, steps=2, optimizer=rule, memory=before.memory,
        layers="head", kinds=[],
    )  # fmt: skip
    moved = (run.models.flat - before.models.flat).abs()
    assert not moved[:, : SHAPE.head].any()
    assert moved[:, SHAPE.head :].max() > 1e-3


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_what_is_measured_is_what_the_module_says(models, data):
    found, z = probe(models, scene(data, ["chosen", "irr_test"], models))
    for i, kind in enumerate(("chosen", "irr_test")):
        inputs, labels, mask = tokens_of(data, 2, kind)
        log_pi = models.module(2)(inputs)[:, 1:].log_softmax(-1).detach()
        count = mask.sum(-1)
        logp = torch.where(mask, log_pi.gather(-1, labels[..., None])[..., 0], 0.0).sum(-1)
        entropy = torch.where(mask, -(log_pi.exp() * log_pi).sum(-1), 0.0).sum(-1) / count
        best = torch.where(mask, log_pi.amax(-1), 0.0).sum(-1)
        for name, wanted in {"logp": logp, "entropy": entropy, "argmax_logp": best}.items():
            np.testing.assert_allclose(found[name][2, i], wanted, rtol=1e-11)
    assert z.shape == (3, 2 * 4 * 8, 39)


def test_the_loss_is_the_same_whether_or_not_its_kinds_are_measured(models, old, data):
    options = {"lr": 0.1, "steps": 2, "rejected": "rejected", "reference": old}
    some, all_, none = (
        train(models, data, objectives.get("dpo"), kinds=kinds, **options)
        for kinds in (["irr_hum"], ["irr_hum", "rejected", "irr_test", "chosen"], [])
    )
    np.testing.assert_allclose(some.loss, all_.loss, rtol=1e-12)
    np.testing.assert_allclose(some.loss, none.loss, rtol=1e-12)


def test_the_table_holds_the_run(models, data):
    run = train(models, data, objectives.get("sft"), lr=0.05, steps=4, at=[0, 3], kinds=["chosen", "irr_hum"])
    table = run.table("sft", "baseline", members=[2, 0], note="x")
    assert table.attrs["vocab_size"] == 39
    assert table.attrs["note"] == "x"
    assert table.sizes["seed"] == 2
    assert table.seed.values.tolist() == [1002, 1000]
    got = table.logp.sel(probe="chosen").isel(seed=0).transpose("step", "example").values
    np.testing.assert_array_equal(got, run.value("logp", "chosen")[:, 2])
    count = table.n_tokens.sel(probe="irr_hum").isel(seed=1).values
    np.testing.assert_array_equal(count.reshape(-1, 4)[0], (data.texts["irr_hum"][0] >= 0).sum(-1))


# ---- doors ---------------------------------------------------------------------------------------------------------

BAD = {
    "layers": ({"layers": "last"}, "layers: expected all or head, got 'last'"),
    "kinds": ({"kinds": ["chose"]}, "expected some of chosen, .* got chose; make them first"),
    "rejected": ({"rejected": "reject"}, "expected some of chosen, .* got reject"),
    "batch": ({"batch": 9}, "batch: expected 1 to 4 rows, got 9"),
    "at": ({"at": [0, 7]}, "at: expected updates from 0 to 2, got 0 to 7"),
    "lr": ({"lr": [0.1, 0.1]}, "lr: expected a finite number, or one a world"),
    "lr nan": ({"lr": float("nan")}, "lr: expected a finite number"),
    "until": ({"until": np.ones(5)}, "until: expected a finite number, or one a world"),
    "optimizer": ({"optimizer": "sgd"}, "optimizer: expected an Optimizer, got 'sgd'"),
    "memory": ({"optimizer": Optimizer("rmsprop"), "memory": {}}, "memory: expected square .* got nothing"),
    "objective": ({"objective": "dpo"}, "objective: expected one of toyld.objectives, got 'dpo'"),
    "advantages": ({"advantages": {"rejected": 1.0}}, "advantages: expected sides among chosen, got rejected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(models, data, name):
    wrong, says = BAD[name]
    options = {"objective": objectives.get("sft"), "lr": 0.1, "steps": 2} | wrong
    with pytest.raises(BadInput, match=says) as caught:
        train(models, data, options.pop("objective"), **options)
    assert "\n" not in str(caught.value)


def test_models_and_data_of_other_seeds_or_sizes_are_refused_in_one_line(models, data):
    sft, options = objectives.get("sft"), {"lr": 0.1, "steps": 1}
    with pytest.raises(BadInput, match="seeds 1000, 1001, 1002, got 1001, 1000, 1002; take the same members of both"):
        train(models, data.take([1, 0, 2]), sft, **options)
    with pytest.raises(BadInput, match=r"expected Shape\(39, 8\) or more places, got Shape\(40, 8\)"):
        train(start(Shape(40, 8), SEEDS), data, sft, **options)
    with pytest.raises(BadInput, match="expected the language of each model"):
        train(models, data, sft, reference=models.take([0]), **options)
    run = train(models, data, sft, kinds=["chosen"], **options)
    with pytest.raises(BadInput, match="got 'logp' of 'rejected'; name it in kinds="):
        run.value("logp", "rejected")


def test_a_module_that_is_asked_for_is_a_copy_in_the_dtype_asked_for(models):
    one = models.module(1, torch.float32)
    assert isinstance(one, Transformer)
    torch.testing.assert_close(parameters_to_vector(one.parameters()).double(), models.flat[1], rtol=1e-6, atol=1e-6)
    vector_to_parameters(torch.zeros(SHAPE.parameters), one.parameters())
    assert isinstance(models, Models)
    assert models.flat[1].any()


def test_a_kind_named_twice_is_refused() -> None:
    language = draw(Sizes(), [0])
    data, models = ask(language, prompts=2), start(Shape(39, 8, width=8), [0])
    with pytest.raises(BadInput, match="expected each once, got chosen, chosen"):
        train(models, data, objectives.get("sft"), lr=0.1, steps=1, kinds=("chosen", "chosen"))

"""toyld.contexts.engine beside torch autograd and torch.optim on the same head: Z = Z0 + Φ ΔW by backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import Features, Gram, Optimizer, Responses, World
from toyld.objectives import Batch

EPS = float(np.finfo(np.float64).eps)
B, C, N, D, V, P, T = 3, 14, 12, 6, 7, 5, 4  # worlds, contexts, of which N train, features, classes, rows, tokens
SIDES = {"chosen": "chosen", "rejected": "rejected", "anchor": "anchor"}
NAMES = list(objectives.OBJECTIVES)
# Updates of size one whose rounding may grow like the logits themselves do.
CLOSE = {"rtol": 1e4 * EPS, "atol": 1e4 * EPS}


def make_world(seed: int = 0, *, worlds: int = B, diagonal: bool = False) -> World:
    """Random logits and features; ragged rows on random contexts, so that contexts repeat with several labels."""
    rng = np.random.default_rng(seed)
    responses = {}
    for kind, top in (("chosen", N), ("rejected", N), ("anchor", N), ("probe", C)):
        length = rng.integers(1, T + 1, (worlds, P, 1))
        length[:, 0] = T
        mask = np.arange(T) < length
        responses[kind] = Responses(rng.integers(top, size=(worlds, P, T)), rng.integers(V, size=(worlds, P, T)), mask)
    # A prompt that comes twice, and a pair that begins with the same two tokens.
    for array in responses["chosen"][:2]:
        array[:, 1] = array[:, 0]
    for mine, theirs in zip(responses["rejected"], responses["chosen"], strict=True):
        mine[:, 2, :2] = theirs[:, 2, :2]
    extra = rng.uniform(0.1, 1.0, (worlds, C)) if diagonal else None
    phi = rng.normal(size=(worlds, C, D)) / np.sqrt(D)
    return World(
        2.0 * rng.normal(size=(worlds, C, V)), Features(phi, extra), responses, N, tuple(range(1000, 1000 + worlds))
    )


class Head:
    """One world's head under torch autograd: the user's own training loop."""

    def __init__(self, world: World, b: int, *, start: Any = None) -> None:
        self.z0 = torch.as_tensor(world.logits[b])
        self.phi = torch.as_tensor(world.kernel.features[b])
        if world.kernel.diagonal is not None:  # one more feature for every context
            self.phi = torch.cat([self.phi, torch.diag(torch.as_tensor(world.kernel.diagonal[b])).sqrt()], 1)
        self.weight = torch.zeros(self.phi.shape[1], V, dtype=torch.float64) if start is None else start.clone()
        self.weight.requires_grad_()
        self.rows = {kind: [torch.as_tensor(a[b]) for a in r] for kind, r in world.responses.items()}

    def logits(self) -> torch.Tensor:
        return self.z0 + self.phi @ self.weight

    def tokens(self, kind: str) -> torch.Tensor:
        context, token, mask = self.rows[kind]
        return torch.where(mask, torch.log_softmax(self.logits(), -1)[context, token], 0.0)

    def loss(self, objective: Any, reference: dict[str, Any], sides: Any, rows: Any = slice(None), **extra: Any) -> Any:
        if objective.kind == "target":
            context, token, mask = (a[rows] for a in self.rows[sides["rejected"]])
            return objective.loss(torch.log_softmax(self.logits(), -1)[context], token, mask=mask)
        fields = dict(extra)
        for side, kind in sides.items():
            fields |= {side: self.tokens(kind)[rows], f"ref_{side}": reference[side][rows]}
            fields[f"{side}_mask"] = self.rows[kind][2][rows]
            if side != "anchor":
                fields[f"old_{side}"] = reference[side][rows]
                sign = 1.0 if side == "chosen" else -1.0
                fields.setdefault(f"{side}_advantage", torch.full_like(fields[side][:, 0], sign))
        return objective.loss(Batch(**fields))

    def train(
        self, objective: Any, *, lr: float, steps: int, sides: Any = SIDES, reference: Any = None, optim: Any = None,
        order: Any = None, centre: Any = None, **extra: Any,
    ) -> Head:  # fmt: skip
        if reference is None:
            reference = {side: self.tokens(kind).detach() for side, kind in sides.items()}
        optimizer = torch.optim.SGD([self.weight], lr=lr) if optim is None else optim([self.weight], lr)
        for step in range(steps):
            optimizer.zero_grad()
            rows = slice(None) if order is None else torch.as_tensor(order[step])
            loss = self.loss(objective, reference, sides, rows, **extra).mean()
            if loss.requires_grad:
                loss.backward()
            if centre is not None:  # the head's gradient with features less their mean
                z = self.logits().detach().requires_grad_()
                whole, self.logits = self.logits, lambda z=z: z  # type: ignore[method-assign]
                (given,) = torch.autograd.grad(self.loss(objective, reference, sides, rows).mean(), z)
                self.logits = whole  # type: ignore[method-assign]
                self.weight.grad = (self.phi - centre @ self.phi[:N]).T @ given
            optimizer.step()
        return self


def both(world: World, objective: Any, *, form: str, lr: float = 0.05, steps: int = 6, **options: Any) -> Any:
    """A run of the engine on every world, SFT first so that policy and reference differ."""
    before = contexts.train(world, objectives.get("sft"), lr=0.3, steps=2).state
    kinds = {"rejected": "rejected", "anchor": "anchor"} | options
    return contexts.train(
        world, objective, lr=lr, steps=steps, state=before, reference=contexts.start(world), form=form, **kinds
    )


def heads(world: World, objective: Any, *, lr: float = 0.05, steps: int = 6, **options: Any) -> list[Head]:
    """The same by autograd, world by world."""
    found = []
    for b in range(world.size[0]):
        head = Head(world, b)
        reference = {side: head.tokens(kind).detach() for side, kind in SIDES.items()}
        head.train(objectives.get("sft"), lr=0.3, steps=2, sides={"chosen": "chosen"})
        found.append(head.train(objective, lr=lr, steps=steps, reference=reference, **options))
    return found


def check_equal(run: Any, trained: list[Head]) -> None:
    """Logits of every context, and what the run says of every response."""
    theirs = torch.stack([head.logits() for head in trained]).detach().numpy()
    assert_allclose(contexts.logits(run.world, run.state), theirs, **CLOSE)
    for kind in run.kinds:
        logp = torch.stack([head.tokens(kind).sum(-1) for head in trained]).detach().numpy()
        logp[~run.world.responses[kind].mask.any(-1)] = np.nan  # no response, no log-probability
        assert_allclose(run.value("logp", kind)[-1], logp, **CLOSE)


# ------------------------------------------------------------------ every objective


@pytest.mark.parametrize("form", ["kernel", "feature"])
@pytest.mark.parametrize("name", NAMES)
def test_every_objective_equals_autograd(name, form):
    world, objective = make_world(), objectives.get(name)
    run = both(world, objective, form=form)
    trained = heads(world, objective)
    check_equal(run, trained)
    moved = run.value("logp", "chosen")[-1] - run.value("logp", "chosen")[0]
    assert np.abs(moved).max() > 1e-4, "nothing was trained"


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_that_is_reported_is_the_loss(name):
    world, objective = make_world(1), objectives.get(name)
    run = both(world, objective, form="auto")
    found = []
    for b, head in enumerate(heads(world, objective)):
        reference = {side: Head(world, b).tokens(kind).detach() for side, kind in SIDES.items()}
        found.append(head.loss(objective, reference, SIDES).mean().item())
    assert_allclose(run.loss[-1], found, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_worlds_is_each_world_alone(name):
    """Also where rows look at each other (AOT, KTO, GRPO): at those of their own world."""
    world, objective = make_world(2), objectives.get(name)
    run = both(world, objective, form="kernel")
    for b in range(B):
        alone = both(world.take([b]), objective, form="kernel")
        assert_allclose(run.state.logits[b], alone.state.logits[0], rtol=64 * EPS, atol=64 * EPS)
        assert_allclose(run.loss[:, b], alone.loss[:, 0], rtol=1e3 * EPS)


@pytest.mark.parametrize("name", NAMES)
def test_torch_gives_numpys_numbers(name):
    world, objective = make_world(3), objectives.get(name)
    run = both(world, objective, form="feature")
    there = both(world.to(torch.zeros(1, dtype=torch.float64)), objective, form="feature")
    assert isinstance(there.state.logits, torch.Tensor)
    assert_allclose(there.state.logits.numpy(), run.state.logits, **CLOSE)
    for variable in run.values:
        # ‖π − e‖ is a square root, which turns rounding of 1e-16 near 0 into 1e-8.
        loose = {"rtol": 1e-7, "atol": 1e-7} if variable == "residual_norm" else CLOSE
        assert_allclose(there.values[variable], run.values[variable], **loose)
    assert_allclose(there.loss, run.loss, **CLOSE)


def test_float32_on_torch_follows_float64():
    world = make_world(4)
    run = both(world, objectives.get("dpo"), form="auto", lr=0.5, steps=20)
    small = both(world.to(torch.zeros(1)), objectives.get("dpo"), form="auto", lr=0.5, steps=20)
    assert small.state.logits.dtype == torch.float32
    assert_allclose(small.state.logits.numpy(), run.state.logits, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ forms and kernels


@pytest.mark.parametrize("diagonal", [False, True])
def test_kernel_and_feature_form_give_the_same_numbers(diagonal):
    world = make_world(5, diagonal=diagonal)
    runs = [both(world, objectives.get("dpo"), form=form, lr=0.5, steps=20) for form in ("kernel", "feature", "auto")]
    gram = Gram(world.kernel.block(slice(0, C), slice(0, C)))
    runs.append(both(replace(world, kernel=gram), objectives.get("dpo"), form="auto", lr=0.5, steps=20))
    for run in runs[1:]:
        assert_allclose(run.state.logits, runs[0].state.logits, **CLOSE)
        assert_allclose(run.value("logp", "probe"), runs[0].value("logp", "probe"), **CLOSE)
    check_equal(runs[0], heads(world, objectives.get("dpo"), lr=0.5, steps=20))


def test_one_formula_of_every_entry():
    """Z ← Z − η S R with R by loops over tokens: SFT, where the push is 1/rows."""
    world = make_world(6, worlds=1)
    z, r = world.logits[0], np.zeros((N, V))
    pi = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    context, token, mask = (a[0] for a in world.responses["chosen"])
    for p in range(P):
        for t in range(T):
            if mask[p, t]:
                r[context[p, t]] += (pi[context[p, t]] - np.eye(V)[token[p, t]]) / P
    phi = world.kernel.features[0]
    run = contexts.train(world, objectives.get("sft"), lr=0.7, steps=1)
    assert_allclose(contexts.logits(world, run.state)[0], z - 0.7 * (phi @ phi[:N].T) @ r, rtol=64 * EPS, atol=64 * EPS)
    assert_allclose(contexts.head(world, run.state)[0], -0.7 * phi[:N].T @ r, rtol=64 * EPS, atol=64 * EPS)


def test_the_dual_carries_the_policy_from_stage_to_stage():
    """SFT trains a few contexts, DPO more, then SFT again: Z = Z0 − S A everywhere, all the time."""
    world, state = contexts.languages.facts(seeds=[1000, 1001], concepts=5, prompts=4, length=4), None
    for name, rejected in (("sft", None), ("dpo", "rejected"), ("sft", None), ("npo", "rejected")):
        run = contexts.train(world, objectives.get(name), lr=2.0, steps=15, state=state, rejected=rejected)
        state = run.state
        every = slice(0, world.size[1])
        z = world.logits - world.kernel.block(every, slice(0, world.trained)) @ state.dual
        assert_allclose(contexts.logits(world, state), z, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ optimisers


OPTIM = {
    "sgd": (Optimizer(), lambda w, lr: torch.optim.SGD(w, lr=lr)),
    "heavy-ball": (Optimizer("sgd", momentum=0.9), lambda w, lr: torch.optim.SGD(w, lr=lr, momentum=0.9)),
    "rmsprop": (Optimizer("rmsprop"), lambda w, lr: torch.optim.RMSprop(w, lr=lr)),
    "rmsprop-momentum": (
        Optimizer("rmsprop", momentum=0.5, alpha=0.9),
        lambda w, lr: torch.optim.RMSprop(w, lr=lr, alpha=0.9, momentum=0.5),
    ),
    "adam": (Optimizer("adam"), lambda w, lr: torch.optim.Adam(w, lr=lr)),
    "adam-betas": (
        Optimizer("adam", betas=(0.5, 0.9), eps=1e-3),
        lambda w, lr: torch.optim.Adam(w, lr=lr, betas=(0.5, 0.9), eps=1e-3),
    ),
}


@pytest.mark.parametrize("name", OPTIM)
def test_optimisers_are_torchs(name):
    ours, theirs = OPTIM[name]
    world, objective = make_world(7), objectives.get("dpo")
    run = both(world, objective, form="feature", steps=12, lr=0.02, optimizer=ours)
    trained = heads(world, objective, steps=12, lr=0.02, optim=theirs)
    # RMSprop and Adam divide by √E[g²], which blows rounding up where a gradient is nearly 0.
    loose = {"rtol": 1e-7, "atol": 1e-7} if ours.needs_features else CLOSE
    theirs_z = torch.stack([head.logits() for head in trained]).detach().numpy()
    assert_allclose(contexts.logits(world, run.state), theirs_z, **loose)
    assert_allclose(contexts.head(world, run.state), [head.weight.detach().numpy() for head in trained], **loose)


def test_heavy_ball_has_a_kernel_form():
    world, ours = make_world(8, diagonal=True), OPTIM["heavy-ball"]
    run = both(world, objectives.get("ipo"), form="kernel", steps=12, lr=0.01, optimizer=ours[0])
    check_equal(run, heads(world, objectives.get("ipo"), steps=12, lr=0.01, optim=ours[1]))


def test_a_stage_of_plain_descent_may_follow_one_of_adam():
    world = make_world(9)
    first = contexts.train(world, objectives.get("sft"), lr=0.05, steps=5, optimizer=Optimizer("adam"))
    run = contexts.train(world, objectives.get("dpo"), lr=0.5, steps=5, state=first.state, rejected="rejected")
    pair = {"chosen": "chosen", "rejected": "rejected"}
    trained = []
    for b in range(B):
        head = Head(world, b)
        head.train(objectives.get("sft"), lr=0.05, steps=5, sides={"chosen": "chosen"}, optim=OPTIM["adam"][1])
        trained.append(head.train(objectives.get("dpo"), lr=0.5, steps=5, sides=pair))
    theirs = torch.stack([head.logits() for head in trained]).detach().numpy()
    assert_allclose(contexts.logits(world, run.state), theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_an_optimiser_of_single_weights_refuses_a_kernel_without_features(name):
    world = make_world()
    gram = replace(world, kernel=Gram(world.kernel.block(slice(0, C), slice(0, C))))
    for bare in (gram, make_world(diagonal=True)):
        with pytest.raises(BadInput, match="features alone"):
            contexts.train(bare, objectives.get("sft"), lr=0.1, steps=1, optimizer=Optimizer(name))
    with pytest.raises(BadInput, match="sgd, rmsprop or adam"):
        Optimizer("adagrad")


# ------------------------------------------------------------------ order, preconditioner, parameters, until


def test_stochastic_order_equals_autograd_on_the_same_rows():
    world, objective = make_world(10), objectives.get("dpo")
    order = np.random.default_rng(0).integers(P, size=(8, 2))
    run = both(world, objective, form="auto", steps=8, lr=0.3, order=order)
    check_equal(run, heads(world, objective, steps=8, lr=0.3, order=order))
    own = np.random.default_rng(1).integers(P, size=(8, B, 2))
    run = both(world, objective, form="auto", steps=8, lr=0.3, order=own)
    for b in range(B):
        trained = heads(world, objective, steps=8, lr=0.3, order=own[:, b])[b]
        assert_allclose(contexts.logits(world, run.state)[b], trained.logits().detach().numpy(), **CLOSE)


def test_a_centred_update_is_the_gradient_with_features_less_their_mean():
    """K6: the forward pass keeps φ, the head's gradient has φ − Σ w_u φ_u."""
    world, objective = make_world(11), objectives.get("dpo")
    weights = np.random.default_rng(0).dirichlet(np.ones(N), size=B)
    run = both(world, objective, form="auto", precondition=contexts.centred(weights))
    for b, plain in enumerate(heads(world, objective, steps=0)):
        reference = {side: Head(world, b).tokens(kind).detach() for side, kind in SIDES.items()}
        plain.train(objective, lr=0.05, steps=6, reference=reference, centre=torch.as_tensor(weights[b]))
        assert_allclose(contexts.logits(world, run.state)[b], plain.logits().detach().numpy(), **CLOSE)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dpo", {"beta": [0.05, 0.1, 0.5]}),
        ("dpop", {"beta": [0.1, 0.2, 0.3], "weight": [0.0, 1.0, 5.0]}),
        ("slic", {"weight": [0.0, 0.1, 1.0]}),  # branches on its weight
        ("trl.robust", {"label_smoothing": [0.1, 0.01, 0.2]}),
        ("ppo", {"clip": [0.1, 0.2, 0.3]}),  # per token
        ("kto", {"beta": [0.05, 0.1, 0.5]}),  # across rows
        ("bs-t", {"weight": [0.0, 0.5, 1.0], "k": [1, 2, 3]}),  # a target
    ],
)
def test_every_world_may_have_its_own_rate_and_parameters(name, values):
    world, lr = make_world(12), np.array([0.02, 0.05, 0.1])
    arrays = {key: np.array(value) for key, value in values.items()}
    run = both(world, objectives.get(name, **arrays), form="auto", lr=lr)
    for b in range(B):
        own = objectives.get(name, **{key: value[b] for key, value in values.items()})
        alone = both(world.take([b]), own, form="auto", lr=float(lr[b]))
        assert_allclose(run.state.logits[b], alone.state.logits[0], **CLOSE)
        assert_allclose(run.loss[:, b], alone.loss[:, 0], **CLOSE)
    assert not np.allclose(run.state.logits[0], run.state.logits[1])


def test_parameters_per_world_may_come_from_another_library():
    world = make_world(13)
    objective = objectives.get("dpo", beta=np.array([0.05, 0.1, 0.5]))
    run = both(world, objective, form="auto", lr=np.array([0.02, 0.05, 0.1]))
    there = both(world.to(torch.zeros(1, dtype=torch.float64)), objective, form="auto", lr=np.array([0.02, 0.05, 0.1]))
    assert_allclose(there.state.logits.numpy(), run.state.logits, **CLOSE)


def test_advantages_and_groups_reach_the_objective():
    world, rng = make_world(15), np.random.default_rng(0)
    given = {"chosen": rng.normal(size=(B, P)), "rejected": rng.normal(size=(B, P))}
    run = both(world, objectives.get("ppo"), form="auto", advantages=given)
    for b in range(B):
        own = {f"{side}_advantage": torch.as_tensor(a[b]) for side, a in given.items()}
        trained = heads(world, objectives.get("ppo"), **own)[b]
        assert_allclose(contexts.logits(world, run.state)[b], trained.logits().detach().numpy(), **CLOSE)
    groups = np.array([0, 0, 1, 1, 1])
    # Rows that lack a side make the groups' shares of chosen responses differ.
    world.responses["rejected"].mask[:, 1] = False
    run = both(world, objectives.get("grpo"), form="auto", groups=groups)
    check_equal(run, heads(world, objectives.get("grpo"), groups=torch.as_tensor(groups)))
    one = both(world, objectives.get("grpo"), form="auto")
    assert not np.allclose(one.state.logits, run.state.logits)
    # A response that is not there has no log-probability, neither now nor under the reference.
    for values in (run.value("logp", "rejected")[-1], run.reference[:, run.kinds.index("rejected")]):
        assert_array_equal(np.isnan(values), np.arange(P) == np.ones((B, 1)))


# ------------------------------------------------------------------ what comes out


def test_what_is_measured_does_not_depend_on_what_else_is():
    world = make_world(17)
    whole = both(world, objectives.get("dpo"), form="auto", at=[0, 3, 6])
    part = both(world, objectives.get("dpo"), form="auto", at=[3], kinds=["chosen"])
    assert_array_equal(part.values["logp"][0, :, 0], whole.value("logp", "chosen")[1])
    assert_array_equal(part.reference[:, 0], whole.reference[:, whole.kinds.index("chosen")])
    assert_array_equal(part.state.logits, whole.state.logits)
    nothing = both(world, objectives.get("dpo"), form="auto", at=[], kinds=[])
    assert_array_equal(nothing.state.logits, whole.state.logits)


def test_the_table_has_seeds_as_units_and_tells_the_reference():
    world = make_world(18)
    run = both(world, objectives.get("dpo"), form="auto", at=[0, 6])
    table = run.table("dpo", "baseline", worlds=[2, 0], beta=0.1)
    assert table.seed.values.tolist() == [1002, 1000]
    assert dict(table.sizes) == {"seed": 2, "step": 2, "probe": 4, "example": P}
    assert_array_equal(table.logp.sel(seed=1000, probe="chosen").values, run.value("logp", "chosen")[:, 0])
    assert_array_equal(table.loss.sel(seed=1002).values, run.loss[:, 2])
    assert_array_equal(table.loss.sel(seed=1000).values, run.loss[:, 0])
    assert not np.array_equal(run.loss[:, 0], run.loss[:, 2])
    assert_array_equal(table.n_tokens.sel(seed=1002, probe="rejected").values.max(), T)
    start = contexts.train(world, objectives.get("sft"), lr=0.1, steps=0)
    assert_allclose(table.ref_logp.sel(seed=1002).values, start.values["logp"][0, 2], rtol=64 * EPS)

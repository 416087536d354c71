"""Remedies at equal margin: what each update does to the features, equal starts, fair rates, runs that stand alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts.experiments import remedies as r
from toyld.contexts.experiments._updates import UPDATES, counts, preconditioner
from toyld.contexts.kernels import Features
from toyld.trajectory.matched import at_margin, margin

SEEDS = (1000, 1001, 1002)
EPS = float(np.finfo(float).eps)


@pytest.fixture(scope="module")
def base():
    return r.world("facts", SEEDS, "smoke")


@pytest.fixture(scope="module")
def common(base):
    return r.with_component(base, "common")


def features(w):
    """Φ (B, C, D') with the diagonal as features of their own, so that S = ΦΦᵀ."""
    own = np.sqrt(np.asarray(w.kernel.diagonal))
    return np.concatenate([np.asarray(w.kernel.features), own[..., None] * np.eye(own.shape[-1])], -1)


def by_hand(update, phi, token):
    """The changed features (n, D') of one world, from their definition; `token`: tokens at each context."""
    used = token > 0
    weight = token / token.sum() if update != "centred-uniform" else used / used.sum()
    mean = weight @ phi
    if update.startswith("centred"):
        return phi - mean
    if update == "projected":
        v = mean
    elif update == "top-direction":
        v = np.linalg.svd(phi[used])[2][0]
    else:
        v = np.linalg.svd((phi - mean)[used])[2][0]
    v = v / np.linalg.norm(v)
    return phi - (phi @ v)[:, None] * v


def test_the_mean_is_taken_over_every_token_that_is_trained(base):
    sides = [base.responses[kind] for kind in ("chosen", "rejected")]
    for b, token in enumerate(counts(base)):
        assert token.sum() == sum(side.mask[b].sum() for side in sides)
        met = {int(c) for side in sides for c in side.context[b][side.mask[b]]}
        assert set(np.flatnonzero(token).tolist()) == met


@pytest.mark.parametrize("update", [u for u in UPDATES if not u.startswith("random")])
@pytest.mark.parametrize("kernel", ["common", "uneven", "clusters"])
def test_an_update_on_changed_features_is_what_its_name_says(base, kernel, update):
    w = r.with_component(base, kernel)
    phi, token, n = features(w), counts(w), w.trained
    p = preconditioner(update, w)
    residual = np.random.default_rng(3).normal(size=(len(SEEDS), n, 5)) * (token > 0)[..., None]
    for b in range(len(SEEDS)):
        want = phi[b] @ by_hand(update, phi[b, :n], token[b]).T @ residual[b]
        got = phi[b] @ phi[b, :n].T @ p[b] @ residual[b]
        # eigenvectors are as exact as the gap to the next eigenvalue lets them be; 1e6 roundings of entries of size 1
        assert np.abs(got - want).max() < 1e6 * EPS * np.abs(want).max(), f"{update}, world {b}"


def test_random_controls_take_off_as_much_as_the_mean_or_one_direction(common):
    token, n = counts(common), common.trained
    phi = features(common)[:, :n]
    mean = np.einsum("bn,bnd->bd", token / token.sum(-1, keepdims=True), phi)
    own = np.eye(n)
    shift = np.einsum("bnd,bni->bdi", phi, own - preconditioner("random", common))  # Φᵀ a 1ᵀ
    for b in range(len(SEEDS)):
        taken = shift[b][:, token[b] > 0]
        assert np.ptp(taken, axis=1).max() < 64 * EPS  # the same vector off every feature
        length = np.linalg.norm(taken[:, 0])
        assert abs(length / np.linalg.norm(mean[b]) - 1.0) < 1e-9
        assert abs(taken[:, 0] @ mean[b]) / length**2 < 0.6  # and another one than the mean
    p = preconditioner("random-projected", common)
    assert np.abs(p @ p - p).max() < 1e-9
    assert np.allclose(np.trace(p, axis1=1, axis2=2), n - 1.0)
    other = preconditioner("random", replace(common, seeds=(7, 8, 9)))
    assert np.abs(other - preconditioner("random", common)).max() > 1e-3
    again = preconditioner("random", common.take([2, 0]))
    assert np.array_equal(again[1], preconditioner("random", common)[0])  # a world's own seed, not its place


def test_centring_does_not_see_a_constant_component(base, common):
    """The same policy, trained with and without c·11ᵀ in the kernel: centred runs are one run, plain runs two."""
    start = r.start(base)
    fresh = {"local": base, "common": common}
    fresh = {k: replace(w, logits=contexts.logits(base, start)) for k, w in fresh.items()}
    done = {
        (k, u): r.train_arm(w, r.ARMS[u], contexts.start(w), most=24)
        for k, w in fresh.items()
        for u in ("plain", "centred")
    }
    paths = {key: run.values["logp"][:9] for key, run in done.items()}
    assert np.abs(paths["local", "centred"] - paths["common", "centred"]).max() < 1e-9
    assert np.abs(paths["local", "plain"] - paths["common", "plain"]).max() > 0.1


def test_without_its_component_the_update_is_the_local_one(base, common):
    start = r.start(common)
    got = r.train_arm(common, r.ARMS["without-component"], start, most=24)
    other = replace(base, logits=contexts.logits(common, start))
    want = r.train_arm(other, r.ARMS["plain"], contexts.start(other), most=24)
    assert np.abs(got.values["logp"] - want.values["logp"]).max() < 1e-10
    assert np.abs(got.values["logp"] - r.train_arm(common, r.ARMS["plain"], start, most=24).values["logp"]).max() > 0.1


@pytest.mark.parametrize("kernel", r.KERNELS)
def test_kernels_have_the_weight_they_say_and_are_positive(base, kernel):
    w = r.with_component(base, kernel)
    every = slice(0, w.size[1])
    gram = w.kernel.block(every, every)
    local = base.kernel.block(every, every)
    extra = np.trace(gram - local, axis1=1, axis2=2) / w.size[1]
    assert np.abs(extra - r.KERNELS[kernel]).max() < (0.3 if kernel == "uneven" else 1e-12)
    assert np.linalg.eigvalsh(gram).min() > -1e-9
    groups = {"common": 1, "slight": 1, "uneven": 1, "clusters": 4, "position": 4, "local": 0}
    if kernel in groups:
        assert np.linalg.matrix_rank(gram[0] - local[0], tol=1e-8) <= groups[kernel]


@pytest.mark.parametrize(("kernel", "key"), [("clusters", "last"), ("position", "place"), ("prompt", "prompt")])
def test_groups_are_those_of_last_tokens_places_and_prompts(base, kernel, key):
    every = slice(0, base.size[1])
    extra = r.with_component(base, kernel).kernel.block(every, every) - base.kernel.block(every, every)
    for coupled, rows in zip(extra, base.tokens, strict=True):
        size = (rows >= 0).sum(-1)
        mark = {"last": rows[np.arange(len(rows)), size - 1], "place": size, "prompt": rows[:, 0] * 1000 + rows[:, 1]}
        same = mark[key][:, None] == mark[key][None, :]
        assert np.abs(coupled[same] - 1.0).max() < 1e-12
        assert (np.abs(coupled - np.round(coupled)) < 1e-12).all()
        apart = np.abs(coupled[~same])
        assert apart.max() < 1e-12 if key != "last" else 0.05 < apart.mean() < 0.5  # four groups share tokens


@pytest.mark.parametrize("extend", [False, True])
def test_the_stage_before_ends_at_the_same_loss_everywhere(base, common, extend):
    until = r.TAUGHT * 3.0  # responses of 2 to 4 tokens
    for w in (base, common):
        state = r.start(w, extend=extend)
        run = contexts.train(
            w, objectives.get("sft"), lr=1.0, steps=0, state=state, kinds=("chosen", "rejected"), at=(0,)
        )
        assert (run.loss <= until).all()
        assert (run.loss > 0.85 * until).all()
    rejected = run.value("logp", "rejected").mean()
    alone = contexts.train(w, objectives.get("sft"), lr=1.0, steps=0, state=r.start(w), kinds=("rejected",), at=(0,))
    assert (rejected > alone.value("logp", "rejected").mean() + 1.0) == extend


def test_rates_push_the_rejected_response_alike_and_the_chosen_one_at_most_six_times_as_hard(common):
    state = r.start(common)
    assert r._rate(common, state, r.ARMS["plain"]) == pytest.approx([20.0] * 3, rel=1e-6)
    assert r._rate(common, state, r.HALVED["plain-half"]) == (pytest.approx([10.0] * 3, rel=1e-6))
    # 51 times β/2 on a fallen chosen response: six times as hard as plain DPO's β/2 at its rate
    dpop = r._rate(common, state, r.ARMS["dpop"])
    assert dpop * 0.15 * 51.0 == pytest.approx([6.0] * 3, rel=1e-3)


def test_a_stage_goes_on_until_every_world_has_the_larger_margin(common):
    run = r.train_arm(common, r.ARMS["plain"], r.start(common))
    ds = run.table("preference", "plain")
    assert (margin(ds).max(0) >= r.MARGINS[-1]).all()
    assert (np.diff(run.steps) > 0).all()
    assert run.steps[0] == 0
    assert run.loss.shape == (len(run.steps), len(SEEDS))
    # in blocks or in one go: the same run
    whole = contexts.train(
        common, objectives.get("dpo"), lr=r._rate(common, r.start(common), r.ARMS["plain"]), steps=48,
        state=r.start(common), rejected="rejected", at=[48], kinds=("chosen",),
    )  # fmt: skip
    at = run.steps.index(48)
    assert np.abs(run.value("logp", "chosen")[at] - whole.value("logp", "chosen")[0]).max() < 1e-9


@pytest.mark.parametrize("name", ["ipo", "dpop", "simpo"])
def test_remedies_that_cannot_reach_the_larger_margin_end_at_their_own(common, name):
    arm = r.ARMS[name]
    run = r.train_arm(common, arm, r.start(common), most=480)
    path = margin(run.table("preference", name))
    assert (path.max(0) >= arm.to).all()
    late = max(int(np.argmax(one >= arm.to)) for one in path.T)
    assert run.steps[-1] - run.steps[late] < 24  # it stops with the block in which the last seed got there
    assert run.steps[-1] < 480
    if name == "ipo":
        far = r.train_arm(common, replace(arm, to=4.0), r.start(common), most=480).table("preference", name)
        assert (margin(far).max(0) >= 4.0).all()
        assert (margin(far) < 0.5 / arm.objective.beta + 1e-6).all()  # from below, never beyond


def test_a_seed_does_not_depend_on_its_company(common):
    names = ("plain", "centred", "top-component", "random", "rpo")
    arms = {name: r.ARMS[name] for name in names}
    together = r.stages(common, arms, kernel="common")
    alone = r.stages(common.take([1]), arms, kernel="common")
    for name in names:
        steps = min(together[name].sizes["step"], alone[name].sizes["step"])
        got, want = (ds.logp.values[i, :steps] for ds, i in ((together[name], 1), (alone[name], 0)))
        assert np.abs(got - want).max() < 1e-7, name


def test_npo_with_nll_is_balanced_at_the_start_and_lets_go():
    fading = r.Fading()
    assert objectives.check(fading) < 1
    calm = objectives.pair_batch(np.array([-3.0]), np.array([-5.0]))
    assert [float(c[0]) for c in fading.coefficients(calm)] == [1.0, -1.0]
    late = objectives.pair_batch(np.array([-3.0]), np.array([-65.0]), np.array([-3.0]), np.array([-5.0]))
    assert float(fading.coefficients(late)[1][0]) == pytest.approx(-2.0 / (1.0 + np.exp(6.0)))


def test_every_sweep_holds_the_published_value_and_what_was_picked():
    for name, tried in r.SWEEPS.items():
        assert r.ARMS[name].objective in tried, name
        picked = r.TUNED.get(f"{name}-tuned")
        assert picked is None or (picked.objective in tried and picked.objective != r.ARMS[name].objective), name


def test_tables_say_what_they_are():
    found = r.tables(SEEDS[:2])
    assert set(found) == {f"remedies {lang} {k} {arm}" for (lang, k), arms in r.SMOKE.items() for arm in arms}
    for name, ds in found.items():
        assert name == f"remedies {ds.attrs['language']} {ds.attrs['kernel']} {ds.attrs['arm']}"
        assert ds.attrs["stage"] == "preference"
        assert ds.attrs["experiment"] == "remedies"
        assert ds.seed.values.tolist() == list(SEEDS[:2])


def stories(data, seeds):
    """The world of `measured` on TinyStories, seed s on texts 24 s to 24 s + 23, and the model's head."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = data / "models/stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=4096)
    texts = json.loads((data / "preference/tinystories_1000.json").read_text(encoding="utf-8"))
    assert max(seeds) < len(texts) // 24
    ids = [[tokenizer(text)["input_ids"][:36] for text in texts[24 * s : 24 * s + 24]] for s in seeds]

    def read(rows):
        with torch.inference_mode():
            out = model(torch.from_numpy(rows), output_hidden_states=True)
        return out.logits.numpy(), out.hidden_states[-1].numpy()

    return r.measured(np.array(ids), read, seeds), model.lm_head.weight.detach().numpy()


def test_a_measured_kernel_is_the_models_own_head(data):
    w, head = stories(data, [32, 33])
    phi = np.asarray(w.kernel.features)
    for b in range(2):
        scale = np.linalg.lstsq((phi[b] @ head.T).reshape(-1, 1), w.logits[b].reshape(-1), rcond=None)[0]
        assert np.abs(scale * (phi[b] @ head.T) - w.logits[b]).max() < 1e-9 * np.abs(w.logits[b]).max()
    assert isinstance(w.kernel, Features)
    assert np.einsum("bcd,bcd->b", phi, phi) / w.size[1] == pytest.approx([1.0, 1.0])
    # a story's own continuation is what the model says at 1 to 2 nats a token
    start = contexts.train(w, objectives.get("sft"), lr=1.0, steps=0, kinds=("chosen", "rejected"), at=(0,))
    tokens = w.responses["chosen"].mask.sum()
    assert -2.0 < start.value("logp", "chosen").sum() / tokens < -1.0
    assert start.value("logp", "rejected").sum() / w.responses["rejected"].mask.sum() < -2.0
    found = r.stages(w, {name: r.ARMS[name] for name in ("plain", "centred")}, kernel="measured", block=40, fine=8)
    assert all((margin(ds).max(0) >= r.MARGINS[-1]).all() for ds in found.values())
    changes = [at_margin(found[name], r.MARGINS[-1], "test_chosen") for name in ("plain", "centred")]
    assert (changes[1] > changes[0]).all()


def test_a_measured_kernel_needs_24_texts_a_seed():
    with pytest.raises(BadInput, match=r"expected \(2, 24, 36\)"):
        r.measured(np.zeros((1, 24, 36), int), lambda rows: (rows, rows), [0, 1])


@pytest.mark.parametrize("update", ["random", "random-projected"])
def test_a_random_control_of_one_world_does_not_depend_on_the_others(update):
    def change(w):
        """How far P is from I in each world: whatever the signs of eigenvectors."""
        return np.linalg.norm(preconditioner(update, w) - np.eye(w.trained), axis=(1, 2))

    seeds = range(1000, 1006)
    together = r.world("facts", seeds, "smoke")
    alone = [r.world("facts", [seed], "smoke") for seed in seeds]
    assert min(w.trained for w in alone) < together.trained
    np.testing.assert_allclose(change(together), [change(w)[0] for w in alone], rtol=1e-9)

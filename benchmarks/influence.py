"""A·K·G in networks: `toyld.influence` beside the recipes of torch.func's tutorial on neural tangent kernels and jax.

    python benchmarks/influence.py [--size smoke|paper] [--device cpu|cuda]

One update on one input, the first-order Δlog π at many others, everything included: the gradient at the taught input,
the tangent or the kernel, A. Prints one JSON line per comparison (keys: README.md beside this file) on standard output
and a table on standard error. Exits 1 when results disagree, in float32 or in float64; a missed target of speed is only
marked. One thread, CPU time, contestants interleaved, medians. Without jax its comparisons are left out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch
from contexts import name_of, relative, seconds
from softmax import Effort, Result
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from toyld import influence
from toyld.influence.model import plain_attention

LR = 0.1


class Layer(nn.Module):
    """A decoder layer: LayerNorm before causal attention and before the MLP."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(self.norm1(h)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(attended.transpose(1, 2).flatten(2))
        return h + self.down(nn.functional.gelu(self.up(self.norm2(h))))


class Decoder(nn.Module):
    """Tokens (N, T) to logits (N, T, V)."""

    def __init__(self, d: int, length: int, vocab: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocab, d), nn.Parameter(0.1 * torch.randn(length, d))
        self.layers = nn.Sequential(*(Layer(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(tokens) + self.place)))


@dataclass(frozen=True)
class Task:
    """A network, O observed inputs, one taught input and its label; in_jax: the same network on the same parameters.

    width, depth: the widest product and the number of products in a row. Sums of `width` products round like √width,
    and the errors of `depth` of them add up, so that results may differ by depth √width ε.
    """

    name: str
    net: nn.Module
    observed: Tensor
    taught: Tensor
    labels: Tensor
    in_jax: Callable[[Any, Any], Any]
    width: int
    depth: int

    def to(self, dtype: torch.dtype, device: str) -> Task:
        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else x.dtype)

        tensors = {name: moved(getattr(self, name)) for name in ("observed", "taught", "labels")}
        return replace(self, net=copy.deepcopy(self.net).to(device, dtype), **tensors)

    def tolerance(self, dtype: torch.dtype) -> float:
        return self.depth * math.sqrt(self.width) * torch.finfo(dtype).eps

    def __str__(self) -> str:
        return f"{self.name}, {len(self.observed)} observers"


def mlp(widths: tuple[int, ...], observers: int) -> Task:
    """ReLU between linear layers, a classifier."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for p, q in itertools.pairwise(widths):
        parts += [nn.Linear(p, q), nn.ReLU()]
    x = torch.randn(observers + 1, widths[0])
    name = f"MLP {'-'.join(map(str, widths))}"
    net, label = nn.Sequential(*parts[:-1]), torch.tensor([widths[-1] // 2])
    return Task(name, net, x[1:], x[:1], label, _mlp_in_jax, max(widths), len(widths) - 1)


def decoder(d: int, length: int, vocab: int, layers: int, heads: int, observers: int) -> Task:
    """A transformer that is taught the next token at its last position."""
    torch.manual_seed(0)
    net, x = Decoder(d, length, vocab, layers, heads), torch.randint(vocab, (observers + 1, length))
    labels = torch.full((1, length), influence.IGNORED)
    labels[0, -1] = 1
    name = f"transformer d={d} T={length} V={vocab} layers={layers}"
    in_jax = _decoder_in_jax(layers, heads)
    return Task(name, net, x[1:], x[:1], labels, in_jax, max(4 * d, length), 6 * layers + 1)


def ours(task: Task) -> Callable[[], Tensor]:
    """`update` and `predict`, from the network to nats at every observer and position."""
    model = influence.Model(task.net)

    def call() -> Tensor:
        step = influence.update(model, influence.teach(task.taught, task.labels), lr=LR)
        return influence.predict(model, step, task.observed)

    return call


# --- The recipes of torch.func's tutorial "Neural tangent kernels", in our words; of a sequence the last logits ---


class Recipe:
    """The network as a function of one input, whose logits (V,) are the only or the last ones."""

    def __init__(self, task: Task) -> None:
        self.net, self.task = task.net, task
        self.theta = {name: p.detach() for name, p in task.net.named_parameters()}

    def one(self, theta: dict[str, Tensor], x: Tensor) -> Tensor:
        z = functional_call(self.net, theta, (x[None],))[0]
        return z if z.ndim == 1 else z[-1]

    def change(self, kernel: Tensor, x: Tensor) -> Tensor:
        """−η A K G, K being (O, U, V, V)."""
        with torch.no_grad(), plain_attention():
            z_o, z_u = (vmap(self.one, (None, 0))(self.theta, inputs) for inputs in (x, self.task.taught))
        label = nn.functional.one_hot(self.task.labels.flatten()[-1:], z_u.shape[-1])
        dz = -LR * torch.einsum("ouvw,uw->ov", kernel, torch.softmax(z_u, -1) - label)
        return dz - (torch.softmax(z_o, -1) * dz).sum(-1, keepdim=True)

    def jacobian(self, x: Tensor) -> list[Tensor]:
        """Every parameter's ∂z/∂θ, (N, V, entries)."""
        with plain_attention():
            return [j.flatten(2) for j in vmap(jacrev(self.one), (None, 0))(self.theta, x).values()]

    def contracted(self, x: Tensor, of_taught: list[Tensor]) -> Tensor:
        """Jacobian contraction."""
        pairs = zip(self.jacobian(x), of_taught, strict=True)
        return sum((torch.einsum("ovp,uwp->ouvw", a, b) for a, b in pairs), torch.zeros(()).to(x.device))

    def pulled(self, x: Tensor) -> Tensor:
        """NTK-vector products: unit vectors pulled back at one input, and pushed forward at the other."""

        def pair(x_o: Tensor, x_u: Tensor) -> Tensor:
            z, pull = vjp(lambda theta: self.one(theta, x_u), self.theta)

            def product(unit: Tensor) -> Tensor:
                return jvp(lambda theta: self.one(theta, x_o), (self.theta,), pull(unit))[1]

            return vmap(product)(torch.eye(len(z), dtype=z.dtype, device=z.device)).T

        with plain_attention():
            return vmap(vmap(pair, (None, 0)), (0, None))(x, self.task.taught)


# --- torch.func: grad + jvp, what one would write by hand ---


def by_hand(task: Task) -> Callable[[], Tensor]:
    """The gradient at the taught input and the tangent at all observers, by torch.func; of a sequence all positions."""
    theta = {name: p.detach() for name, p in task.net.named_parameters()}

    def loss(theta: dict[str, Tensor]) -> Tensor:
        z = functional_call(task.net, theta, (task.taught,))
        return nn.functional.cross_entropy(z.flatten(0, -2), task.labels.flatten(), ignore_index=influence.IGNORED)

    def call() -> Tensor:
        with plain_attention(), torch.no_grad():
            step = {name: -LR * g for name, g in grad(loss)(theta).items()}
            z, dz = jvp(lambda theta: functional_call(task.net, theta, (task.observed,)), (theta,), (step,))
            return dz - (torch.softmax(z, -1) * dz).sum(-1, keepdim=True)

    return call


# --- jax: jit(grad + jvp) ---


def _jax() -> Any:
    try:
        import jax
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)  # arrays of float32 stay float32
    jax.config.update("jax_default_matmul_precision", "highest")  # as torch's, on accelerators too
    return jax


def _linear(p: Any, name: str, x: Any) -> Any:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _normalise(p: Any, name: str, x: Any) -> Any:
    import jax

    centred = x - x.mean(-1, keepdims=True)
    return (
        centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]
    )


def _mlp_in_jax(p: Any, x: Any) -> Any:
    import jax

    names = sorted({name.split(".")[0] for name in p}, key=int)
    for name in names[:-1]:
        x = jax.nn.relu(_linear(p, name, x))
    return _linear(p, names[-1], x)


def _decoder_in_jax(layers: int, heads: int) -> Callable[[Any, Any], Any]:
    def forward(p: Any, tokens: Any) -> Any:
        import jax
        import jax.numpy as jnp

        h = p["embed.weight"][tokens] + p["place"]
        past = jnp.tril(jnp.ones((h.shape[1], h.shape[1]), bool))
        for i in range(layers):
            at = f"layers.{i}"
            qkv = _linear(p, f"{at}.qkv", _normalise(p, f"{at}.norm1", h))
            q, k, v = (part.reshape(*h.shape[:2], heads, -1).swapaxes(1, 2) for part in jnp.split(qkv, 3, -1))
            score = jnp.where(past, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -jnp.inf)
            h = h + _linear(p, f"{at}.out", (jax.nn.softmax(score) @ v).swapaxes(1, 2).reshape(h.shape))
            inner = jax.nn.gelu(_linear(p, f"{at}.up", _normalise(p, f"{at}.norm2", h)), approximate=False)
            h = h + _linear(p, f"{at}.down", inner)
        return _linear(p, "head", _normalise(p, "norm", h))

    return forward


def in_jax(jax: Any, task: Task, device: str) -> Callable[[], Any]:
    """The whole prediction as one compiled function of parameters, lesson and observers."""
    place = jax.devices("gpu" if device == "cuda" else "cpu")[0]

    def moved(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), place)

    def predict(p: Any, x: Any, taught: Any, labels: Any, lr: Any) -> Any:
        def loss(p: Any) -> Any:
            logp = jax.nn.log_softmax(task.in_jax(p, taught))
            picked = jax.numpy.take_along_axis(logp, jax.numpy.maximum(labels, 0)[..., None], -1)[..., 0]
            return -jax.numpy.where(labels < 0, 0.0, picked).sum()

        step = jax.tree.map(lambda g: -lr * g, jax.grad(loss)(p))
        z, dz = jax.jvp(lambda p: task.in_jax(p, x), (p,), (step,))
        return dz - (jax.nn.softmax(z) * dz).sum(-1, keepdims=True)

    p = {name: moved(t) for name, t in task.net.named_parameters()}
    arguments = p, moved(task.observed), moved(task.taught), moved(task.labels), LR
    compiled = jax.jit(predict)
    return lambda: compiled(*arguments).block_until_ready()


# --- Comparisons ---


def agreement(task: Task, other: Callable[[Task], Any], device: str) -> dict[torch.dtype, float]:
    """How far our results and another's lie apart in both dtypes, in parts of what rounding allows."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        now = task.to(dtype, device)
        theirs = other(now)
        theirs = theirs if isinstance(theirs, Tensor) else torch.as_tensor(theirs.__array__().copy())
        mine = ours(now)()[: len(theirs)]
        found[dtype] = relative(mine[:, -1] if mine.ndim > theirs.ndim else mine, theirs)
    return found


def result(
    name: str,
    task: Task,
    note: str,
    took: dict[str, float],
    found: dict[torch.dtype, float],
    target: float,
    how: Effort,
    device: str,
) -> Result:
    extra = {"ms": 1e3 * took["ours"], "ms_theirs": 1e3 * took["theirs"], "agree_float64": found[torch.float64]}
    extra["tolerance_float64"] = task.tolerance(torch.float64)
    where = name_of(device), torch.get_num_threads(), how.repeats
    ratio, (name, against) = took["theirs"] / took["ours"], name.split("/")
    agree, tolerance = found[torch.float32], task.tolerance(torch.float32)
    return Result(name, against, note, ratio, target, agree, tolerance, *where, extra)


def against_jax(task: Task, target: float, how: Effort, device: str) -> Iterator[Result]:
    if (jax := _jax()) is None:
        print("predict/jax: left out, no jax here; pip install toyld[bench]", file=sys.stderr)
        return
    if device == "cuda" and jax.default_backend() != "gpu":
        print("predict/jax: left out, this jax sees no accelerator; pip install jax[cuda12]", file=sys.stderr)
        return
    found = agreement(task, lambda now: in_jax(jax, now, device)(), device)
    task = task.to(torch.float32, device)
    took = seconds({"ours": ours(task), "theirs": in_jax(jax, task, device)}, how, device)
    yield result("predict/jax", task, str(task), took, found, target, how, device)


def against_hand(task: Task, how: Effort, device: str) -> Result:
    found = agreement(task, lambda now: by_hand(now)(), device)
    task = task.to(torch.float32, device)
    took = seconds({"ours": ours(task), "theirs": by_hand(task)}, how, device)
    return result("predict/torch-jvp", task, str(task), took, found, 1.0, how, device)


def against_recipes(task: Task, measured: int, target: float, how: Effort, device: str) -> Iterator[Result]:
    """Both recipes at `measured` of the observers, extrapolated: the taught input once, observers as often as needed.

    Ours always predicts at all of them, and at all positions.
    """
    few = replace(task, observed=task.observed[:measured])
    scale = len(task.observed) / measured
    last = ", last token," if task.labels.ndim > 1 else ""
    note = f"{task}" + (f"; theirs {measured}{last} × {scale:g}" if scale > 1 else "")

    def contraction(now: Task) -> Tensor:
        recipe = Recipe(now)
        return recipe.change(recipe.contracted(now.observed, recipe.jacobian(now.taught)), now.observed)

    def products(now: Task) -> Tensor:
        recipe = Recipe(now)
        return recipe.change(recipe.pulled(now.observed), now.observed)

    found = {"jacobian": agreement(few, contraction, device), "ntvp": agreement(few, products, device)}
    task, few = task.to(torch.float32, device), few.to(torch.float32, device)
    recipe = Recipe(few)
    of_taught = recipe.jacobian(few.taught)

    def at_observers() -> Tensor:
        return recipe.change(recipe.contracted(few.observed, of_taught), few.observed)

    contestants = {"ours": ours(task), "at observers": at_observers, "at taught": lambda: recipe.jacobian(few.taught)}
    took = seconds({**contestants, "ntvp": lambda: products(few)}, how, device)
    jacobian = {"ours": took["ours"], "theirs": took["at taught"] + scale * took["at observers"]}
    yield result("predict/tutorial-jacobian", task, note, jacobian, found["jacobian"], target, how, device)
    ntvp = {"ours": took["ours"], "theirs": scale * took["ntvp"]}
    yield result("predict/tutorial-ntvp", task, note, ntvp, found["ntvp"], target, how, device)


def whole_kernel(task: Task, inputs: int, target: float, how: Effort, device: str) -> Result:
    """K of inputs with themselves, (N, V, N, V)."""
    entries = sum(p.numel() for p in task.net.parameters())  # each of K is a sum over so many products
    task = replace(task, observed=task.observed[:inputs], width=entries)
    found = {}
    for dtype in (torch.float64, torch.float32):
        now = task.to(dtype, device)
        model, recipe = influence.Model(now.net), Recipe(now)
        mine = influence.kernel(model, now.observed, now.observed)
        found[dtype] = relative(mine, recipe.contracted(now.observed, recipe.jacobian(now.observed)).transpose(1, 2))
    x = now.observed
    contestants = {"ours": lambda: influence.kernel(model, x, x)}
    contestants["theirs"] = lambda: recipe.contracted(x, recipe.jacobian(x))
    took = seconds(contestants, how, device)
    note = f"{task.name}, K {'×'.join(map(str, mine.shape))}"
    return result("kernel/tutorial-jacobian", now, note, took, found, target, how, device)


def comparisons(size: str, device: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time."""
    torch.set_num_threads(1)
    if size == "smoke":
        how, small = Effort(repeats=1, at_least=0.0), mlp((20, 16, 16, 5), 8)
        yield from against_recipes(small, 8, 150.0, how, device)
        yield from against_recipes(decoder(8, 6, 7, 2, 2, 8), 2, 0.0, how, device)
        yield from against_jax(small, 0.62, how, device)
        yield against_hand(small, how, device)
        yield whole_kernel(small, 4, 0.0, how, device)
        return
    network, transformer = mlp((784, 128, 128, 10), 256), decoder(64, 32, 64, 2, 4, 256)
    how, few = Effort(repeats=11, at_least=0.1), Effort(repeats=3, at_least=0.05)
    yield from against_jax(network, 0.62, how, device)
    yield from against_jax(transformer, 0.62, how, device)
    yield against_hand(network, how, device)
    yield against_hand(transformer, how, device)
    yield from against_recipes(network, 256, 150.0, few, device)
    yield from against_recipes(mlp((784, 128, 128, 512), 256), 2, 0.0, few, device)
    yield from against_recipes(transformer, 4, 0.0, few, device)
    yield from against_recipes(decoder(64, 32, 512, 2, 4, 256), 1, 0.0, few, device)
    yield whole_kernel(network, 64, 0.0, few, device)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given, wrong = parser.parse_args(arguments), 0
    for done in comparisons(given.size, given.device):
        print(done.line(), flush=True)
        precise = done.extra["agree_float64"] <= done.extra["tolerance_float64"]
        bad = not (done.agree <= done.tolerance and precise)  # also for nan
        wrong += bad
        verdict = "RESULTS DISAGREE" if bad else "reached" if done.ratio >= done.target else "missed"
        name = f"{done.benchmark}/{done.against}"
        print(f"{name:25} {done.size:70} {done.ratio:8.2f} × target {done.target:g}: {verdict}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

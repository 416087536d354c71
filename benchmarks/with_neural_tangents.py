"""Recorded evidence, not a benchmark of ours: neural-tangents beside the tutorial's recipe and grad + jvp, all in jax.

    python3 -m venv nt && nt/bin/pip install "jax==0.4.25" "jaxlib==0.4.25" neural-tangents "numpy<2" "scipy<1.13"
    nt/bin/python benchmarks/with_neural_tangents.py

neural-tangents needs an old jax and hence an environment of its own, without torch and without toyld: so it is compared
with the jacobian contraction written in the same jax, and README.md sets that ratio beside ours in `influence.py`.
Prints one JSON line per network; times are of the whole prediction −η A K G at 256 observers, jit-compiled, one
thread, CPU time, medians of 3. Networks of 512 classes are measured at a few observers: the taught input once, the
observers as often as needed.
"""

import itertools
import json
import math
import os
import statistics
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

OBSERVERS, LR = 256, 0.1
MODES = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")


def mlp(widths):
    rng = np.random.default_rng(0)
    pairs = list(itertools.pairwise(widths))
    theta = [(rng.normal(size=(p, q)) / math.sqrt(p), rng.normal(size=q) / math.sqrt(p)) for p, q in pairs]

    def z(theta, x):
        for w, b in theta[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ theta[-1][0] + theta[-1][1]

    return z, theta, rng.normal(size=(OBSERVERS + 1, widths[0]))


def decoder(d, length, vocab, layers, heads):
    """The transformer of `influence.py`; the logits of the last position."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return rng.normal(size=shape) / math.sqrt(shape[0])

    def layer():
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
        return {n: (weight(*s), np.zeros(s[1])) for n, s in shapes.items()} | {
            n: (np.ones(d), np.zeros(d)) for n in ("norm1", "norm2")
        }

    theta = {"embed": rng.normal(size=(vocab, d)), "place": weight(length, d), "head": weight(d, vocab)}
    theta |= {"layers": [layer() for _ in range(layers)], "norm": (np.ones(d), np.zeros(d))}
    past = np.tril(np.ones((length, length), bool))

    def normal(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[0] + p[1]

    def z(theta, tokens):
        h = theta["embed"][tokens] + theta["place"]
        for p in theta["layers"]:
            qkv = normal(p["norm1"], h) @ p["qkv"][0] + p["qkv"][1]
            q, k, v = (a.reshape(*h.shape[:2], heads, -1).swapaxes(1, 2) for a in jnp.split(qkv, 3, -1))
            score = jnp.where(past, q @ k.swapaxes(-1, -2) / math.sqrt(d // heads), -1e9)
            h = h + (jax.nn.softmax(score) @ v).swapaxes(1, 2).reshape(h.shape) @ p["out"][0] + p["out"][1]
            inner = jax.nn.gelu(normal(p["norm2"], h) @ p["up"][0] + p["up"][1], approximate=False)
            h = h + inner @ p["down"][0] + p["down"][1]
        return normal(theta["norm"], h)[:, -1] @ theta["head"]

    return z, theta, rng.integers(vocab, size=(OBSERVERS + 1, length))


def change(z_o, z_u, kernel):
    """−η A K G of one taught input with label 0, kernel (O, 1, V, V)."""
    g = jax.nn.softmax(z_u) - jax.nn.one_hot(0, z_u.shape[-1])
    return tangent(z_o, -LR * jnp.einsum("ouvw,uw->ov", kernel, g))


def tangent(z, dz):
    return dz - (jax.nn.softmax(z) * dz).sum(-1, keepdims=True)


def contestants(z):
    """name → (what is done once at the taught input, what is done at observers)."""

    def jacobian(theta, x):
        found = jax.vmap(jax.jacrev(lambda t, one: z(t, one[None])[0]), (None, 0))(theta, x)
        return [j.reshape(*j.shape[:2], -1) for j in jax.tree_util.tree_leaves(found)]

    def contracted(theta, x, u, of_taught):
        k = sum(jnp.einsum("ovp,uwp->ouvw", a, b) for a, b in zip(jacobian(theta, x), of_taught, strict=True))
        return change(z(theta, x), z(theta, u), k)

    def descent(theta, u):
        grad = jax.grad(lambda t: -jax.nn.log_softmax(z(t, u))[0, 0])(theta)
        return jax.tree_util.tree_map(lambda g: -LR * g, grad)

    def pushed(theta, x, u, step):
        return tangent(*jax.jvp(lambda t: z(t, x), (theta,), (step,)))

    found = {"tutorial": (jacobian, contracted), "grad + jvp": (descent, pushed)}
    for mode in MODES:
        how = nt.NtkImplementation[mode]
        kernel = nt.empirical_ntk_fn(z, trace_axes=(), vmap_axes=0, implementation=how)

        def ntk(theta, x, u, _, kernel=kernel):
            return change(z(theta, x), z(theta, u), kernel(x, u, theta))

        found[mode.lower()] = (None, ntk)
    return found


def seconds(call):
    """Median CPU seconds after a first call, which compiles."""
    call()
    taken = []
    for _ in range(3):
        start, calls = time.process_time(), 0
        while calls == 0 or time.process_time() - start < 0.05:
            jax.block_until_ready(call())
            calls += 1
        taken.append((time.process_time() - start) / calls)
    return statistics.median(taken)


def compare(name, made, measured):
    """Milliseconds and ratios to the tutorial's recipe; measured: observers for those that form a kernel."""
    z, theta, inputs = made
    theta = jax.tree_util.tree_map(lambda t: jnp.asarray(t, jnp.float32), theta)
    inputs = jnp.asarray(inputs, jnp.float32 if inputs.dtype.kind == "f" else jnp.int32)
    u, few = inputs[:1], inputs[1 : measured + 1]
    took, first = {}, {}
    for who, (once, at) in contestants(z).items():
        x = inputs[1:] if who == "grad + jvp" else few
        prepared, spent = None, 0.0
        if once is not None:
            once = jax.jit(once)
            prepared, spent = once(theta, u), seconds(lambda once=once: once(theta, u))
        at = jax.jit(at)
        first[who] = np.asarray(at(theta, x, u, prepared))[:measured]
        took[who] = spent + len(inputs[1:]) / len(x) * seconds(lambda at=at, x=x, p=prepared: at(theta, x, u, p))
    want = first["grad + jvp"]
    line = {"network": name, "observers": OBSERVERS, "measured": measured}
    for who, time_of_it in took.items():
        agree = float(abs(first[who] - want).max() / abs(want).max())
        assert agree < 1e-4, (who, agree)
        line[who] = {"ms": 1e3 * time_of_it, "ratio": took["tutorial"] / time_of_it, "agree": agree}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    compare("MLP 784-128-128-10", mlp((784, 128, 128, 10)), OBSERVERS)
    compare("MLP 784-128-128-512", mlp((784, 128, 128, 512)), 4)
    compare("transformer d=64 T=32 V=64 layers=2, last token", decoder(64, 32, 64, 2, 4), 4)
    compare("transformer d=64 T=32 V=512 layers=2, last token", decoder(64, 32, 512, 2, 4), 2)

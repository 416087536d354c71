// The losses of the zoo: their pushes on a pair (toyld.objectives), what becomes of them far out, and runs of a pair
// in one softmax or in two. A push c multiplies the residual: z moves by s c (e_y − π).
const losses = (() => {
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const sigmoid = (x) => Math.exp(-softplus(-x));
  const slope = (x) => sigmoid(x) * sigmoid(-x);
  // log(1 − eˣ) for x < 0, each way precise on its side.
  const logNot = (x) => (x > -Math.LN2 ? Math.log(-Math.expm1(x)) : Math.log1p(-Math.exp(x)));
  const logOdds = (x) => x - logNot(x);

  // What a loss reads: summed and mean log-probabilities, log-ratios, the margin.
  const numbers = (at) => {
    const one = (own, ref, count) => ({ total: own, mean: own / count, ratio: own - ref, count });
    const plus = one(at.plus, at.refPlus, at.nPlus);
    const minus = one(at.minus, at.refMinus, at.nMinus);
    return { plus, minus, margin: plus.ratio - minus.ratio };
  };
  const pair = (strength) => [strength, -strength];
  // DPO's own, ±β(1 − a); every kin of it is a sigmoid of something else.
  const logistic = (beta, u) => beta * sigmoid(-u);

  // name → (parameters, numbers) → [push on y+, push on y−]
  const zoo = {
    sft: () => [1, 0],
    extend: () => [1, 1],
    ga: () => [0, -1],
    npo: (p, n) => [0, -2 * sigmoid(p.beta * n.minus.ratio)],
    // z0 is that of an anchor at ratio zero.
    kto: (p, n) => [p.desirable * p.beta * slope(p.beta * n.plus.ratio),
      -p.undesirable * p.beta * slope(p.beta * n.minus.ratio)],
    dpo: (p, n) => pair(logistic(p.beta, p.beta * n.margin)),
    cdpo: (p, n) => pair((1 - p.epsilon) * logistic(p.beta, p.beta * n.margin)
      - p.epsilon * logistic(p.beta, -p.beta * n.margin)),
    "trl.robust": (p, n) => pair(((1 - p.label_smoothing) * logistic(p.beta, p.beta * n.margin)
      + p.label_smoothing * logistic(p.beta, -p.beta * n.margin)) / (1 - 2 * p.label_smoothing)),
    ipo: (p, n) => pair(1 / p.beta - 2 * n.margin),
    sppo: (p, n) => [p.eta - 2 * n.plus.ratio, -p.eta - 2 * n.minus.ratio],
    slic: (p, n) => pair(Number(n.plus.total - n.minus.total < p.delta)),
    "trl.hinge": (p, n) => pair(p.beta * Number(p.beta * n.margin < 1)),
    simpo: (p, n) => {
      const strength = logistic(p.beta, p.beta * (n.plus.mean - n.minus.mean) - p.gamma);
      return [strength / n.plus.count, -strength / n.minus.count];
    },
    orpo: (p, n) => {
      // (1 − a)/(1 − P) in log space: as P → 1 both vanish together.
      const fading = -softplus(logOdds(n.plus.mean) - logOdds(n.minus.mean));
      const part = (side) => p.weight * Math.exp(fading - logNot(side.mean));
      return [(1 + part(n.plus)) / n.plus.count, -part(n.minus) / n.minus.count];
    },
    rpo: (p, n) => {
      const [up, down] = zoo.dpo(p, n);
      return [up + p.alpha / n.plus.count, down];
    },
    cpo: (p, n) => {
      const strength = logistic(p.beta, p.beta * (n.plus.total - n.minus.total));
      return [strength + p.weight, -strength];
    },
    nca: (p, n) => [p.beta * sigmoid(-p.beta * n.plus.ratio) - p.beta * sigmoid(p.beta * n.plus.ratio) / 2,
      -p.beta * sigmoid(p.beta * n.minus.ratio) / 2],
    "trl.bco_pair": (p, n) => [logistic(p.beta, p.beta * n.plus.ratio), -logistic(p.beta, -p.beta * n.minus.ratio)],
    "dpo-shift": (p, n) => {
      const strength = logistic(p.beta, p.beta * (n.plus.ratio - p.shift * n.minus.ratio));
      return [strength, -p.shift * strength];
    },
    "trl.exo_pair": (p, n) => {
      const u = p.beta * n.margin;
      const target = Math.log1p(-p.label_smoothing) - Math.log(p.label_smoothing);
      return pair(slope(u) && p.beta * slope(u) * (target - u));
    },
    "trl.apo_zero": (p, n) => [p.beta * slope(p.beta * n.plus.ratio), -p.beta * slope(p.beta * n.minus.ratio)],
    "trl.apo_down": (p, n) => {
      const apart = p.beta * slope(p.beta * n.margin);
      return [apart - p.beta * slope(p.beta * n.plus.ratio), -apart];
    },
  };

  const push = (name, parameters, at) => zoo[name](parameters, numbers(at));

  // What becomes of the push on y− while y− alone is pushed down from `at`, by `far` nats and then without end.
  const fate = (name, parameters, at, far) => {
    const below = (d) => push(name, parameters, { ...at, minus: at.minus - d })[1];
    const [near] = push(name, parameters, at).slice(1);
    if (near >= 0) return "none";
    if (below(far) > 0 || below(Infinity) > 0) return "target";
    if (below(Infinity) < 0) return "never";
    return below(far) < 0 ? "fades" : "threshold";
  };

  // What a softmax is made of: weights of which the largest is one, their sum, and what to take off a logit.
  const soft = (z) => {
    const top = Math.max(...z);
    const weights = z.map((x) => Math.exp(x - top));
    const all = weights.reduce((sum, w) => sum + w);
    const rest = Math.log(all);
    return { weights, all, log: (i) => z[i] - top - rest };
  };
  const logSoftmax = (z) => {
    const { log } = soft(z);
    return z.map((_, i) => log(i));
  };

  // Updates of one pair: y+ is class zero and y− class one of the logits, `tokens` of either, each place alike. Shared:
  // one context for both; otherwise one for each, from the same logits. Rows at those of the states from the first one
  // on (update nought) that `marks` names.
  const run = (name, parameters, world, marks) => {
    const { logits, tokens, step, shared, states } = world;
    const [PLUS, MINUS] = [0, 1];
    const first = logSoftmax(logits);
    const star = first.indexOf(Math.max(...first.slice(MINUS + 1)), MINUS + 1);
    let [above, below] = [logits, logits];
    const rows = [];
    const marked = new Set(marks);
    const look = (update) => {
      const a = soft(above);
      const b = shared ? a : soft(below);
      const at = { plus: tokens * a.log(PLUS), minus: tokens * b.log(MINUS), refPlus: tokens * first[PLUS],
        refMinus: tokens * first[MINUS], nPlus: tokens, nMinus: tokens };
      const pushes = push(name, parameters, at);
      if (marked.has(update)) {
        rows.push({ update, plus: at.plus, minus: at.minus, star: tokens * b.log(star), push: pushes,
          margin: numbers(at).margin });
      }
      const move = (z, { weights, all }, sides) => {
        const pull = (step * sides.reduce((total, y) => total + pushes[y], 0)) / all;
        const next = z.map((x, i) => x - pull * weights[i]);
        sides.forEach((y) => (next[y] += step * pushes[y]));
        return next;
      };
      above = move(above, a, shared ? [PLUS, MINUS] : [PLUS]);
      below = shared ? above : move(below, b, [MINUS]);
    };
    Array.from({ length: states }, (_, update) => look(update));
    return rows;
  };

  return { fate, logSoftmax, push, run };
})();

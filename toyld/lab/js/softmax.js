// One softmax, one update: what toyld.softmax computes, on plain arrays of numbers; nothing of the page is known here.
//
// z: logits, y: the label's place, s: the step η‖x‖², c: the coefficient; z' = z − s c (π − e_y). Sums leave the largest
// class out, and differences are taken before the exponential, as in Python, so that certainty costs no digits.
const softmax = (() => {
  const sum = (xs) => xs.reduce((total, x) => total + x, 0);
  const dot = (xs, ys) => sum(xs.map((x, i) => x * ys[i]));
  const argmax = (xs) => xs.indexOf(Math.max(...xs));

  /** The largest class, logits less the largest, and the sum of the others' exponentials. */
  const parts = (z) => {
    const top = argmax(z);
    const shifted = z.map((x) => x - z[top]);
    const rest = shifted.reduce((total, x, i) => (i === top ? total : total + Math.exp(x)), 0);
    return { top, shifted, rest };
  };

  const logSoftmax = (z) => {
    const { shifted, rest } = parts(z);
    return shifted.map((x) => x - Math.log1p(rest));
  };

  const probabilities = (z) => {
    const w = parts(z).shifted.map(Math.exp);
    const total = sum(w);
    return w.map((x) => x / total);
  };

  const logSumExp = (z) => {
    const { top, rest } = parts(z);
    return z[top] + Math.log1p(rest);
  };

  /** log Σ p e^d; through expm1 while that keeps the digits of a small result. */
  const cgf = (logp, d) => {
    const near = dot(logp.map(Math.exp), d.map(Math.expm1));
    const fits = near > -0.5 && Number.isFinite(near);
    return fits ? Math.log1p(near) : logSumExp(logp.map((x, i) => x + d[i]));
  };

  /** G = c (π − e_y); the label's own entry without cancellation. */
  const residual = (z, y, c) => {
    const w = parts(z).shifted.map(Math.exp);
    const total = sum(w);
    const others = sum(w.filter((_, i) => i !== y));
    return w.map((x, i) => (c * (i === y ? -others : x)) / total);
  };

  const displacement = (z, y, s, c) => residual(z, y, c).map((g) => -s * g);

  const step = (z, y, s, c) => {
    const moved = displacement(z, y, s, c);
    return z.map((x, i) => x + moved[i]);
  };

  /** y*, the likeliest class other than y. */
  const runnerUp = (z, y) => argmax(z.map((x, i) => (i === y ? -Infinity : x)));

  /** log(π'/π), class by class; the signs of y's and y*'s are exact. */
  const logAlpha = (z, y, s, c) => {
    const logp = logSoftmax(z);
    const d = displacement(z, y, s, c);
    const star = runnerUp(z, y);
    const against = (at) => d.map((x) => x - d[at]);
    const all = cgf(logp, d);
    // π_j − π_y* = π_y*(e^(z_j − z_y*) − 1) keeps its digits at near ties.
    const gaps = z.map((x, i) => -s * c * Math.exp(logp[star]) * Math.expm1(x - z[star]));
    const ownGaps = gaps.map((gap, i) => (i === y ? d[y] - d[star] : gap));
    const exact = new Map([
      [star, -cgf(logp, ownGaps)],
      [y, -cgf(logp, against(y))],
    ]);
    return d.map((x, i) => exact.get(i) ?? x - all);
  };

  /** τ(s): after a push down classes other than y above it gain; with −s, after a pull up, those below it. */
  const threshold = (z, y, s) => cgf(logSoftmax(z), displacement(z, y, s, -1)) / s;

  const thresholdLimit = (z, y) => dot(probabilities(z), residual(z, y, 1));

  const winners = (z, y, s, c) => logAlpha(z, y, s, c).map((x) => x > 0);

  const entropy = (z) => {
    const logp = logSoftmax(z);
    return -dot(logp.map(Math.exp), logp);
  };

  const valleyDepth = (z, y) => -logSoftmax(z)[y] - entropy(z);

  // What y* gains per unit that y loses, from the logits before and the changes of log π.
  const share = (z, y, change) => {
    const logp = logSoftmax(z);
    const star = runnerUp(z, y);
    return (Math.exp(logp[star] - logp[y]) * Math.expm1(change[star])) / -Math.expm1(change[y]);
  };

  const squeezingRatio = (z, y, s) => share(z, y, logAlpha(z, y, s, -1));

  /** What a loss pushes the label with, c: likelihood up, likelihood down, and −log(1 − π_y), which lets go of rare labels. */
  const pushes = {
    up: () => 1,
    down: () => -1,
    unlikelihood: (z, y) => {
      const own = logSoftmax(z)[y];
      return Math.exp(own) / Math.expm1(own);
    },
  };

  /** `count` steps of one loss: the logits after them, and by how much every log π has changed. */
  const walk = (z, y, s, push, count) =>
    Array.from({ length: count }).reduce(
      ({ logits, change }) => {
        const c = pushes[push](logits, y);
        const moved = logAlpha(logits, y, s, c);
        return { logits: step(logits, y, s, c), change: change.map((x, i) => x + moved[i]) };
      },
      { logits: z, change: z.map(() => 0) },
    );

  /** Where to start from: flat; peaky, π ∝ (rank)^(−2); valley, the same with the last class far below. */
  const starts = {
    flat: (classes) => Array.from({ length: classes }, () => 0),
    peaky: (classes) => Array.from({ length: classes }, (_, i) => -2 * Math.log1p(i)),
    valley: (classes) => starts.peaky(classes).map((x, i, all) => (all[i + 1] === undefined ? -9 : x)),
  };

  return {
    argmax, displacement, entropy, logAlpha, logSoftmax, logSumExp, probabilities, pushes, residual, runnerUp, share,
    squeezingRatio, starts, step, threshold, thresholdLimit, valleyDepth, walk, winners,
  };
})();

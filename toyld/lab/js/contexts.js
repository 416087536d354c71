// Many contexts, one kernel: what toyld.contexts.train computes with DPO and plain descent, Z ← Z − η S R(Z).
//
// A token is [context, class]; an answer is a list of tokens; a pair is { plus, minus }, two answers.
const contexts = (() => {
  const sum = (xs) => xs.reduce((total, x) => total + x, 0);
  const total = (table, answer) => sum(answer.map(([context, y]) => table[context][y]));

  /** R of the mean of DPO's loss over the pairs at log-probabilities `now`, with the margins at the reference. */
  const residual = (now, pairs, reference, beta) => {
    const weight = now.map(() => 0);
    const labels = now.map((row) => row.map(() => 0));
    pairs.forEach(({ plus, minus }, i) => {
      const margin = total(now, plus) - total(now, minus) - reference[i];
      const k = beta / (1 + Math.exp(beta * margin)) / pairs.length;
      const add = (answer, push) =>
        answer.forEach(([context, y]) => {
          weight[context] += push;
          labels[context][y] += push;
        });
      add(plus, k);
      add(minus, -k);
    });
    return now.map((row, u) => row.map((x, v) => weight[u] * Math.exp(x) - labels[u][v]));
  };

  /** One update of the logits of all contexts: Z − η S R. */
  const update = (z, gram, r, lr) =>
    z.map((row, o) => {
      const next = [...row];
      gram[o].forEach((near, u) => r[u].forEach((g, v) => (next[v] -= lr * near * g)));
      return next;
    });

  /** A run: log-probability of every pair's answers and the argmax along y+, after 0, 1, … updates; all policies. */
  const train = ({ logits, gram, pairs, beta, lr, steps }) => {
    const first = logits.map(softmax.logSoftmax);
    const reference = pairs.map(({ plus, minus }) => total(first, plus) - total(first, minus));
    let z = logits;
    const tables = [first];
    while (tables.length <= steps) {
      z = update(z, gram, residual(tables[tables.length - 1], pairs, reference, beta), lr);
      tables.push(z.map(softmax.logSoftmax));
    }
    const along = (read) => pairs.map((pair) => tables.map((table) => read(table, pair)));
    return {
      chosen: along((table, { plus }) => total(table, plus)),
      rejected: along((table, { minus }) => total(table, minus)),
      argmax: along((table, { plus }) => sum(plus.map(([context]) => Math.max(...table[context])))),
      tables,
    };
  };

  /** S of y+'s context, y−'s and a bystander's: similarity k of the first two, and what all contexts share, c. */
  const coupled = (k, c) => [
    [1 + c, k + c, c],
    [k + c, 1 + c, c],
    [c, c, 1 + c],
  ];

  /** The coupling S_+−/S_++ above which y+ falls in the first update: ‖g_+‖²/⟨g_+, g_−⟩ with g = e_y − π. */
  const needed = (zPlus, yPlus, zMinus, yMinus) => {
    const own = softmax.residual(zPlus, yPlus, 1);
    const other = softmax.residual(zMinus, yMinus, 1);
    return sum(own.map((g) => g * g)) / sum(own.map((g, v) => g * other[v]));
  };

  /** Logits in which the classes of `odds` have these odds against all the rest, of whom the favourite has a share. */
  const belief = (classes, odds, favourite, share) => {
    const others = classes - Object.keys(odds).length - 1;
    return Array.from({ length: classes }, (_, v) =>
      Math.log(odds[v] ?? (v === favourite ? share : (1 - share) / others)),
    );
  };

  return { belief, coupled, needed, residual, train };
})();

// Panel (a): one softmax, one loss, and where the mass goes.
panels.push({
  id: "step",
  title: "One softmax",
  question: "Push one class of a softmax up or down: where does its probability go?",
  claims: [
    "squeeze.lemma-1", "squeeze.runner-up-rises", "squeeze.threshold-law", "squeeze.peak-takes-all",
    "squeeze.uniform-shares-equally", "squeeze.mass-goes-to-the-top", "sft.label-rises-runner-up-falls",
    "trends.share-law", "entropy.valley",
  ],
  mount(root, store) {
    const RANGE = 10; // logits that can be dragged to, either way
    const [FEWEST, MOST] = [3, 50];
    const { controls, stage, finding } = ui.layout(root);

    // ---- the state, made valid
    const classes = () => clamp(Math.round(store.get("step.classes", 12)), FEWEST, MOST);
    const logits = () => {
      const given = store.get("step.z", softmax.starts.valley(classes()));
      const start = given.length === classes() ? given : softmax.starts.valley(classes());
      return start.map((x) => clamp(x, -RANGE, RANGE));
    };
    const label = () => clamp(Math.round(store.get("step.label", classes() - 1)), 0, classes() - 1);
    const size = () => clamp(store.get("step.s", 1), 0.01, 20);
    const count = () => clamp(Math.round(store.get("step.count", 1)), 1, 50);
    const push = () => {
      const given = store.get("step.push", "down");
      return Object.hasOwn(softmax.pushes, given) ? given : "down";
    };
    const round = (z) => z.map((x) => Number(x.toFixed(2)));
    const begin = (name) =>
      store.set({ "step.z": round(softmax.starts[name](classes())), "step.label": name === "peaky" ? 1 : classes() - 1 });

    // ---- what follows from it
    let seen = {};
    const compute = () => {
      const [z, y, s, n] = [logits(), label(), size(), count()];
      const after = softmax.walk(z, y, s, push(), n);
      const c = softmax.pushes[push()](z, y);
      const down = c < 0;
      const others = z.map((_, i) => i).filter((i) => i !== y);
      const gained = others.filter((i) => after.change[i] > 0);
      const star = softmax.runnerUp(z, y);
      return {
        z, y, s, n, c, down, star, others, gained, change: after.change,
        before: softmax.probabilities(z), after: softmax.probabilities(after.logits),
        entropy: [softmax.entropy(z), softmax.entropy(after.logits)],
        depth: softmax.valleyDepth(z, y),
        tau: softmax.threshold(z, y, -s * c), limit: softmax.thresholdLimit(z, y),
        rho: softmax.share(z, y, after.change),
      };
    };
    const answer = () => {
      const { others, gained, star } = compute();
      if (gained.length === others.length) return "all";
      if (gained.length === 0) return "none";
      return gained.length === 1 && gained[0] === star ? "one" : "some";
    };

    // ---- controls
    const guess = ui.predict({
      key: "step.guess",
      question: () =>
        `Class ${label()} is ${push() === "up" ? "pulled up" : "pushed down"}. Which of the others gain?`,
      options: [
        { value: "all", label: "all" },
        { value: "some", label: "some" },
        { value: "one", label: "only the likeliest" },
        { value: "none", label: "none" },
      ],
      answer,
    });
    const start = el("div", { class: "row", role: "group", "aria-label": "Start" },
      el("span", { text: "Start" }),
      ...Object.keys(softmax.starts).map((name) => ui.button({ label: name, onclick: () => begin(name) })));
    const resize = (n) => {
      const z = logits();
      const next = Array.from({ length: n }, (_, i) => z[i] ?? Math.min(...z));
      store.set({ "step.classes": n, "step.z": round(next), "step.label": Math.min(label(), n - 1) });
    };
    const whole = (x) => fmt(x, 0);
    const which = ui.slider({
      label: "Class y, pushed", min: 0, max: () => classes() - 1, value: label, format: whole,
      oninput: (x) => store.set("step.label", x),
    });
    controls.append(
      guess.element,
      start,
      ui.choice({
        label: "Loss",
        key: "step.push",
        fallback: "down",
        options: [
          { value: "up", label: "log π up", title: "SFT: loss −log π(y)" },
          { value: "down", label: "log π down", title: "negative gradient: loss log π(y)" },
          { value: "unlikelihood", label: "unlikelihood", title: "loss −log of what all others have: lets go of what is rare" },
        ],
      }),
      which,
      ui.slider({ label: "Step s = η‖x‖²", key: "step.s", fallback: 1, min: 0.01, max: 20, log: true }),
      ui.slider({ label: "Steps", key: "step.count", fallback: 1, min: 1, max: 50, format: whole }),
      ui.slider({ label: "Classes V", min: FEWEST, max: MOST, value: classes, oninput: resize, format: whole }),
      ui.choice({
        label: "Scale of π",
        key: "step.scale",
        fallback: "linear",
        options: [{ value: "linear", label: "linear" }, { value: "log", label: "log" }],
      }),
    );

    // ---- plots
    const mass = plot.change(stage, { label: "Probabilities before (wide) and after (narrow)", x: "class", height: 300 });
    const drag = dragLogits(stage, {
      range: RANGE,
      logits,
      label,
      move: (i, value) => store.set("step.z", round(logits().map((x, k) => (k === i ? clamp(value, -RANGE, RANGE) : x)))),
      choose: (i) => store.set("step.label", i),
    });
    const facts = el("dl", { class: "facts" });
    stage.append(facts);
    const fact = (name, title) => {
      const value = el("dd", {});
      facts.append(el("div", { title }, el("dt", { text: name }), value));
      return (text) => say(value, text);
    };
    const tellEntropy = fact("entropy H", "nats, before and after");
    const tellTau = fact("threshold τ", "of the first step; before the arrow its limit for small steps");
    const tellRho = fact("ratio ρ", "what the likeliest other class gets per unit of mass taken from y");
    const tellDepth = fact("valley depth", "−log π(y) − H: at zero or above, y is a valley");

    const nats = (x) => `${fmt(Math.abs(x))} nats`;
    const part = (x) => fmt(Math.abs(x), 3); // of the probability
    const words = ({ y, star, others, gained, change, before, after, down, n, rho, entropy, depth }) => {
      const first = `Class ${y} ${change[y] < 0 ? "fell" : "rose"} from ${part(before[y])} to ${part(after[y])}`;
      if (Math.abs(change[y]) < 1e-9) return `Class ${y} hardly moved (${nats(change[y])}): this loss lets go of it.`;
      const most = others.reduce((a, i) => (after[i] - before[i] < after[a] - before[a] ? i : a));
      const losers = others.filter((i) => change[i] < 0);
      const times = n > 1 ? ` in ${n} steps` : "";
      const gain = after[star] - before[star];
      const way = entropy[1] < entropy[0] ? "fell" : "rose";
      const shape = depth >= 0 ? "was a valley" : "was no valley";
      if (down) {
        const who = losers.length === 0
          ? "no other class lost anything"
          : `${losers.length} of ${others.length} others lost, too, though nobody touched them`;
        const share = Number.isFinite(rho) ? `, ${fmt(rho, rho < 10 ? 2 : 0)} times what class ${y} lost` : "";
        return `${first}${times}; class ${star} gained ${part(gain)}${share}; ${who}. Class ${y} ${shape}; entropy ${way}.`;
      }
      const paid = `class ${most} lost most, ${part(before[most] - after[most])}`;
      const rose = gained.length === 0 ? "all others fell" : `${gained.length} of ${others.length} others rose with it`;
      return `${first}${times}; ${paid}; ${rose}. Entropy ${way}.`;
    };

    return () => {
      seen = compute();
      const shown = guess.open();
      const { y, star, before, after, change, down, c, s, tau, limit, rho, entropy, depth, n } = seen;
      const text = shown ? words(seen) : `Class ${y} has probability ${part(before[y])}. Predict what the step does, or press ${ui.key()}.`;
      const names = { [star]: "y*", [y]: "y" };
      const mark = { y: tau, text: `τ: a class ${down ? "above" : "below"} it gains` };
      mass.update({
        title: `π before${shown ? " (wide) and after (narrow)" : ""}`, finding: text, before,
        after: shown ? after : null, moves: change, names, log: store.get("step.scale", "linear") === "log",
        mark: shown && n === 1 && tau >= 0 ? mark : null,
      });
      drag.update();
      tellEntropy(shown ? `${fmt(entropy[0])} → ${fmt(entropy[1])}` : fmt(entropy[0]));
      tellTau(shown ? `${fmt(limit, 3)} → ${fmt(tau, 3)}` : `${fmt(limit, 3)} → ?`);
      tellRho(!down ? "for a push down" : shown ? fmt(rho) : "?");
      tellDepth(signed(depth));
      finding(text);
    };
  },
});

// Panel (c): the losses side by side. What does the push on y− do as the margin grows, and as training goes on?
panels.push({
  id: "zoo",
  title: "Who stops pushing?",
  question: "As y+ draws ahead of y−: which losses stop pushing, which turn round, which never let go?",
  claims: [
    "residual.dpo-never-stops", "residual.dpo-never-reverses", "residual.ipo-stops-at-target", "residual.ipo-reverses",
    "residual.sppo-stops-at-target", "residual.no-floor", "residual.floors", "residual.sign-table", "residual.caps",
    "residual.balanced",
  ],
  mount(root, store) {
    const { controls, stage, finding } = ui.layout(root);
    const TOKENS = 10; // of a response, all alike
    const [FROM, TO] = [-20, 60]; // margins, nats
    const FEW = 1e-3; // of the first push: as good as gone
    const NEAR = 0.1; // nats: so near to a target counts as there
    const KINDS = {
      fades: "fades, never ends",
      target: "stops at a target, then turns round",
      threshold: "is switched off at a threshold",
      never: "never lets go",
      none: "y− is never pushed down",
    };
    // Logits of y+, y− and others, of which the first is the likeliest.
    const STARTS = {
      flat: [0, 0, 0, 0, 0, 0],
      peaked: [0, 0, 3, 0, 0, 0],
      "y− rare": [0, -3, 3, 0, 0, 0],
      "y+ leads": [3, 0, 1, 0, 0, 0],
    };
    const all = data.zoo.losses;
    const named = (name, otherwise) => all.find((one) => one.name === name) ?? all.find((one) => one.name === otherwise);

    // ---- the state, made valid
    const loss = () => named(store.get("zoo.loss", "dpo"), "dpo");
    const beside = () => {
      const other = store.get("zoo.beside", "none");
      return other === "none" || other === loss().name ? null : (all.find((one) => one.name === other) ?? null);
    };
    const key = (one, { name }) => `zoo.${one.name}.${name}`;
    const parameters = (one) =>
      Object.fromEntries(one.parameters.map((p) => [p.name, clamp(store.get(key(one, p), p.value), p.min, p.max)]));
    const margin = () => clamp(store.get("zoo.margin", 0), FROM, TO);
    const updates = () => Math.round(clamp(store.get("zoo.updates", 1000), 10, 2000));
    const rate = () => clamp(store.get("zoo.rate", 0.2), 0.02, 0.5);
    const start = () => {
      const given = store.get("zoo.start", "peaked");
      return Object.hasOwn(STARTS, given) ? given : "peaked";
    };

    // ---- what follows from it
    const reference = (name = start()) => {
      const first = losses.logSoftmax(STARTS[name]).map((x) => TOKENS * x);
      return { refPlus: first[0], refMinus: first[1], nPlus: TOKENS, nMinus: TOKENS };
    };
    /** Both sides move alike as far as there is room: no probability is above one. */
    const place = (h) => {
      const at = reference();
      const room = 1e-6;
      const up = Math.min(h / 2, -at.refPlus - room);
      const down = Math.min(up - h, -at.refMinus - room);
      return { ...at, plus: at.refPlus + down + h, minus: at.refMinus + down };
    };
    const pushAt = (one, h) => losses.push(one.name, parameters(one), place(h));
    /** y+ and y− alike, and both as they were: what is told of a loss does not depend on the start that is shown. */
    const alike = () => {
      const at = reference("flat");
      return { ...at, plus: at.refPlus, minus: at.refMinus };
    };
    const fateOf = (one) => {
      const p = parameters(one);
      return losses.fate(one.name, p, alike(), 30 / (p.beta ?? 0.2));
    };
    /** The rate over the loss's own push there: all losses begin alike, and only what becomes of them differs. */
    const step = (one) => {
      const first = losses.push(one.name, parameters(one), alike()).map(Math.abs);
      return Math.min(rate() / Math.max(...first), one.largest ?? Infinity) / TOKENS;
    };
    const marks = (last) => {
      const places = Array.from({ length: 60 }, (_, i) => Math.round((last + 1) ** (i / 59)) - 1);
      return [...new Set(places)];
    };
    const seen = new Map();
    const run = (one, shared) => {
      const p = parameters(one);
      const world = { logits: STARTS[start()], tokens: TOKENS, step: step(one), shared, states: updates() + 1 };
      const name = JSON.stringify([one.name, p, world]);
      if (!seen.has(name)) {
        if (seen.size > 60) seen.clear();
        seen.set(name, losses.run(one.name, p, world, marks(updates())));
      }
      return seen.get(name);
    };
    /** The push on y− at the end, in units of the largest it ever was. */
    const left = (rows) => {
      const most = Math.max(...rows.map(({ push }) => Math.abs(push[1])));
      return most > 0 ? rows.at(-1).push[1] / -most : 0;
    };

    // ---- controls
    const guess = ui.predict({
      key: "zoo.guess",
      question: () => `${loss().label}: what becomes of the push on y− as y− sinks?`,
      options: Object.entries(KINDS).map(([value, label]) => ({ value, label })),
      answer: () => fateOf(loss()),
    });
    let made = 0;
    const select = (label, options, now, give) => {
      const id = `zoo-select-${"abc"[(made += 1)]}`;
      const box = el("select", { id, on: { change: () => give(box.value) } },
        ...options.map(({ value, label: text }) => el("option", { value, text })));
      const update = () => (box.value = now());
      return { element: el("div", { class: "select" }, el("label", { for: id, text: label }), box), update };
    };
    const options = all.map(({ name, label }) => ({ value: name, label }));
    const ask = { "zoo.guess": null, "zoo.guess.truth": null };
    const chosen = select("Loss", options, () => loss().name, (name) => store.set({ ...ask, "zoo.loss": name }));
    const other = select("Beside it", [{ value: "none", label: "no other" }, ...options], () => beside()?.name ?? "none",
      (name) => store.set("zoo.beside", name));
    const sliders = all.map((one) => {
      const mine = one.parameters.map((p) => ui.slider({
        key: key(one, p), label: p.label, min: p.min, max: p.max, fallback: p.value,
        ...(p.min > 0 ? { log: true } : { step: (p.max - p.min) / 40 }),
      }));
      return { one, element: el("div", { class: "parameters" }, ...mine) };
    });
    const [formula, origin, proofs] = ["formula", "origin", "proofs"].map((name) => el("p", { class: `note ${name}` }));
    const about = el("details", { class: "about" }, el("summary", { text: "Formula, source, claims" }), formula, origin, proofs);
    controls.append(
      guess.element,
      el("div", { class: "selects" }, chosen.element, other.element),
      about,
      ...sliders.map(({ element }) => element),
      ui.slider({ key: "zoo.margin", label: "Margin h (nats)", min: FROM, max: TO, step: 0.5, fallback: 0, format: (x) => fmt(x, 1) }),
      ui.choice({ label: "Start", key: "zoo.start", fallback: "peaked", options: Object.keys(STARTS).map((value) => ({ value, label: value })) }),
      ui.slider({ key: "zoo.updates", label: "Updates", min: 10, max: 2000, log: true, fallback: 1000, format: (x) => fmt(x, 0) }),
      ui.slider({ key: "zoo.rate", label: "Rate, first push one", min: 0.02, max: 0.5, log: true, fallback: 0.2 }),
    );

    // ---- plots
    const grid = el("div", { class: "pair quad" });
    stage.append(grid);
    const tall = 204;
    const plots = {
      push: plot.lines(grid, { label: "Push against the margin", x: "margin h (nats)", y: "push", height: tall, space: 62 }),
      margin: plot.lines(grid, { label: "Margin in training", x: "updates", y: "nats", height: tall, space: 92 }),
      one: plot.lines(grid, { label: "One shared context", x: "updates", y: "log π, nats", height: tall, space: 40 }),
      two: plot.lines(grid, { label: "A context each", x: "updates", y: "log π, nats", height: tall, space: 40 }),
    };
    const body = el("tbody", {});
    const league = el("details", { class: "league" },
      el("summary", { text: "All losses beside one another" }),
      el("table", {},
        el("thead", {}, el("tr", {}, ...["loss", "push on y−", "left at the end", "margin", "its claim"].map((text) => el("th", { scope: "col", text })))),
        body));
    const LATER = 150; // milliseconds without a change before all losses are run again
    let late = 0;
    league.addEventListener("toggle", () => table());
    stage.append(league);

    const per = (x) => {
      if (x === 0) return "none";
      return Math.abs(x) < FEW / 10 ? `under ${fmt(10 * FEW)} %` : `${fmt(100 * x, Math.abs(x) < 0.1 ? 2 : 0)} %`;
    };
    const table = () => {
      if (!league.open || !guess.open()) return;
      const rows = all.map((one) => {
        const rows = run(one, true);
        return [one.label, KINDS[fateOf(one)], per(left(rows)), fmt(rows.at(-1).margin, 1), one.claims[0]];
      });
      body.replaceChildren(...rows.map((row) => el("tr", {}, ...row.map((text) => el("td", { text })))));
    };

    const nats = (x) => `${fmt(x, Math.abs(x) < 10 ? 2 : 1)} nats`;
    const moved = (rows, side) => rows.at(-1)[side] - rows[0][side];
    const wayOf = (x) => `${x < 0 ? "fell" : "rose"} by ${nats(Math.abs(x))}`;
    const ends = {
      fades: (rows) => {
        const before = rows.findLast(({ update }) => update <= rows.at(-1).update / 10);
        const more = rows.at(-1).margin - before.margin;
        return `The push on y− is down to ${per(left(rows))} of its largest and never ends: the updates after ${before.update} still added ${nats(more)} of margin.`;
      },
      target: (rows) => {
        const { plus, minus, push } = rows.at(-1);
        const near = (d) => losses.push(loss().name, parameters(loss()), { ...reference(), plus, minus: minus + d })[1];
        if (near(-NEAR) > 0 && near(NEAR) < 0) return `The push on y− has stopped: it is within ${nats(NEAR)} of its target, and beyond it turns round and pulls y− up.`;
        const part = per(Math.abs(left(rows)));
        if (push[1] > 0) return `The push on y− has turned round: y− is beyond the target, and is pulled up with ${part} of the largest push.`;
        return `The push on y− is down to ${part} of its largest, on its way to a target, beyond which it turns round and pulls y− up.`;
      },
      threshold: (rows) => {
        const off = rows.find(({ push }) => push[1] === 0);
        if (off?.update === 0) return "The push on y− is off from the start: y+ is further ahead than the loss asks for.";
        return off ? `The push on y− was switched off by update ${off.update}, from full strength to nothing.` : "The push on y− is at full strength still: the threshold is not reached.";
      },
      never: (rows) => `The push on y− is still ${per(left(rows))} of its largest and stays: this loss has no floor.`,
      none: (rows) =>
        rows[0].push[1] > 0
          ? `y− is not pushed down but pulled up: it ${wayOf(moved(rows, "minus"))}.`
          : `y− is never pushed down: that it ${wayOf(moved(rows, "minus"))} is what y+ does to its context.`,
    };
    const words = (now) => {
      const { label } = loss();
      const [up, down] = pushAt(loss(), margin());
      const here = `${label} at a margin of ${fmt(margin(), 1)} nats: push ${signed(up, 3)} on y+, ${signed(down, 3)} on y−.`;
      if (!now) return `${here} Predict what becomes of the push on y−, or press ${ui.key()}.`;
      const last = now.one.at(-1);
      return `${here} After ${last.update} updates in one shared context the margin is ${nats(last.margin)}, in a context each ${nats(now.two.at(-1).margin)}. ` +
        `${ends[fateOf(loss())](now.one)} Shared: y+ ${wayOf(moved(now.one, "plus"))}, y* (likeliest other) ${wayOf(moved(now.one, "star"))}.`;
    };

    const log = (update) => Math.log10(update + 1);
    const limits = (values) => {
      const known = values.filter(Number.isFinite);
      const [low, high] = [Math.min(...known), Math.max(...known)];
      return high - low < 1e-9 ? [low - 1, high + 1] : [low - (high - low) / 8, high + (high - low) / 8];
    };
    return () => {
      const [mine, shown] = [loss(), guess.open()];
      say(formula, mine.formula);
      say(origin, mine.source);
      say(proofs, mine.claims.join(", "));
      chosen.update();
      other.update();
      sliders.forEach(({ one, element }) => (element.hidden = one !== mine));
      const now = shown ? { one: run(mine, true), two: run(mine, false) } : null;
      const text = words(now);
      finding(text);
      league.hidden = !shown;
      clearTimeout(late);
      if (league.open) late = setTimeout(table, LATER);

      // The push: one place until it is guessed, then all of them.
      const hs = shown ? Array.from({ length: 161 }, (_, i) => FROM + ((TO - FROM) * i) / 160) : [margin()];
      const pushes = hs.map((h) => pushAt(mine, h));
      plots.push.update({
        title: shown ? `${mine.label}: push against the margin` : `${mine.label}: push at this margin`,
        finding: text, xs: hs, xlim: [FROM, TO], ylim: limits([...pushes.flat(), 0]),
        series: [
          { name: "on y+", ys: pushes.map(([up]) => up), style: "blue", dash: "solid", mark: "triangle" },
          { name: "on y−", ys: pushes.map(([, down]) => down), style: "red", dash: "dash", mark: "down" },
        ],
        marks: [{ x: margin(), text: "h" }, { y: 0, text: "" }],
      });
      [plots.margin, plots.one, plots.two].forEach(({ box }) => (box.hidden = !shown));
      if (!shown) return;
      const places = now.one.map(({ update }) => log(update));
      const decades = Array.from({ length: Math.floor(Math.log10(updates())) + 1 }, (_, i) => 10 ** i);
      const ticks = [0, ...decades].map((update) => [log(update), fmt(update, 0)]);
      const axis = { xs: places, xlim: [0, log(updates())], xTicks: ticks, xText: (x) => fmt(10 ** x - 1, 0), finding: text };
      const both = beside();
      const margins = [
        { name: "shared", ys: now.one.map((row) => row.margin), style: "blue", dash: "solid", mark: "circle" },
        { name: "one each", ys: now.two.map((row) => row.margin), style: "green", dash: "dash", mark: "square" },
        ...(both ? [{ name: both.label.split(" ")[0], ys: run(both, true).map((row) => row.margin), style: "ink", dash: "dot", mark: "diamond" }] : []),
      ];
      plots.margin.update({
        ...axis, title: "Margin in training", series: margins, ylim: limits(margins.flatMap(({ ys }) => ys)),
      });
      const paths = (rows) => [
        { name: "y+", ys: rows.map(({ plus }) => plus), style: "blue", dash: "solid", mark: "triangle" },
        { name: "y−", ys: rows.map(({ minus }) => minus), style: "red", dash: "dash", mark: "down" },
        { name: "y*", ys: rows.map(({ star }) => star), style: "ink", dash: "dot", mark: "circle" },
      ];
      const ylim = limits([...paths(now.one), ...paths(now.two)].flatMap(({ ys }) => ys));
      plots.one.update({ ...axis, series: paths(now.one), ylim, title: "One shared context" });
      plots.two.update({ ...axis, series: paths(now.two), ylim, title: "A context each" });
    };
  },
});

// Panel (b): why one softmax with two answers cannot show displacement, and what two coupled contexts show.
panels.push({
  id: "contexts",
  title: "Two contexts",
  question: "DPO wants y+ above y−. Can y+ itself fall? In one softmax, and in two contexts that look alike?",
  claims: [
    "pair.winner-rises", "pair.rest-moves-together", "kernel.no-cross-talk", "kernel.own-contexts-suffice",
    "kernel.diagonal-suffices", "pair.linear-head",
    "kernel.dual-form", "kernel.common-slope", "displacement.common-amplifies", "displacement.common-amplifies-untaught",
  ],
  mount(root, store) {
    const UPDATES = 60;
    const [PLUS, MINUS] = [0, 1];
    const SETTINGS = {
      alike: { fallback: 0.9, min: 0, max: 0.99, step: 0.01 },
      common: { fallback: 0, min: 0, max: 10, step: 0.1 },
      plus: { fallback: 0.3, min: 0.01, max: 0.95, step: 0.01 },
      // What y+ leaves, less something for the others: in one softmax the two share what there is.
      minus: { fallback: 0.02, min: 0.01, max: () => Number((0.99 - value("plus")).toFixed(2)), step: 0.01 },
      peak: { fallback: 0.6, min: 0, max: 0.98, step: 0.02 },
      beta: { fallback: 0.1, min: 0.01, max: 1, log: true },
      lr: { fallback: 20, min: 0.1, max: 100, log: true },
      classes: { fallback: 10, min: 2, max: 50 },
      shown: { fallback: UPDATES, min: 0, max: UPDATES },
    };
    const value = (name) => {
      const { fallback, min, max } = SETTINGS[name];
      return clamp(store.get(`contexts.${name}`, fallback), min, typeof max === "function" ? max() : max);
    };
    const whole = (name) => Math.round(value(name));
    const word = () => (store.get("contexts.word", "same") === "other" ? "other" : "same");

    // ---- the two runs
    /** Logits with these probabilities of some classes against the rest, of whom one is the favourite; at peak 0 none. */
    const belief = (given) => {
      const n = whole("classes");
      const others = n - Object.keys(given).length;
      // Without others the first has its probability, and the second what it leaves.
      const rest = others > 0 ? 1 - Object.values(given).reduce((total, p) => total + p) : 1;
      const parts = others > 0 ? given : { ...given, [MINUS]: 1 - given[PLUS] };
      const odds = Object.fromEntries(Object.entries(parts).map(([v, p]) => [v, p / rest]));
      const favourite = n > 2 ? 2 : 1 - Number(Object.keys(odds)[0]);
      return contexts.belief(n, odds, favourite, 1 / others + value("peak") * (1 - 1 / others));
    };
    /** The last result is kept while the settings that it depends on are the same: what is drawn changes more often. */
    const kept = (names, make) => {
      let [at, found] = ["", null];
      return () => {
        const now = [word(), ...names.map(value)].join(" ");
        if (now !== at) [at, found] = [now, make()];
        return found;
      };
    };
    const BOTH = ["plus", "minus", "peak", "common", "beta", "lr", "classes"];
    const shared = kept(BOTH, () => {
      const start = belief({ [PLUS]: value("plus"), [MINUS]: value("minus") });
      const gram = [[1 + value("common")]];
      return contexts.train({
        logits: [start], gram, beta: value("beta"), lr: value("lr"), steps: UPDATES,
        pairs: [{ plus: [[0, PLUS]], minus: [[0, MINUS]] }],
      });
    });
    const apart = kept([...BOTH, "alike"], () => {
      const taught = word() === "same" ? PLUS : MINUS;
      const [plus, minus] = [belief({ [PLUS]: value("plus") }), belief({ [taught]: value("minus") })];
      const run = contexts.train({
        logits: [plus, minus, plus], gram: contexts.coupled(value("alike"), value("common")),
        beta: value("beta"), lr: value("lr"), steps: UPDATES,
        pairs: [{ plus: [[0, PLUS]], minus: [[1, taught]] }],
      });
      return { ...run, needed: contexts.needed(plus, PLUS, minus, taught), bystander: run.tables.map((table) => table[2][PLUS]) };
    });
    const coupling = () => (value("alike") + value("common")) / (1 + value("common"));

    const STILL = 0.005; // nats, below what is shown
    const sign = (x) => (Math.abs(x) < STILL ? 0 : Math.sign(x));
    const verdict = ({ chosen, argmax }, until) => {
      const [c, a] = [chosen, argmax].map(([ys]) => sign(ys[until] - ys[0]));
      if (c >= 0) return c > 0 ? "rises" : "still";
      return a > 0 ? "squeezing" : "displacement";
    };

    // ---- controls
    const { controls, stage, finding } = ui.layout(root);
    const names = {
      rises: "y+ rises",
      still: "y+ stays",
      displacement: "y+ falls, the argmax does not rise",
      squeezing: "y+ falls and the argmax rises",
    };
    const guess = ui.predict({
      key: "contexts.guess",
      question: () => `The ${word() === "same" ? "same word" : "other word"} in two contexts, coupling κ = ${fmt(coupling())}. What will DPO do to y+?`,
      options: ["rises", "displacement", "squeezing"].map((name) => ({ value: name, label: names[name] })),
      answer: () => verdict(apart(), UPDATES),
    });
    const slider = (name, label, format) =>
      ui.slider({ label, key: `contexts.${name}`, format, ...SETTINGS[name] });
    const reduced = matchMedia("(prefers-reduced-motion: reduce)");
    let playing = 0;
    const stop = () => {
      cancelAnimationFrame(playing);
      playing = 0;
    };
    const play = () => {
      stop();
      if (reduced.matches) return store.set("contexts.shown", UPDATES);
      const PER_SECOND = 20;
      const began = performance.now();
      const frame = (now) => {
        const done = Math.min(UPDATES, Math.floor(((now - began) * PER_SECOND) / 1000));
        playing = done < UPDATES ? requestAnimationFrame(frame) : 0;
        if (done !== whole("shown")) store.set("contexts.shown", done);
      };
      store.set("contexts.shown", 0);
      playing = requestAnimationFrame(frame);
      return undefined;
    };
    const integer = (x) => fmt(x, 0);
    controls.append(
      guess.element,
      ui.choice({
        label: "In its context y− says",
        key: "contexts.word",
        fallback: "same",
        options: [
          { value: "same", label: "the same word", title: "as answers often do behind the word in which they differ" },
          { value: "other", label: "another word" },
        ],
      }),
      slider("alike", "Likeness k"),
      slider("common", "Common to all, c", (x) => fmt(x, 1)),
      slider("plus", "π(y+) at first"),
      slider("minus", "π(y−) at first"), // with two classes one softmax has no room for it: there y− has what y+ leaves
      slider("peak", "Peak of the rest"),
      slider("beta", "β"),
      slider("lr", "Rate η"),
      slider("classes", "Classes V", integer),
      el("div", { class: "with-button" }, slider("shown", "Update", integer), ui.button({ label: "Play", onclick: play })),
    );

    // ---- plots
    const pair = el("div", { class: "pair" });
    stage.append(pair);
    const curves = ["One context", "Two contexts"].map((label) =>
      plot.lines(pair, { label, x: "update of DPO", y: "log π (nats)", height: 300 }),
    );
    const beliefs = ["one", "two"].map((name) =>
      plot.change(pair, { label: `${name} context`, x: "class", height: 170 }),
    );
    const floor = (run) => {
      const low = Math.min(...run.chosen[0], ...run.argmax[0], ...(run.bystander ?? []));
      return [-2, -4, -8, -16, -32, -64, -128].find((y) => y <= low) ?? low;
    };
    const series = (run, until) => {
      const cut = (ys) => ys.slice(0, until + 1);
      const all = [
        { name: "y+", ys: cut(run.chosen[0]), style: "blue", mark: "circle" },
        { name: "argmax", ys: cut(run.argmax[0]), style: "ink", dash: "dot", mark: "square" },
        { name: "y−", ys: cut(run.rejected[0]), style: "red", dash: "dash", mark: "down" },
      ];
      if (run.bystander) all.push({ name: "elsewhere", ys: cut(run.bystander), style: "green", dash: "dashdot", mark: "diamond" });
      return all;
    };
    const nats = (x) => `${fmt(Math.abs(x))} nats`;
    const moved = (x) => (sign(x) === 0 ? "hardly moved" : `${x > 0 ? "rose" : "fell"} by ${nats(x)}`);

    const oneWords = (run, until) =>
      `One context: y+ ${moved(run.chosen[0][until] - run.chosen[0][0])}; with y− in the same softmax it can only rise, at any number of classes.`;
    const twoWords = (run, until, k) => {
      const by = (ys) => ys[until] - ys[0];
      const kind = { squeezing: ": squeezing", displacement: ": displacement", rises: "", still: "" }[verdict(run, until)];
      const most = run.needed > 0 && run.needed <= 1;
      const first = most
        ? `To first order y+ falls at the first update if κ is above ${fmt(run.needed)}; here κ = ${fmt(k)}.`
        : `To first order no coupling of this start lowers y+ at the first update; here κ = ${fmt(k)}.`;
      const bystander = by(run.bystander);
      const away = sign(bystander) === 0 ? "" : `; elsewhere, where nothing was taught, the word ${moved(bystander)}`;
      return `Two contexts: y+ ${moved(by(run.chosen[0]))} and the argmax along it ${moved(by(run.argmax[0]))}${kind}${away}. ${first}`;
    };

    return () => {
      const [one, two, k] = [shared(), apart(), coupling()];
      const until = guess.open() ? whole("shown") : 0;
      const low = Math.min(floor(one), floor(two));
      const texts = guess.open() ? [oneWords(one, until), twoWords(two, until, k)] : ["Predict first.", "Predict first."];
      const xs = Array.from({ length: UPDATES + 1 }, (_, i) => i);
      const titles = ["One context: y+ and y− in one softmax", `Two contexts, coupling κ = ${fmt(k)}`];
      [one, two].forEach((run, i) => {
        curves[i].update({
          title: titles[i], finding: texts[i], xs, series: series(run, until), xlim: [0, UPDATES], ylim: [low, 0],
        });
        const tables = run.tables.map((table) => table[0]);
        const tags = i === 0 ? { [PLUS]: "y+", [MINUS]: "y−" } : { [PLUS]: "y+" };
        beliefs[i].update({
          title: i === 0 ? "π in that context" : "π in y+'s context", finding: texts[i], names: tags,
          before: tables[0].map(Math.exp), after: until > 0 ? tables[until].map(Math.exp) : null,
          moves: tables[until].map((x, v) => x - tables[0][v]),
        });
      });
      const ask = word() === "same"
        ? "Behind the word in which two answers differ they often say the same: y+ pulls that word up in its context, y− pushes it down in another."
        : "In its own context y− says a word that is not y+'s, and DPO pushes it down there.";
      finding(guess.open() ? texts.join(" ") : `${ask} Predict what becomes of y+, or press ${ui.key()}.`);
    };
  },
});

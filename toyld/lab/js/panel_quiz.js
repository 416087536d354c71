// Panel (d): runs of four kinds of worlds in one picture. Which is squeezing? The answers are those of toyld diagnose.
panels.push({
  id: "quiz",
  title: "Is it squeezing?",
  question: "Where does the mass go? Judge by chosen, rejected, argmax along chosen, and G = argmax − chosen.",
  claims: ["squeeze.mass-goes-to-the-top", "pair.winner-rises", "preference.argmax-rises", "preference.chosen-falls"],
  mount(root, store) {
    const { controls, stage, finding } = ui.layout(root);
    const { runs, fours, options } = data.quiz;
    const LETTERS = ["A", "B", "C", "D"];
    const SHOWN = "shown"; // the guess of one who has only looked
    const NAMES = { "sft-normal": "normal SFT", "cannot-tell": "cannot tell", "not-learning": "nothing moved", lagging: "argmax up by more than chosen" };
    const HINTS = {
      squeezing: "argmax up, ahead of chosen: G opens",
      displacement: "chosen down, argmax about still",
      healthy: "chosen up, rejected down",
      rejection: "rejected down, the others still",
      "sft-normal": "chosen up, rejected not down",
      divergence: "chosen down, argmax down",
      "cannot-tell": "what would tell was not measured",
    };
    const title = (kind) => NAMES[kind] ?? kind;
    const find = (id) => runs.find((run) => run.id === id);
    const squeezing = (four) => LETTERS[four.findIndex((id) => find(id).verdict === "squeezing")];

    // ---- the state, made valid
    const many = () => store.get("quiz.mode", "one") === "four";
    const rounds = () => (many() ? fours : runs);
    const at = () => clamp(Math.round(store.get(many() ? "quiz.four" : "quiz.run", 1)), 1, rounds().length) - 1;
    const go = (by) => store.set(many() ? "quiz.four" : "quiz.run", ((at() + by + rounds().length) % rounds().length) + 1);

    // ---- questions: one of each is in the page, the one of this round is shown
    const said = (key) => store.get(`quiz.${key}`, "");
    const ones = runs.map((run) => ({
      key: run.id,
      right: run.right,
      guess: ui.predict({
        key: `quiz.${run.id}`,
        question: "What does this run look like?",
        options: options.map((value) => ({ value, label: title(value), title: HINTS[value] })),
        answer: () => run.verdict,
        explain: () => {
          const other = run.right.find((kind) => kind !== run.verdict);
          const counts = other ? ` Most single answers read ${title(other)}: that counts as right, too.` : "";
          return run.confidence === null ? counts : `Confidence ${fmt(run.confidence)}.${counts}`;
        },
      }),
    }));
    const sets = fours.map((four, i) => ({
      key: `set-${LETTERS[i]}`,
      right: [squeezing(four)],
      guess: ui.predict({
        key: `quiz.set-${LETTERS[i]}`,
        question: "Which of these four runs is squeezing?",
        options: four.map((_, k) => ({ value: LETTERS[k], label: LETTERS[k] })),
        answer: () => squeezing(four),
      }),
    }));
    const asked = () => (many() ? sets : ones)[at()];
    const given = () => [...ones, ...sets].filter(({ key }) => !["", SHOWN].includes(said(key)));
    const right = () => given().filter((one) => one.right.includes(said(one.key)));

    // ---- controls
    const score = el("p", { class: "score", role: "status" });
    const where = el("span", { class: "where" });
    const forget = () => store.clear("quiz.");
    controls.append(
      ui.choice({
        label: "Show", key: "quiz.mode", fallback: "one",
        options: [{ value: "one", label: "one run at a time" }, { value: "four", label: "four at once" }],
      }),
      el("div", { class: "row" }, ui.button({ label: "Back", onclick: () => go(-1) }), where, ui.button({ label: "Next", onclick: () => go(1) })),
      ...[...ones, ...sets].map(({ guess }) => guess.element),
      score,
      ui.button({ label: "Forget my answers", onclick: forget }),
      ui.note("Changes since the start, in nats an answer: means over the examples, with their intervals (bands). A line that leaves the picture is marked ↓ at its end."),
    );

    // ---- plots
    const LINES = {
      chosen: { name: "chosen", style: "blue", dash: "solid", mark: "triangle" },
      argmax: { name: "argmax", style: "ink", dash: "dot", mark: "circle" },
      rejected: { name: "rejected", style: "red", dash: "dash", mark: "down" },
      gap: { name: "G", style: "green", dash: "dashdot", mark: "diamond" },
    };
    const single = el("div", {});
    const quad = el("div", { class: "pair" });
    const big = plot.lines(single, { label: "Changes of log-probabilities", x: "updates", y: "nats", height: 200, space: 132 });
    const low = plot.lines(single, { label: "G = argmax − chosen", x: "updates", y: "nats", height: 124, space: 132 });
    const small = LETTERS.map((letter) => plot.lines(quad, { label: `Run ${letter}`, x: "updates", y: "nats", height: 216, space: 132 }));
    const told = el("dl", { class: "told-run" });
    const tell = (name) => {
      const value = el("dd", {});
      const item = el("div", {}, el("dt", { text: name }), value);
      told.append(item);
      return (text) => {
        item.hidden = text === "";
        say(value, text);
      };
    };
    const [tellWorld, tellWhere, tellDoubt, tellShare] = ["The run", "The mass", "Doubts", "Single answers"].map(tell);
    stage.append(single, quad, told);

    /** Limits that show chosen, argmax and G with their intervals; rejected may leave below. */
    const limits = (run, kinds) => {
      const values = kinds.flatMap((kind) => {
        const curve = run.curves[kind];
        return curve ? [...curve.low, ...curve.high] : [];
      });
      const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
      const spare = (most - least || 1) / 12;
      const tick = 10 ** Math.floor(Math.log10((most - least || 1) / 2));
      // Room for a number beside nought on the axis: a half, a whole, two or five of a power of ten.
      const size = [1, 2, 5, 10].find((unit) => 2 * unit * tick >= most - least + 2 * spare) * tick;
      return most > -least ? [least - spare, Math.max(most + spare, size)] : [Math.min(least - spare, -size), most + spare];
    };
    const draw = (target, run, kinds, name, text) => {
      const there = kinds.filter((kind) => run.curves[kind]);
      const own = there.filter((kind) => kind !== "rejected");
      const falls = run.curves.rejected?.mean ?? [0];
      const base = limits(run, own);
      // Rejected is shown as far as four times the room of the others: theirs are the smaller moves that tell.
      const room = base[1] - base[0];
      const floor = there.includes("rejected") ? Math.max(Math.min(base[0], ...falls) - room / 10, base[0] - 3 * room) : base[0];
      target.update({
        title: name, finding: text, xs: run.updates, ylim: [floor, Math.max(base[1], ...(there.includes("rejected") ? falls : []))],
        marks: [{ y: 0, text: "" }],
        series: there.map((kind) => {
          const { mean, low, high } = run.curves[kind];
          return { ...LINES[kind], ys: mean, low, high };
        }),
      });
    };
    const shares = (share) =>
      Object.entries(share)
        .sort((a, b) => b[1] - a[1])
        .map(([kind, part]) => `${title(kind)} ${fmt(100 * part, 0)} %`)
        .join(", ");
    const verdict = (run) => (run.verdict === "cannot-tell" ? "cannot tell" : `consistent with ${title(run.verdict)}`);
    const about = (run) => `${run.world}. ${run.done}`;

    return () => {
      const four = many();
      const one = asked();
      const open = one.guess.open();
      [...ones, ...sets].forEach((other) => (other.guess.element.hidden = other !== one));
      say(where, `${four ? "Four" : "Run"} ${at() + 1} of ${rounds().length}`);
      const answered = given().length;
      say(score, answered === 0 ? "Nothing answered yet." : `${right().length} of ${answered} right.`);
      single.hidden = four;
      quad.hidden = !four;
      if (four) {
        const ids = fours[at()];
        const text = open
          ? `Consistent with: ${ids.map((id, i) => `${LETTERS[i]} (${find(id).world}) ${title(find(id).verdict)}`).join(", ")}`
          : `Four runs, of different worlds. Look where argmax and chosen go, then choose, or press ${ui.key()}.`;
        finding(open ? `${text}.` : text);
        ids.forEach((id, i) =>
          draw(small[i], find(id), ["chosen", "argmax", "rejected"],
            `${LETTERS[i]}${open ? `: ${title(find(id).verdict)} (${find(id).world})` : ""}`, text));
        [tellWorld, tellWhere, tellDoubt, tellShare].forEach((tell_) => tell_(""));
        return;
      }
      const run = runs[at()];
      const text = open
        ? `${verdict(run)[0].toUpperCase()}${verdict(run).slice(1)}. ${run.reason}`
        : `${run.examples} examples, ${run.updates.length} evaluations, stage ${run.stage}. Choose, or press ${ui.key()}.`;
      finding(text);
      draw(big, run, ["chosen", "argmax", "rejected"], "Changes of log-probabilities", text);
      if (run.curves.gap) draw(low, run, ["gap"], "Change of G = argmax − chosen", text);
      low.box.hidden = !run.curves.gap;
      tellWorld(open ? about(run) : "");
      tellWhere(open ? run.where : "");
      tellDoubt(open ? run.doubt : "");
      tellShare(open ? shares(run.share) : "");
    };
  },
});

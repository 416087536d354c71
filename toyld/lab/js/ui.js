// Controls: sliders, choices, buttons, predict-then-reveal, the finding in words. All are reached by keyboard.
const ui = (() => {
  const QUIET = 700; // milliseconds for which a finding stands still before it is read out
  let made = 0;
  let scope = []; // what refreshes the controls of the panel that is being mounted
  const fresh = (name) => `${name}-${(made += 1)}`;

  /** Run `mount` and return what it returned with a function that refreshes all controls made in it. */
  const collect = (mount) => {
    const outer = scope;
    scope = [];
    const mine = scope;
    const result = mount();
    scope = outer;
    return { result, refresh: () => mine.forEach((one) => one()) };
  };

  const always = (f) => {
    scope.push(f);
    f();
  };

  const bound = ({ key, fallback, value, after }, changed) => ({
    now: key ? () => store.get(key, fallback) : value,
    give: key ? (x) => (store.set(key, x), after?.(x)) : changed,
  });

  const slider = (given) => {
    const { label, min, step = 1, log = false, format = log ? brief : fmt, title } = given;
    const most = () => (typeof given.max === "function" ? given.max() : given.max);
    const { now, give } = bound(given, given.oninput);
    const [id, TRACK] = [fresh("slider"), 1000];
    const place = log ? (x) => TRACK * (Math.log(x / min) / Math.log(most() / min)) : (x) => x;
    const at = log ? (p) => Number((min * (most() / min) ** (p / TRACK)).toPrecision(2)) : (p) => p;
    const input = el("input", {
      type: "range", id, title, min: log ? 0 : min, max: log ? TRACK : most(), step: log ? TRACK / 100 : step,
      on: { input: () => give(clamp(at(Number(input.value)), min, most())) },
    });
    const shown = el("output", { for: id });
    always(() => {
      const x = clamp(now(), min, most());
      const text = format(x);
      if (!log) put(input, { max: most() });
      // Values of a log scale are rounded: the thumb stays where it was put, or small steps would be taken back.
      if (at(Number(input.value)) !== x) input.value = place(x);
      put(input, { "aria-valuetext": text });
      say(shown, text);
    });
    return el("div", { class: "slider" }, el("label", { for: id, text: label, title }), input, shown);
  };

  const choice = (given) => {
    const { label, options } = given;
    const { now, give } = bound(given, given.onchange);
    const name = fresh("choice");
    const inputs = options.map(({ value }) =>
      el("input", { type: "radio", name, value, on: { change: () => give(value) } }),
    );
    always(() => {
      inputs.forEach((input, i) => (input.checked = options[i].value === now()));
    });
    const items = options.map((option, i) =>
      el("label", { title: option.title }, inputs[i], el("span", { text: option.label })),
    );
    return el("fieldset", { class: "choice" }, el("legend", { text: label }), el("div", {}, ...items));
  };

  const button = ({ label, onclick, title }) => el("button", { type: "button", text: label, title, on: { click: onclick } });

  const note = (text) => el("p", { class: "note", text });

  let asked = []; // the predictions of the panel that is shown
  /** Ask before showing. open() tells whether something was guessed, or shown without a guess. */
  const predict = ({ key, question, options, answer, explain }) => {
    const text = (f) => (typeof f === "function" ? f() : f);
    const list = () => text(options);
    const guess = () => store.get(key, "");
    const open = () => guess() !== "";
    const label = (value) => list().find((option) => option.value === value)?.label ?? "";
    const choose = (value) => store.set({ [key]: value, [`${key}.truth`]: answer() });
    const ask = el("p", { id: fresh("ask") });
    const told = el("p", { class: "told", role: "status" });
    const row = el("div", { class: "row" });
    const toggle = button({ label: "", onclick: () => (open() ? hide() : show()) });
    const show = () => store.set(key, "shown");
    const hide = () => store.set({ [key]: null, [`${key}.truth`]: null });
    let drawn = "";
    const draw = () => {
      const names = JSON.stringify(list());
      if (names === drawn) return;
      drawn = names;
      row.replaceChildren(
        ...list().map((option) =>
          el("button", { type: "button", text: option.label, on: { click: () => open() || choose(option.value) } }),
        ),
      );
    };
    always(() => {
      say(ask, text(question));
      draw();
      [...row.children].forEach((item, i) =>
        put(item, { "aria-pressed": list()[i].value === guess(), "aria-disabled": open() }),
      );
      say(toggle, open() ? "Hide" : "Show");
      if (!open()) return say(told, "Choose, then it is shown.");
      const truth = store.get(`${key}.truth`, "");
      const judged = () => (guess() === truth ? `You said “${label(truth)}”: right.` : `You said “${label(guess())}”; it was “${label(truth)}”.`);
      // A guess that is none of the options, or judged by none of them, comes from a broken address.
      const verdict = label(guess()) && label(truth) ? judged() : "Shown without a guess.";
      return say(told, explain ? `${verdict} ${explain()}` : verdict);
    });
    const element = el("div", { class: "predict", role: "group", "aria-labelledby": ask.id }, ask, row,
      el("div", { class: "row told-row" }, toggle, told));
    asked.push({ element, flip: () => (open() ? hide() : show()) });
    return { element, open };
  };

  /** The key R can be switched off, for those whose speech or hands type by chance. */
  const keyed = () => store.get("key", "on") !== "off";
  /** What to press in order to see what one has not guessed. */
  const key = () => (keyed() ? "R" : "Show");

  /** What the key R does: show, or hide, the first prediction that can be seen. */
  const reveal = () => asked.find(({ element }) => element.offsetParent)?.flip();

  /** Two columns, below one another on narrow screens, and the sentence that follows the state. */
  const layout = (root) => {
    const controls = el("div", { class: "controls" });
    const stage = el("div", { class: "stage" });
    const seen = el("p", { class: "finding" });
    const heard = el("p", { class: "unseen", role: "status" });
    let timer = 0;
    const finding = (text) => {
      if (seen.textContent === text) return;
      seen.textContent = text;
      clearTimeout(timer);
      timer = setTimeout(() => say(heard, text), QUIET);
    };
    root.append(controls, stage);
    const foot = el("div", { class: "foot" }, seen, heard);
    root.append(foot);
    return { controls, stage, finding };
  };

  return { button, choice, collect, el, key, keyed, layout, note, predict, reveal, slider };
})();

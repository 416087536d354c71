// Logits as bars that are dragged, or moved by keyboard: one stop of Tab, ← → from class to class, ↑ ↓ for the value.
const dragLogits = (parent, { range, logits, label, move, choose }) => {
  const at = plot.frame(parent, { label: "Logits z: drag, or arrow keys", x: "class", height: 190 });
  const bars = plot.pool(at.body, "svg:rect", {});
  const handles = plot.pool(at.body, "svg:g", { role: "slider", class: "handle", "aria-orientation": "vertical" });
  const zero = el("svg:line", { class: "zero" });
  at.body.prepend(zero);
  put(at.svg, { role: "group", class: "plot draggable" });
  const [FINE, COARSE] = [0.1, 1];
  let active = 0; // the class that Tab reaches
  let held = null; // the class under the pointer that is down
  let items = [];
  let drawn = []; // the logits as they were drawn last

  const slot = () => (at.right - at.left) / drawn.length;
  const xAt = (i) => at.left + slot() * (i + 0.5);
  const yAt = (x) => at.bottom - ((x + range) / (2 * range)) * (at.bottom - at.top);
  const place = (event) => {
    const box = at.svg.getBoundingClientRect();
    return {
      i: clamp(Math.floor(((event.clientX - box.left) / at.unit - at.left) / slot()), 0, drawn.length - 1),
      value: ((at.bottom - (event.clientY - box.top) / at.unit) / (at.bottom - at.top)) * 2 * range - range,
    };
  };

  at.svg.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    const { i, value } = place(event);
    held = i;
    active = i;
    at.svg.setPointerCapture(event.pointerId);
    items[i].focus({ preventScroll: true });
    event.preventDefault();
    move(i, value);
  });
  at.svg.addEventListener("pointermove", (event) => {
    if (held !== null) move(held, place(event).value);
  });
  ["pointerup", "pointercancel"].forEach((name) => at.svg.addEventListener(name, () => (held = null)));

  at.svg.addEventListener("keydown", (event) => {
    const i = items.indexOf(event.target);
    if (i < 0) return;
    const z = logits();
    const steps = { ArrowUp: FINE, ArrowDown: -FINE, PageUp: COARSE, PageDown: -COARSE };
    const ends = { Home: -range, End: range };
    const next = { ArrowLeft: i - 1, ArrowRight: i + 1 }[event.key];
    if (next !== undefined) {
      active = clamp(next, 0, z.length - 1);
      items.forEach((item, k) => put(item, { tabindex: k === active ? 0 : -1 }));
      items[active].focus();
    } else if (event.key in steps) move(i, z[i] + steps[event.key]);
    else if (event.key in ends) move(i, ends[event.key]);
    else if (event.key === "Enter" || event.key === " ") choose(i);
    else return;
    event.preventDefault();
  });

  const plain = at.drawn(() => {
    const z = logits();
    drawn = z;
    const y = label();
    active = Math.min(active, z.length - 1);
    const every = Math.max(1, Math.ceil(z.length / ((at.right - at.left) / 30)));
    at.axes({
      xAt, yAt,
      xTicks: z.flatMap((_, i) => (i % every === 0 ? [[i, String(i)]] : [])),
      yTicks: [-range, 0, range].map((x) => [x, fmt(x, 0)]),
      numbers: () => [["class", "logit"], ...z.map((x, i) => [String(i), fmt(x)])],
    });
    put(zero, { x1: at.left, x2: at.right, y1: yAt(0), y2: yAt(0) });
    const wide = Math.max(1, slot() * 0.6);
    bars(z.length).forEach((rect, i) =>
      put(rect, {
        x: (xAt(i) - wide / 2).toFixed(1), width: wide.toFixed(1), class: `bar ${i === y ? "red" : "soft"}`,
        y: Math.min(yAt(z[i]), yAt(0)).toFixed(1), height: Math.abs(yAt(z[i]) - yAt(0)).toFixed(1),
      }),
    );
    const r = clamp(slot() * 0.42, 3, 9);
    items = handles(z.length);
    items.forEach((handle, i) => {
      if (!handle.firstChild) handle.append(el("svg:circle", {}));
      put(handle.firstChild, { cx: xAt(i).toFixed(1), cy: yAt(z[i]).toFixed(1), r });
      put(handle, {
        tabindex: i === active ? 0 : -1, "aria-valuemin": -range, "aria-valuemax": range, "aria-valuenow": z[i],
        "aria-valuetext": fmt(z[i]), "aria-label": `Logit of class ${i}${i === y ? ", which is pushed" : ""}`,
      });
    });
  });
  return { update: () => plain.update({}) };
};

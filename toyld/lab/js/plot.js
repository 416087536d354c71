// Plots as SVG, drawn in the pixels there are: lines, signed bars, and probabilities before and after.
const plot = (() => {
  const EDGE = { top: 26, right: 14, bottom: 40, left: 56 };
  const TYPE = 18; // pixels of the page's type at which a plot's units are pixels
  const NAME = 16; // units of a title's type, as the style has it
  const LINE = 17; // pixels from one line of text to the next
  const DASHES = { solid: [], dash: [9, 5], dot: [2, 5], dashdot: [10, 4, 2, 4] };
  const SHAPES = {
    circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    triangle: (x, y, r) => `M${x},${y - r}l${r},${2 * r}h${-2 * r}Z`,
    down: (x, y, r) => `M${x},${y + r}l${r},${-2 * r}h${-2 * r}Z`,
    diamond: (x, y, r) => `M${x},${y - r}l${r},${r}l${-r},${r}l${-r},${-r}Z`,
  };

  /** Round places on an axis, about `count` of them. */
  const ticks = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 5, 10].find((unit) => unit * power >= rough) * power;
    const first = Math.ceil(low / size - 1e-9);
    const last = Math.floor(high / size + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * size).toPrecision(12)));
  };

  const decimals = (values) => Math.max(0, ...values.map((x) => (String(x).split(".")[1] ?? "").length));

  /** As many SVG elements of a kind as asked for, made once and used again, in a layer of their own. */
  const pool = (parent, tag, given = {}) => {
    const all = [];
    const layer = parent.appendChild(el("svg:g"));
    return (count) => {
      while (all.length < count) {
        all.push(el(tag, given));
        layer.append(all[all.length - 1]);
      }
      all.forEach((one, i) => put(one, { display: i < count ? "inline" : "none" }));
      return all.slice(0, count);
    };
  };

  /** The frame that all plots share: size, title, axes, and the numbers as a table. */
  const frame = (parent, { label, x = "", y = "", height = 300 }) => {
    const svg = el("svg:svg", { role: "img", class: "plot" });
    const name = el("svg:text", { class: "name", x: 0, y: 15 });
    const grid = el("svg:g", { class: "grid" });
    const body = el("svg:g", {});
    const xName = el("svg:text", { class: "axis", "text-anchor": "end", text: x });
    const yName = el("svg:text", { class: "axis", text: y });
    svg.append(grid, body, name, xName, yName);
    const rows = el("table", {});
    const table = el("details", { class: "numbers" }, el("summary", { text: "Numbers" }), rows);
    const box = el("div", { class: "plot-box" }, svg, table);
    parent.append(box);
    const rules = pool(grid, "svg:line", { class: "rule" });
    const yTexts = pool(grid, "svg:text", { class: "tick", "text-anchor": "end" });
    const xTexts = pool(grid, "svg:text", { class: "tick", "text-anchor": "middle" });
    let width = 0; // of the room, in the units that a plot is drawn in: pixels, larger ones where the type is larger
    let unit = 1;
    let last = null;
    let fill = () => [];
    const write = () => {
      if (!table.open) return;
      const [head, ...lines] = fill();
      rows.replaceChildren(
        el("tr", {}, ...head.map((text) => el("th", { scope: "col", text }))),
        ...lines.map((line) => el("tr", {}, ...line.map((text) => el("td", { text })))),
      );
    };
    table.addEventListener("toggle", write);

    let told = "";
    const head = (text) => {
      if (told === (told = `${width} ${text}`)) return;
      say(name, text);
      name.style.fontSize = "";
      if (0.7 * NAME * text.length < width) return; // short for sure: measuring makes the browser lay the page out
      const long = name.getComputedTextLength();
      if (long > width) name.style.fontSize = `${(NAME * width) / long}px`;
    };

    const at = {
      svg,
      body,
      get width() {
        return width;
      },
      get unit() {
        return unit;
      },
      get height() {
        return height;
      },
      get left() {
        return EDGE.left;
      },
      get right() {
        return width - EDGE.right;
      },
      get top() {
        return EDGE.top;
      },
      get bottom() {
        return height - EDGE.bottom;
      },
      /** Axes: place ↦ pixels, with the ticks drawn. Each tick is [place, text]. */
      axes({ title, finding, xTicks, yTicks, xAt, yAt, numbers }) {
        head(title ?? label);
        put(svg, { "aria-label": `${title ?? label}. ${finding ?? ""}` });
        put(xName, { x: at.right, y: height - 4 });
        put(yName, { x: 0, y: at.top + 8 });
        yTexts(yTicks.length).forEach((text, i) => {
          put(text, { x: at.left - 6, y: yAt(yTicks[i][0]) + 5 });
          say(text, yTicks[i][1]);
        });
        rules(yTicks.length).forEach((rule, i) => {
          const height = yAt(yTicks[i][0]);
          put(rule, { x1: at.left, x2: at.right, y1: height, y2: height });
        });
        xTexts(xTicks.length).forEach((text, i) => {
          put(text, { x: xAt(xTicks[i][0]), y: at.bottom + LINE });
          say(text, xTicks[i][1]);
        });
        fill = numbers;
        write();
      },
      /** `draw` again whenever the room changes. */
      drawn(draw) {
        const update = (given) => {
          last = given ?? last;
          if (last === null || !box.isConnected) return;
          if (width === 0) measure();
          if (width > 0) draw(last);
        };
        const measure = () => {
          const root = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
          const each = Math.max(1, root / TYPE);
          const wide = Math.floor(box.clientWidth / each);
          if (wide === width && each === unit) return false;
          [width, unit] = [wide, each];
          put(svg, { width: width * unit, height: height * unit, viewBox: [0, 0, width, height].join(" ") });
          return true;
        };
        new ResizeObserver(() => measure() && update()).observe(box);
        return { update, box, svg };
      },
    };
    return at;
  };

  /** Labels at one x that do not lie on one another: heights, moved apart. */
  const apart = (heights, low, high) => {
    const order = heights.map((_, i) => i).sort((a, b) => heights[a] - heights[b]);
    const out = [...heights];
    order.forEach((i, n) => (out[i] = Math.max(out[i], n > 0 ? out[order[n - 1]] + LINE : low)));
    [...order].reverse().forEach((i, n, all) => (out[i] = Math.min(out[i], n > 0 ? out[all[n - 1]] - LINE : high)));
    return out;
  };

  let clips = 0;
  const lines = (parent, given) => {
    const at = frame(parent, given);
    const clip = `clip-${(clips += 1)}`;
    const window_ = el("svg:rect", {});
    at.svg.prepend(el("svg:clipPath", { id: clip }, window_));
    const inside = el("svg:g", { "clip-path": `url(#${clip})` });
    at.body.append(inside);
    const bands = pool(inside, "svg:path", {});
    const strokes = pool(inside, "svg:path", { fill: "none", "stroke-width": 2.5 });
    const spots = pool(inside, "svg:path", {});
    const rules = pool(at.body, "svg:line", {});
    const texts = pool(at.body, "svg:text", { class: "mark" });
    const ends = pool(at.body, "svg:text", { class: "end" });
    const space = given.space ?? 96; // pixels for the labels at the right
    const cell = ({ ys, low, high }, i) => {
      if (ys[i] === undefined) return "";
      return low ? `${fmt(ys[i], 3)} [${fmt(low[i], 3)}, ${fmt(high[i], 3)}]` : fmt(ys[i], 3);
    };

    return at.drawn(({ title, finding, xs, series, marks = [], xlim, ylim, xTicks, xText }) => {
      const right = at.right - space;
      const all = series.flatMap(({ ys, low = [], high = [] }) => [...ys, ...low, ...high]).filter(Number.isFinite);
      const [x0, x1] = xlim ?? [Math.min(...xs), Math.max(...xs)];
      const [y0, y1] = ylim ?? [Math.min(...all), Math.max(...all)];
      const xAt = (x) => at.left + ((x - x0) / (x1 - x0 || 1)) * (right - at.left);
      const yAt = (y) => at.bottom - ((y - y0) / (y1 - y0 || 1)) * (at.bottom - at.top - LINE);
      const xPlaces = ticks(x0, x1, clamp((right - at.left) / 70, 2, 8));
      const yPlaces = ticks(y0, y1, clamp((at.bottom - at.top) / 45, 2, 8));
      const [xd, yd] = [decimals(xPlaces), decimals(yPlaces)];
      at.axes({
        title, finding, xAt, yAt,
        xTicks: xTicks ?? xPlaces.map((x) => [x, fmt(x, xd)]),
        yTicks: yPlaces.map((y) => [y, fmt(y, yd)]),
        numbers: () => [
          [given.x, ...series.map(({ name }) => name)],
          ...xs.map((x, i) => [xText?.(x) ?? fmt(x, xd), ...series.map((one) => cell(one, i))]),
        ],
      });
      put(window_, { x: at.left - 2, y: at.top + LINE - 6, width: right - at.left + 10, height: at.bottom - at.top - LINE + 8 });
      const every = Math.max(1, Math.round(xs.length / 8));
      const banded = series.filter(({ low }) => low);
      bands(banded.length).forEach((path, i) => {
        const { low, high, style } = banded[i];
        const edge = (ys) => ys.map((y, n) => `${xAt(xs[n]).toFixed(1)},${yAt(y).toFixed(1)}`);
        put(path, { d: `M${[...edge(low), ...edge(high).reverse()].join("L")}Z`, class: `band ${style}` });
      });
      strokes(series.length).forEach((path, i) => {
        const { ys, style, dash = "solid" } = series[i];
        const places = ys.map((y, n) => (Number.isFinite(y) ? `${xAt(xs[n]).toFixed(1)},${yAt(y).toFixed(1)}` : ""));
        const d = places.filter(Boolean).join("L");
        put(path, { d: d ? `M${d}` : "M0,0", class: `line ${style}`, "stroke-dasharray": DASHES[dash].join(" ") || "none" });
      });
      spots(series.length).forEach((path, i) => {
        const { ys, style, mark = "circle" } = series[i];
        const chosen = ys.map((y, n) => [xs[n], y, n]).filter(([, y, n]) => y >= y0 && y <= y1 + 1e-9 && (n % every === 0 || n === ys.length - 1));
        put(path, { d: chosen.map(([x, y]) => SHAPES[mark](xAt(x), yAt(y), 4.5)).join("") || "M0,0", class: `spot ${style}` });
      });
      rules(marks.length).forEach((rule, i) => {
        const { x, y } = marks[i];
        const put_ = x === undefined
          ? { x1: at.left, x2: right, y1: yAt(y), y2: yAt(y) }
          : { x1: xAt(x), x2: xAt(x), y1: at.top + LINE, y2: at.bottom };
        put(rule, { ...put_, class: "markline" });
      });
      texts(marks.length).forEach((text, i) => {
        const { x, y } = marks[i];
        put(text, x === undefined ? { x: at.left + 6, y: yAt(y) - 5 } : { x: xAt(x) + 5, y: at.top + LINE + 10 });
        say(text, marks[i].text ?? "");
      });
      const last = series.map(({ ys }) => ys.filter(Number.isFinite).at(-1) ?? y0);
      const heights = apart(last.map((y) => clamp(yAt(y), at.top + LINE, at.bottom) + 5), at.top + LINE, at.bottom + 4);
      const until = xAt(xs[Math.max(1, ...series.map(({ ys }) => ys.length)) - 1]);
      ends(series.length).forEach((text, i) => {
        put(text, { x: until + 12, y: heights[i], class: `end ${series[i].style}` });
        say(text, last[i] < y0 ? `↓ ${series[i].name} ${fmt(last[i], 1)}` : series[i].name);
      });
    });
  };

  /** Signed bars, a group of them at each name. */
  const bars = (parent, given) => {
    const at = frame(parent, given);
    const rects = pool(at.body, "svg:rect", {});
    const zero = el("svg:line", { class: "zero" });
    const rules = pool(at.body, "svg:line", { class: "markline" });
    const texts = pool(at.body, "svg:text", { class: "mark" });
    at.body.append(zero);

    return at.drawn(({ title, finding, names, series, marks = [], ylim }) => {
      const all = [0, ...series.flatMap(({ values }) => values).filter(Number.isFinite), ...marks.map(({ y }) => y)];
      const [y0, y1] = ylim ?? [Math.min(...all), Math.max(...all)];
      const slot = (at.right - at.left) / names.length;
      const xAt = (i) => at.left + slot * (i + 0.5);
      const yAt = (y) => at.bottom - ((y - y0) / (y1 - y0 || 1)) * (at.bottom - at.top - LINE);
      const places = ticks(y0, y1 === y0 ? y0 + 1 : y1, clamp((at.bottom - at.top) / 45, 2, 8));
      const digits = decimals(places);
      at.axes({
        title, finding, xAt, yAt,
        xTicks: names.map((name, i) => [i, name]),
        yTicks: places.map((y) => [y, fmt(y, digits)]),
        numbers: () => [
          [given.x ?? "", ...series.map(({ name }) => name)],
          ...names.map((name, i) => [name, ...series.map(({ values }) => fmt(values[i], 3))]),
        ],
      });
      put(zero, { x1: at.left, x2: at.right, y1: yAt(0), y2: yAt(0) });
      const wide = (slot * 0.8) / series.length;
      rects(names.length * series.length).forEach((rect, n) => {
        const [i, k] = [Math.floor(n / series.length), n % series.length];
        const value = clamp(series[k].values[i] || 0, y0, y1);
        put(rect, {
          x: xAt(i) - slot * 0.4 + wide * k, width: Math.max(1, wide - 1), class: `bar ${series[k].style}`,
          y: Math.min(yAt(value), yAt(0)), height: Math.abs(yAt(value) - yAt(0)),
        });
      });
      rules(marks.length).forEach((rule, i) =>
        put(rule, { x1: at.left, x2: at.right, y1: yAt(marks[i].y), y2: yAt(marks[i].y) }),
      );
      texts(marks.length).forEach((text, i) => {
        put(text, { x: at.left + 6, y: yAt(marks[i].y) - 5 });
        say(text, marks[i].text ?? "");
      });
    });
  };

  /** Probabilities before (wide pale bars) and after (narrow bars with ▲ where a class gained, ▼ where it lost). */
  const change = (parent, given) => {
    const at = frame(parent, { y: "π", ...given });
    // One outline for all bars of a kind: fifty elements each would take a browser longer than all of the arithmetic.
    const wide = pool(at.body, "svg:path", { class: "before" });
    const narrow = pool(at.body, "svg:path", {});
    const tips = pool(at.body, "svg:path", {});
    const tags = pool(at.body, "svg:text", { class: "tag", "text-anchor": "middle" });
    const rule = el("svg:line", { class: "markline" });
    const words = el("svg:text", { class: "mark", "text-anchor": "end" });
    at.body.append(rule, words);
    const FLOOR = 1e-6;
    const [GAINED, LOST, STAYED] = [["blue", "triangle"], ["red", "down"], ["soft", "square"]];

    return at.drawn(({ title, finding, before, after, moves, names = {}, mark, log = false }) => {
      const every = Math.max(1, Math.ceil(before.length / ((at.right - at.left) / 30)));
      const top = log ? 1 : Math.min(1, 1.02 * Math.max(...before, ...(after ?? []), 0.02));
      const slot = (at.right - at.left) / before.length;
      const xAt = (i) => at.left + slot * (i + 0.5);
      const HEAD = 32; // above the tallest bar: ▲ and the name of its class
      const share = log ? (p) => Math.log(Math.max(p, FLOOR) / FLOOR) / -Math.log(FLOOR) : (p) => p / top;
      const yAt = (p) => at.bottom - share(p) * (at.bottom - at.top - HEAD);
      const places = log ? [0, 1, 2, 3].map((n) => FLOOR ** (n / 3)) : ticks(0, top, clamp((at.bottom - at.top) / 45, 2, 6));
      const digits = log ? 0 : decimals(places);
      const kind = (i) => (moves[i] > 0 ? GAINED : moves[i] < 0 ? LOST : STAYED);
      at.axes({
        title, finding, xAt, yAt,
        xTicks: before.flatMap((_, i) => (i % every === 0 ? [[i, String(i)]] : [])),
        yTicks: places.map((p) => [p, p > 0 && p < 1 && log ? `${TEN}${raised(Math.round(Math.log10(p)))}` : fmt(p, digits)]),
        numbers: () => [
          ["class", "before", ...(after ? ["after", "change of log π"] : [])],
          ...before.map((p, i) => [
            names[i] ? `${i} (${names[i]})` : String(i), fmt(p, 4), ...(after ? [fmt(after[i], 4), signed(moves[i], 4)] : []),
          ]),
        ],
      });
      const bar = Math.max(1, slot * 0.78);
      const outline = (i, p, across) =>
        `M${(xAt(i) - across / 2).toFixed(1)},${at.bottom}V${yAt(p).toFixed(1)}h${across.toFixed(1)}V${at.bottom}Z`;
      wide(1).forEach((path) => put(path, { d: before.map((p, i) => outline(i, p, bar)).join("") }));
      const thin = Math.max(1, slot * 0.34);
      const shown = after ?? [];
      const r = clamp(slot * 0.28, 2.5, 6);
      const tip = (i, shape) => {
        const height = Math.min(yAt(shown[i]), yAt(before[i])) - r - 3;
        return SHAPES[shape](Number(xAt(i).toFixed(1)), Number(height.toFixed(1)), r);
      };
      const kinds = [GAINED, LOST, STAYED].map((one) => [one, [...shown.keys()].filter((i) => kind(i) === one)]);
      const there = kinds.filter(([, all]) => all.length > 0);
      narrow(there.length).forEach((path, n) => {
        const [[style], all] = there[n];
        put(path, { d: all.map((i) => outline(i, shown[i], thin)).join(""), class: `bar ${style}` });
      });
      tips(there.length).forEach((path, n) => {
        const [[style, shape], all] = there[n];
        put(path, { d: all.map((i) => tip(i, shape)).join(""), class: `spot ${style}` });
      });
      const named = Object.keys(names).map(Number);
      tags(named.length).forEach((tag, n) => {
        const i = named[n];
        const height = Math.min(yAt(before[i]), after ? yAt(after[i]) : Infinity) - (after ? 2 * r + 6 : 5);
        put(tag, { x: xAt(i), y: Math.max(height, at.top + 6) });
        say(tag, names[i]);
      });
      put(rule, { display: mark ? "inline" : "none" });
      put(words, { display: mark ? "inline" : "none" });
      if (mark) {
        const height = yAt(clamp(mark.y, 0, top));
        put(rule, { x1: at.left, x2: at.right, y1: height, y2: height });
        put(words, { x: at.right, y: height - 5 });
        say(words, mark.text);
      }
    });
  };

  return { EDGE, bars, change, frame, lines, pool, ticks };
})();

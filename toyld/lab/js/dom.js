// Elements and numbers as people read them.
const SVG_SPACE = "http://www.w3.org/2000/svg"; // a name, not a place that is fetched

/** An element: el("p", { class: "x", on: { click: f }, text: "…" }, ...children). Attributes that are false or null are left out. */
const el = (tag, given = {}, ...children) => {
  const made = tag.startsWith("svg:")
    ? document.createElementNS(SVG_SPACE, tag.slice("svg:".length))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") Object.entries(value).forEach(([event, f]) => made.addEventListener(event, f));
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

const known = new WeakMap(); // element → what was put there, so that the page need not be asked

/** Set attributes that differ from what was put there last: a drag touches hundreds of them. */
const put = (element, attributes) => {
  if (!known.has(element)) known.set(element, {});
  const there = known.get(element);
  for (const name in attributes) {
    const value = attributes[name];
    if (there[name] === value) continue;
    there[name] = value;
    element.setAttribute(name, value);
  }
};

const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

const raised = (n) => [...String(n)].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)] ?? "⁻").join("");

/** A number for people: a true minus sign, and a power of ten where the given decimals would show nothing. */
const TEN = 10;
const fmt = (x, digits = 2) => {
  if (Number.isNaN(x)) return "not known";
  const sign = x < 0 ? "−" : "";
  const size = Math.abs(x);
  if (size === Infinity) return `${sign}∞`;
  if (size > 0 && size < 0.5 * 10 ** -digits) {
    const power = Math.floor(Math.log10(size));
    return `${sign}${(size / TEN ** power).toFixed(1)}·${TEN}${raised(power)}`;
  }
  return size >= 1e5 ? `${sign}${size.toPrecision(3)}` : `${sign}${size.toFixed(digits)}`;
};

/** Two digits that count, as the sliders of log scales give them. */
const brief = (x) => fmt(x, clamp(1 - Math.floor(Math.log10(x)), 0, 4));

/** A change, always with its sign. */
const signed = (x, digits = 2) => (x > 0 ? `+${fmt(x, digits)}` : fmt(x, digits));

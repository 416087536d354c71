// The state of the page: names and values, mirrored in the address behind #, so that a link is a state.
const store = (() => {
  const WAIT = 200; // milliseconds without a change before the address is written
  let state = new Map();
  let timer = 0;
  let listener = () => {};

  const read = (hash) =>
    new Map(
      hash
        .replace(/^#/, "")
        .split("&")
        .filter((part) => part.includes("="))
        .map((part) => {
          const at = part.indexOf("=");
          const plain = (text) => {
            try {
              return decodeURIComponent(text);
            } catch {
              return "";
            }
          };
          return [plain(part.slice(0, at)), plain(part.slice(at + 1))];
        }),
    );

  const text = (value) => {
    if (typeof value === "boolean") return value ? "yes" : "no";
    return Array.isArray(value) ? value.map(text).join(",") : String(value);
  };

  // Half of a pair of surrogates has no place in an address.
  const encoded = (part) => encodeURIComponent(part.replace(/\p{Surrogate}/gu, "\ufffd")).replaceAll("%2C", ",");
  const hash = () => [...state].map((pair) => pair.map(encoded).join("=")).join("&");

  const write = () => {
    clearTimeout(timer);
    timer = 0;
    history.replaceState(null, "", `#${hash()}`);
  };

  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(write, WAIT);
    listener();
  };

  const numbers = (parts, fallback) => {
    const found = parts.map((part) => (part.trim() === "" ? NaN : Number(part)));
    return found.every(Number.isFinite) ? found : fallback;
  };

  const lists = new Map(); // lists as they were read: a drag asks for them many times
  const list = (key, value, fallback) => {
    if (lists.get(key)?.value !== value) lists.set(key, { value, found: numbers(value.split(","), null) });
    return lists.get(key).found ?? fallback;
  };

  const get = (key, fallback) => {
    const value = state.get(key);
    if (value === undefined) return fallback;
    if (typeof fallback === "number") return numbers([value], [fallback])[0];
    if (typeof fallback === "boolean") return value === "yes" || (value === "no" ? false : fallback);
    return Array.isArray(fallback) ? list(key, value, fallback) : value;
  };

  /** set(key, value) or set({ key: value, … }); null forgets a key. */
  const set = (given, value) => {
    const entries = typeof given === "string" ? [[given, value]] : Object.entries(given);
    entries.forEach(([key, one]) => (one === null ? state.delete(key) : state.set(key, text(one))));
    changed();
  };

  const clear = (prefix) => {
    state = new Map([...state].filter(([key]) => !key.startsWith(prefix)));
    changed();
  };

  const json = () => JSON.stringify(Object.fromEntries(state), null, 1);

  /** Take the state from JSON or from an address; what is neither is refused with a sentence. */
  const load = (given) => {
    const copy = given.trim();
    let found = null;
    const expected = "Expected a link to this page, or a state as JSON: a brace, names and values.";
    if (copy.includes("#") && !/^[{[]/.test(copy)) {
      found = read(copy.slice(copy.indexOf("#")));
      if (found.size === 0 && !copy.endsWith("#")) return expected;
    } else {
      let value = null;
      try {
        value = JSON.parse(copy);
      } catch {
        return expected;
      }
      if (value === null || typeof value !== "object" || Array.isArray(value)) return "Expected names and values in braces.";
      found = new Map(Object.entries(value).map(([key, one]) => [key, text(one)]));
    }
    state = found;
    changed();
    return "";
  };

  const start = (heard) => {
    listener = heard;
    state = read(location.hash);
    addEventListener("hashchange", () => {
      state = read(location.hash);
      listener();
    });
    addEventListener("pagehide", () => timer && write());
  };

  return { clear, get, hash, json, load, set, start };
})();

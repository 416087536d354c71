// Run golden cases against pieces of arithmetic: () => (api, cases) => what differs, a line each.
() => {
  const number = (x) => (typeof x === "string" ? Number(x) : x);
  const revive = (x) =>
    Array.isArray(x) ? x.map(revive)
    : x !== null && typeof x === "object" ? Object.fromEntries(Object.entries(x).map(([k, v]) => [k, revive(v)]))
    : ["NaN", "Infinity", "-Infinity"].includes(x) ? Number(x)
    : x;
  // One tolerance, or one at every place.
  const at = (tolerance, key) => (tolerance !== null && typeof tolerance === "object" ? tolerance[key] : tolerance);
  const differs = (got, want, rtol, atol, path) => {
    if (want !== null && typeof want === "object") {
      if (got === null || typeof got !== "object") return `${path}: got ${got}`;
      const sizes = Array.isArray(want) && got.length !== want.length;
      if (sizes) return `${path}: ${got.length} entries, want ${want.length}`;
      for (const key of Object.keys(want)) {
        const found = differs(got[key], want[key], rtol, at(atol, key), `${path}.${key}`);
        if (found) return found;
      }
      return "";
    }
    if (typeof want !== "number" && Number.isNaN(Number(want))) return Object.is(got, want) || want === "NaN" && Number.isNaN(got) ? "" : `${path}: got ${got}, want ${want}`;
    if (typeof want === "boolean") return got === want ? "" : `${path}: got ${got}, want ${want}`;
    const [g, w] = [got, number(want)];
    if (typeof g !== "number") return `${path}: got ${g}, want ${w}`;
    if (Object.is(g, w) || g === w) return "";
    return Math.abs(g - w) <= rtol * Math.abs(w) + number(atol) ? "" : `${path}: got ${g}, want ${w}`;
  };
  window.judge = (api, cases, enough = Infinity) => {
    const found = [];
    for (const { call, args, want, rtol, atol } of cases) {
      let line = "";
      try {
        const [last, ...path] = call.split(".").reverse();
        const owner = path.reverse().reduce((object, name) => object[name], api);
        line = differs(owner[last](...revive(args)), want, rtol, atol, call);
      } catch (error) {
        line = `${call}: ${error}`;
      }
      if (line) found.push(`${line} at ${JSON.stringify(args).slice(0, 200)}`);
      if (found.length >= enough) break;
    }
    return found;
  };
}

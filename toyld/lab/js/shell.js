// The page around the panels: tabs, what a panel shows of itself, the state to copy and to paste, the key R.
const panels = [];

const shell = (() => {
  const mounted = new Map(); // id → what redraws the panel
  const find = (id) => document.getElementById(id);
  const current = () => {
    const id = store.get("panel", panels[0].id);
    return panels.find((panel) => panel.id === id) ?? panels[0];
  };

  const behind = (panel) => {
    const known = (panel.claims ?? []).filter((id) => data.claims?.[id]);
    if (known.length === 0) return null;
    const list = known.map((id) => {
      const { statement, verdict } = data.claims[id];
      return el("li", {}, el("code", { text: id }), ` (${verdict}): ${statement}`);
    });
    return el("details", { class: "claims" }, el("summary", { text: "Claims behind this panel" }), el("ul", {}, ...list));
  };

  const open = (panel) => {
    const section = find(`panel-${panel.id}`);
    const room = el("div", { class: "panel" });
    const found = ui.collect(() => {
      section.append(el("h2", { text: panel.question }), room);
      const update = panel.mount(room, store);
      const claims = behind(panel);
      if (claims) (room.querySelector(".foot") ?? room).append(claims);
      return update;
    });
    mounted.set(panel.id, () => {
      found.refresh();
      found.result();
    });
  };

  const update = () => {
    const shown = current();
    const scheme = store.get("scheme", "auto");
    document.documentElement.style.colorScheme = ["light", "dark"].includes(scheme) ? scheme : "light dark";
    panels.forEach((panel) => {
      const chosen = panel === shown;
      put(find(`tab-${panel.id}`), { "aria-selected": chosen, tabindex: chosen ? 0 : -1 });
      find(`panel-${panel.id}`).hidden = !chosen;
    });
    if (!mounted.has(shown.id)) open(shown);
    mounted.get(shown.id)();
  };

  const tabs = () => {
    const go = (i) => {
      const panel = panels[(i + panels.length) % panels.length];
      store.set("panel", panel.id);
      find(`tab-${panel.id}`).focus();
    };
    const keys = { ArrowRight: 1, ArrowLeft: -1 };
    panels.forEach((panel, i) => {
      const onKey = (event) => {
        const to = { Home: 0, End: panels.length - 1 }[event.key] ?? (keys[event.key] ? i + keys[event.key] : null);
        if (to === null) return;
        event.preventDefault();
        go(to);
      };
      find("tabs").append(
        el("button", {
          type: "button", role: "tab", id: `tab-${panel.id}`, "aria-controls": `panel-${panel.id}`, text: panel.title,
          on: { click: () => go(i), keydown: onKey },
        }),
      );
      find("panels").append(
        el("section", { role: "tabpanel", id: `panel-${panel.id}`, "aria-labelledby": `tab-${panel.id}`, hidden: true }),
      );
    });
  };

  const menu = () => {
    const text = el("textarea", { rows: 7, spellcheck: "false", "aria-label": "State of the page as JSON" });
    const told = el("p", { class: "note", role: "status" });
    const copy = async (what, name) => {
      try {
        await navigator.clipboard.writeText(what);
        say(told, `${name} copied.`);
      } catch {
        text.value = what;
        text.select();
        say(told, "This browser does not let a page copy: the text above is selected, copy it by keyboard.");
      }
    };
    const link = () => `${location.href.split("#")[0]}#${store.hash()}`;
    const use = () => say(told, store.load(text.value) || "Taken over.");
    const schemes = ["auto", "light", "dark"].map((value) => ({ value, label: value }));
    const keys = ["on", "off"].map((value) => ({ value, label: value }));
    const { result, refresh } = ui.collect(() =>
      el("div", { class: "menu" },
        ui.choice({ label: "Colours", key: "scheme", fallback: "auto", options: schemes }),
        ui.choice({ label: "The key R shows or hides what is to be predicted", key: "key", fallback: "on", options: keys }),
        text,
        el("div", { class: "row" },
          ui.button({ label: "Copy link", onclick: () => copy(link(), "Link") }),
          ui.button({ label: "Copy JSON", onclick: () => copy(store.json(), "JSON") }),
          ui.button({ label: "Use this text", onclick: use }),
          ui.button({ label: "Forget all", onclick: () => store.clear("") })),
        told,
        el("p", { class: "note", text: "Everything that you set stands in the address of this page: a link is a state." })));
    const box = find("state");
    box.append(result);
    const fill = () => {
      refresh();
      if (document.activeElement !== text) text.value = store.json();
    };
    box.addEventListener("toggle", fill);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      box.open = false;
      box.querySelector("summary").focus();
    });
    return () => box.open && fill();
  };

  const start = () => {
    tabs();
    const refill = menu();
    store.start(() => {
      update();
      refill();
    });
    addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("textarea, select, input:not([type=range], [type=radio])");
      const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.repeat);
      if (event.key.toLowerCase() === "r" && plain && !typing && ui.keyed()) ui.reveal();
    });
    update();
  };

  return { start };
})();

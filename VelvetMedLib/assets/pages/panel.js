// Everything beside the scan: tabs, sorting, filters, segment switches, the toolbar, keys, and copying with the disclaimer.
(() => {
  "use strict";
  const app = window.velvetmed;
  const page = app.page;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const on = (target, name, action) => target && target.addEventListener(name, action);
  const press = (button, state) => button.setAttribute("aria-pressed", String(state));
  const announce = (text) => {
    const region = byId("announce");
    if (region) region.textContent = text;
  };
  const names = new Map(page.segments.map((segment) => [segment.label, segment]));

  // Tabs
  const tabs = all("[role=tab]");
  const paneOf = (tab) => byId(tab.getAttribute("aria-controls"));
  function openTab(tab, focus = false) {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      paneOf(other).classList.toggle("on", chosen);
    }
    document.querySelector(".panes").scrollTop = 0;
    if (focus) tab.focus();
  }
  tabs.forEach((tab, index) => {
    on(tab, "click", () => openTab(tab));
    on(tab, "keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, Home: -index, End: tabs.length - 1 - index }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      openTab(tabs[(index + move + tabs.length) % tabs.length], true);
    });
  });

  // Going to a place
  const linked = all("[data-link]");
  function choose(element) {
    for (const other of linked) press(other, other === element);
    if (!element) return;
    const place = page.links[Number(element.dataset.link)];
    if (app.viewer) {
      if (byId("stage").dataset.layout === "solid") setLayout("four");
      app.viewer.goTo(place);
    }
    announce(`Crosshair at ${app.Viewer ? app.Viewer.words(place.center_ras_mm) : ""}, ${place.title}`);
  }
  for (const element of linked) {
    on(element, "click", (event) => {
      event.stopPropagation();
      choose(element);
    });
  }
  for (const row of all("tr.linked")) {
    on(row, "click", (event) => {
      if (event.target.closest("button, input, a")) return;
      choose(row.querySelector("[data-link]"));
    });
  }
  function nextPlace(direction) {
    const pane = document.querySelector(".pane.on");
    const shown = all("[data-link]", pane).filter((element) => element.offsetParent !== null);
    if (!shown.length) return;
    const now = shown.findIndex((element) => element.getAttribute("aria-pressed") === "true");
    const target = shown[now < 0 ? (direction > 0 ? 0 : shown.length - 1) : (now + direction + shown.length) % shown.length];
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "nearest" });
    choose(target);
  }
  function letGo() {
    choose(null);
    if (app.viewer) app.viewer.letGo();
  }

  // Sorting: within each table body, so that groups stay together
  function sortTable(table, column, descending) {
    const value = (row) => row.children[column]?.dataset.sort ?? "";
    for (const body of table.tBodies) {
      const rows = all("tr:not(.group-head)", body);
      const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
      rows.sort((a, b) => {
        const empty = (value(a) === "") - (value(b) === "");
        if (empty) return empty;
        const order = numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b));
        return descending ? -order : order;
      });
      body.append(...rows);
    }
    all("thead th", table).forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      on(head.querySelector("button"), "click", () => {
        const now = head.getAttribute("aria-sort");
        // A first click on numbers shows the largest first: that is what one looks for.
        const numbers = head.classList.contains("num") || head.classList.contains("c-probability");
        sortTable(table, column, now ? now === "ascending" : numbers);
      });
    });
  }

  // Filter by state
  let filter = null;
  function setFilter(state) {
    filter = filter === state ? null : state;
    for (const button of all("[data-filter]")) press(button, button.dataset.filter === filter);
    const rows = all("#findings tbody tr");
    for (const row of rows) row.hidden = filter !== null && row.dataset.state !== filter;
    const note = byId("filter-note");
    note.replaceChildren();
    if (filter !== null) {
      const clear = document.createElement("button");
      clear.type = "button";
      clear.textContent = "show all";
      on(clear, "click", () => setFilter(filter));
      note.append(`${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`, clear);
      openTab(byId("tab-findings"));
    }
  }
  for (const button of all("[data-filter]")) on(button, "click", () => setFilter(button.dataset.filter));

  // Segments
  const boxes = all("#segments input[data-label]");
  function showSegments() {
    if (app.viewer) app.viewer.setShown(boxes.filter((box) => box.checked).map((box) => Number(box.dataset.label)));
  }
  for (const box of boxes) on(box, "change", showSegments);
  for (const button of all("[data-show]")) {
    on(button, "click", () => {
      for (const box of boxes) box.checked = button.dataset.show === "all";
      if (app.viewer) app.viewer.letGo();
      choose(null);
      showSegments();
    });
  }
  for (const button of all("[data-only]")) {
    on(button, "click", () => {
      for (const box of boxes) box.checked = box.dataset.label === button.dataset.only;
      showSegments();
      choose(button.closest("tr").querySelector("[data-link]"));
    });
  }
  on(byId("outline"), "click", (event) => {
    const next = event.currentTarget.getAttribute("aria-pressed") !== "true";
    press(event.currentTarget, next);
    if (app.viewer) app.viewer.setOutline(next);
  });

  // Toolbar
  const layouts = all("[data-layout]", byId("layouts") || document.createElement("div"));
  function setLayout(name) {
    for (const button of layouts) press(button, button.dataset.layout === name);
    if (app.viewer) app.viewer.setLayout(name);
  }
  const toggleLayout = (name) => setLayout(byId("stage").dataset.layout === name ? "four" : name);
  for (const button of layouts) on(button, "click", () => setLayout(button.dataset.layout));
  for (const button of all("[data-expand]")) on(button, "click", () => toggleLayout(button.dataset.expand));
  const presets = all("[data-low]");
  for (const button of presets) on(button, "click", () => app.viewer && app.viewer.setWindow(Number(button.dataset.low), Number(button.dataset.high)));
  for (const button of all("[data-zoom]")) on(button, "click", () => app.viewer && app.viewer.zoom(button.dataset.zoom));
  for (const button of all("[data-solid]")) {
    on(button, "click", () => {
      for (const other of all("[data-solid]")) press(other, other === button);
      if (app.viewer) app.viewer.setSolid(button.dataset.solid);
    });
  }
  const overlay = byId("overlay");
  let lastOverlay = 60;
  function setOverlay(percent) {
    overlay.value = String(percent);
    byId("overlay-text").textContent = `${percent}%`;
    if (app.viewer) app.viewer.setOverlay(percent / 100);
  }
  on(overlay, "input", () => setOverlay(Number(overlay.value)));
  function toggleOverlay() {
    if (!overlay) return;
    const now = Number(overlay.value);
    if (now > 0) lastOverlay = now;
    setOverlay(now > 0 ? 0 : lastOverlay);
  }

  // What lies under the crosshair
  let place = null;
  let range = null;
  function showStatus() {
    if (!place) return;
    byId("status-place").textContent = app.Viewer.words(place.mm);
    const level = range && page.has_ct ? `W\u00a0${Math.round(range.high - range.low)} L\u00a0${Math.round((range.high + range.low) / 2)}` : "";
    byId("status-hu").textContent = place.hu === null ? level : `${String(place.hu).replace("-", "\u2212")} HU    ${level}`.replace("L\u00a0-", "L\u00a0\u2212");
    const segment = names.get(place.label);
    const holder = byId("status-segment");
    holder.replaceChildren();
    if (segment) {
      const swatch = document.createElement("span");
      swatch.className = "dot";
      swatch.style.backgroundColor = `rgb(${segment.color.join(",")})`;
      holder.append(swatch, segment.name);
    }
  }
  app.listeners.place.push((where) => {
    place = where;
    showStatus();
  });
  app.listeners.window.push((window_) => {
    range = window_;
    for (const button of presets) press(button, Number(button.dataset.low) === window_.low && Number(button.dataset.high) === window_.high);
    showStatus();
  });

  // Keys
  const help = byId("help");
  const steps = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
  function shortcut(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const digit = Number(key);
    if (key === "n") nextPlace(1);
    else if (key === "p") nextPlace(-1);
    else if (key === "o") toggleOverlay();
    else if (key === "Escape") letGo();
    else if (key === "?") help.showModal();
    else if (digit >= 1 && digit <= presets.length) presets[digit - 1].click();
    else return;
    event.preventDefault();
  }
  on(byId("help-open"), "click", () => help.showModal());
  on(document, "keydown", (event) => {
    if (event.target.closest("input[type=text], textarea, select")) return;
    shortcut(event);
  });
  // NiiVue has keys of its own that would change the view behind the page's back; they are not let through.
  const stage = byId("stage");
  if (stage) {
    stage.addEventListener(
      "keydown",
      (event) => {
        if (event.target.tagName !== "CANVAS") return;
        event.stopPropagation();
        const step = steps[event.key];
        if (step && app.viewer && event.target.id === "planes") {
          event.preventDefault();
          app.viewer.step(...step);
        } else shortcut(event);
      },
      true,
    );
    stage.addEventListener("keyup", (event) => event.target.tagName === "CANVAS" && event.stopPropagation(), true);
    stage.addEventListener(
      "dblclick",
      (event) => {
        if (event.target.tagName !== "CANVAS" || !app.viewer) return;
        event.stopPropagation();
        const view = event.target.id === "solid" ? "solid" : app.viewer.tileAt(event.clientX, event.clientY);
        if (view) toggleLayout(view);
      },
      true,
    );
  }

  // A copy of draft text never travels without its sentence.
  const draftText = () =>
    all(".report-section")
      .map((section) => `${section.querySelector("h3").textContent}\n${all(".sentence-text", section).map((part) => part.textContent).join("\n")}`)
      .join("\n\n");
  on(byId("copy"), "click", async (event) => {
    const button = event.currentTarget;
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(`${page.disclaimers.join("\n")}\n\n${draftText()}\n`);
    } catch {
      done = "Not allowed by the browser";
    }
    button.textContent = done;
    announce(done);
    setTimeout(() => (button.textContent = "Copy text"), 1600);
  });
  on(document, "copy", (event) => {
    const selection = document.getSelection();
    if (!selection || selection.isCollapsed || !event.clipboardData) return;
    event.clipboardData.setData("text/plain", `${page.disclaimers.join("\n")}\n\n${selection.toString()}\n`);
    event.preventDefault();
  });

  if (app.start) app.start();
})();

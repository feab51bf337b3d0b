// The script of a report: draws the plots, and keeps one selected trial the same in plots, pictures and table.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data"), figures = read("figures"), pictures = read("pictures");
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("screen and (prefers-color-scheme: dark)"), paper = matchMedia("print");
  const ROWS = 100, RELOAD_MS = 30000, QUIET_MS = 8000;

  // An element with texts and attributes. Texts of others never become markup.
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // ------------------------------------------------------------------ what survives a reload of the page

  const memory = {
    key: `ftae report ${location.pathname} ${data.name}`,
    values: {},
    load() { try { this.values = JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { this.values = {}; } },
    set(name, value) {
      this.values[name] = value;
      try { sessionStorage.setItem(this.key, JSON.stringify(this.values)); } catch { /* a page without storage forgets */ }
    },
  };
  memory.load();

  // ------------------------------------------------------------------------------------------ trials

  const columns = data.columns, at = Object.fromEntries(columns.map((column, i) => [column.key, i]));
  const byNumber = new Map(data.rows.map((row) => [row[at.trial], row]));
  const text = (value) => value === null || value === undefined ? "" : typeof value !== "number" ? String(value)
    : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
  const look = (row) => row[at.kind] === "baseline" ? data.looks.baseline : data.looks[row[at.status]];
  const nameOf = (number) => number === 0 ? "baseline" : `trial ${number}`;
  let selected = null;

  function describe(number, isSelected) {
    const card = $("card"), row = byNumber.get(number);
    if (row === undefined) { card.hidden = true; return; }
    const mark = number === data.winner ? data.looks.best : look(row);
    const title = make("h3", {}, make("span", {}, `${mark.glyph} ${nameOf(number)}`));
    if (isSelected) {
      const close = make("button", { type: "button", "aria-label": "Select no trial" }, "✕");
      close.addEventListener("click", () => select(null));
      title.append(close);
    }
    const list = make("dl");
    for (const column of columns) {
      const value = row[at[column.key]];
      if (value === null || ["trial", "kind", "status", "reason"].includes(column.key)) continue;
      list.append(make("dt", {}, column.title), make("dd", {}, text(value)));
    }
    const state = row[at.kind] === "baseline" ? "the model as it was given" : look(row).word;
    const reason = at.reason !== undefined && row[at.reason] ? `: ${row[at.reason]}` : "";
    card.replaceChildren(title, make("p", {}, `${state}${reason}`), list);
    card.classList.toggle("is-selected", isSelected);
    card.hidden = false;
  }

  function select(number) {
    selected = number !== null && byNumber.has(number) ? number : null;
    memory.set("selected", selected);
    if (selected === null) $("card").hidden = true; else describe(selected, true);
    for (const plot of plots) plot.mark();
    for (const row of document.querySelectorAll("#board tbody tr")) {
      row.setAttribute("aria-selected", String(Number(row.dataset.trial) === selected));
    }
    gallery?.choose(selected);
  }

  // ------------------------------------------------------------------------------------------- plots

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isDark = () => dark.matches && !paper.matches;

  // A copy of a part of a figure in the colours of the page.
  function coloured(part) {
    if (typeof part === "string") return isDark() && data.dark[part] || part;
    if (Array.isArray(part)) return part.length && typeof part[0] === "number" ? part : part.map(coloured);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([name, value]) => [name, coloured(value)]));
  }

  function layoutOf(figure) {
    const layout = coloured(figure.layout), ink = css("--ink"), soft = css("--soft"), grid = css("--grid");
    const narrow = innerWidth < 640;
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true });
    layout.font = { family: "system-ui, -apple-system, Segoe UI, Roboto, Arial, sans-serif", size: 12.5, color: soft };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      Object.assign(layout[name], { gridcolor: grid, linecolor: css("--line"), tickcolor: css("--line"), zeroline: false });
      if (layout[name].title) layout[name].title.font = { color: soft, size: 12.5 };
    }
    if (narrow) {
      layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 46), r: Math.min(layout.margin.r, 10) };
      layout.legend = { ...layout.legend, font: { size: 11 } };
      layout.dragmode = false;
    }
    for (const note of layout.annotations || []) note.font = { color: ink, size: 11.5 };
    return layout;
  }

  class Plot {
    constructor(element, figure) {
      this.element = element;
      this.figure = figure;
      this.isParallel = figure.data[0]?.type === "parcoords";
      this.hovered = null;
    }

    async draw() {
      const traces = coloured(this.figure.data);
      if (this.isParallel) {
        Object.assign(traces[0], { labelfont: { color: css("--ink"), size: 12 }, tickfont: { color: css("--soft"), size: 11 }, rangefont: { color: "rgba(0,0,0,0)", size: 1 }, unselected: { line: { color: css("--faint"), opacity: 0.2 } } });
      } else {
        traces.push({ type: "scatter", mode: this.figure.joins ? "lines+markers" : "markers", x: [], y: [], name: "selected", showlegend: false, hoverinfo: "skip", line: { color: css("--selected"), width: 3 }, marker: { symbol: "circle-open", size: 15, color: css("--selected"), line: { width: 3 } } });
      }
      const config = { responsive: true, displaylogo: false, displayModeBar: innerWidth < 640 || this.element.clientHeight < 300 ? false : "hover", modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], scrollZoom: false, doubleClick: "reset+autosize" };
      await Plotly.react(this.element, traces, layoutOf(this.figure), config);
      if (this.overlay === undefined) this.listen();
      this.overlay = traces.length - 1;
      this.mark();
    }

    listen() {
      const trial = (event) => this.isParallel
        ? this.figure.data[0].customdata[event.curveNumber] : event.points?.[0]?.customdata;
      this.element.on("plotly_hover", (event) => {
        this.hovered = trial(event) ?? null;
        if (Number.isInteger(this.hovered)) describe(this.hovered, this.hovered === selected);
      });
      this.element.on("plotly_unhover", () => {
        this.hovered = null;
        if (selected === null) $("card").hidden = true; else describe(selected, true);
      });
      const choose = (number) => { if (Number.isInteger(number)) select(number === selected ? null : number); };
      if (this.isParallel) this.element.addEventListener("click", () => choose(this.hovered));
      else this.element.on("plotly_click", (event) => choose(trial(event)));
    }

    // Where the selected trial is in this plot.
    mark() {
      if (this.overlay === undefined) return;
      if (this.isParallel) {
        const i = this.figure.data[0].dimensions.length - 1;
        const range = selected === null ? null : [selected - 0.5, selected + 0.5];
        if (this.marked !== selected) Plotly.restyle(this.element, { [`dimensions[${i}].constraintrange`]: [range] });
        this.marked = selected;
        return;
      }
      const x = [], y = [];
      if (selected !== null && this.figure.joins && data.curves[selected]) {
        x.push(...data.curves[selected][0]);
        y.push(...data.curves[selected][1]);
      } else if (selected !== null) {
        for (const trace of this.figure.data) {
          if (!Array.isArray(trace.customdata)) continue;
          trace.customdata.forEach((number, i) => {
            if (number === selected) { x.push(trace.x[i]); y.push(trace.y[i]); }
          });
        }
      }
      if (x.length || this.marked) Plotly.restyle(this.element, { x: [x], y: [y] }, [this.overlay]);
      this.marked = x.length > 0;
    }
  }

  const plots = [...document.querySelectorAll("[data-plot]")].map((element) => new Plot(element, figures[element.dataset.plot]));

  async function drawAll() {
    for (const plot of plots) {
      await plot.draw();
      await new Promise((done) => setTimeout(done));
    }
    document.documentElement.dataset.drawn = "yes";
  }
  for (const media of [dark, paper]) media.addEventListener("change", () => { drawAll(); gallery?.show(); });

  // ---------------------------------------------------------------------------------------- pictures

  // Black through violet and orange to light yellow, as the differences of reconstructions are shown elsewhere.
  const HEAT = ["000004", "1b0c42", "4b0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9a06", "f7d03c", "fcffa4"]
    .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

  function heat(share) {
    const place = Math.min(1, share) * (HEAT.length - 1), i = Math.min(HEAT.length - 2, Math.floor(place)), rest = place - i;
    return HEAT[i].map((low, channel) => low + (HEAT[i + 1][channel] - low) * rest);
  }

  class Gallery {
    constructor() {
      this.numbers = Object.keys(pictures.trials).map(Number);
      this.strips = new Map();
      for (const id of ["look-a", "look-b"]) {
        $(id).append(...this.numbers.map((number) => make("option", { value: number }, this.named(number))));
        $(id).addEventListener("change", () => { this.lastStep(id.at(-1)); this.show(); });
      }
      for (const side of ["a", "b"]) $(`look-step-${side}`).addEventListener("input", () => this.show());
      for (const id of ["look-split", "look-gain", "look-order"]) $(id).addEventListener("input", () => this.show());
      $("gallery-controls").addEventListener("submit", (event) => event.preventDefault());
      const kept = memory.values.look || {}, has = (number) => this.numbers.includes(number);
      $("look-a").value = has(kept.a) ? kept.a : pictures.baseline;
      $("look-b").value = has(kept.b) ? kept.b : pictures.winner ?? this.numbers.at(-1);
      for (const side of ["a", "b"]) this.lastStep(side);
      if (kept.stepB !== undefined && has(kept.b)) $("look-step-b").value = Math.min(kept.stepB, $("look-step-b").max);
      if (kept.stepA !== undefined && has(kept.a)) $("look-step-a").value = Math.min(kept.stepA, $("look-step-a").max);
      for (const id of ["split", "gain", "order"]) if (kept[id] !== undefined) $(`look-${id}`).value = kept[id];
      for (const label of document.querySelectorAll(".with-target")) label.hidden = !pictures.target;
      $("gallery").hidden = false;
    }

    named(number) {
      const row = byNumber.get(number), best = number === pictures.winner ? " (best)" : number === 1 ? " (file)" : "";
      const value = row && row[at[data.metric]];
      return `${nameOf(number)}${number ? best : ""}${value === undefined || value === null ? "" : `: ${text(value)}`}`;
    }

    steps(side) { return Object.keys(pictures.trials[$(`look-${side}`).value]).map(Number).sort((a, b) => a - b); }

    lastStep(side) {
      const slider = $(`look-step-${side}`), steps = this.steps(side);
      slider.max = steps.length - 1;
      slider.value = steps.length - 1;
      slider.disabled = steps.length < 2;
    }

    // Show a trial that was selected elsewhere, if the page has pictures of it.
    choose(number) {
      if (number === null || !this.numbers.includes(number) || $("look-b").value === String(number)) return;
      $("look-b").value = number;
      this.lastStep("b");
      this.show();
    }

    async pixels(url) {
      if (!this.strips.has(url)) {
        const image = new Image();
        image.src = url;
        await image.decode();
        const canvas = make("canvas", { width: pictures.width, height: pictures.height * pictures.count });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        this.strips.set(url, context.getImageData(0, 0, canvas.width, canvas.height).data);
      }
      return this.strips.get(url);
    }

    async show() {
      const run = (this.run = (this.run || 0) + 1), sides = {};
      for (const side of ["a", "b"]) {
        const number = Number($(`look-${side}`).value), step = this.steps(side)[$(`look-step-${side}`).value];
        $(`look-step-${side}-value`).value = String(step);
        sides[side] = { number, step, strip: await this.pixels(pictures.trials[number][step]) };
      }
      $("look-gain-value").value = $("look-gain").value;
      const target = pictures.target ? await this.pixels(pictures.target) : null;
      const input = pictures.input ? await this.pixels(pictures.input) : null;
      if (run !== this.run) return; // a newer one is on its way
      memory.set("look", { a: sides.a.number, b: sides.b.number, stepA: Number($("look-step-a").value), stepB: Number($("look-step-b").value), split: $("look-split").value, gain: $("look-gain").value, order: $("look-order").value });
      this.say(sides);
      const errors = target && { a: this.errors(sides.a.strip, target), b: this.errors(sides.b.strip, target) };
      $("samples").replaceChildren(...this.ordered(errors).map((i) => this.sample(i, sides, target, input, errors)));
    }

    say(sides) {
      const count = pictures.whole ? "The stored pictures as they are" : `${pictures.count} fixed validation samples`;
      const maps = pictures.target ? " Differences are to the target, the mean over colours. Worst means worst of these samples; ftae evaluate scores all." : "";
      $("look-note").textContent = `${count}. A is ${nameOf(sides.a.number)} at step ${sides.a.step}, B is ${nameOf(sides.b.number)} at step ${sides.b.step}.${maps}`;
    }

    ordered(errors) {
      const order = [...Array(pictures.count).keys()], kind = $("look-order").value;
      if (!errors || kind === "stored") return order;
      const key = kind === "worst" ? (i) => -errors.b[i] : (i) => errors.a[i] - errors.b[i];
      return order.sort((i, j) => key(i) - key(j));
    }

    // The mean squared error of each sample.
    errors(strip, target) {
      const size = pictures.width * pictures.height * 4, found = [];
      for (let i = 0; i < pictures.count; i++) {
        let sum = 0;
        for (let k = i * size; k < (i + 1) * size; k += 4) {
          for (let c = 0; c < 3; c++) { const d = (strip[k + c] - target[k + c]) / 255; sum += d * d; }
        }
        found.push(sum / (0.75 * size));
      }
      return found;
    }

    sample(i, sides, target, input, errors) {
      const decibels = (error) => error > 0 ? `${(-10 * Math.log10(error)).toFixed(1)} dB` : "equal";
      const split = Math.round(pictures.width * $("look-split").value / 100);
      const cells = [];
      if (input) cells.push(["input", this.plain(i, input)]);
      if (target) cells.push(["target", this.plain(i, target)]);
      cells.push([errors ? `A ${decibels(errors.a[i])}` : "A", this.plain(i, sides.a.strip)]);
      cells.push(["A | B", this.halves(i, sides, split)]);
      cells.push([errors ? `B ${decibels(errors.b[i])}` : "B", this.plain(i, sides.b.strip)]);
      if (target) cells.push(["A − target", this.difference(i, sides.a.strip, target)], ["B − target", this.difference(i, sides.b.strip, target)]);
      const better = errors ? errors.b[i] < errors.a[i] ? ", B is nearer" : errors.b[i] > errors.a[i] ? ", A is nearer" : "" : "";
      const row = make("div", { class: "cells" }, ...cells.map(([name, canvas]) => {
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `sample ${i + 1}: ${name}`);
        const cell = make("div", { class: "cell" }, make("div", { class: "picture" }, canvas), make("span", {}, name));
        if (name === "A | B") {
          const line = make("i", { class: "split", "aria-hidden": "true" });
          line.style.left = `${100 * split / pictures.width}%`;
          cell.firstChild.append(line);
        }
        return cell;
      }));
      return make("figure", { class: "sample" }, make("figcaption", {}, `sample ${i + 1}${better}`), row);
    }

    canvas(fill) {
      const canvas = make("canvas", { width: pictures.width, height: pictures.height });
      const context = canvas.getContext("2d"), image = context.createImageData(pictures.width, pictures.height);
      fill(image.data);
      context.putImageData(image, 0, 0);
      return canvas;
    }

    offset(i) { return i * pictures.width * pictures.height * 4; }

    plain(i, strip) {
      const begin = this.offset(i);
      return this.canvas((out) => out.set(strip.subarray(begin, begin + out.length)));
    }

    halves(i, sides, split) {
      const begin = this.offset(i);
      return this.canvas((out) => {
        for (let k = 0; k < out.length; k += 4) {
          const from = (k / 4) % pictures.width < split ? sides.a.strip : sides.b.strip;
          for (let c = 0; c < 4; c++) out[k + c] = from[begin + k + c];
        }
      });
    }

    difference(i, strip, target) {
      const begin = this.offset(i), gain = Number($("look-gain").value) / (3 * 255);
      return this.canvas((out) => {
        for (let k = 0; k < out.length; k += 4) {
          let sum = 0;
          for (let c = 0; c < 3; c++) sum += Math.abs(strip[begin + k + c] - target[begin + k + c]);
          out.set(heat(sum * gain), k);
          out[k + 3] = 255;
        }
      });
    }
  }

  const gallery = pictures ? new Gallery() : null;
  if (!gallery) $("no-pictures").hidden = false;

  // ------------------------------------------------------------------------------------- leaderboard

  const board = $("board") && {
    sort: memory.values.sort || null, // key and whether upwards; null: the order of the ranking
    off: new Set(memory.values.off || []),
    shown: ROWS,

    start() {
      $("filter").value = memory.values.filter || "";
      $("filter").addEventListener("input", () => { memory.set("filter", $("filter").value); this.shown = ROWS; this.draw(); });
      $("csv").addEventListener("click", () => this.download());
      $("more").addEventListener("click", () => { this.shown += 500; this.draw(); });
      const counts = new Map();
      for (const row of data.rows) counts.set(look(row), (counts.get(look(row)) || 0) + 1);
      for (const [kind, number] of counts) $("chips").append(this.chip(kind, number));
      $("board").tHead.append(make("tr", {}, ...columns.map((column) => this.head(column))));
      this.draw();
    },

    chip(kind, number) {
      const chip = make("button", { type: "button", "aria-pressed": String(!this.off.has(kind.word)) }, `${kind.glyph} ${kind.word} ${number}`);
      chip.addEventListener("click", () => {
        if (!this.off.delete(kind.word)) this.off.add(kind.word);
        chip.setAttribute("aria-pressed", String(!this.off.has(kind.word)));
        memory.set("off", [...this.off]);
        this.draw();
      });
      return chip;
    },

    head(column) {
      const button = make("button", { type: "button", title: column.key }, column.title);
      button.addEventListener("click", () => {
        const before = this.sort && this.sort.key === column.key ? this.sort.up : null;
        this.sort = before === null ? { key: column.key, up: true } : before ? { key: column.key, up: false } : null;
        memory.set("sort", this.sort);
        this.draw();
      });
      return make("th", { scope: "col", class: column.number ? "n" : null, "data-key": column.key }, button);
    },

    rows() {
      const wanted = wish($("filter").value);
      const kept = data.rows.filter((row) => !this.off.has(look(row).word) && wanted(row));
      if (!this.sort) return kept;
      const i = at[this.sort.key], sign = this.sort.up ? 1 : -1;
      return kept.sort((one, other) => {
        const [a, b] = [one[i], other[i]];
        if (a === null || b === null) return (a === null) - (b === null); // without a value: last, either way
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : text(a).localeCompare(text(b)));
      });
    },

    draw() {
      const rows = this.rows();
      for (const head of $("board").tHead.rows[0].cells) {
        const mine = this.sort && head.dataset.key === this.sort.key;
        if (mine) head.setAttribute("aria-sort", this.sort.up ? "ascending" : "descending"); else head.removeAttribute("aria-sort");
        const column = columns[at[head.dataset.key]];
        head.firstChild.textContent = column.title + (mine ? this.sort.up ? " ▲" : " ▼" : "");
      }
      $("board").tBodies[0].replaceChildren(...rows.slice(0, this.shown).map((row) => this.row(row)));
      $("shown").textContent = `${rows.length} of ${data.rows.length} rows. Choose a row to select its trial everywhere; arrow keys move.`;
      $("more").hidden = rows.length <= this.shown;
    },

    row(values) {
      const number = values[at.trial];
      const row = make("tr", { tabindex: "0", "data-trial": number, "aria-selected": String(number === selected) });
      for (const [i, column] of columns.entries()) {
        const cell = make("td", { class: column.number ? "n" : null });
        if (column.key === "status") {
          const mark = number === data.winner ? data.looks.best : look(values);
          cell.append(make("span", { class: "glyph", "aria-hidden": "true" }, mark.glyph), look(values) === data.looks.baseline ? text(values[i]) : look(values).word);
        } else {
          cell.textContent = text(values[i]);
          if (column.key === "reason" && values[i]) cell.title = values[i];
        }
        row.append(cell);
      }
      row.addEventListener("click", () => select(number === selected ? null : number));
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") select(number === selected ? null : number);
        else if (event.key === "ArrowDown") row.nextElementSibling?.focus();
        else if (event.key === "ArrowUp") row.previousElementSibling?.focus();
        else return;
        event.preventDefault();
      });
      return row;
    },

    download() {
      const quoted = (value) => {
        let cell = value === null || value === undefined ? "" : String(value);
        if (typeof value === "string" && /^[=+\-@\t\r]/.test(cell)) cell = `'${cell}`; // no formula in a spreadsheet
        return /[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
      };
      const lines = [columns.map((column) => column.key), ...this.rows()].map((row) => row.map(quoted).join(","));
      const link = make("a", { download: `${data.name}.csv` });
      link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
  };

  // What a filter asks for: every word of it, each somewhere in a row, or a comparison such as lr<1e-3.
  function wish(asked) {
    const tests = asked.toLowerCase().replace(/\s*(<=|>=|<|>|=)\s*/g, "$1").split(/\s+/).filter(Boolean).map((word) => {
      const found = /^(.+?)(<=|>=|<|>|=)(.+)$/.exec(word);
      const column = found && columns.find((c) => c.title.toLowerCase() === found[1] || c.key.toLowerCase() === found[1])
        || found && columns.find((c) => c.title.toLowerCase().endsWith(found[1]));
      if (!column) return (row) => row.some((value, i) => (i === at.status ? look(row).word : text(value)).toLowerCase().includes(word));
      const i = at[column.key], bound = Number(found[3]);
      if (found[2] === "=") return (row) => text(row[i]).toLowerCase() === found[3] || row[i] === bound;
      const compare = { "<": (v) => v < bound, ">": (v) => v > bound, "<=": (v) => v <= bound, ">=": (v) => v >= bound }[found[2]];
      return (row) => row[i] !== null && compare(Number(row[i]));
    });
    return (row) => tests.every((test) => test(row));
  }

  // ------------------------------------------------------------------------------------ page and reload

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = "copied"; }
      catch { button.textContent = "select it"; getSelection().selectAllChildren(button.previousElementSibling); }
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape" && selected !== null) select(null); });

  const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const current = [...links.keys()].find((id) => seen.has(id));
    if (current === undefined) return; // between two sections
    for (const [id, link] of links) if (id === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) observer.observe($(id));

  // While the search runs the file is written again and again. Nobody who is doing something here is disturbed.
  let touched = 0;
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  }
  addEventListener("pagehide", () => memory.set("scroll", scrollY));
  if (data.live) {
    setInterval(() => {
      if (document.visibilityState === "visible" && Date.now() - touched > QUIET_MS) location.reload();
    }, RELOAD_MS);
  }

  async function start() {
    history.scrollRestoration = "manual";
    board?.start();
    await gallery?.show();
    if (memory.values.scroll && !location.hash) scrollTo({ top: memory.values.scroll, behavior: "instant" });
    await drawAll();
    if (Number.isInteger(memory.values.selected)) select(memory.values.selected);
  }
  start();
})();

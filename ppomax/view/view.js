"use strict";
// Everything that runs wrote reaches the page through textContent or setAttribute, never as HTML.

const main = document.querySelector("main");
const token = document.querySelector('meta[name="request-token"]').content;
const key = (location.pathname.match(/^\/run\/([0-9a-f]+)$/) || [])[1];
const ON_RUN = 2000, ON_LIST = 4000;  // milliseconds between looks

function el(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...inside);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

// What did not change is not touched: focus, selection and scrolling stay.
const drawn = new Map();
function changed(name, value) {
  const text = JSON.stringify(value);
  if (drawn.get(name) === text) return false;
  drawn.set(name, text);
  return true;
}

function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

const trouble = el("p", { class: "trouble", role: "alert", hidden: "" });

async function look(address) {
  const stop = new AbortController();
  const late = setTimeout(() => stop.abort(), 20000);
  try {
    const answer = await fetch(address, { signal: stop.signal });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    trouble.hidden = true;
    return found;
  } catch (error) {
    const own = error instanceof TypeError || error.name === "AbortError";
    say(trouble, own ? "ppomax view does not answer; what you see is from before. Trying again." : error.message);
    trouble.hidden = false;
    return null;
  } finally {
    clearTimeout(late);
  }
}

function every(milliseconds, work) {
  let timer = 0;
  let busy = false;
  const again = async () => {
    if (busy) return;
    clearTimeout(timer);
    busy = true;
    let soon = false;
    try { soon = await work(); } finally { busy = false; }
    if (!document.hidden) timer = setTimeout(again, soon ? 300 : milliseconds);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) again(); });
  again();
  return again;
}

// ------------------------------------------------------------------------------------------ the list

const COLUMNS = ["reward", "KL", "length", "perplexity", "win rate"];  // those of PPO; of other stages: `others`

function listPage() {
  main.append(trouble);
  const none = el("p", { hidden: "" }, "No runs here yet: a run shows as soon as it has written its config.yaml.");
  const body = el("tbody");
  const row = el("tr");
  const caption = el("caption");
  const table = el("table", { hidden: "", role: "table" }, caption, el("thead", {}, row), body);
  main.append(none, table);
  const rows = new Map();
  let heads = "";
  every(ON_LIST, async () => {
    const found = await look("/api/runs");
    if (!found) return;
    const runs = found.runs.sort((a, b) => (b.state === "running") - (a.state === "running") || b.written - a.written);
    const others = (run) => Object.keys(run.numbers).filter((name) => !COLUMNS.includes(name));
    const shown = COLUMNS.filter((name) => runs.some((run) => name in run.numbers));
    if (runs.some((run) => others(run).length)) shown.push("other");
    none.hidden = runs.length > 0;
    say(caption, `Runs below this folder, the latest first${found.more ? `: only the ${runs.length} found first` : ""}`);
    table.hidden = runs.length === 0;
    if (heads !== shown.join()) {
      heads = shown.join();
      const cells = ["run", "state", "step", ...shown, "last alarm", "last write"];
      row.replaceChildren(...cells.map((name) => el("th", { scope: "col", class: COLUMNS.includes(name) || name === "step" ? "number" : "" }, name)));
      rows.clear();
      body.replaceChildren();
    }
    for (const [name, old] of rows) if (!runs.some((run) => run.key === name)) { old.remove(); rows.delete(name); }
    runs.forEach((run, place) => {
      if (!rows.has(run.key)) {
        const link = el("a", { href: `/run/${run.key}` }, run.name);
        // roles by name: on a phone the style takes the rows' own ones away
        rows.set(run.key, el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, link, " ", el("small", {}, run.kind))));
        for (let i = 0; i < shown.length + 4; i++) rows.get(run.key).append(el("td", { role: "cell" }));
      }
      const line = rows.get(run.key);
      const cells = [...line.children].slice(1);
      const fill = (cell, name, text, style) => { say(cell, text); cell.dataset.name = name; cell.className = style; };
      say(cells[0], run.state);
      cells[0].className = `state ${run.state}`;
      fill(cells[1], "step", run.step === null ? "" : run.planned ? `${run.step + 1} / ${run.planned}` : String(run.step), "number");
      shown.forEach((name, i) => {
        const values = name === "other" ? others(run).map((n) => `${n} ${number(run.numbers[n])}`).join(", ") : name in run.numbers ? number(run.numbers[name]) : "";
        fill(cells[2 + i], name, values, name === "other" ? "other" : "number");
      });
      const alarm = run.alarm ? `${run.alarm.level}, iteration ${run.alarm.iteration}` : "";
      fill(cells[2 + shown.length], "last alarm", alarm, "");
      fill(cells[3 + shown.length], "last write", run.written ? ago(found.now - run.written) : "", "");
      if (body.children[place] !== line) body.insertBefore(line, body.children[place] || null);
    });
    document.title = `${runs.filter((run) => run.state === "running").length} running, ${runs.length} runs`;
  });
}

// --------------------------------------------------------------------------------------------- a run

const WORDS = {
  running: "running", finished: "finished", stopped: "stopped; it can go on", dead: "dead: it ended before it was finished",
};

function runPage() {
  const title = main.querySelector("h1");
  title.before(el("nav", {}, el("a", { href: "/" }, "All runs")));
  const state = el("span", { class: "state" });
  const written = el("span", { class: "note" });
  const step = el("span", {});
  const progress = el("progress", { "aria-label": "iterations done", hidden: "" });
  const announced = el("p", { class: "note", role: "status" });
  const why = el("p", { class: "trouble", hidden: "" });
  const numbers = el("ul", { class: "numbers", "aria-label": "last numbers" });
  const checkpoint = el("button", { type: "button" }, "Checkpoint now");
  const stop = el("button", { type: "button", class: "stop" });
  const told = el("span", { role: "status" });
  const controls = el("div", { class: "controls", hidden: "" }, checkpoint, stop, told);
  const alarms = el("section", { hidden: "" }, el("h2", { id: "alarms" }, "Alarms"));
  const listed = el("div", { class: "alarms", tabindex: "0", role: "region", "aria-labelledby": "alarms" });
  alarms.append(listed);
  const note = el("p", { class: "note" });
  const grid = el("div", { class: "grid" });
  const samples = el("section", { hidden: "" });
  main.append(
    trouble, el("div", { class: "head" }, state, step, progress, written), announced, why, numbers, controls, alarms, el("h2", {}, "Course"),
    note, grid, samples,
  );
  const question = el("p", {});
  const sure = el("dialog", { "aria-label": "stop this run" }, question);
  const yes = el("button", { type: "button", class: "stop" }, "Stop it");
  const no = el("button", { type: "button", autofocus: "" }, "Let it run");
  sure.append(el("div", { class: "controls" }, no, yes));
  main.append(sure);

  let version = "";
  let head = null;
  let lastAlarm = null;
  const charts = new Map();

  const again = every(ON_RUN, async () => {
    const found = await look(`/api/run/${key}?version=${version}`);
    if (!found) return false;
    if (found.head) show(found);
    if (head) say(written, head.written ? `last write ${ago(found.now - head.written)}` : "");
    return found.sampled === true;
  });

  async function ask(request) {
    checkpoint.disabled = stop.disabled = true;
    try {
      const answer = await fetch(`/api/run/${key}/${request}`, { method: "POST", headers: { "X-Request-Token": token } });
      const found = await answer.json();
      say(announced, answer.ok ? "" : found.error);
    } catch {
      say(announced, "ppomax view does not answer; nothing was asked.");
    }
    version = "";
    drawn.delete("controls");
    await again();
  }
  checkpoint.addEventListener("click", () => ask("checkpoint"));
  stop.addEventListener("click", () => sure.showModal());
  no.addEventListener("click", () => sure.close());
  yes.addEventListener("click", () => { sure.close(); ask("stop"); });

  function show(found) {
    version = found.version;
    head = found.head;
    say(title, head.name);
    document.title = `${head.name}: ${head.state}`;
    state.className = `state ${head.state}`;
    say(state, WORDS[head.state]);
    const done = head.step === null ? 0 : head.step + 1;
    say(step, head.step === null ? "no numbers yet" : head.planned ? `iteration ${done} of ${head.planned}` : `${found.x} ${head.step}`);
    progress.hidden = !head.planned;
    if (head.planned) { progress.max = head.planned; progress.value = done; }
    why.hidden = head.state !== "dead" && head.state !== "stopped";
    if (changed("why", [head.why, head.state, found.resume])) {
      why.replaceChildren(head.why ? `${head.why}. ` : "", "To go on: ", el("code", {}, found.resume));
    }
    if (changed("numbers", head.numbers)) {
      numbers.replaceChildren(...Object.entries(head.numbers).filter(([, value]) => value !== null)
        .map(([name, value]) => el("li", {}, el("span", {}, name), el("b", {}, number(value)))));
    }
    showControls(found);
    showAlarms(found);
    const notes = ["Thin: each iteration, thick: running mean. Vertical lines: alarms (dotted: notice, dashed: warning, solid: collapse)."];
    if (found.x !== "iteration") notes[0] = "Thin: each update, thick: running mean.";
    if (found.sampled) notes.push("A long file: first a sample of its lines, the rest is being read.");
    if (found.unreadable) notes.push(`${found.unreadable} lines of metrics.jsonl are not readable and left out.`);
    say(note, found.panels.length ? notes.join(" ") : "No numbers yet.");
    for (const [name, chart] of charts) if (!found.panels.some((p) => p.metric === name)) { chart.figure.remove(); charts.delete(name); }
    const range = [Math.min(...found.panels.map((p) => p.x[0])), Math.max(...found.panels.map((p) => p.x[p.x.length - 1]))];
    for (const panel of found.panels) {
      if (!charts.has(panel.metric)) {
        charts.set(panel.metric, new Chart(found.x));
        grid.append(charts.get(panel.metric).figure);
      }
      if (changed(`panel ${panel.metric}`, [panel, found.marks, range])) charts.get(panel.metric).show(panel, found.marks, range);
    }
    showSamples(found);
  }

  function showControls(found) {
    controls.hidden = !head.obeys && !(found.requests.length && head.state !== "dead");
    checkpoint.hidden = stop.hidden = !head.obeys;
    say(stop, `Stop after this ${found.x}`);
    say(question, `Stop the run after this ${found.x}? It leaves a checkpoint, and goes on exactly there with --resume.`);
    if (!changed("controls", [head.asked, head.obeys, found.requests])) return;
    checkpoint.disabled = head.asked.includes("checkpoint");
    stop.disabled = head.asked.includes("stop");
    const last = found.requests[found.requests.length - 1];
    if (head.asked.length) say(told, `Asked: ${head.asked.join(", ")}. The run obeys at the end of this ${found.x}.`);
    else say(told, last ? `${last.request}: obeyed after ${found.x} ${last.step}, ${last.checkpoint} is written.` : "");
  }

  function showAlarms(found) {
    alarms.hidden = found.alarms.length === 0;
    if (!changed("alarms", found.alarms)) return;
    listed.replaceChildren(...found.alarms.map((alarm) =>
      el("p", { class: `alarm ${alarm.level}` }, el("b", {}, alarm.level), `, iteration ${alarm.iteration ?? "?"}: ${alarm.message}`)));
    const newest = JSON.stringify(found.alarms[0] || null);
    if (lastAlarm !== null && newest !== lastAlarm && found.alarms.length) {
      const alarm = found.alarms[0];
      say(announced, `New alarm, ${alarm.level}, iteration ${alarm.iteration ?? "?"}: ${alarm.message}`);
    }
    lastAlarm = newest;
  }

  function showSamples(found) {
    samples.hidden = found.samples.length === 0;
    if (!found.samples.length || !changed("samples", found.samples)) return;
    const first = found.samples[0];
    samples.replaceChildren(
      el("h2", {}, `Newest samples, before iteration ${first.iteration ?? "?"}`),
      ...found.samples.map((sample) => el("article", {},
        ...sample.prompt.map((turn) => el("p", {}, el("span", { class: "who" }, turn.role), " ", el("span", { class: "said", dir: "auto" }, turn.content))),
        el("p", {}, el("span", { class: "who" }, "answer"), " ", el("span", { class: "said", dir: "auto" }, sample.response)),
        el("small", {}, `reward ${number(sample.score)}, KL ${number(sample.kl)} nats, ${number(sample.length)} tokens${sample.finished ? "" : ", cut at the length limit"}`))),
    );
  }
}

// -------------------------------------------------------------------------------------------- charts

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 24;

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) found.push(Number((i * size).toPrecision(12)));
  return found;
}

class Chart {
  constructor(axis) {
    this.axis = axis;
    this.title = el("h3", {});
    this.told = el("output", {});
    this.unit = el("small", {});
    this.svg = shape("svg", { role: "img", tabindex: "0" });
    this.figure = el("figure", {}, el("figcaption", {}, this.title, this.told, this.unit), this.svg);
    this.at = null;
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(this.nearest(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, Escape: NaN }[event.key];
      if (move === undefined || !this.panel) return;
      event.preventDefault();
      const last = this.panel.x.length - 1;
      this.point(Number.isNaN(move) ? null : Math.min(last, Math.max(0, (this.at ?? last + (move < 0)) + move)));
    });
  }

  show(panel, marks, range) {
    this.panel = panel;
    this.range = range;
    this.marks = marks;
    if (this.at !== null && this.at >= panel.x.length) this.at = null;
    const first = panel.y[0], last = panel.y[panel.y.length - 1];
    say(this.title, panel.title);
    say(this.unit, panel.unit);
    this.svg.setAttribute("aria-label", `${panel.title}, ${panel.unit}: ${number(first)} at ${this.axis} ${panel.x[0]}, ` +
      `${number(last)} at ${this.axis} ${panel.x[panel.x.length - 1]}. Left and right keys read values.`);
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!this.panel || !width || !height) return;
    const { x, y, mean, band, metric } = this.panel;
    let low = Math.min(...y), high = Math.max(...y);
    const spread = low > 0 && high / low > 50;
    const place = spread ? Math.log10 : (value) => value;
    const rate = metric === "eval/win_rate";
    if (rate) { low = 0; high = 1; }
    if (metric === "kl/ref") { low = Math.min(low, 0); high = Math.max(high, 0); }
    [low, high] = [place(low), place(high)];
    if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 1; low -= pad; high += pad; }
    else if (!rate) { const pad = (high - low) * 0.05; low -= pad; high += pad; }
    const left = this.range[0], right = Math.max(this.range[1], left + 1);
    const across = (value) => LEFT + ((value - left) / (right - left)) * (width - LEFT - RIGHT);
    const up = (value) => TOP + (1 - (place(value) - low) / (high - low)) * (height - TOP - BOTTOM);
    this.across = across;
    const line = (xs, ys) => xs.map((value, i) => `${i ? "L" : "M"}${across(value).toFixed(1)} ${up(ys[i]).toFixed(1)}`).join("");
    const parts = [];
    const level = (value, text) => {
      parts.push(shape("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: up(value), y2: up(value) }));
      const label = shape("text", { x: LEFT - 6, y: up(value) + 4, "text-anchor": "end" });
      label.textContent = text;
      parts.push(label);
    };
    if (spread) {
      let powers = ticks(low, high, 4).filter(Number.isInteger);
      if (powers.length < 2) powers = ticks(low, high, 3);
      for (const power of powers) level(10 ** power, number(Number((10 ** power).toPrecision(2))));
    } else for (const value of ticks(low, high, 6)) level(value, number(value));
    for (const value of ticks(left, right, Math.max(3, Math.min(8, width / 60)))) {
      if (!Number.isInteger(value)) continue;
      const label = shape("text", { x: across(value), y: height - 6, "text-anchor": across(value) > width - 30 ? "end" : "middle" });
      label.textContent = String(value);
      parts.push(label);
    }
    for (const [at, name] of this.marks) {
      if (at < left || at > right) continue;
      parts.push(shape("line", { class: `mark ${name}`, x1: across(at), x2: across(at), y1: TOP, y2: height - BOTTOM }));
    }
    if (rate) parts.push(shape("line", { class: "half", x1: LEFT, x2: width - RIGHT, y1: up(0.5), y2: up(0.5) }));
    if (band) {
      const upper = x.map((value, i) => `${across(value)} ${up(Math.min(1, y[i] + (band[i] ?? 0)))}`);
      const lower = x.map((value, i) => `${across(value)} ${up(Math.max(0, y[i] - (band[i] ?? 0)))}`);
      parts.push(shape("polygon", { class: "band", points: [...upper, ...lower.reverse()].join(" ") }));
    }
    parts.push(shape("path", { class: mean ? "raw" : "raw alone", d: line(x, y) }));
    if (mean) parts.push(shape("path", { class: "mean", d: line(mean[0], mean[1]) }));
    if (x.length <= 30) x.forEach((value, i) => parts.push(shape("circle", { class: "dot", cx: across(value), cy: up(y[i]), r: 2.5 })));
    if (this.at !== null) {
      const here = across(x[this.at]);
      parts.push(shape("line", { class: "cursor", x1: here, x2: here, y1: TOP, y2: height - BOTTOM }));
      parts.push(shape("circle", { class: "dot", cx: here, cy: up(y[this.at]), r: 4 }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...parts);
    const at = this.at ?? x.length - 1;
    say(this.told, `${number(y[at])} at ${x[at]}`);
  }

  nearest(offset) {
    if (!this.panel || !this.across) return null;
    let best = 0;
    this.panel.x.forEach((value, i) => {
      if (Math.abs(this.across(value) - offset) < Math.abs(this.across(this.panel.x[best]) - offset)) best = i;
    });
    return best;
  }

  point(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
  }
}

if (key) runPage();
else listPage();

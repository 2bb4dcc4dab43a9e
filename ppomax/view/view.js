// The two pages: the list of runs, and one run. What is drawn is in charts.js.
// Everything that runs wrote reaches the page through textContent or setAttribute, never as HTML.

import { Curves, Ridges, Times, el, number, say } from "/charts.js";

const main = document.querySelector("main");
const token = document.querySelector('meta[name="request-token"]').content;
const key = (location.pathname.match(/^\/run\/([0-9a-f]+)$/) || [])[1];
const ON_RUN = 2000, ON_LIST = 4000;  // milliseconds between looks

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

// What a screen reader must know of text that a model or a data set wrote; the page itself is English.
function spoken(text) {
  if (/[\p{Script=Hiragana}\p{Script=Katakana}]/u.test(text)) return { lang: "ja" };
  return /\p{Script=Han}/u.test(text) ? { lang: "zh" } : {};
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

function styleOf(state) {
  return `state ${state.split(" ")[0]}`;
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
    say(caption, `Runs below this folder, the running ones first, then the latest${found.more ? `: only the ${runs.length} found first` : ""}`);
    table.hidden = runs.length === 0;
    if (heads !== shown.join()) {
      heads = shown.join();
      const cells = ["run", "state", "step", ...shown, "gravest alarm", "last write"];
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
      cells[0].className = styleOf(run.state);
      fill(cells[1], "step", run.step === null ? "" : run.planned ? `${run.step + 1} / ${run.planned}` : String(run.step), "number");
      shown.forEach((name, i) => {
        const values = name === "other" ? others(run).map((n) => `${n} ${number(run.numbers[n])}`).join(", ") : name in run.numbers ? number(run.numbers[name]) : "";
        fill(cells[2 + i], name, values, name === "other" ? "other" : "number");
      });
      const alarm = run.alarm ? `${run.alarm.level}, iteration ${run.alarm.iteration}` : "";
      fill(cells[2 + shown.length], "gravest alarm", alarm, "");
      fill(cells[3 + shown.length], "last write", run.written ? ago(found.now - run.written) : "", "");
      if (body.children[place] !== line) body.insertBefore(line, body.children[place] || null);
    });
    document.title = `${runs.filter((run) => run.state === "running").length} running, ${runs.length} runs`;
  });
}

// --------------------------------------------------------------------------------------------- a run

const WORDS = {
  running: "running", finished: "finished", stopped: "stopped; it can go on", dead: "dead: it ended before it was finished",
  "stopped by the watch": "stopped by the watch, as watch.on_collapse says",
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
  const grids = ["panels", "more"].map((name) => [name, el("div", { class: "grid" })]);
  const more = el("section", { hidden: "" }, el("h2", {}), grids[1][1]);
  const samples = el("section", { hidden: "" });
  main.append(
    trouble, el("div", { class: "head" }, state, step, progress, written), announced, why, numbers, controls, alarms, el("h2", {}, "Course"),
    note, grids[0][1], more, samples,
  );
  const question = el("p", {});
  const sure = el("dialog", { "aria-label": "stop this run" }, question);
  const yes = el("button", { type: "button", class: "stop" }, "Stop it");
  const no = el("button", { type: "button", autofocus: "" }, "Let it run");
  sure.append(el("div", { class: "controls" }, no, yes));
  main.append(sure);

  let version = "";
  let head = null;
  let seen = null;  // alarms, once there was a first look
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
    state.className = styleOf(head.state);
    say(state, WORDS[head.state]);
    const done = head.step === null ? 0 : head.step + 1;
    say(step, head.step === null ? "no numbers yet" : head.planned ? `${done} of ${head.planned} iterations done` : `${found.x} ${head.step}`);
    progress.hidden = !head.planned;
    if (head.planned) { progress.max = head.planned; progress.value = done; }
    why.hidden = head.state === "running" || head.state === "finished";
    if (changed("why", [head.why, head.state, found.resume])) {
      const on = head.state === "stopped by the watch" ? ["final/ holds the policy of that iteration."]
        : found.resume ? ["To go on: ", el("code", {}, found.resume)] : ["It left no checkpoint to go on from."];
      why.replaceChildren(head.why ? `${head.why.replace(/\.$/, "")}. ` : "", ...on);
    }
    if (changed("numbers", head.numbers)) {
      numbers.replaceChildren(...Object.entries(head.numbers).filter(([, value]) => value !== null)
        .map(([name, value]) => el("li", {}, el("span", {}, name), el("b", {}, number(value)))));
    }
    showControls(found);
    showAlarms(found);
    const notes = ["Thin: each iteration, thick: running mean. Vertical lines: alarms (dotted: notice, dashed: warning, solid: collapse)."];
    if (found.x !== "iteration") notes[0] = "Thin: each update, thick: running mean.";
    notes.push(`Across: ${found.x}s, counted from 0.`);
    if (found.sampled) notes.push("A long file: first a sample of its lines, the rest is being read.");
    if (found.unreadable) notes.push(`${found.unreadable} lines of metrics.jsonl are not readable and left out.`);
    say(note, found.panels.length ? notes.join(" ") : "No numbers yet.");
    showFigures(found);
    showSamples(found);
  }

  function showFigures(found) {
    const ends = [...found.panels, ...found.critic].flatMap((panel) => [panel.x[0], panel.x[panel.x.length - 1]]);
    if (found.times) ends.push(found.times.x[0]);
    const about = { axis: found.x, marks: found.marks, range: [Math.min(...ends), Math.max(...ends)] };
    const shown = {
      panels: found.panels.map((panel) => [panel.metric, Curves, panel]),
      more: [["ridge", Ridges, found.ridge], ...found.critic.map((panel) => [panel.metric, Curves, panel]), ["times", Times, found.times]],
    };
    for (const [name, grid] of grids) {
      const wanted = shown[name].filter(([, , value]) => value);
      for (const figure of [...grid.children]) if (!wanted.some(([metric]) => charts.get(metric)?.figure === figure)) figure.remove();
      wanted.forEach(([metric, Kind, value], place) => {
        if (!charts.has(metric)) charts.set(metric, new Kind());
        const figure = charts.get(metric).figure;
        if (grid.children[place] !== figure) grid.insertBefore(figure, grid.children[place] || null);
        if (changed(`figure ${metric}`, [value, about])) charts.get(metric).show(value, about);
      });
    }
    more.hidden = !grids[1][1].children.length;
    say(more.firstChild, found.critic.length || found.ridge ? "Held-out rewards, critic and time" : "Time");
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
    const news = found.alarms.filter((alarm) => seen && !seen.has(JSON.stringify(alarm)));
    seen = new Set(found.alarms.map((alarm) => JSON.stringify(alarm)));
    if (news.length) {
      const told = news.slice(0, 3).map((alarm) => `${alarm.level}, iteration ${alarm.iteration ?? "?"}: ${alarm.message}`);
      say(announced, `New alarm, ${told.join("; ")}${news.length > 3 ? `; and ${news.length - 3} more` : ""}`);
    }
  }

  function said(text) {
    return el("span", { class: "said", dir: "auto", ...spoken(text) }, text);
  }

  function showSamples(found) {
    samples.hidden = found.samples.length === 0;
    if (!found.samples.length || !changed("samples", found.samples)) return;
    const first = found.samples[0];
    samples.replaceChildren(
      el("h2", {}, `Newest samples, before iteration ${first.iteration ?? "?"}`),
      ...found.samples.map((sample) => el("article", {},
        ...sample.prompt.map((turn) => el("p", {}, el("span", { class: "who" }, turn.role), " ", said(turn.content))),
        el("p", {}, el("span", { class: "who" }, "answer"), " ", said(sample.response)),
        el("small", {}, `reward ${number(sample.score)}, KL ${number(sample.kl)} nats, ${number(sample.length)} tokens${sample.finished ? "" : ", cut at the length limit"}`))),
    );
  }
}

if (key) runPage();
else listPage();

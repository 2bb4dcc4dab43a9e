// What is drawn of a run: curves, the distributions of rewards, the time by phase. Each is one <figure> that reads out its
// values when it is pointed at, or focused and moved in with the arrow keys.

export function el(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...inside);
  return made;
}

export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

// On an axis there is little room.
function short(value) {
  return number(value).replace(/\.?0+e\+?/, "e");
}

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 24;
const LOWEST = { "value/explained_variance": -1 };  // what lies below is drawn there

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text !== undefined) made.textContent = text;
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

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

class Picture {
  constructor(style = "") {
    this.title = el("h3", {});
    this.told = el("output", {});
    this.unit = el("small", {});
    this.svg = shape("svg", { role: "img", tabindex: "0" });
    this.figure = el("figure", { class: style }, el("figcaption", {}, this.title, this.told, this.unit), this.svg);
    this.at = null;
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(this.nearest(event.offsetX, event.offsetY)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, Escape: NaN }[event.key];
      if (move === undefined || !this.value) return;
      event.preventDefault();
      const last = this.places().length - 1;
      this.point(Number.isNaN(move) ? null : Math.min(last, Math.max(0, (this.at ?? last + (move < 0)) + move)));
    });
  }

  // `about`: the axis (iteration or update), its range over all pictures, marks [where, level of the alarm].
  show(value, about) {
    this.value = value;
    this.about = about;
    if (this.at !== null && this.at >= this.places().length) this.at = null;
    const [title, unit, words] = this.words();
    say(this.title, title);
    say(this.unit, unit);
    this.svg.setAttribute("aria-label", `${title}, ${unit}: ${words}. Left and right keys read values.`);
    this.draw();
  }

  draw() {
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    if (!this.value || !this.width || !this.height) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...this.parts());
    say(this.told, this.reading(this.at ?? this.places().length - 1));
  }

  point(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
  }

  nearest(x) {
    if (!this.value || !this.width) return null;
    const away = this.places().map((place) => Math.abs(this.across(place) - x));
    return away.indexOf(Math.min(...away));
  }

  end() {  // of the axis of time
    return Math.max(this.about.range[1], this.about.range[0] + 1);
  }

  across(value) {
    const left = this.about.range[0], right = this.end();
    return LEFT + ((value - left) / (right - left)) * (this.width - LEFT - RIGHT);
  }

  level(y, text) {
    return [
      shape("line", { class: "gridline", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
      shape("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text),
    ];
  }

  upright(x, style) {
    return shape("line", { class: style, x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM });
  }

  below(x, text) {
    return shape("text", { x, y: this.height - 6, "text-anchor": x > this.width - 30 ? "end" : "middle" }, text);
  }

  // Numbers below the picture, and the alarms.
  time() {
    const [left, right] = this.about.range;
    const room = (this.width - LEFT - RIGHT) / 70;  // the last number ends where the axis does, beside the one before it
    const steps = ticks(left, Math.max(right, left + 1), Math.max(2, Math.min(8, room))).filter(Number.isInteger);
    const marks = this.about.marks.filter(([at]) => at >= left && at <= right);
    return [
      ...steps.map((step) => this.below(this.across(step), String(step))),
      ...marks.map(([at, name]) => this.upright(this.across(at), `mark ${name}`)),
    ];
  }
}

export class Curves extends Picture {
  places() {
    return this.value.x;
  }

  words() {
    const { title, unit, x, y } = this.value;
    const end = (i) => `${number(y[i])} at ${this.about.axis} ${x[i]}`;
    return [title, unit, `${end(0)}, ${end(x.length - 1)}`];
  }

  reading(at) {
    return `${number(this.value.y[at])} at ${this.value.x[at]}`;
  }

  parts() {
    const { x, y, mean, band, metric } = this.value;
    const lowest = LOWEST[metric] ?? -Infinity;
    let low = Math.max(Math.min(...y), lowest), high = Math.max(...y, lowest);
    const spread = low > 0 && high / low > 50;
    const place = spread ? Math.log10 : (value) => Math.max(value, lowest);
    const rate = metric === "eval/win_rate";
    const fromZero = metric === "kl/ref" || metric === "value/explained_variance";
    if (rate || (low === 0 && high === 0)) { low = 0; high = 1; }
    if (fromZero) { low = Math.min(low, 0); high = Math.max(high, 0); }
    [low, high] = [place(low), place(high)];
    if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 1; low -= pad; high += pad; }
    else if (!(low === 0 && high === 1)) { const pad = (high - low) * 0.05; low -= pad; high += pad; }
    const up = (value) => TOP + (1 - (place(value) - low) / (high - low)) * (this.height - TOP - BOTTOM);
    const line = (xs, ys) => path(xs.map((value, i) => [this.across(value), up(ys[i])]));
    const parts = [];
    if (spread) {
      let powers = ticks(low, high, 4).filter(Number.isInteger);
      if (powers.length < 2) powers = ticks(low, high, 3);
      for (const power of powers) parts.push(...this.level(up(10 ** power), short(Number((10 ** power).toPrecision(2)))));
    } else for (const value of ticks(low, high, 6)) parts.push(...this.level(up(value), short(value)));
    parts.push(...this.time());
    if (rate || fromZero) {
      const y0 = up(rate ? 0.5 : 0);
      parts.push(shape("line", { class: "half", x1: LEFT, x2: this.width - RIGHT, y1: y0, y2: y0 }));
    }
    if (band) {
      const edge = (sign) => x.map((value, i) => [this.across(value), up(Math.min(1, Math.max(0, y[i] + sign * (band[i] ?? 0))))]);
      parts.push(shape("path", { class: "band", d: `${path([...edge(1), ...edge(-1).reverse()])}Z` }));
    }
    parts.push(shape("path", { class: mean ? "raw" : "raw alone", d: line(x, y) }));
    if (mean) parts.push(shape("path", { class: "mean", d: line(mean[0], mean[1]) }));
    if (x.length <= 30) x.forEach((value, i) => parts.push(shape("circle", { class: "dot", cx: this.across(value), cy: up(y[i]), r: 2.5 })));
    if (this.at !== null) {
      const here = this.across(x[this.at]);
      parts.push(this.upright(here, "cursor"), shape("circle", { class: "dot", cx: here, cy: up(y[this.at]), r: 4 }));
    }
    return parts;
  }
}

// Distributions of rewards, one below the other as time goes on.
export class Ridges extends Picture {
  constructor() {
    super("ridges");
  }

  places() {
    return this.value.at;
  }

  words() {
    const { at, medians, counts } = this.value;
    const last = at.length - 1;
    const end = (i) => `median ${number(medians[i])} at ${this.about.axis} ${at[i]}`;
    return ["held-out rewards", `${counts[last]} prompts; at the left: ${this.about.axis}; tick: median`, `${end(0)}, ${end(last)}`];
  }

  reading(at) {
    return `median ${number(this.value.medians[at])} at ${this.value.at[at]}`;
  }

  base(i) {  // the first one stands where its top has room
    const room = this.height - TOP - BOTTOM, count = this.value.at.length;
    return TOP + room * ((i + 1.6) / (count + 0.6));
  }

  nearest(x, y) {
    if (!this.value || !this.width) return null;
    const away = this.value.at.map((_, i) => Math.abs(this.base(i) - y));
    return away.indexOf(Math.min(...away));
  }

  parts() {
    const { at, low, high, full, heights, medians } = this.value;
    const across = (value) => LEFT + ((value - low) / (high - low)) * (this.width - LEFT - RIGHT);
    const tall = 1.6 * (this.height - TOP - BOTTOM) / (at.length + 0.6);
    const parts = [];
    for (const value of ticks(low, high, Math.max(3, Math.min(6, this.width / 70)))) {
      parts.push(this.upright(across(value), "gridline"), this.below(across(value), short(value)));
    }
    at.forEach((step, i) => {
      const base = this.base(i), curve = heights[i];
      const points = curve.map((h, k) => [across(low + ((high - low) * k) / (curve.length - 1)), base - (tall * h) / full]);
      const chosen = this.at === i ? " chosen" : "";
      parts.push(shape("path", { class: `hill${chosen}`, d: `${path([[LEFT, base], ...points, [this.width - RIGHT, base]])}Z` }));
      parts.push(shape("path", { class: "crest", d: path(points) }));
      const middle = across(medians[i]);
      parts.push(shape("line", { class: "median", x1: middle, x2: middle, y1: base, y2: base - tall * 0.15 }));
      parts.push(shape("text", { x: LEFT - 6, y: base + 1, "text-anchor": "end" }, String(step)));
    });
    return parts;
  }
}

// Seconds of each phase, one upon the other.
export class Times extends Picture {
  constructor() {
    super("times");
    this.legend = el("ul", { class: "legend" });
    this.figure.append(this.legend);
  }

  places() {
    return this.value.x.slice(0, -1);
  }

  end() {  // of the last iteration, not its beginning
    return Math.max(super.end(), this.value.x[this.value.x.length - 1]);
  }

  words() {
    const shares = this.value.phases.map(([name, share]) => `${name} ${Math.round(100 * share)}%`);
    say(this.legend, "");
    this.legend.append(...shares.map((text, i) => el("li", { class: `phase p${i % 7}` }, text)));
    return ["where the time went", `seconds an ${this.about.axis}; shares of all`, shares.join(", ")];
  }

  reading(at) {
    const { x, phases } = this.value;
    return `${number(phases.reduce((sum, [, , seconds]) => sum + seconds[at], 0))} s at ${x[at]}`;
  }

  parts() {
    const { x, phases } = this.value;
    const sums = this.places().map((_, i) => phases.reduce((sum, [, , seconds]) => sum + seconds[i], 0));
    const high = Math.max(...sums) * 1.05;
    const up = (value) => TOP + (1 - value / high) * (this.height - TOP - BOTTOM);
    const step = (ys) => ys.flatMap((y, i) => [[this.across(x[i]), up(y)], [this.across(x[i + 1]), up(y)]]);
    const parts = [];
    let under = sums.map(() => 0);
    phases.forEach(([, , seconds], k) => {
      const over = under.map((y, i) => y + seconds[i]);
      parts.push(shape("path", { class: `phase p${k % 7}`, d: `${path([...step(over), ...step(under).reverse()])}Z` }));
      under = over;
    });
    for (const value of ticks(0, high, 6)) parts.push(...this.level(up(value), short(value)));
    parts.push(...this.time());
    if (this.at !== null) parts.push(this.upright(this.across((x[this.at] + x[this.at + 1]) / 2), "cursor"));
    return parts;
  }
}

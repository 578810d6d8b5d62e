"use strict";

// What is drawn: `data` is what superscaler/report/describe.py says; times are in nanoseconds.
const data = JSON.parse(document.getElementById("data").textContent);
const PHASES = { P: "prepare", F: "forward", B: "backward", W: "weight gradients", U: "update" };
const LANES = { compute: 24, communication: 13, beside: 13, messages: 13, fetches: 13 }; // heights
const GUTTER = 104; // left of the charts, for what lanes are called
const TITLE = 20; // above each row
const GAP = 12; // between rows
const PANEL = 84; // height of a row's memory
const LEAST = 10; // nanoseconds that can be zoomed into

const view = { from: 0, to: Math.max(data.step, LEAST) };
const axis = document.getElementById("axis");
const range = document.getElementById("range");
const tip = document.getElementById("tip");

// ---- text

function formatTime(nanoseconds, step = nanoseconds / 1000) {
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3]].find(([, size]) => view.to >= size) ?? ["ns", 1];
  const decimals = Math.min(9, Math.max(0, Math.ceil(-Math.log10((step || size) / size) - 1e-9)));
  return `${(nanoseconds / size).toFixed(decimals)} ${unit}`;
}

function formatDuration(nanoseconds) {
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3]].find(([, size]) => nanoseconds >= size) ?? ["ns", 1];
  return `${Number((nanoseconds / size).toPrecision(4))} ${unit}`;
}

function formatBytes(bytes) {
  const [unit, size] = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]].find(([, size]) => bytes >= size) ?? ["B", 1];
  return `${(bytes / size).toFixed(size > 1 ? 1 : 0)} ${unit}`;
}

// A task as schedules print it: F3, or 2F3 where its row has several stages.
function taskText(number, row) {
  const [phase, stage, microBatch] = data.tasks[number];
  if (phase === "P" || phase === "U") return PHASES[phase];
  return `${row.stages > 1 ? stage : ""}${phase}${microBatch}`;
}

// ---- what is drawn, made once

const rows = data.rows.map((row) => {
  const lanes = Object.entries(row.streams)
    .filter(([, spans]) => spans.length)
    .map(([stream, spans]) => ({
      stream,
      spans: spans.map(([first, last, name, start, end, count, busy]) => ({ first, last, name: data.names[name], start, end, count, busy })),
    }))
    .map((lane) => ({ ...lane, tasks: lane.stream === "compute" ? tasksOf(lane.spans) : [] }));
  const numbers = lanes.flatMap((lane) => lane.spans.map((span) => data.tasks[span.first][1]));
  const stages = new Set(numbers.filter((stage) => stage >= 0)).size;
  return { ...row, lanes, stages, held: heldOver(row.memory) };
});

// Neighbouring spans of one task, from the start of the first to the end of the last.
function tasksOf(spans) {
  const tasks = [];
  for (const span of spans) {
    const task = tasks.at(-1);
    if (task && task.first === span.first && task.last === span.last) task.end = span.end;
    else tasks.push({ first: span.first, last: span.last, start: span.start, end: span.end, count: 1 });
  }
  return tasks;
}

// The pieces of time in which a row's memory counts as constant: in a task its most, then what is left of it.
function heldOver(memory) {
  return memory.flatMap(([first, last, start, end, most, after, moment], index) => {
    const next = index + 1 < memory.length ? memory[index + 1][2] : data.step;
    const during = { first, last, start, end, parts: most, moment };
    return next > end ? [during, { first, last, start: end, end: next, parts: after, moment: "" }] : [during];
  });
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const fullest = Math.max(1, ...rows.map((row) => row.peak));
const limit = Math.max(...rows.map((row) => row.limit));
// The limit is drawn where that does not press what is held flat.
const scale = fullest > limit / 5 ? 1.08 * Math.max(fullest, limit) : 1.15 * fullest;

// ---- canvases

class Chart {
  constructor(id, height) {
    this.canvas = document.getElementById(id);
    this.height = height;
    this.context = this.canvas.getContext("2d");
    this.selected = null; // [x, x] while the user drags
    this.found = null; // what the pointer is on
    this.canvas.style.height = `${height}px`;
    listen(this);
  }

  get width() {
    return this.canvas.clientWidth;
  }

  x(time) {
    return GUTTER + ((time - view.from) / (view.to - view.from)) * (this.width - GUTTER);
  }

  time(x) {
    return view.from + ((x - GUTTER) / (this.width - GUTTER)) * (view.to - view.from);
  }

  draw() {
    const { canvas, context, width, height } = this;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    for (const { time } of ticks(width)) this.fill("--line", this.x(time), 0, 1, height);
    this.drawRows();
    if (this.selected) {
      const [from, to] = this.selected;
      context.globalAlpha = 0.2;
      this.fill("--accent", Math.min(from, to), 0, Math.abs(to - from), height);
      context.globalAlpha = 1;
    }
  }

  fill(name, x, y, width, height) {
    this.context.fillStyle = colour(name);
    this.context.fillRect(x, y, width, height);
  }

  text(words, x, y, name = "--muted", weight = "") {
    this.context.save();
    this.context.font = `${weight} ${this.context.font}`.trim();
    this.context.fillStyle = colour(name);
    this.context.fillText(words, x, y);
    const width = this.context.measureText(words).width;
    this.context.restore();
    return x + width;
  }

  // Draw only right of the gutter, and inside of these heights.
  inside(y, height, draw) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(GUTTER, y, this.width - GUTTER, height);
    this.context.clip();
    draw();
    this.context.restore();
  }
}

class SpanChart extends Chart {
  constructor() {
    let y = 4;
    const places = [];
    for (const row of rows) {
      const title = y;
      y += TITLE;
      const lanes = row.lanes.map((lane) => {
        const place = { ...lane, row, y, height: LANES[lane.stream] };
        y += place.height + 2;
        return place;
      });
      places.push({ row, title, lanes });
      y += GAP;
    }
    super("spans", y);
    this.places = places;
  }

  drawRows() {
    for (const { row, title, lanes } of this.places) {
      const end = this.text(row.title, 0, title + TITLE / 2, "--ink", "600");
      this.text(`devices ${row.devices}`, end + 10, title + TITLE / 2);
      for (const lane of lanes) {
        this.text(lane.stream, 0, lane.y + lane.height / 2);
        this.inside(lane.y, lane.height, () => this.drawLane(lane));
      }
    }
  }

  drawLane(lane) {
    // a task is a pale band, on which it is darker where it computes
    for (const task of lane.tasks) this.drawSpan(lane, task, 0.3);
    for (const span of lane.spans) this.drawSpan(lane, span, data.tasks[span.first][2] % 2 ? 0.8 : 1);
    for (const task of lane.tasks) this.label(lane, task);
  }

  drawSpan(lane, span, alpha) {
    if (span.end < view.from || span.start > view.to) return;
    const [from, to] = [this.x(span.start), this.x(span.end)];
    const width = Math.max(0.8, to - from - (to - from > 4 ? 1 : 0));
    this.context.globalAlpha = alpha;
    this.fill(spanColour(lane, span), from, lane.y, width, lane.height);
    this.context.globalAlpha = 1;
    if (span === this.found?.span) this.outline(from, lane.y, width, lane.height);
  }

  outline(x, y, width, height) {
    this.context.strokeStyle = colour("--ink");
    this.context.lineWidth = 1.5;
    this.context.strokeRect(x + 0.75, y + 0.75, Math.max(1, width - 1.5), height - 1.5);
  }

  label(lane, task) {
    const [from, to] = [Math.max(GUTTER, this.x(task.start)), Math.min(this.width, this.x(task.end))];
    const words = task.first === task.last ? taskText(task.first, lane.row) : `${taskText(task.first, lane.row)}…`;
    if (to - from > 7 * words.length + 4) this.text(words, from + 4, lane.y + lane.height / 2 + 0.5, "--on-span");
  }

  // The span under the pointer, or one that is too narrow to be hit.
  find(x, y) {
    const lane = this.places.flatMap((place) => place.lanes).find((lane) => y >= lane.y && y < lane.y + lane.height);
    if (!lane || x < GUTTER) return null;
    const near = this.time(x + 2) - this.time(x);
    const time = this.time(x);
    const inside = lane.spans.find((span) => span.start <= time && time < span.end);
    const span = inside ?? lane.spans.find((span) => span.start - near <= time && time <= span.end + near);
    return span ? { lane, span } : null;
  }

  describe({ lane, span }) {
    const [phase, stage, microBatch] = data.tasks[span.first];
    const isRepeated = phase !== "P" && phase !== "U";
    const title = lane.stream === "compute" ? "computing" : span.name || lane.stream;
    const task = span.first === span.last ? "" : ` to ${taskText(span.last, lane.row)}`;
    const lines = [["task", `${taskText(span.first, lane.row)}${task}${isRepeated && !task ? ` (${PHASES[phase]})` : ""}`]];
    if (isRepeated && !task) lines.push(["micro-batch", microBatch], ["stage", stage]);
    lines.push(["row", `${lane.row.title}, devices ${lane.row.devices}`], ["start", formatDuration(span.start)]);
    lines.push(["duration", formatDuration(span.end - span.start)]);
    if (span.count > 1) lines.push(["drawn as one", `${span.count}, occupied for ${formatDuration(span.busy)}`]);
    return [title, lines];
  }
}

class MemoryChart extends Chart {
  constructor() {
    super("memory", rows.length * (TITLE + PANEL + GAP));
  }

  drawRows() {
    rows.forEach((row, index) => {
      const title = index * (TITLE + PANEL + GAP);
      const bottom = title + TITLE + PANEL;
      const end = this.text(row.title, 0, title + TITLE / 2, "--ink", "600");
      const name = row.peak > row.limit ? "--limit" : "--muted";
      this.text(`at most ${formatBytes(row.peak)} of ${formatBytes(row.limit)}`, end + 10, title + TITLE / 2, name);
      this.text(formatBytes(scale), 0, title + TITLE + 7);
      this.text("0", 0, bottom - 6);
      this.inside(title + TITLE, PANEL, () => this.drawHeld(row, bottom));
      this.fill("--line", GUTTER, bottom, this.width - GUTTER, 1);
    });
  }

  drawHeld(row, bottom) {
    const height = (bytes) => (bytes / scale) * PANEL;
    for (const [from, to, held] of this.columns(row)) {
      let y = bottom;
      held.parts.forEach((bytes, part) => {
        y -= height(bytes);
        this.fill(`--${data.parts[part]}`, from, y, to - from, height(bytes));
      });
    }
    if (row.limit > scale) return;
    this.context.strokeStyle = colour("--limit");
    this.context.setLineDash([6, 4]);
    this.context.beginPath();
    this.context.moveTo(GUTTER, bottom - height(row.limit));
    this.context.lineTo(this.width, bottom - height(row.limit));
    this.context.stroke();
  }

  // Runs of pixels and what is held there; of pieces that share a pixel the fullest.
  columns(row) {
    const pixels = [];
    for (const held of row.held) {
      if (held.end < view.from || held.start > view.to) continue;
      const from = Math.max(GUTTER, Math.floor(this.x(held.start)));
      const to = Math.min(this.width, Math.max(from + 1, Math.floor(this.x(held.end))));
      for (let x = from; x < to; x++) if (!pixels[x] || sum(pixels[x].parts) < sum(held.parts)) pixels[x] = held;
    }
    const runs = [];
    pixels.forEach((held, x) => {
      const last = runs.at(-1);
      if (last && last[2] === held && last[1] === x) last[1] = x + 1;
      else runs.push([x, x + 1, held]);
    });
    return runs;
  }

  find(x, y) {
    const row = rows[Math.floor(y / (TITLE + PANEL + GAP))];
    const run = row && this.columns(row).find(([from, to]) => from <= x && x < to);
    return run ? { row, held: run[2] } : null;
  }

  describe({ row, held }) {
    const tasks = [...new Set([held.first, held.last].map((task) => taskText(task, row)))].join(" to ");
    const lines = held.parts.map((bytes, part) => [data.parts[part], formatBytes(bytes)]).filter((_, part) => held.parts[part]);
    lines.push(["row", row.title], ["from", formatDuration(held.start)], ["to", formatDuration(held.end)]);
    if (held.moment) lines.push(["fullest at", held.moment]);
    return [`${formatBytes(sum(held.parts))} ${held.moment ? "in" : "after"} ${tasks}`, lines];
  }
}

let colours = {};
function colour(name) {
  return (colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(name).trim());
}

function spanColour(lane, span) {
  if (lane.stream !== "compute") return `--${lane.stream}`;
  const [first, last] = [data.tasks[span.first][0], data.tasks[span.last][0]];
  return first === last && (span.count === 1 || span.first === span.last) ? `--${first}` : "--mixed";
}

// ---- the axis

// Round times, about a hundred pixels apart.
function ticks(width) {
  const wanted = ((view.to - view.from) * 110) / Math.max(110, width - GUTTER);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
  const found = [];
  for (let n = Math.ceil(view.from / step); n * step <= view.to; n++) found.push({ time: n * step, text: formatTime(n * step, step) });
  return found;
}

function drawAxis(chart) {
  const whole = ticks(chart.width).filter(({ time, text }) => chart.x(time) + 7 * text.length < chart.width);
  axis.replaceChildren(
    ...whole.map(({ time, text }) => {
      const label = document.createElement("span");
      label.textContent = text;
      label.style.left = `${chart.x(time)}px`;
      return label;
    }),
  );
  range.textContent = `${formatTime(view.from, (view.to - view.from) / 100)} to ${formatTime(view.to, (view.to - view.from) / 100)}`;
}

// ---- moving and zooming

function show(from, to) {
  const length = Math.min(Math.max(to - from, LEAST), Math.max(data.step, LEAST));
  view.from = Math.min(Math.max(0, from), Math.max(data.step, LEAST) - length);
  view.to = view.from + length;
  redraw();
}

function zoom(factor, around = (view.from + view.to) / 2) {
  show(around - (around - view.from) * factor, around + (view.to - around) * factor);
}

function move(part) {
  const length = (view.to - view.from) * part;
  show(view.from + length, view.to + length);
}

const KEYS = {
  "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show(0, data.step),
  ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), Escape: hideTip,
};

function listen(chart) {
  const { canvas } = chart;
  let grabbed = null; // where the pointer went down

  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX / chart.width);
    else zoom(1.0015 ** event.deltaY, chart.time(Math.max(GUTTER, event.offsetX)));
  }, { passive: false });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || event.pointerType === "touch") return;
    grabbed = { x: event.offsetX, from: view.from, to: view.to, moves: event.shiftKey };
    canvas.setPointerCapture(event.pointerId);
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!grabbed) return point(chart, event);
    if (grabbed.moves) {
      const by = ((grabbed.x - event.offsetX) / (chart.width - GUTTER)) * (grabbed.to - grabbed.from);
      return show(grabbed.from + by, grabbed.to + by);
    }
    hideTip();
    chart.selected = [Math.max(GUTTER, grabbed.x), Math.max(GUTTER, event.offsetX)];
    redraw();
  });

  canvas.addEventListener("pointerup", () => {
    const selected = chart.selected;
    grabbed = chart.selected = null;
    if (!selected) return;
    const [from, to] = selected.sort((a, b) => a - b).map((x) => chart.time(x));
    if (Math.abs(selected[1] - selected[0]) > 4) show(from, to);
    else redraw();
  });

  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", () => show(0, data.step));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}

// ---- the tip

function point(chart, event) {
  const found = chart.find(event.offsetX, event.offsetY);
  const changes = found?.span !== chart.found?.span;
  chart.found = found;
  if (changes) chart.draw();
  if (found) showTip(event, ...chart.describe(found));
  else tip.hidden = true;
}

function showTip(event, title, lines) {
  const head = document.createElement("b");
  head.textContent = title;
  const list = document.createElement("dl");
  for (const line of lines) {
    for (const [kind, words] of [["dt", line[0]], ["dd", line[1]]]) {
      const cell = document.createElement(kind);
      cell.textContent = words;
      list.append(cell);
    }
  }
  tip.replaceChildren(head, list);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 16 + width > window.innerWidth;
  const below = event.clientY + 16 + height > window.innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX - width - 12 : event.clientX + 16)}px`;
  tip.style.top = `${Math.max(4, below ? event.clientY - height - 12 : event.clientY + 16)}px`;
}

function hideTip() {
  tip.hidden = true;
  for (const chart of charts) {
    if (!chart.found) continue;
    chart.found = null;
    chart.draw();
  }
}

// ---- start

function redraw() {
  for (const chart of charts) chart.draw();
  drawAxis(charts[0]);
}

const charts = [new SpanChart(), new MemoryChart()];
document.querySelector(".legend .limit").hidden = limit > scale;
document.getElementById("zoom-in").addEventListener("click", () => zoom(0.5));
document.getElementById("zoom-out").addEventListener("click", () => zoom(2));
document.getElementById("zoom-all").addEventListener("click", () => show(0, data.step));
new ResizeObserver(redraw).observe(axis);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours = {};
  redraw();
});
redraw();

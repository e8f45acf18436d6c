"use strict";

const element = (id) => document.getElementById(id);
const write = (id, text) => { element(id).textContent = text; };
const whole = new Intl.NumberFormat("en");
const percent = (part) => `${(100 * part).toFixed(1)} %`;

function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (number >= 1000 && at < units.length - 1) { number /= 1000; at += 1; }
  return `${at && number < 100 ? number.toFixed(1) : Math.round(number)} ${units[at]}`;
}

function duration(seconds) {
  if (seconds >= 86400) return `${(seconds / 86400).toFixed(1)} d`;
  if (seconds >= 3600) return `${(seconds / 3600).toFixed(1)} h`;
  if (seconds >= 60) return `${(seconds / 60).toFixed(1)} min`;
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return seconds >= 0.001 ? `${(1000 * seconds).toFixed(1)} ms` : `${Math.round(1e6 * seconds)} µs`;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let chart;

function rateOfMinute(sample, at, history) {
  const before = history.slice(0, at).findLast((earlier) => earlier.at <= sample.at - 60) ?? { lookups: 0, answered: 0 };
  const lookups = sample.lookups - before.lookups;
  return lookups ? 100 * (sample.answered - before.answered) / lookups : null;
}

function draw(history) {
  const data = [history.map((sample) => sample.at), history.map(rateOfMinute)];
  if (chart) { chart.setData(data); return; }
  const axis = { stroke: style("--quiet"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
  chart = new uPlot({
    width: element("chart").clientWidth, height: 220, legend: { show: false }, cursor: { drag: { x: false, y: false } },
    scales: { x: { range: (_, from, to) => [Math.min(from, to - 300), to] }, y: { range: [0, 100] } },
    axes: [axis, { ...axis, values: (_, ticks) => ticks.map((tick) => `${tick} %`) }],
    series: [{}, { stroke: style("--accent"), fill: style("--fill"), width: 2 }],
  }, data, element("chart"));
}

function row(name, stats, canSteer) {
  const line = document.createElement("tr");
  const cells = [name || "(by hand)", null, stats.lookups, stats.misses, duration(stats.seconds_saved), bytes(stats.bytes_stored)];
  for (const text of cells) {
    const cell = line.insertCell();
    cell.textContent = typeof text === "number" ? whole.format(text) : text;
  }
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.append(Object.assign(document.createElement("i"), { style: `width: ${100 * stats.hit_rate}%` }));
  line.cells[1].append(bar, percent(stats.hit_rate));
  const last = line.insertCell();
  if (canSteer && name) {
    const button = Object.assign(document.createElement("button"), { textContent: "Invalidate…", type: "button" });
    button.setAttribute("aria-label", `Invalidate ${name}`);
    button.addEventListener("click", () => confirmInvalidation(name));
    last.append(button);
  }
  return line;
}

function lookups(stats) {
  return stats.hits + stats.stale_hits + stats.coalesced + stats.misses;
}

function show(stats, status, history) {
  const all = lookups(stats);
  const spent = history.map((sample) => sample.lookup_seconds).sort((a, b) => a - b);
  write("hit-rate", all ? percent(stats.hit_rate) : "–");
  write("lookups", `of ${whole.format(all)} lookups`);
  write("calls-saved", whole.format(all - stats.misses));
  write("coalesced", whole.format(stats.coalesced));
  write("time-saved", duration(stats.seconds_saved));
  const cost = stats.cost_saved ? `, ${stats.cost_saved.toFixed(2)} in cost` : "";
  write("tokens", stats.tokens_saved ? `${whole.format(stats.tokens_saved)} tokens${cost}` : "of waiting for models");
  write("hit-time", spent.length ? duration(spent[spent.length >> 1]) : "–");
  write("miss-time", stats.sets && stats.call_seconds ? `a call ${duration(stats.call_seconds / stats.sets)}` : "");
  write("stored", bytes(stats.bytes_stored));
  write("raw", `of ${bytes(stats.bytes_raw)} packed`);
  write("entries", whole.format(status.memory.entries));
  write("evictions", `${bytes(status.memory.size_bytes)}, ${whole.format(stats.evictions)} evicted`);
  write("errors", whole.format(stats.errors));
  write("breaker", `breaker ${stats.breaker}`);
  write("state", status.is_available ? `${status.backend}, connected` : `${status.backend} does not answer`);
  element("state").className = status.is_available && stats.breaker === "closed" ? "good" : "bad";
  const names = Object.keys(stats.by_operation).sort((a, b) => lookups(stats.by_operation[b]) - lookups(stats.by_operation[a]));
  const rows = names.map((name) => {
    const own = stats.by_operation[name];
    return row(name, { ...own, lookups: lookups(own) }, true);
  });
  if (!element("operations").contains(document.activeElement)) element("operations").replaceChildren(...rows);
  element("none").hidden = names.length > 0;
  draw(history);
}

async function read(path) {
  const answer = await fetch(path, { headers: key ? { "X-API-Key": key } : {} });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer.json();
}

async function refresh() {
  try {
    show(...await Promise.all(["stats", "status", "history"].map(read)));
  } catch (error) {
    write("state", error.message || "no answer");
    element("state").className = "bad";
  }
}

let key = "";
let meant = "";

function confirmInvalidation(operation) {
  meant = operation;
  write("ask-operation", operation);
  write("ask-error", "");
  element("ask").showModal();
  element("key").focus();
}

async function invalidate(event) {
  event.preventDefault();
  key = element("key").value;
  const answer = await fetch(`invalidate?operation=${encodeURIComponent(meant)}`, {
    method: "POST", headers: { "X-API-Key": encodeURIComponent(key) === key ? key : "?" },
  });
  const said = await answer.json();
  if (!answer.ok) {
    key = "";
    write("ask-error", answer.status === 404 || answer.status === 405 ? "No API key is configured: nothing can be steered." : said.detail);
    return;
  }
  element("ask").close();
  write("state", said.message);
  setTimeout(refresh, 1500);
}

element("ask-form").addEventListener("submit", invalidate);
element("ask-cancel").addEventListener("click", () => element("ask").close());
addEventListener("resize", () => chart && chart.setSize({ width: element("chart").clientWidth, height: 220 }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { chart && chart.destroy(); chart = undefined; refresh(); });
refresh();
setInterval(refresh, 2000);

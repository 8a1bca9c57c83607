// The console's page: asks for /state.json every two seconds while somebody looks, and draws it. No libraries.
// Everything that comes from the cluster is set as text, never as markup.

import { show } from "./charts.js";

const EVERY = 2000; // ms between questions
const SHOWN = 300; // workloads in the list; the filter finds the others
const GIB = 1024; // MiB
const COLUMNS = ["index", "product", "memory", "reserved", "used", "busy", "verdict", "reason", "flags", "tenants", "throttled", "risk", "watts"];
const LEGENDS = {
  ledger: "Each bar is a device: filled to the memory observed in use, the line at what the ledger has reserved. Striped: not measured.",
  busy: "Share of the last second in which some kernel ran. Striped: the device does not tell.",
  tenants: "One colour a workload; striped over where several share a device.",
  strain: "How much less a device counts in placement, by heat, power brakes and the age of its memory. Crossed: it takes nothing new for it.",
  health: "Green is healthy; ~ degraded, ! unhealthy, ? unknown.",
};
const SIGNS = { Degraded: "~", Unhealthy: "!", Unknown: "?" };
const $ = (id) => document.getElementById(id);

let state = null;
let tag = "";
let asked = 0; // number of the newest question about a workload
let pastDue = 0; // ms, when the history is asked for next
let chosen = ""; // workload
let pointed = null; // device

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function size(mib) {
  if (mib >= GIB * GIB) return `${(mib / GIB / GIB).toFixed(1)} TiB`;
  return mib >= GIB ? `${(mib / GIB).toFixed(1)} GiB` : `${mib} MiB`;
}

function gpus(milli) {
  return milli === null ? "unlimited" : (milli / 1000).toFixed(milli % 1000 ? 1 : 0);
}

// A colour that stays a workload's own, whoever else is there.
export function hue(name) {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i += 1) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  return (hash >>> 0) % 360;
}

export function device(row) {
  return Object.fromEntries(COLUMNS.map((name, i) => [name, row[i]]));
}

export function percent(part, whole) {
  return whole > 0 && part !== null ? Math.min(100, (100 * part) / whole) : 0;
}

// What speaks against a device, in words.
export function strain(one) {
  const told = [one.throttled ? `held down ${one.throttled / 10} % of its time` : "", one.risk ? `memory risk ${one.risk / 10} %` : ""].filter(Boolean);
  if (!told.length) return "";
  const less = Math.min(1000, one.throttled + one.risk) / 10;
  return `; counts ${less} % less (${told.join(", ")})${one.flags & 8 ? " and takes nothing new" : ""}`;
}

// What a device holds, in one line for people.
export function sentence(node, one, names) {
  const held = one.tenants.map((number) => names.tenants[number]);
  const busy = one.busy === null ? "" : `, ${one.busy} % busy`;
  const used = one.used === null ? "not measured" : `${size(one.used)} observed`;
  const kept = one.flags & 1 ? "held as a whole" : `${size(one.reserved)} reserved`;
  const taken = one.flags & 2 ? "; taken by a pod that is not ours" : one.flags & 4 ? "; taken from the device plugin for shared work" : "";
  const draws = one.watts === null ? "" : `, ${one.watts} W`;
  const sick = one.verdict === "Healthy" ? "" : `; ${one.verdict} ${one.reason}`;
  return `${node.name} device ${one.index}, ${names.products[one.product]} ${size(one.memory)}: ${kept}, ${used}${busy}${draws}${strain(one)}${sick}${taken}; ${held.length ? held.join(", ") : "no workload"}`;
}

function totals() {
  const devices = state.nodes.flatMap((node) => node.devices.map(device));
  const sum = (name) => devices.reduce((total, one) => total + (one[name] || 0), 0);
  const told = devices.filter((one) => one.busy !== null);
  const memory = sum("memory");
  const reserved = devices.reduce((total, one) => total + (one.flags & 3 ? one.memory : one.reserved), 0);
  const shown = {
    devices: `${devices.length} on ${state.nodes.length} nodes`,
    strained: devices.filter((one) => one.throttled + one.risk > 0).length,
    "not healthy": devices.filter((one) => one.verdict !== "Healthy").length,
    reserved: `${percent(reserved, memory).toFixed(0)} % of ${size(memory)}`,
    observed: `${percent(sum("used"), memory).toFixed(0)} %`,
    busy: told.length ? `${(told.reduce((all, one) => all + one.busy, 0) / told.length).toFixed(0)} %` : "not told",
    ...Object.fromEntries(Object.entries(state.phases).map(([phase, count]) => [phase.toLowerCase(), count])),
  };
  $("totals").replaceChildren(
    ...Object.entries(shown).map(([name, value]) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    }),
  );
}

// The cells are made once for a set of devices and then only painted: 1,000 of them every two seconds.
let cells = [];
let layout = "";
function map() {
  const now = state.nodes.map((node) => `${node.name}:${node.devices.length}`).join();
  if (now !== layout) {
    layout = now;
    cells = [];
    $("map").replaceChildren(
      ...state.nodes.map((node, i) => {
        const box = element("div", undefined, "node");
        const row = element("div", undefined, "cells");
        const name = element("b", node.name);
        name.title = node.name;
        node.devices.forEach((_, j) => {
          const cell = element("button", undefined, "cell");
          cell.type = "button";
          cell.tabIndex = cells.length ? -1 : 0;
          const sign = element("i");
          cell.append(sign);
          const known = { cell, sign, box, name, i, j };
          for (const event of ["pointerenter", "focus"]) cell.addEventListener(event, () => point(known));
          cells.push(known);
          row.append(cell);
        });
        box.append(name, row);
        return box;
      }),
    );
  }
  for (const known of cells) paint(known);
  if (pointed && cells.includes(pointed)) tell();
}

function paint({ cell, sign, box, name, i, j }) {
  const node = state.nodes[i];
  const one = device(node.devices[j]);
  const held = one.tenants.map((number) => state.tenants[number]);
  const off = !node.ready ? "not ready" : node.silent ? "silent" : node.cordoned ? "cordoned" : "";
  box.className = off ? "node off" : "node";
  name.dataset.state = off;
  const mode = $("modes").querySelector(":checked").value;
  const unknown = (mode === "ledger" && one.used === null) || (mode === "busy" && one.busy === null);
  const reserved = one.flags & 3 ? 100 : percent(one.reserved, one.memory);
  cell.className = ["cell", one.verdict, held.length ? "held" : "", held.length > 1 ? "several" : "", unknown ? "unknown" : "", reserved ? "" : "empty", one.flags & 8 ? "down" : ""].join(" ");
  cell.style.setProperty("--used", percent(one.used, one.memory));
  cell.style.setProperty("--reserved", reserved);
  cell.style.setProperty("--value", one.busy ?? 0);
  cell.style.setProperty("--strain", percent(one.throttled + one.risk, 1000));
  if (held.length) cell.style.setProperty("--hue", hue(held[0]));
  sign.textContent = SIGNS[one.verdict] ?? "";
  cell.setAttribute("aria-label", sentence(node, one, state));
}

function point(known) {
  pointed?.cell.classList.remove("chosen");
  pointed = known;
  tell();
}

function tell() {
  const node = state.nodes[pointed.i];
  pointed.cell.classList.add("chosen");
  $("device").textContent = sentence(node, device(node.devices[pointed.j]), state);
}

function walk(event) {
  const at = cells.findIndex((known) => known.cell === document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8 }[event.key];
  if (at < 0 || !step) return;
  event.preventDefault();
  const next = cells[Math.max(0, Math.min(cells.length - 1, at + step))];
  cells[at].cell.tabIndex = -1;
  next.cell.tabIndex = 0;
  next.cell.focus();
}

const STATES = {
  advice: "for a person to do",
  allowed: "would be done now",
  young: "waits for the verdict to last",
  breaker: "held back by the circuit breaker",
  treated: "under treatment",
};
function remedies() {
  $("remedies").hidden = !state.remedies.length;
  $("remedies").replaceChildren(
    ...state.remedies.map((one) => {
      const item = element("li");
      const where = one.device ? `${one.node}, ${one.device}` : one.node;
      item.append(element("strong", one.action), ` ${where}: ${one.reason}; ${STATES[one.state]}`);
      return item;
    }),
  );
}

function power() {
  $("power").hidden = !state.power.length;
  const told = (watts) => (watts === null ? "not told" : `${watts} W`);
  const rows = state.power.map((one) => {
    const row = element("tr");
    row.append(element("td", `${one.level} ${one.name}`), element("td", told(one.drawn), "number"));
    row.append(element("td", told(one.expected), "number"), element("td", told(one.budget), "number"));
    const share = element("td");
    const meter = element("meter");
    meter.max = Math.max(1, one.budget);
    meter.high = 0.9 * meter.max;
    meter.value = one.drawn ?? 0;
    share.append(meter, one.drawn === null ? "" : ` ${percent(one.drawn, one.budget).toFixed(0)} %`);
    row.append(share);
    return row;
  });
  $("power").querySelector("tbody").replaceChildren(...rows);
}

function queues() {
  const rows = state.queues.map((queue) => {
    const row = element("tr");
    row.append(element("td", queue.parent ? `${queue.parent} / ${queue.name}` : queue.name));
    row.append(element("td", gpus(queue.usedMilli), "number"), element("td", gpus(queue.nominalMilli), "number"));
    row.append(element("td", gpus(queue.borrowedMilli), "number"));
    const share = element("td");
    const meter = element("meter");
    meter.max = 1000;
    meter.value = Math.min(1000, queue.shareMilli);
    share.append(meter, ` ${(queue.shareMilli / 10).toFixed(1)} %${queue.ready ? "" : " · not usable"}`);
    row.append(share, element("td", queue.admitted, "number"), element("td", queue.pending, "number"));
    return row;
  });
  $("queues").tBodies[0].replaceChildren(...rows);
}

function workloads() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (one) => {
    const text = `${one.key} ${one.phase} ${one.queue} ${one.model} ${one.nodes} ${one.reason}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const found = state.workloads.filter(fits);
  const rows = found.slice(0, SHOWN).map((one) => {
    const row = element("tr", undefined, one.key === chosen ? "chosen" : "");
    const name = element("td");
    const button = element("button", one.key);
    button.type = "button";
    name.append(button, element("div", one.model, "aside"));
    row.append(name, element("td", one.phase, `phase ${one.phase}`), element("td", one.ready, "number"));
    row.append(element("td", `${one.queue}${one.priority ? ` · ${one.priority}` : ""}`));
    row.append(element("td", one.precision), element("td", one.nodes));
    const decision = element("td");
    decision.append(element("strong", one.reason), one.message ? `: ${one.message}` : "");
    row.append(decision);
    row.dataset.key = one.key;
    return row;
  });
  const focused = document.activeElement?.closest?.("#workloads tr")?.dataset.key;
  $("workloads").tBodies[0].replaceChildren(...rows);
  rows.find((row) => row.dataset.key === focused)?.querySelector("button").focus();
  const more = found.length - rows.length + (words.length ? 0 : state.left);
  $("left").textContent = more > 0 ? `${more} more; the filter finds them` : found.length ? "" : "no workloads";
}

function paragraphs(title, lines) {
  return lines.length ? [element("h4", title), ...lines.map((line) => element("p", line))] : [];
}

async function detail() {
  const number = ++asked;
  const response = await fetch(`workload.json?${new URLSearchParams({ key: chosen })}`);
  const one = response.ok ? await response.json() : null;
  if (number !== asked) return;
  $("detail").hidden = !one;
  if (!one) return;
  const line = element("ol");
  for (const step of one.timeline) {
    const item = element("li");
    const when = element("time", step.time.replace("T", " ").replace("Z", ""));
    item.append(when, element("strong", `${step.what} ${step.reason}`), step.message ? ` ${step.message}` : "");
    line.append(item);
  }
  const usage = `${(one.usage.gpuSeconds / 3600).toFixed(2)} GPU hours, ${(one.usage.energyJoules / 3.6e6).toFixed(3)} kWh, ${one.usage.tokens} tokens`;
  $("detail").replaceChildren(
    element("h3", one.key),
    element("p", `${one.type} of ${one.model}`, "aside"),
    ...paragraphs("Decision", [`${one.reason}: ${one.message}`]),
    ...paragraphs("Turned away", one.rejected.map((row) => `${row.count} nodes ${row.reason}${row.message ? `: ${row.message}` : ""}`)),
    ...paragraphs("Places", one.placements.map((row) => `${row.pod} on ${row.node}: ${row.reserved} on ${row.devices.join(", ") || "the CPU"}${row.scoredBy ? `, by ${row.scoredBy}` : ""}`)),
    ...paragraphs("Used so far", [usage]),
    element("h4", "Timeline"),
    line,
  );
}

function draw() {
  const mode = $("modes").querySelector(":checked").value;
  $("map").className = mode;
  $("legend").textContent = LEGENDS[mode];
  totals();
  map();
  remedies();
  power();
  queues();
  workloads();
  if (chosen) detail().catch(() => {});
}

function live(text, lost) {
  $("live").textContent = text;
  $("live").classList.toggle("lost", lost);
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

async function past() {
  if (Date.now() < pastDue) return;
  const response = await fetch("history.json", { cache: "no-store" });
  if (!response.ok) return;
  const found = await response.json();
  show(found);
  pastDue = Date.now() + 1000 * (found.time?.length ? found.every : 0);
}

async function ask() {
  try {
    const response = await fetch("state.json", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (response.status === 200) {
      const found = await response.json();
      tag = response.headers.get("ETag") ?? "";
      if (found.leading) {
        state = found;
        draw();
      }
      const waits = "This operator has not read the whole cluster yet: what is shown is incomplete.";
      const stands = "This replica stands by and knows nothing: forward a port of the leader's pod (label llmos.dev/leader=true).";
      notice(!found.leading ? stands : found.synced ? "" : waits);
    } else if (response.status !== 304) throw new Error(`status ${response.status}`);
    live(`live, ${new Date().toLocaleTimeString()}`, false);
  } catch (error) {
    live(`no answer (${error.message})`, true);
  }
}

function begin() {
  $("modes").addEventListener("change", () => state && draw());
  $("map").addEventListener("keydown", walk);
  $("filter").addEventListener("input", () => state && workloads());
  $("workloads").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    chosen = row.dataset.key === chosen ? "" : row.dataset.key;
    $("detail").hidden = true;
    workloads();
    if (chosen) detail().catch(() => {});
  });
  const turn = async () => {
    if (!document.hidden) await ask();
    if (!document.hidden) await past().catch(() => {}); // `ask` has told that nobody answers
    setTimeout(turn, EVERY);
  };
  document.addEventListener("visibilitychange", () => !document.hidden && ask());
  turn();
}

begin();

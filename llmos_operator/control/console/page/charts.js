// The last hour as small charts, drawn from /history.json. No libraries.
// A chart is an image with a sentence for a name; arrow keys and the pointer read its moments in words.

const WIDTH = 240; // of a chart, in its own units
const HEIGHT = 64;
const TOP = 4; // kept free above the highest value
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

const share = (value) => `${(value / 10).toFixed(0)} %`;
const whole = (value) => `${value}`;
const time = (value) => (value < 1000 ? `${value} ms` : `${(value / 1000).toFixed(1)} s`);
// A chart without `top` is as high as its highest value, yet no lower than `least`.
const CHARTS = [
  { title: "Devices busy", top: 100, text: (value) => `${value} %`, lines: [["busy", ""]] },
  { title: "Device memory", top: 1000, text: share, lines: [["used", "observed"], ["reserved", "reserved"]] },
  { title: "Workloads that wait", least: 4, text: whole, lines: [["waiting", ""]] },
  { title: "Requests in progress", least: 4, text: whole, lines: [["requests", ""]] },
  { title: "Wait for the first token", least: 100, text: time, lines: [["first", ""]] },
];

let told = null; // the newest answer
let at = -1; // the moment that is read, -1: none
const made = []; // a chart's parts, in the order of CHARTS

function draw(name, classes) {
  const found = document.createElementNS(SVG, name);
  if (classes) found.setAttribute("class", classes);
  return found;
}

export function highest(values, { top, least }) {
  return top ?? Math.max(least, ...values.filter((value) => value !== null));
}

// Pieces of a line, "x,y x,y …" each; what nobody told, and time in which nobody was there, breaks it.
export function pieces(values, times, high, every, most) {
  const found = [];
  const last = times[times.length - 1];
  let before = null;
  values.forEach((value, i) => {
    if (value === null) {
      before = null;
      return;
    }
    const x = WIDTH - ((last - times[i]) / (every * (most - 1))) * WIDTH;
    const y = HEIGHT - (Math.min(value, high) / high) * (HEIGHT - TOP);
    const point = `${x.toFixed(1)},${y.toFixed(1)}`;
    if (before !== null && times[i] - before <= 3 * every) found[found.length - 1].push(point);
    else found.push([point]);
    before = times[i];
  });
  return found.map((points) => (points.length > 1 ? points : [...points, points[0]]).join(" "));
}

// A chart in words: what it is now, and between what it was.
export function summary(chart, history) {
  const parts = chart.lines.map(([column, name]) => {
    const values = history[column].filter((value) => value !== null);
    const label = name ? `${name} ` : "";
    if (!values.length) return `${label}not told`;
    const now = history[column][history[column].length - 1];
    const range = `between ${chart.text(Math.min(...values))} and ${chart.text(Math.max(...values))}`;
    return `${label}${now === null ? "not told" : chart.text(now)} now, ${range}`;
  });
  return `${chart.title}: ${parts.join("; ")}`;
}

function moment(chart, i) {
  return chart.lines
    .map(([column, name]) => `${name ? `${name} ` : ""}${told[column][i] === null ? "not told" : chart.text(told[column][i])}`)
    .join(", ");
}

function build() {
  for (const chart of CHARTS) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const title = document.createElement("span");
    title.textContent = chart.title;
    const now = document.createElement("b");
    caption.append(title, now);
    const picture = draw("svg");
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("role", "img");
    picture.setAttribute("tabindex", "0");
    const cursor = draw("line", "cursor");
    cursor.setAttribute("y2", HEIGHT);
    picture.append(cursor);
    picture.addEventListener("pointermove", (event) => point(event.offsetX / picture.clientWidth));
    picture.addEventListener("pointerleave", () => read(-1));
    picture.addEventListener("blur", () => read(-1));
    picture.addEventListener("keydown", walk);
    const scale = document.createElement("small");
    figure.append(caption, picture, scale);
    $("charts").append(figure);
    made.push({ chart, picture, cursor, now, scale });
  }
}

function paint({ chart, picture, cursor, now, scale }) {
  const high = highest(chart.lines.flatMap(([column]) => told[column]), chart);
  const lines = chart.lines.flatMap(([column], i) =>
    pieces(told[column], told.time, high, told.every, told.most).map((points) => {
      const line = draw("polyline", `line${i}`);
      line.setAttribute("points", points);
      return line;
    }),
  );
  picture.replaceChildren(...lines, cursor);
  picture.setAttribute("aria-label", summary(chart, told));
  now.textContent = moment(chart, told.time.length - 1);
  scale.textContent = `0 to ${chart.text(high)}`;
}

function place(i) {
  return WIDTH - ((told.time[told.time.length - 1] - told.time[i]) / (told.every * (told.most - 1))) * WIDTH;
}

// Show one moment in all charts and say it in words.
function read(i) {
  at = i;
  for (const { cursor } of made) {
    cursor.style.setProperty("visibility", i < 0 ? "hidden" : "visible");
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, i < 0 ? 0 : place(i));
  }
  const clock = i < 0 ? "" : new Date(told.time[i] * 1000).toLocaleTimeString();
  const words = () => CHARTS.map((chart) => `${chart.title.toLowerCase()} ${moment(chart, i)}`).join("; ");
  const text = i < 0 ? hint() : `${clock}: ${words()}`;
  if ($("moment").textContent !== text) $("moment").textContent = text; // what is said again is read out again
}

function hint() {
  return `Every ${told.every} s, kept in the leader's memory. Point at a chart, or walk with the arrow keys.`;
}

function point(part) {
  if (!told) return;
  const wanted = part * WIDTH;
  const distances = told.time.map((_, i) => Math.abs(place(i) - wanted));
  read(distances.indexOf(Math.min(...distances)));
}

function walk(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!step || !told) return;
  event.preventDefault();
  const last = told.time.length - 1;
  read(Math.max(0, Math.min(last, (at < 0 ? last : at) + step)));
}

// Take an answer of /history.json; one without samples hides the charts.
export function show(found) {
  const some = Boolean(found.time?.length);
  $("history").hidden = !some;
  if (!some) return;
  const still = at < 0 || !told ? -1 : found.time.indexOf(told.time[at]);
  told = found;
  if (!made.length) build();
  made.forEach(paint);
  $("since").textContent = `since ${new Date(told.time[0] * 1000).toLocaleTimeString()}`;
  read(still);
}

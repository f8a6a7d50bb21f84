"use strict";
// What the page draws. Text goes into the page as text nodes alone, never as HTML: names are
// what users give.

const data = JSON.parse(document.getElementById("data").textContent);
const { species, ranks, runs } = data;
const N = species.name.length;
const PAGE = 25;
const COUNT_TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
const SYMBOLS = ["circle", "diamond", "triangle", "rect", "roundRect", "pin"];
const byId = (id) => document.getElementById(id);
const per = (share) => (share === null ? "–" : (100 * share).toFixed(1));
const whole = (number) => number.toLocaleString("en");
const accuracy = (run, i) => (runs[run].species.n[i] ? runs[run].species.hits[i] / runs[run].species.n[i] : null);
let shown = 0; // the run that the lower half of the page is about

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function viridis(share) {
  if (share === null) return "#9aa4ad";
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const left = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const channel = (k) => {
    const [a, b] = [left, left + 1].map((i) => parseInt(VIRIDIS[i].slice(1 + 2 * k, 3 + 2 * k), 16));
    return Math.round(a + (b - a) * (at - left));
  };
  return `rgb(${channel(0)},${channel(1)},${channel(2)})`;
}

// --- theme and charts ---------------------------------------------------------------------------

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const runColour = (run) => colour(`run-${run % 6}`);
const charts = new Map(); // element id -> { chart, options }

function draw(id, options) {
  const place = byId(id);
  if (!charts.has(id)) {
    const chart = echarts.init(place, null, { renderer: "canvas" });
    charts.set(id, { chart, options });
    new ResizeObserver(() => { chart.resize(); redraw(id); }).observe(place);
  }
  charts.get(id).options = options;
  redraw(id);
}

function redraw(id) {
  const { chart, options } = charts.get(id);
  chart.setOption({ animation: false, textStyle: { fontFamily: "system-ui, sans-serif", color: colour("ink") }, ...options() }, true);
}

function axis(more) {
  const text = { color: colour("soft"), fontSize: 12 };
  return {
    nameLocation: "middle", nameGap: 30, nameTextStyle: text, axisLabel: text,
    axisLine: { show: false }, axisTick: { show: false },
    splitLine: { lineStyle: { color: colour("line") } }, minorSplitLine: { show: false }, ...more,
  };
}

function tooltip(describe) {
  return {
    trigger: "item", confine: true, backgroundColor: colour("paper"), borderColor: colour("line"),
    textStyle: { color: colour("ink") },
    formatter: (found) => {
      const lines = describe(found);
      return lines && element("div", { class: "tip" }, element("b", {}, lines[0]), ...lines.slice(1).flatMap((line) => [line, element("br")]));
    },
  };
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
  for (const id of charts.keys()) redraw(id);
}

// --- accuracy against training photos -----------------------------------------------------------

// A number in -1..1 that depends on the species alone.
const scatterOf = (i, salt) => 2 * ((((Math.sin(12.9898 * (i + 1) + 78.233 * salt) * 43758.5453) % 1) + 1) % 1) - 1;

function dot(run, i) {
  const share = accuracy(run, i);
  const shift = 2.2 * scatterOf(i, run + 1);
  const inward = share === 0 ? Math.abs(shift) : share === 1 ? -Math.abs(shift) : shift;
  return [species.train_count[i] * 1.03 ** scatterOf(i, 7), 100 * share + inward, i];
}

function countsOptions() {
  const some = [...Array(N).keys()];
  const counts = species.train_count.filter((count) => count > 0);
  const series = runs.flatMap((run, r) => [
    {
      type: "scatter", name: run.title, symbol: SYMBOLS[r % 6], symbolSize: N > 1000 ? 4 : 8, itemStyle: { color: runColour(r), opacity: N > 1000 ? 0.28 : 0.5 },
      data: some.filter((i) => accuracy(r, i) !== null && species.train_count[i] > 0).map((i) => dot(r, i)),
    },
    {
      type: "line", name: run.title, symbol: SYMBOLS[r % 6], symbolSize: 5, z: 5, silent: true, lineStyle: { color: runColour(r), width: 2.5 }, itemStyle: { color: runColour(r) },
      data: run.deciles.filter((d) => d.accuracy && d.train_count_min > 0).map((d) => [Math.sqrt(d.train_count_min * d.train_count_max), 100 * d.accuracy.value]),
    },
  ]);
  const [few, many] = data.band_edges;
  const edge = (at, label, position) => ({ xAxis: at, label: { formatter: label, position, color: colour("soft"), distance: 4 } });
  series[0].markLine = {
    silent: true, symbol: "none", lineStyle: { color: colour("soft"), type: [4, 4], width: 1 },
    data: [[few - 0.5, `few < ${few}`], [many + 0.5, `many > ${many}`]].filter(([at]) => at < Math.max(...counts)).map(([at, label]) => edge(at, label, "end")),
  };
  return {
    grid: { left: 46, right: 22, top: 24, bottom: 46 },
    xAxis: axis({ type: "log", name: "training photos", min: Math.min(1, ...counts), max: Math.ceil(1.1 * Math.max(...counts)), splitLine: { show: false }, axisLabel: { color: colour("soft"), fontSize: 12, customValues: COUNT_TICKS.filter((tick) => tick <= 1.1 * Math.max(...counts)) } }),
    yAxis: axis({ type: "value", name: "accuracy, %", min: 0, max: 100, interval: 25, nameGap: 34 }),
    tooltip: tooltip((found) => found.seriesType === "scatter" && describeSpecies(found.data[2])),
    series,
  };
}

function describeSpecies(i) {
  const lines = runs.map((run, r) => `${runs.length > 1 ? `${run.title}: ` : ""}${run.species.hits[i]} of ${run.species.n[i]} right`);
  return [species.name[i], `${whole(species.train_count[i])} training photos, ${species.band[i]}`, ...lines];
}

// --- bands --------------------------------------------------------------------------------------

function bandsOptions() {
  const rows = [["few", (run) => run.bands.few], ["medium", (run) => run.bands.medium], ["many", (run) => run.bands.many], ["mean class", (run) => run.mean_class_accuracy], ["top-1", (run) => run.top1]].filter(([, pick]) => runs.some(pick));
  const step = Math.min(16, 44 / runs.length);
  const whisker = (r) => (_, api) => {
    const shift = (r - (runs.length - 1) / 2) * step;
    const at = (share) => { const [x, y] = api.coord([share, api.value(1)]); return [x, y + shift]; };
    const [left, middle, right] = [api.value(2), api.value(0), api.value(3)].map(at);
    const stroke = { stroke: runColour(r), lineWidth: 2, opacity: 0.55 };
    return { type: "group", children: [
      { type: "line", shape: { x1: left[0], y1: left[1], x2: right[0], y2: right[1] }, style: stroke },
      { type: "circle", shape: { cx: middle[0], cy: middle[1], r: 5 }, style: { fill: runColour(r) } },
    ] };
  };
  return {
    grid: { left: 84, right: 16, top: 8, bottom: 46 },
    xAxis: axis({ type: "value", min: 0, max: 100, interval: 25, name: "accuracy, %" }),
    yAxis: axis({ type: "category", data: rows.map(([name]) => name), splitLine: { show: false }, axisLabel: { color: colour("ink"), fontSize: 13 } }),
    tooltip: tooltip((found) => {
      const interval = rows[found.data[1]][1](runs[found.seriesIndex]);
      return [`${rows[found.data[1]][0]}: ${per(interval.value)} %`, runs[found.seriesIndex].title, `95 % interval ${per(interval.low)} to ${per(interval.high)}`];
    }),
    series: runs.map((run, r) => ({
      type: "custom", renderItem: whisker(r), encode: { x: [0, 2, 3], y: 1 },
      data: rows.map(([, pick], place) => [pick(run), place]).filter(([found]) => found).map(([found, place]) => [100 * found.value, place, 100 * found.low, 100 * found.high]),
    })),
  };
}

// --- reliability --------------------------------------------------------------------------------

const binsOf = (run) => (run.reliability[byId("reliability-band").value]?.bins ?? []).filter((bin) => bin.n);

function reliabilityOptions() {
  const diagonal = { type: "line", silent: true, symbol: "none", lineStyle: { color: colour("soft"), type: [4, 4], width: 1 }, data: [[0, 0], [100, 100]] };
  const lines = runs.map((run, r) => {
    const bins = binsOf(run);
    const most = Math.max(...bins.map((bin) => bin.n));
    return {
      type: "line", name: run.title, symbol: SYMBOLS[r % 6], showAllSymbol: true, lineStyle: { color: runColour(r), width: 2 }, itemStyle: { color: runColour(r) },
      symbolSize: (_, found) => 5 + 11 * Math.sqrt(bins[found.dataIndex].n / most),
      data: bins.map((bin) => [100 * bin.confidence, 100 * bin.accuracy]),
    };
  });
  const square = { type: "value", min: 0, max: 100, interval: 25 };
  return {
    grid: { left: 46, right: 16, top: 8, bottom: 46 },
    xAxis: axis({ ...square, name: "confidence, %" }), yAxis: axis({ ...square, name: "accuracy, %", nameGap: 34 }),
    tooltip: tooltip((found) => {
      if (!found.seriesIndex) return null;
      const bin = binsOf(runs[found.seriesIndex - 1])[found.dataIndex];
      return [runs[found.seriesIndex - 1].title, `${whole(bin.n)} photos`, `confidence ${per(bin.confidence)} %`, `accuracy ${per(bin.accuracy)} %`];
    }),
    series: [diagonal, ...lines],
  };
}

function fillReliability() {
  const head = element("tr", {}, ...["Prediction", "Confidence, %", "Accuracy, %", "Photos"].map((name) => element("th", { scope: "col" }, name)));
  const rows = runs.flatMap((run) => binsOf(run).map((bin) => element("tr", {}, element("th", { scope: "row" }, run.title), ...[per(bin.confidence), per(bin.accuracy), whole(bin.n)].map((text) => element("td", {}, text)))));
  byId("reliability-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- tree of life -------------------------------------------------------------------------------

const RANKS = Object.keys(ranks);
const MOST_ARCS = 1200; // more are neither legible nor quick
const groups = []; // every node by its number: ECharts copies what it is given, and a node leads to all
const life = buildTree();
let place = life;

function buildTree() {
  const root = { name: "All species", rank: "", parent: null, members: [], children: new Map() };
  for (let i = 0; i < N; i++) {
    let node = root;
    node.members.push(i);
    for (const rank of RANKS) {
      const name = ranks[rank][i];
      if (!name) continue;
      if (!node.children.has(name)) node.children.set(name, { name, rank, parent: node, members: [], children: new Map() });
      node = node.children.get(name);
      node.members.push(i);
    }
    node.children.set(i, { name: species.name[i], rank: "species", parent: node, members: [i], children: new Map() });
  }
  return numbered(shortened(root));
}

// A group that holds nothing but one other group gives its place to it: both are the same species.
function shortened(node) {
  node.children = [...node.children.values()].map(shortened);
  const [only] = node.children;
  if (node.children.length !== 1 || only.rank === "species") return node;
  if (node.parent) {
    only.parent = node.parent;
    return only;
  }
  node.children = only.children;
  for (const child of node.children) child.parent = node;
  return node;
}

function numbered(node) {
  node.number = groups.push(node) - 1;
  node.children.forEach(numbered);
  return node;
}

function meanAccuracy(node) {
  const known = node.members.map((i) => accuracy(shown, i)).filter((share) => share !== null);
  return known.length ? known.reduce((sum, share) => sum + share, 0) / known.length : null;
}

function depthFor(node) {
  let [level, total, depth] = [[node], 1, 0];
  while (depth < 3) {
    level = level.flatMap((each) => each.children);
    total += level.length;
    if (!level.length || (total > MOST_ARCS && depth > 0)) break;
    depth += 1;
  }
  return depth;
}

function arc(node, depth) {
  const share = meanAccuracy(node);
  const dark = share !== null && share < 0.6;
  return {
    name: node.name, value: node.members.length, group: node.number, itemStyle: { color: viridis(share) }, label: { color: dark ? "#fff" : "#111" },
    children: depth > 1 ? node.children.map((child) => arc(child, depth - 1)) : undefined,
  };
}

function treeOptions() {
  const depth = depthFor(place);
  const width = 80 / Math.max(depth, 1);
  const small = byId("tree-chart").clientWidth < 420;
  const levels = [...Array(depth).keys()].map((d) => ({ r0: `${18 + d * width}%`, r: `${18 + (d + 1) * width}%`, label: { rotate: "radial", minAngle: 7 } }));
  return {
    tooltip: tooltip((found) => groups[found.data?.group] && describeGroup(groups[found.data.group])),
    graphic: { type: "text", left: "center", top: "middle", silent: true, style: { text: `${per(meanAccuracy(place))} %`, fill: colour("ink"), font: `600 ${small ? 13 : 17}px system-ui, sans-serif` } },
    series: {
      type: "sunburst", radius: ["20%", "98%"], nodeClick: false, emphasis: { focus: "ancestor" },
      itemStyle: { borderColor: colour("paper"), borderWidth: N > 1000 ? 0.6 : 1.5 },
      label: { fontSize: small ? 9 : 11, overflow: "truncate", width: Math.max(24, (byId("tree-chart").clientWidth / 200) * width - 8) }, levels: [{}, ...levels],
      data: place.children.map((child) => arc(child, depth)),
    },
  };
}

function describeGroup(node) {
  if (node.rank === "species") return describeSpecies(node.members[0]);
  return [node.name, node.rank, `${whole(node.members.length)} species`, `mean accuracy ${per(meanAccuracy(node))} %`];
}

function goTo(node) {
  if (!node || node.rank === "species") return;
  place = node;
  draw("tree-chart", treeOptions);
  const path = [];
  for (let each = place; each; each = each.parent) path.unshift(each);
  byId("tree-path").replaceChildren(...path.flatMap((each, at) => (at === path.length - 1
    ? [element("b", { "aria-current": "true" }, each.name)]
    : [element("button", { type: "button", class: "plain", onclick: () => goTo(each) }, each.name), element("span", { "aria-hidden": "true" }, "›")])));
  fillTree();
}

function fillTree() {
  const head = element("tr", {}, ...["Group", "Species", "Accuracy, %"].map((name) => element("th", { scope: "col" }, name)));
  const rows = [...place.children].sort((a, b) => b.members.length - a.members.length || (meanAccuracy(b) ?? -1) - (meanAccuracy(a) ?? -1)).map((child) => {
    const share = meanAccuracy(child);
    const name = child.rank === "species" ? element("i", {}, child.name) : element("button", { type: "button", class: "plain", onclick: () => goTo(child) }, child.name);
    const chip = element("span", { class: "chip", "aria-hidden": "true" });
    chip.style.background = viridis(share);
    return element("tr", {}, element("th", { scope: "row" }, chip, name), element("td", {}, whole(child.members.length)), element("td", {}, per(share)));
  });
  byId("tree-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- all species --------------------------------------------------------------------------------

const own = (name) => (i) => runs[shown].species[name][i];
const span = (i) => (own("low")(i) === null ? "–" : `${per(own("low")(i))}–${per(own("high")(i))}`);
const columns = [
  { name: "Species", value: (i) => species.name[i], words: true },
  ...runs.map((run, r) => ({ name: runs.length > 1 ? `${run.title}, %` : "Accuracy, %", value: (i) => accuracy(r, i), share: true, run: r })),
  { name: "Training photos", value: (i) => species.train_count[i] },
  { name: "95 % interval", value: own("low"), text: span, wide: true },
  { name: "Photos", value: own("n") },
  { name: "Band", value: (i) => species.band[i], order: (i) => ["few", "medium", "many"].indexOf(species.band[i]), words: true },
  ...(species.supercategory ? [{ name: "Group", value: (i) => species.supercategory[i], words: true, wide: true }] : []),
  { name: "In top 3, %", value: (i) => (own("n")(i) ? own("top3_hits")(i) / own("n")(i) : null), share: true },
  { name: "Guessed", value: own("predicted") },
  { name: "F1, %", value: own("f1"), share: true },
];
const classOf = (column) => ({ class: `${column.words ? "words" : ""} ${column.wide ? "wide" : ""}`.trim() });
const haystack = [...Array(N).keys()].map((i) => [species.name[i], species.supercategory?.[i], ...RANKS.map((rank) => ranks[rank][i])].join(" ").toLowerCase());
const state = { column: columns.findIndex((column) => column.name === "Training photos"), down: false, page: 0 };
const collator = new Intl.Collator();

function sorted(rows) {
  const column = columns[state.column];
  const key = column.order ?? column.value;
  const compare = column.words && !column.order ? collator.compare : (a, b) => a - b;
  const sign = state.down ? -1 : 1;
  return rows.map((i) => [key(i), i]).sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j; // unknown ones last
    return sign * compare(a, b) || i - j;
  }).map(([, i]) => i);
}

function found() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const band = byId("filter-band").value;
  return [...Array(N).keys()].filter((i) => (!band || species.band[i] === band) && words.every((word) => haystack[i].includes(word)));
}

function cell(column, i) {
  const value = column.value(i);
  const text = column.text ? column.text(i) : column.share ? per(value) : column.words ? value : whole(value);
  if (column === columns[0]) return element("th", { scope: "row", title: text }, text);
  const made = element("td", classOf(column));
  if (column.run !== undefined && runs.length < 3) {
    const fill = element("i");
    fill.style.cssText = `width:${100 * (value ?? 0)}%;background:var(--run-${column.run % 6})`;
    made.append(element("span", { class: "bar", "aria-hidden": "true" }, fill));
  }
  made.append(column.run === undefined ? text : element("span", { class: "figure" }, text));
  return made;
}

function fillSpecies() {
  const rows = sorted(found());
  const n_pages = Math.max(1, Math.ceil(rows.length / PAGE));
  state.page = Math.min(state.page, n_pages - 1);
  const begin = state.page * PAGE;
  const table = byId("species-table");
  table.querySelector("tbody").replaceChildren(...rows.slice(begin, begin + PAGE).map((i) => element("tr", {}, ...columns.map((column) => cell(column, i)))));
  table.querySelectorAll("thead th").forEach((head, at) => {
    if (at === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  byId("species-count").textContent = `${whole(rows.length)} of ${whole(N)} species`;
  byId("page").textContent = `page ${state.page + 1} of ${n_pages}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === n_pages - 1;
}

function sortBy(at) {
  state.down = state.column === at ? !state.down : false;
  state.column = at;
  state.page = 0;
  fillSpecies();
}

function turn(pages) {
  state.page += pages;
  fillSpecies();
}

function headSpecies() {
  const heads = columns.map((column, at) => element("th", { scope: "col", ...classOf(column) }, element("button", { type: "button", onclick: () => sortBy(at) }, column.name)));
  byId("species-table").querySelector("thead").replaceChildren(element("tr", {}, ...heads));
}

// --- the page -----------------------------------------------------------------------------------

function show(run) {
  shown = run;
  document.querySelectorAll("[data-of-run]").forEach((part) => { part.hidden = Number(part.dataset.ofRun) !== run; });
  goTo(place);
  fillSpecies();
}

function start() {
  document.querySelectorAll("img[data-photo]").forEach((image) => { image.src = `data:image/jpeg;base64,${data.photos[image.dataset.photo]}`; });
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(prefersDark.matches ? "dark" : "light");
  prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  draw("counts-chart", countsOptions);
  draw("bands-chart", bandsOptions);
  draw("reliability-chart", reliabilityOptions);
  fillReliability();
  byId("reliability-band").addEventListener("change", () => { redraw("reliability-chart"); fillReliability(); });
  headSpecies();
  show(0);
  const tree = charts.get("tree-chart").chart;
  tree.on("click", (event) => goTo(groups[event.data?.group]));
  tree.getZr().on("click", goBack);
  byId("run")?.addEventListener("change", (event) => show(Number(event.target.value)));
  for (const id of ["filter", "filter-band"]) byId(id).addEventListener("input", () => { state.page = 0; fillSpecies(); });
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  printInLight();
}

function goBack(event) {
  const { clientWidth: width, clientHeight: height } = byId("tree-chart");
  if (Math.hypot(event.offsetX - width / 2, event.offsetY - height / 2) < 0.09 * Math.min(width, height)) goTo(place.parent);
}

function printInLight() {
  let before = "light";
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => setTheme(before));
}

start();

const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent); // data.nodes, data.layers: of the graph that is shown
const nodes = new Map(), layers = new Map(), takers = new Map();
const state = {graph: 0, open: new Set(), chosen: "", view: {x: 0, y: 0, k: 1}, matches: [], match: 0, drawn: null};
const stage = byId("stage"), world = byId("world"), map = byId("map"), panel = byId("details");
const isSheet = () => matchMedia("(max-width: 899px)").matches;

// -- elements ---------------------------------------------------------------------------------------------------------

function draw(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const pen = document.createElement("canvas").getContext("2d"), family = getComputedStyle(document.body).fontFamily;
function wide(text, size, weight = 400) {
  pen.font = `${weight} ${size}px ${family}`;
  return pen.measureText(text).width;
}
function cut(text, room, size, weight) {
  if (wide(text, size, weight) <= room) return text;
  let keep = text.length - 1;
  while (keep > 3 && wide(`…${text.slice(-keep)}`, size, weight) > room) keep--;
  return `…${text.slice(-keep)}`;
}
const grade = ratio => ratio === "exact" || ratio >= 30 ? "good" : ratio >= 20 ? "fair" : ratio >= 10 ? "poor" : "bad";
const decibels = ratio => typeof ratio === "string" ? ratio : `${ratio.toFixed(0)} dB`;
const number = ratio => ratio === "exact" ? Infinity : ratio === "lost" ? -Infinity : ratio;
const inserted = node => node.kind === "quantizer" || node.kind === "protection";
const tint = node => data.colors[node.role] ? `--role: ${data.colors[node.role]}` : "";

// -- sizes and places -------------------------------------------------------------------------------------------------

function load(index) {
  const graph = data.graphs[index];
  Object.assign(data, {nodes: graph.nodes, layers: graph.layers});
  for (const known of [nodes, layers, takers]) known.clear();
  for (const layer of data.layers) layers.set(layer.id, Object.assign(layer, {members: []}));
  for (const node of data.nodes) nodes.set(node.id, node), takers.set(node.id, []);
  for (const node of data.nodes) {
    if (node.layer) layers.get(node.layer).members.push(node);
    for (const source of [...node.inputs, ...node.refs]) takers.get(source).push(node.id);
  }
  data.nodes.forEach(sizeNode);
  data.layers.forEach(sizeLayer);
  Object.assign(state, {graph: index, chosen: "", open: new Set(data.nodes.length <= 60 ? layers.keys() : [])});
  byId("graph").selectedIndex = index;
}
function sizeNode(node) {
  node.pills = (node.kind === "quantizer" ? [] : node.refs).slice(0, 3).map(id => ({id, text: nodes.get(id).label.slice(0, 20)}));
  for (const pill of node.pills) pill.width = wide(pill.text, 11) + 14;
  node.pillRoom = node.pills.length ? Math.max(...node.pills.map(pill => pill.width)) + 16 : 0;
  node.shown = cut(node.label, 210, 13);
  node.tail = [node.code, node.sqnr === undefined ? "" : decibels(node.sqnr)].filter(Boolean);
  const tail = node.tail.reduce((sum, text) => sum + wide(text, 12, 650) + 12, 0) + (node.protected ? 20 : 0);
  node.shownBelow = cut(node.below, 220, 11);
  node.face = Math.ceil(Math.max(92, wide(node.shown, 13) + 26 + tail, wide(node.shownBelow, 11) + 24));
  node.width = node.face + node.pillRoom;
  node.height = Math.max(node.below ? 44 : 32, node.pills.length * 22);
}
const HEAD = 54, PAD = 18, ROLE = 13;
function sizeLayer(layer) {
  const ratios = layer.members.map(node => node.sqnr).filter(ratio => ratio !== undefined);
  if (ratios.length) layer.sqnr = ratios.reduce((worst, ratio) => number(ratio) < number(worst) ? ratio : worst);
  layer.shown = cut(layer.path, 260, 14, 650);
  const chip = layer.sqnr !== undefined ? wide(decibels(layer.sqnr), 12, 650) + 34 : 0;
  layer.chip = chip;
  layer.quantizers = layer.members.filter(node => node.kind === "quantizer");
  const title = 40 + wide(layer.shown, 14, 650) + 10 + wide(layer.kind, 12.5) + chip + 18;
  layer.closedWidth = Math.ceil(Math.max(240, title, wide(layer.facts, 12) + 60, 56 + layer.quantizers.length * (ROLE + 4)));
}

const visible = id => { const layer = nodes.get(id).layer; return layer && !state.open.has(layer) ? layer : id; };
const unit = id => nodes.get(id).layer || id;
const offset = id => nodes.has(id) ? nodes.get(id).pillRoom / 2 : 0;

// Open layers are laid out by themselves, with ports where edges enter and leave; then everything around them; and both
// once more, as where edges come from says in which order ports are to stand.
function arrange() {
  const first = around(new Map()), origins = new Map();
  for (const {from, points, unit: id} of first.segments) if (state.open.has(id)) {
    const end = points.at(-1)[0], origin = points.findLast(([x]) => Math.abs(x - end) > 1);
    origins.set(`${id} in:${from}`, origin ? origin[0] : end);
  }
  return origins.size ? around(origins) : first;
}

function around(origins) {
  const boxes = new Map(), inner = new Map(), outer = new Map(), segments = [];
  for (const node of data.nodes) if (!node.layer) boxes.set(node.id, {id: node.id, width: node.width, height: node.height});
  for (const layer of data.layers) {
    if (!state.open.has(layer.id)) {
      boxes.set(layer.id, {id: layer.id, width: layer.closedWidth, height: 78});
      continue;
    }
    const found = interior(layer, origins);
    inner.set(layer.id, found);
    boxes.set(layer.id, {id: layer.id, width: found.width, height: found.height});
  }
  const port = (id, side, at) => inner.has(at) ? inner.get(at).port(`${side}:${id}`) : offset(at);
  for (const node of data.nodes) for (const source of node.inputs) {
    const from = visible(source), [a, b] = [unit(source), unit(node.id)];
    if (a === b) continue;
    const key = `${from} ${b}`;
    if (!outer.has(key)) outer.set(key, {from: a, to: b, source: from, targets: new Set(), out: port(from, "out", a), into: port(from, "in", b)});
    outer.get(key).targets.add(visible(node.id));
  }
  const found = layered([...boxes.values()], [...outer.values()], {gapX: 34, gapY: 40, middles: true}), places = new Map();
  [...outer.values()].forEach((edge, i) => segments.push({points: found.routes[i], from: edge.source, to: edge.targets, unit: edge.to, arrow: !inner.has(edge.to)}));
  for (const [id, box] of boxes) places.set(id, {...found.places.get(id), width: box.width, height: box.height});
  for (const [id, inside] of inner) {
    const at = found.places.get(id), [x, y] = [at.x + inside.x, at.y + inside.y];
    for (const node of layers.get(id).members) {
      const place = inside.places.get(node.id);
      places.set(node.id, {x: place.x + x, y: place.y + y, width: node.width, height: node.height});
    }
    for (const segment of inside.segments) segments.push({...segment, points: segment.points.map(([px, py]) => [px + x, py + y])});
  }
  return {places, segments, width: found.width, height: found.height};
}

function interior(layer, origins) {
  const boxes = new Map(layer.members.map(node => [node.id, {id: node.id, width: node.width, height: node.height}])), edges = [];
  const add = (id, end) => boxes.has(id) || boxes.set(id, {id, width: 10, height: 0, end});
  for (const node of layer.members) {
    for (const source of node.inputs) {
      const within = nodes.get(source).layer === layer.id, from = within ? source : `in:${visible(source)}`;
      if (!within) add(from, "top");
      edges.push({from, to: node.id, out: offset(from), into: offset(node.id), source: visible(source), targets: [node.id], arrow: true});
    }
    const outside = takers.get(node.id).filter(id => nodes.get(id).layer !== layer.id && nodes.get(id).inputs.includes(node.id));
    if (!outside.length) continue;
    add(`out:${node.id}`, "bottom");
    edges.push({from: node.id, to: `out:${node.id}`, out: offset(node.id), into: 0, source: node.id, targets: outside.map(visible), arrow: false});
  }
  const origin = box => origins.get(`${layer.id} ${box.id}`) ?? 0, sorted = [...boxes.values()].sort((p, q) => origin(p) - origin(q));
  const hasTop = sorted.some(box => box.end === "top"), hasBottom = sorted.some(box => box.end === "bottom");
  const found = layered(sorted, edges, {fixed: hasTop && origins.size > 0});
  const width = Math.max(layer.closedWidth, found.width + 2 * PAD), x = (width - found.width) / 2, y = hasTop ? HEAD - 20 : HEAD;
  const lifted = point => hasTop && point[1] === 0 ? [point[0], -y] : point; // ports lie on the box's own edges
  const height = y + found.height + (hasBottom ? 0 : PAD);
  const segments = edges.map((edge, i) => ({points: found.routes[i].map(lifted), from: edge.source, to: new Set(edge.targets), arrow: edge.arrow}));
  const port = id => found.places.get(id).x + 5 + x - width / 2;
  return {width, height, x, y, places: found.places, segments, port};
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function line(points) {
  let path = `M${points[0]}`;
  for (let i = 1; i < points.length; i++) {
    const [[x, y], [u, v]] = [points[i - 1], points[i]], half = (v - y) / 2;
    path += Math.abs(x - u) < 0.5 ? `L${u},${v}` : `C${x},${y + half} ${u},${v - half} ${u},${v}`;
  }
  return path;
}

function paint() {
  const found = state.drawn = arrange();
  found.elements = new Map();
  world.replaceChildren();
  const under = draw("g", {}, world), lines = draw("g", {}, world), above = draw("g", {}, world);
  for (const layer of data.layers) found.elements.set(layer.id, paintLayer(layer, found.places.get(layer.id), under, above));
  for (const segment of found.segments) segment.element = draw("path", {class: "edge", d: line(segment.points)}, lines);
  for (const node of data.nodes) if (found.places.has(node.id)) found.elements.set(node.id, [paintNode(node, found.places.get(node.id), above)]);
  found.overlay = draw("g", {}, world);
  paintMap();
  mark();
}

function paintNode(node, place, parent) {
  const kinds = ["node", node.kind, ...(inserted(node) ? ["inserted"] : []), ...(node.in_float ? ["float"] : [])].join(" ");
  const group = draw("g", {class: kinds, "data-id": node.id, "data-role": node.role, transform: `translate(${place.x},${place.y})`, style: tint(node),
    tabindex: 0, role: "button", "aria-label": [node.label, node.code, node.module].filter(Boolean).join(", ")}, parent);
  const left = node.pillRoom, middle = node.height / 2;
  node.pills.forEach((pill, i) => {
    const y = middle + (i - (node.pills.length - 1) / 2) * 22;
    const drawn = draw("g", {class: "pill", "data-id": pill.id}, group);
    draw("rect", {x: left - 16 - pill.width, y: y - 9, width: pill.width, height: 18, rx: 9}, drawn);
    draw("text", {x: left - 16 - pill.width / 2, y, "text-anchor": "middle"}, drawn, pill.text);
    draw("path", {d: `M${left - 16},${y}H${left - 2}`, "marker-end": "url(#arrow)"}, drawn);
  });
  draw("rect", {class: "face", x: left, width: node.face, height: node.height, rx: inserted(node) ? 16 : 7}, group);
  const text = draw("text", {x: left + 13, y: node.below ? middle - 8 : middle}, group, node.shown);
  if (node.below) draw("text", {class: "below", x: left + 13, y: middle + 10}, group, node.shownBelow);
  let x = left + node.face - 12;
  if (node.protected) {
    draw("path", {class: "shield", d: `M${x - 5},${middle - 7}l5.5,2v4q0,5 -5.5,8q-5.5,-3 -5.5,-8v-4z`}, group);
    x -= 20;
  }
  node.tail.toReversed().forEach((word, i) => {
    const ratio = node.sqnr !== undefined && i === 0;
    draw("text", {class: `bits ${ratio ? grade(node.sqnr) : ""}`, x, y: node.below ? middle - 8 : middle, "text-anchor": "end", ...(ratio ? {style: "fill: currentColor"} : {})}, group, word);
    x -= wide(word, 12, 650) + 12;
  });
  if (!node.tail.length && !node.protected && !node.below) {
    text.setAttribute("x", left + node.face / 2);
    text.setAttribute("text-anchor", "middle");
  }
  return group;
}

// The face lies under the edges, the header above them.
function paintLayer(layer, place, under, above) {
  const open = state.open.has(layer.id), at = {"data-id": layer.id, transform: `translate(${place.x},${place.y})`};
  const face = draw("g", {class: `layer ${open ? "open" : "closed"}`, ...at}, open ? under : above);
  draw("rect", {class: "face", width: place.width, height: place.height, rx: 12}, face);
  const group = draw("g", {class: `layer ${open ? "open" : "closed"}`, ...at,
    tabindex: 0, role: "button", "aria-expanded": open, "aria-label": `${layer.path}, ${layer.kind}, ${layer.facts}`}, above);
  const hit = draw("g", {class: "toggle", "data-toggle": layer.id}, group);
  draw("rect", {x: 2, y: 2, width: 40, height: 44, fill: "transparent"}, hit);
  draw("path", {class: "caret", d: open ? "M14,19l6,6l6,-6" : "M17,15l6,6l-6,6"}, hit);
  draw("text", {class: "name", x: 38, y: 20}, group, layer.shown);
  draw("text", {class: "class", x: 38 + wide(layer.shown, 14, 650) + 9, y: 20.5}, group, layer.kind);
  draw("text", {class: "facts", x: 38, y: 39}, group, layer.facts);
  if (layer.chip) {
    const chip = draw("g", {class: grade(layer.sqnr)}, group), room = layer.chip - 18;
    draw("rect", {class: "sqnr-face", x: place.width - room - 12, y: 10, width: room, height: 20, rx: 10}, chip);
    draw("text", {class: "sqnr", x: place.width - room / 2 - 12, y: 20.5, "text-anchor": "middle"}, chip, decibels(layer.sqnr));
  }
  if (!open) layer.quantizers.forEach((node, i) => draw("rect", {x: 38 + i * (ROLE + 4), y: 54, width: ROLE, height: ROLE, rx: 4, style: `fill: ${data.colors[node.role]}`}, group));
  return [group, face];
}

// -- where one looks --------------------------------------------------------------------------------------------------

function room() {
  const {width, height} = stage.getBoundingClientRect();
  const sheet = isSheet() && panel.classList.contains("open") ? panel.offsetHeight : 0;
  return {width, height: Math.max(120, height - sheet)};
}
function look(view) {
  const {width, height} = room(), found = state.drawn, k = Math.min(3, Math.max(0.08, view.k));
  const hold = (at, size, whole) => Math.min(size - 60, Math.max(60 - whole * k, at));
  state.view = {k, x: hold(view.x, width, found.width), y: hold(view.y, height, found.height)};
  world.setAttribute("transform", `translate(${state.view.x},${state.view.y}) scale(${k})`);
  const lens = map.querySelector(".view");
  if (!lens) return;
  const scale = state.mapScale;
  const box = {x: -state.view.x / k, y: -state.view.y / k, width: width / k, height: height / k};
  for (const [key, size] of Object.entries(box)) lens.setAttribute(key, (size + (key === "x" || key === "y" ? 24 : 0)) * scale);
  map.toggleAttribute("hidden", found.width * k <= width && found.height * k <= height || (isSheet() && panel.classList.contains("open")));
}
function zoom(factor, x, y) {
  const {width, height} = room(), {x: left, y: top, k} = state.view, [px, py] = [x ?? width / 2, y ?? height / 2];
  const next = Math.min(3, Math.max(0.08, k * factor));
  look({k: next, x: px - (px - left) * next / k, y: py - (py - top) * next / k});
}
function fit(smallest = 0.08, largest = 1.25) {
  const {width, height} = room(), found = state.drawn, pad = isSheet() ? 14 : 28;
  const k = Math.max(smallest, Math.min(largest, (width - 2 * pad) / found.width, (height - 2 * pad) / found.height));
  const tall = found.height * k > height - 2 * pad;
  look({k, x: (width - found.width * k) / 2, y: tall ? pad : (height - found.height * k) / 2});
}
function center(id) {
  const place = state.drawn.places.get(id), {width, height} = room();
  if (!place) return;
  const k = Math.max(state.view.k, 0.7), tall = place.height * k > height - 40, broad = place.width * k > width - 20;
  const x = broad ? 10 - place.x * k : width / 2 - (place.x + place.width / 2) * k;
  look({k, x, y: tall ? 20 - place.y * k : height / 2 - (place.y + place.height / 2) * k});
}
function isSeen(id) {
  const place = state.drawn.places.get(id), {width, height} = room(), {x, y, k} = state.view;
  return place && place.x * k + x >= 0 && place.y * k + y >= 0 && (place.x + Math.min(place.width, 300)) * k + x <= width && (place.y + Math.min(place.height, 60)) * k + y <= height;
}
function paintMap() {
  const {width, height} = state.drawn, most = isSheet() ? [96, 130] : [190, 220];
  state.mapScale = Math.min(most[0] / (width + 48), most[1] / (height + 48));
  map.setAttribute("width", (width + 48) * state.mapScale);
  map.setAttribute("height", (height + 48) * state.mapScale);
  map.replaceChildren();
  for (const [id, place] of state.drawn.places) draw("rect", {class: layers.has(id) ? "layer" : "node", rx: 1,
    x: (place.x + 24) * state.mapScale, y: (place.y + 24) * state.mapScale, width: Math.max(2, place.width * state.mapScale), height: Math.max(1.5, place.height * state.mapScale),
    style: nodes.has(id) && data.colors[nodes.get(id).role] ? `fill: ${data.colors[nodes.get(id).role]}` : ""}, map);
  draw("rect", {class: "view", rx: 2}, map);
}

// -- what is chosen ---------------------------------------------------------------------------------------------------

const members = id => layers.has(id) ? layers.get(id).members.map(node => node.id) : [id];
function neighbours(id) {
  const own = new Set(members(id)), once = list => [...new Set(list)].filter(other => !own.has(other));
  return {
    sources: once([...own].flatMap(one => [...nodes.get(one).inputs, ...nodes.get(one).refs])),
    consumers: once([...own].flatMap(one => takers.get(one))),
  };
}
function mark() {
  const {elements, segments, overlay, places} = state.drawn, id = state.chosen;
  const sets = {chosen: new Set(), source: new Set(), consumer: new Set(), within: new Set()};
  overlay.replaceChildren();
  if (id) {
    const {sources, consumers} = neighbours(id);
    sets.chosen.add(layers.has(id) ? id : visible(id));
    if (layers.has(id)) members(id).forEach(one => sets.within.add(one));
    sources.forEach(one => sets.source.add(visible(one)));
    consumers.forEach(one => sets.consumer.add(visible(one)));
    for (const one of members(id)) for (const [from, to] of [...nodes.get(one).refs.map(ref => [ref, one]), ...takers.get(one).filter(taker => nodes.get(taker).refs.includes(one)).map(taker => [one, taker])]) {
      const a = places.get(visible(from)), b = places.get(visible(to));
      if (!a || !b || a === b) continue;
      const [x, y, u, v] = [a.x + a.width / 2, a.y + a.height, b.x + offset(visible(to)) + b.width / 2, b.y], bend = Math.max(40, Math.abs(v - y) / 3);
      draw("path", {class: `edge reference ${from === one ? "to-consumer" : "to-source"}`, "marker-end": "url(#arrow-lit)", d: `M${x},${y}C${x},${y + bend} ${u},${v - bend} ${u},${v}`}, overlay);
    }
  }
  const seen = id ? (layers.has(id) ? new Set(state.open.has(id) ? members(id) : [id]) : new Set([visible(id)])) : new Set();
  const found = new Set(state.matches.map(visible)), current = state.matches.length ? visible(state.matches[state.match]) : "";
  for (const [key, groups] of elements) for (const group of groups) {
    for (const [name, set] of Object.entries(sets)) group.classList.toggle(name, set.has(key));
    group.classList.toggle("match", found.has(key));
    group.classList.toggle("current", key === current);
  }
  for (const {element: path, from, to, arrow} of segments) {
    const out = seen.has(from), into = [...to].some(one => seen.has(one)), lit = seen.size && out !== into;
    path.classList.toggle("to-consumer", Boolean(lit && out));
    path.classList.toggle("to-source", Boolean(lit && into));
    if (arrow) path.setAttribute("marker-end", lit ? "url(#arrow-lit)" : "url(#arrow)");
  }
  world.classList.toggle("picked", Boolean(id) && !layers.has(id));
  world.classList.toggle("searching", Boolean(byId("find").value.trim()));
}

// "#linear" of the first graph, "#encode~linear" of another.
const address = id => state.graph || id ? `#${state.graph ? `${encodeURIComponent(data.graphs[state.graph].title)}~` : ""}${encodeURIComponent(id)}` : "";
function follow() {
  const [title, id] = location.hash.includes("~") ? location.hash.slice(1).split("~") : ["", location.hash.slice(1)];
  const index = Math.max(0, data.graphs.findIndex(graph => graph.title === decodeURIComponent(title)));
  if (index !== state.graph || !state.drawn) show(index);
  choose(decodeURIComponent(id));
}
function show(index) {
  load(index);
  paint();
  fit(isSheet() ? 0.6 : 0.8);
  if (byId("find").value) search();
}

function choose(id, {move = true, focus = false} = {}) {
  state.chosen = nodes.has(id) || layers.has(id) ? id : "";
  const layer = nodes.get(id)?.layer;
  if (state.chosen && layer && !state.open.has(layer)) {
    state.open.add(layer);
    paint();
    move = true;
  }
  const wanted = address(state.chosen);
  if (location.hash !== wanted) history.replaceState(null, "", wanted || "#");
  describe();
  panel.classList.toggle("open", Boolean(state.chosen));
  mark();
  if (state.chosen && (move ? !isSeen(state.chosen) || isSheet() : !isSeen(state.chosen))) center(state.chosen);
  else look(state.view);
  if (focus && state.chosen) state.drawn.elements.get(state.chosen)?.[0].focus({preventScroll: true});
}

function toggle(id, wanted = !state.open.has(id)) {
  const before = state.drawn.places.get(id), {x, y, k} = state.view;
  if (wanted) state.open.add(id); else state.open.delete(id);
  paint();
  const after = state.drawn.places.get(id);
  look({k, x: x + (before.x - after.x + (before.width - after.width) / 2) * k, y: y + (before.y - after.y) * k});
  state.drawn.elements.get(id)[0].focus({preventScroll: true});
}
function toggleAll(wanted) {
  state.open = new Set(wanted ? layers.keys() : []);
  paint();
  fit(isSheet() ? 0.6 : 0.8);
}

// -- details ----------------------------------------------------------------------------------------------------------

function item(id) {
  const one = nodes.get(id) || layers.get(id), name = layers.has(id) ? one.path : one.label;
  const swatch = layers.has(id) ? "" : element("i", {class: `swatch${one.in_float ? " float" : ""}`, style: tint(one)});
  const where = nodes.has(id) && one.module ? element("span", {class: "code"}, ` ${one.module}`) : "";
  const link = element("a", {href: address(id), "data-id": id}, name, where);
  const ratio = one.sqnr !== undefined ? [element("span", {class: `chip ${grade(one.sqnr)}`}, decibels(one.sqnr))] : [];
  return element("li", {}, swatch, link, ...ratio, element("span", {class: "code"}, layers.has(id) ? one.kind : one.code || ""));
}
const list = (title, ids) => ids.length ? [element("h3", {}, title), element("ul", {}, ...ids.map(id => item(id)))] : [];
const terms = pairs => element("dl", {}, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));

function describe() {
  const id = state.chosen, text = byId("text");
  byId("close").toggleAttribute("hidden", !id && !isSheet());
  text.scrollTop = 0;
  if (!id) {
    byId("heading").textContent = "How to read this";
    text.replaceChildren(...overview());
    return;
  }
  const {sources, consumers} = neighbours(id);
  if (layers.has(id)) {
    const layer = layers.get(id), open = state.open.has(id);
    byId("heading").textContent = layer.path;
    const button = element("button", {"data-toggle": id}, open ? "Close this layer" : "Open this layer");
    text.replaceChildren(terms([["layer", layer.kind], ["holds", layer.facts]]), button,
      ...list("Quantizers", layer.quantizers.map(node => node.id)), ...list("Takes", sources), ...list("Gives to", consumers));
    return;
  }
  const node = nodes.get(id);
  byId("heading").textContent = node.code ? `${node.label} ${node.code}` : node.label;
  text.replaceChildren(...(node.in_float ? [element("p", {}, `Computes in float: ${node.in_float}`)] : []), ...ruler(node), terms(node.details),
    ...list("Takes", sources), ...list("Gives to", consumers));
}

// The range of a quantizer, the place of zero, and the codes at its ends.
function ruler({range, ends}) {
  if (!range) return [];
  const [low, high] = [Math.min(range[0], 0), Math.max(range[1], 0)], svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const at = value => 6 + 298 * (high > low ? (value - low) / (high - low) : 0.5);
  for (const [key, text] of Object.entries({class: "range", viewBox: "0 0 310 34"})) svg.setAttribute(key, text);
  draw("rect", {x: at(range[0]), y: 4, width: Math.max(1, at(range[1]) - at(range[0])), height: 9}, svg);
  draw("line", {x1: 6, x2: 304, y1: 13, y2: 13}, svg);
  draw("line", {x1: at(0), x2: at(0), y1: 2, y2: 17}, svg);
  draw("text", {x: 6, y: 26}, svg, `${+low.toPrecision(3)}${ends ? ` is ${ends[0]}` : ""}`);
  draw("text", {x: 304, y: 26, "text-anchor": "end"}, svg, `${+high.toPrecision(3)}${ends ? ` is ${ends[1]}` : ""}`);
  if (at(0) > 90 && at(0) < 220) draw("text", {x: at(0), y: 26, "text-anchor": "middle"}, svg, "0");
  return [svg];
}

function overview() {
  const parts = [...data.summary, ...data.graphs[state.graph].about].map(text => element("p", {}, text));
  const shown = data.layers.map(layer => layer.id);
  if (shown.length) parts.push(...list("Layers", shown));
  const key = ([name, text]) => element("li", {}, element("i", {class: `swatch${name === "float" ? " float" : ""}`, style: data.colors[name] ? `--role: ${data.colors[name]}` : ""}), element("span", {}, element("b", {}, name.replace("_", " ")), ` ${text}`));
  parts.push(element("h3", {}, "Colors"), element("ul", {}, ...data.legend.map(key)));
  parts.push(element("h3", {}, "Signs"), terms(data.signs));
  if (data.nodes.some(node => node.sqnr !== undefined)) {
    const chip = (name, text) => element("span", {class: `chip ${name}`}, text);
    parts.push(element("h3", {}, "Signal to quantization noise"), element("p", {}, chip("bad", "below 10"), " ", chip("poor", "10 to 20"), " ", chip("fair", "20 to 30"), " ", chip("good", "30 dB or more")));
  }
  for (const [title, lines] of data.lists) parts.push(element("h3", {}, title), ...lines.map(text => element("p", {class: "soft"}, text)));
  const keys = [["/", "find"], ["Enter", "next match; opens or closes a layer"], ["Esc", "back"], ["↑ ↓", "to a source, to a consumer"], ["+ − 0", "larger, smaller, all of it"], ["e c", "open all, close all layers"], ["d", "light or dark"]];
  parts.push(element("h3", {}, "Keys"), element("dl", {}, ...keys.flatMap(([name, text]) => [element("dt", {}, ...name.split(" ").flatMap(one => [element("kbd", {}, one), " "])), element("dd", {}, text)])));
  return parts;
}

// -- finding ----------------------------------------------------------------------------------------------------------

function search() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = node => [node.id, node.label, node.module, node.role, node.code, node.layer ? layers.get(node.layer).kind : ""].join(" ").toLowerCase();
  state.matches = words.length ? data.nodes.filter(node => words.every(word => text(node).includes(word))).map(node => node.id) : [];
  state.match = 0;
  byId("search").classList.toggle("active", words.length > 0);
  showMatch();
}
function showMatch() {
  const many = state.matches.length, id = state.matches[state.match];
  byId("found").textContent = many ? `${state.match + 1} of ${many}` : "none";
  if (id && visible(id) !== id) {
    state.open.add(nodes.get(id).layer);
    paint();
  }
  mark();
  if (id) center(id); else look(state.view);
}
function step(by) {
  if (!state.matches.length) return;
  state.match = (state.match + by + state.matches.length) % state.matches.length;
  showMatch();
}
function clearSearch() {
  byId("find").value = "";
  search();
  byId("find").blur();
}

// -- hands ------------------------------------------------------------------------------------------------------------

const pointers = new Map();
let moved = 0;
stage.addEventListener("pointerdown", event => {
  if (event.target.closest("#zoom, #map") || event.button > 0) return;
  if (!pointers.size) moved = 0;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});
stage.addEventListener("pointermove", event => {
  const old = pointers.get(event.pointerId);
  if (!old) return;
  const [dx, dy] = [event.clientX - old[0], event.clientY - old[1]], others = [...pointers].filter(([id]) => id !== event.pointerId);
  moved += Math.hypot(dx, dy);
  if (moved < 5) return;
  if (!stage.hasPointerCapture(event.pointerId)) stage.setPointerCapture(event.pointerId);
  stage.classList.add("dragging");
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (others.length === 1) {
    const other = others[0][1], box = stage.getBoundingClientRect(), far = (x, y) => Math.max(10, Math.hypot(x - other[0], y - other[1]));
    zoom(far(event.clientX, event.clientY) / far(...old), (event.clientX + other[0]) / 2 - box.left, (event.clientY + other[1]) / 2 - box.top);
    look({...state.view, x: state.view.x + dx / 2, y: state.view.y + dy / 2});
  } else if (!others.length) look({...state.view, x: state.view.x + dx, y: state.view.y + dy});
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, event => {
  pointers.delete(event.pointerId);
  stage.classList.remove("dragging");
});
stage.addEventListener("wheel", event => {
  event.preventDefault();
  const unit = event.deltaMode ? 16 : 1, box = stage.getBoundingClientRect();
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * unit * 0.006), event.clientX - box.left, event.clientY - box.top);
  else look({...state.view, x: state.view.x - (event.shiftKey ? event.deltaY : event.deltaX) * unit, y: state.view.y - (event.shiftKey ? 0 : event.deltaY) * unit});
}, {passive: false});
stage.addEventListener("click", event => {
  if (moved >= 5 || event.target.closest("#zoom, #map")) return;
  const turned = event.target.closest("[data-toggle]"), one = event.target.closest("[data-id]");
  if (turned) toggle(turned.dataset.toggle);
  else if (!one) choose("");
  else {
    if (layers.has(one.dataset.id) && !state.open.has(one.dataset.id)) toggle(one.dataset.id);
    choose(one.dataset.id, {move: one.classList.contains("pill")});
  }
});
stage.addEventListener("focusin", event => {
  const id = event.target.closest("[data-id]")?.dataset.id;
  stage.scrollTop = stage.scrollLeft = 0;
  if (id && event.target.matches(":focus-visible") && !isSeen(id)) center(id);
});
panel.addEventListener("click", event => {
  const link = event.target.closest("a[data-id]"), button = event.target.closest("[data-toggle]");
  if (button) {
    toggle(button.dataset.toggle);
    describe();
  }
  if (!link) return;
  event.preventDefault();
  choose(link.dataset.id, {focus: !isSheet()});
});
function lens(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const box = map.getBoundingClientRect(), {width, height} = room(), k = state.view.k;
  const [x, y] = [(event.clientX - box.left) / state.mapScale - 24, (event.clientY - box.top) / state.mapScale - 24];
  look({k, x: width / 2 - x * k, y: height / 2 - y * k});
}
map.addEventListener("pointerdown", event => { map.setPointerCapture(event.pointerId); lens(event); });
map.addEventListener("pointermove", lens);

let grip = null;
byId("grip").addEventListener("pointerdown", event => { grip = event.clientY; event.target.setPointerCapture(event.pointerId); });
byId("grip").addEventListener("pointerup", event => {
  const far = event.clientY - grip;
  if (far > 40) shut(); else panel.classList.toggle("tall", far < -20 || !panel.classList.contains("tall"));
});
function shut() {
  panel.classList.remove("open", "tall");
  choose("");
}
function showHelp() {
  const open = isSheet() && panel.classList.contains("open") && !state.chosen;
  choose("");
  panel.classList.toggle("open", !open);
  describe();
}
const dark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(name) { document.documentElement.dataset.theme = name; }
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
const actions = {
  "zoom-in": () => zoom(1.25), "zoom-out": () => zoom(0.8), fit: () => fit(), next: () => step(1), previous: () => step(-1),
  "open-all": () => toggleAll(true), "close-all": () => toggleAll(false), help: showHelp, close: shut,
  theme: () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
};
for (const [id, act] of Object.entries(actions)) byId(id).addEventListener("click", act);
byId("find").addEventListener("input", search);
byId("graph").append(...data.graphs.map(graph => element("option", {}, graph.title)));
byId("graph").toggleAttribute("hidden", data.graphs.length === 1);
byId("graph").addEventListener("change", event => {
  show(event.target.selectedIndex);
  choose("");
});

const keys = {"+": "zoom-in", "=": "zoom-in", "-": "zoom-out", 0: "fit", e: "open-all", c: "close-all", d: "theme", "?": "help"};
document.addEventListener("keydown", event => {
  const find = byId("find"), typing = event.target === find;
  if (event.key === "Escape") {
    if (find.value || typing) clearSearch(); else shut();
  } else if (typing) {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    return;
  } else if (event.target.id === "graph") {
    return;
  } else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "/") find.focus();
  else if (event.key === "Enter" || event.key === " ") {
    const id = event.target.closest?.("#stage [data-id]")?.dataset.id;
    if (!id) return;
    if (layers.has(id)) toggle(id);
    choose(id, {move: false, focus: true});
  } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    if (!state.chosen || event.target.closest?.("#text")) return;
    const {sources, consumers} = neighbours(state.chosen), next = (event.key === "ArrowUp" ? sources : consumers)[0];
    if (next) choose(next, {focus: true});
  } else if (keys[event.key]) actions[keys[event.key]]();
  else return;
  event.preventDefault();
});
addEventListener("hashchange", follow);
addEventListener("resize", () => { paintMap(); look(state.view); describe(); });

setTheme(dark.matches ? "dark" : "light");
follow();

"use strict";
// A layered drawing of an acyclic graph (Sugiyama, Tagawa and Toda, 1981): a row for each node, points in the rows that a
// long edge passes, an order within the rows that crosses few edges, and places that keep edges straight.

/**
 * @param boxes  [{id, width, height, end}]: end is "top" or "bottom" for what stands in the first or the last row.
 * @param edges  [{from, to, out, into}]: out and into are the places of the ends, from the middle of their boxes.
 * @param options  gapX and gapY are the room between boxes; middles: boxes stand in line by their middles, not by the
 *     ends of their edges; fixed: the first row stays in the order of boxes.
 * @returns {places: Map of id to {x, y}, routes: a list of points per edge, width, height}
 */
function layered(boxes, edges, {gapX = 26, gapY = 36, middles = false, fixed = false} = {}) {
  const items = new Map(boxes.map(box => [box.id, {...box, row: 0, before: [], after: []}]));
  for (const edge of edges) {
    items.get(edge.from).after.push(edge);
    items.get(edge.to).before.push(edge);
  }
  setRows(items);
  const rows = [], chains = edges.map(edge => chain(edge, items, rows));
  for (const box of boxes) (rows[items.get(box.id).row] ||= []).push(items.get(box.id));
  for (let row = 0; row < rows.length; row++) rows[row] ||= [];
  const links = chains.flat();
  for (const row of rows) for (const item of row) item.up = item.down = null;
  for (const link of links) {
    (link.a.down ||= []).push({item: link.b, own: link.out, other: link.into, weight: link.weight});
    (link.b.up ||= []).push({item: link.a, own: link.into, other: link.out, weight: link.weight});
  }
  order(rows, links, fixed);
  place(rows, gapX, middles);
  let y = 0;
  const tops = rows.map(row => {
    const top = y, height = Math.max(0, ...row.map(item => item.height || 0));
    for (const item of row) item.y = item.height === undefined ? top : top + (height - item.height) / 2;
    y = top + height + gapY;
    return [top, top + height];
  });
  const left = Math.min(...rows.flat().map(item => item.x));
  const places = new Map(boxes.map(box => [box.id, {x: items.get(box.id).x - left, y: items.get(box.id).y}]));
  const routes = chains.map(links => route(links, tops, left));
  const width = Math.max(0, ...rows.flat().map(item => item.x + item.width - left));
  return {places, routes, width, height: Math.max(0, y - gapY)};
}

// The longest way from a source; then what has no more edges above than below moves down to what takes it.
function setRows(items) {
  const waiting = new Map([...items.values()].map(item => [item, item.before.length])), sorted = [];
  const free = [...items.values()].filter(item => !item.before.length);
  while (free.length) {
    const item = free.shift();
    sorted.push(item);
    for (const edge of item.after) {
      const next = items.get(edge.to);
      next.row = Math.max(next.row, item.row + 1);
      waiting.set(next, waiting.get(next) - 1);
      if (!waiting.get(next)) free.push(next);
    }
  }
  if (sorted.length < items.size) throw new Error("the graph has a cycle");
  const tops = sorted.some(item => item.end === "top") ? 1 : 0;
  for (const item of sorted) if (item.end !== "top") item.row = Math.max(item.row, tops);
  for (const item of sorted) for (const edge of item.after) {
    const next = items.get(edge.to);
    next.row = Math.max(next.row, item.row + 1);
  }
  const last = Math.max(0, ...sorted.filter(item => item.end !== "bottom").map(item => item.row));
  for (const item of sorted) if (item.end === "bottom") item.row = last + 1;
  for (const item of sorted.reverse()) {
    const inner = item.before.filter(edge => items.get(edge.from).end !== "top");
    if (item.end || !item.after.length || inner.length > item.after.length) continue;
    item.row = Math.max(item.row, Math.min(...item.after.map(edge => items.get(edge.to).row)) - 1);
  }
}

// The links of an edge from row to row, through points where it passes.
function chain(edge, items, rows) {
  const from = items.get(edge.from), to = items.get(edge.to), links = [];
  let a = from, out = edge.out || 0;
  for (let row = from.row + 1; row < to.row; row++) {
    const point = {width: 12, row, point: true};
    (rows[row] ||= []).push(point);
    links.push({a, b: point, out, into: 0, weight: a.point ? 8 : 1});
    [a, out] = [point, 0];
  }
  links.push({a, b: to, out, into: edge.into || 0, weight: a.point ? 1 : 4});
  return links;
}

function order(rows, links, fixed) {
  const number = () => rows.forEach(row => row.forEach((item, i) => { item.at = i; }));
  const mean = (item, near) => {
    const found = item[near];
    return found ? found.reduce((sum, n) => sum + n.item.at + n.other / 1e4, 0) / found.length : item.at;
  };
  number();
  let best = Infinity, kept = null;
  for (let turn = 0; turn < 16 && best > 0; turn++) {
    const down = turn % 2 === 0, near = down ? "up" : "down";
    for (const row of down ? rows : [...rows].reverse()) {
      if (fixed && row === rows[0]) continue;
      const wanted = new Map(row.map(item => [item, mean(item, near)]));
      row.sort((p, q) => wanted.get(p) - wanted.get(q) || p.at - q.at);
      row.forEach((item, i) => { item.at = i; });
    }
    const found = crossings(rows, links);
    if (found < best) [best, kept] = [found, rows.map(row => [...row])];
  }
  if (kept) kept.forEach((row, i) => { rows[i] = row; });
  number();
}

function crossings(rows, links) {
  let sum = 0;
  const byRow = new Map();
  for (const link of links) {
    if (!byRow.has(link.a.row)) byRow.set(link.a.row, []);
    byRow.get(link.a.row).push(link);
  }
  const end = (item, own) => item.at + own / 1e4;
  for (const some of byRow.values()) for (let i = 0; i < some.length; i++) for (let j = i + 1; j < some.length; j++) {
    const [p, q] = [some[i], some[j]];
    const above = end(p.a, p.out) - end(q.a, q.out), below = end(p.b, p.into) - end(q.b, q.into);
    if (above * below < 0) sum++;
  }
  return sum;
}

// Each item as near to its neighbours as there is room: the least sum of squares for the order, row by row.
function place(rows, gap, middles) {
  for (const row of rows) {
    let x = 0;
    for (const item of row) [item.x, x] = [x, x + item.width + gap];
  }
  const middle = item => item.x + item.width / 2, moved = n => middles ? 0 : n.other - n.own;
  for (let turn = 0; turn < 24; turn++) {
    const sides = turn >= 20 ? ["up", "down"] : turn % 2 ? ["down"] : ["up"];
    for (const row of turn % 2 ? [...rows].reverse() : rows) {
      const wanted = row.map(item => {
        const near = sides.flatMap(side => item[side] || []);
        const weight = near.reduce((sum, n) => sum + n.weight, 0);
        const sum = near.reduce((sum, n) => sum + n.weight * (middle(n.item) + moved(n)), 0);
        return weight ? [sum / weight - item.width / 2, weight] : [item.x, 0.1];
      });
      pool(row, wanted, gap);
    }
  }
  for (const row of rows) {  // what nothing leads to stands beside the rest
    const first = row.findIndex(item => item.up || item.down);
    for (let i = first - 1; i >= 0; i--) row[i].x = row[i + 1].x - gap - row[i].width;
    for (let i = Math.max(first, 0) + 1; i < row.length; i++) {
      if (!row[i].up && !row[i].down) row[i].x = row[i - 1].x + row[i - 1].width + gap;
    }
  }
}

function pool(row, wanted, gap) {
  const blocks = [];
  let shift = 0;
  row.forEach((item, i) => {
    blocks.push({sum: (wanted[i][0] - shift) * wanted[i][1], weight: wanted[i][1], items: [[item, shift]]});
    shift += item.width + gap;
    while (blocks.length > 1 && value(blocks.at(-2)) > value(blocks.at(-1))) {
      const last = blocks.pop(), block = blocks.at(-1);
      block.sum += last.sum;
      block.weight += last.weight;
      block.items.push(...last.items);
    }
  });
  for (const block of blocks) for (const [item, shift] of block.items) item.x = value(block) + shift;
}
const value = block => block.sum / block.weight;

// Points: straight through a row, then on to the next, and straight down into a box, as arrows point there.
function route(links, tops, left) {
  const points = [], add = (x, y) => {
    const last = points.at(-1);
    if (!last || Math.abs(last[0] - x) + Math.abs(last[1] - y) > 0.5) points.push([x, y]);
  };
  let x = 0;
  for (const {a, b, out, into} of links) {
    if (!points.length) {
      x = a.x + a.width / 2 + out - left;
      add(x, a.y + (a.height || 0));
    }
    add(x, tops[a.row][1]);
    const wanted = b.x + b.width / 2 + into - left, end = b.point && Math.abs(wanted - x) < 9 ? x : wanted;
    add(end, tops[b.row][0] - (b.point ? 0 : 9));
    if (!b.point) add(end, b.y);
    x = end;
  }
  return points;
}

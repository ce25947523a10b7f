"use strict";
// Find the blocks of a chart's marks and of a table's rows. A place is {stack, block}; without a stack it is any stack's.
function placeOf(label) {
  const found = /^(?:stack (\d+): )?block (\d+)(?: |$)/.exec(String(label));
  return found && { stack: found[1], block: found[2] };
}

function placeFrom(text) {
  const found = /^(?:(\d+)\.)?(\d+)$/.exec(text ?? "");
  return found && { stack: found[1], block: found[2] };
}

const written = (place) => (place.stack === undefined ? place.block : `${place.stack}.${place.block}`);

function meets(place, other) {
  const anyStack = place.stack === undefined || other.stack === undefined;
  return place.block === other.block && (anyStack || place.stack === other.stack);
}

// The block that a mark of a panel belongs to: ends[b] is the depth of the last add of block b.
function placeAt(x, meta) {
  if (meta.by === "block") return { block: String(x) };
  const block = meta.ends?.findIndex((end) => x <= end) ?? -1;
  return block >= 0 && x > 0 ? { block: String(block) } : null;
}

function placeOfPoint(point, meta = {}) {
  if (point.data.type === "heatmap") return placeOf(point.y);
  return placeOf(point.text) ?? placeOf(point.x) ?? placeAt(Number(point.x), meta);
}

// Where a block lies in a figure: the axis, and from which to which of its coordinates.
function spans(figure, place) {
  const found = new Map();
  const add = (axis, along, at) => {
    const span = found.get(axis) ?? { axis, along, low: Infinity, high: -Infinity };
    found.set(axis, { ...span, low: Math.min(span.low, at - 0.5), high: Math.max(span.high, at + 0.5) });
  };
  const meta = figure.layout.meta ?? {};
  for (const trace of figure.data) {
    const isGrid = trace.type === "heatmap";
    const axis = (isGrid ? trace.yaxis : trace.xaxis) ?? (isGrid ? "y" : "x");
    const labels = isGrid ? trace.y : trace.text ?? (figure.layout.xaxis?.type === "category" ? trace.x : null);
    if (Array.isArray(labels)) {
      labels.forEach((label, index) => {
        const here = placeOf(label);
        if (here && meets(here, place)) add(axis, isGrid ? "y" : "x", isGrid || labels === trace.x ? index : trace.x[index]);
      });
    } else if (meta.by === "block") {
      if ((trace.x ?? []).some((x) => String(x) === place.block)) add(axis, "x", Number(place.block));
    } else if (meta.ends?.[place.block] !== undefined) {
      const below = Number(place.block) > 0 ? meta.ends[place.block - 1] : 0;
      for (let depth = below + 1; depth <= meta.ends[place.block]; depth += 1) add(axis, "x", depth);
    }
  }
  return [...found.values()];
}

// A frame around the block: it stands out by its outline, not by a colour alone.
function frames(figure, place, ink) {
  if (!place) return [];
  return spans(figure, place).map(({ axis, along, low, high }) => {
    const partner = axis.replace(/^[xy]/, (name) => (name === "x" ? "y" : "x"));
    const across = `${figure.layout[axis.replace(/^[xy]/, "$&axis")]?.anchor ?? partner} domain`;
    const ends = along === "x" ? { x0: low, x1: high, y0: 0, y1: 1, xref: axis, yref: across }
      : { y0: low, y1: high, x0: 0, x1: 1, yref: axis, xref: across };
    return { type: "rect", ...ends, line: { color: ink, width: 2, dash: "solid" }, fillcolor: "rgba(127,127,127,.14)", layer: "above" };
  });
}

function markRows(place) {
  for (const row of document.querySelectorAll("tr.chosen")) {
    row.classList.remove("chosen");
    row.removeAttribute("aria-current");
  }
  if (!place) return;
  for (const table of document.querySelectorAll("table")) {
    for (const row of table.tBodies[0]?.rows ?? []) {
      const here = placeOfRow(row);
      if (!here || !meets(here, place)) continue;
      row.classList.add("chosen");
      row.setAttribute("aria-current", "true");
    }
  }
}

function placeOfRow(row) {
  const heads = [...(row.closest("table").tHead?.rows[0]?.cells ?? [])].map((cell) => cell.dataset.key);
  if (!heads.includes("block")) return null;
  const text = (key) => row.cells[heads.indexOf(key)]?.textContent.trim().replaceAll(",", "");
  const block = text("block");
  return /^\d+$/.test(block) ? { stack: heads.includes("stack") ? text("stack") : undefined, block } : null;
}

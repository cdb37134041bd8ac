// The values under the pointer. The page shows all else without this.
"use strict";

const text = (value) => value === null ? "–" : Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
const share = (value) => value === null ? "–" : `${(100 * value).toFixed(2)} %`;
const signed = (value) => value > 0 ? `+${text(value)}` : value < 0 ? `−${text(-value)}` : "0";
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function nearest(sorted, wanted) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= wanted) low = middle; else high = middle;
  }
  return wanted - sorted[low] <= sorted[high] - wanted ? low : high;
}

// Each gives the lines to show, and where the rule stands, for a point of the plot in shares of it.
const kinds = {
  lines(chart, x) {
    const [from, to] = chart.domain;
    const at = from + x * (to - from);
    const found = chart.series.map((one) => [one, nearest(one.x, at)]);
    const closest = found.map(([one, i]) => one.x[i]).reduce((a, b) => Math.abs(a - at) <= Math.abs(b - at) ? a : b);
    const width = Math.max(...chart.series.map((one) => one.name.length));
    const lines = found.map(([one, i]) => `${one.name.padEnd(width)}  ${text(one.y[i])}${one.x[i] === closest ? "" : `  (${chart.x} ${text(one.x[i])})`}`);
    return { lines: [`${chart.x} ${closest.toLocaleString("en")}`, ...lines], rule: (closest - from) / (to - from) };
  },
  heat(chart, x, y) {
    const row = clamp(Math.floor(y * chart.names.length), 0, chart.names.length - 1);
    const cells = chart.values[row];
    const column = clamp(Math.floor(x * cells.length), 0, cells.length - 1);
    const step = Math.round(chart.last * (column + 1) / cells.length);
    return { lines: [chart.names[row], `step ${step.toLocaleString("en")}`, `${chart.what} ${share(cells[column])}`], rule: (column + 0.5) / cells.length };
  },
  moves(chart, x, y) {
    const row = clamp(Math.floor(y * chart.names.length), 0, chart.names.length - 1);
    const column = clamp(Math.floor(x * chart.steps.length), 0, chart.steps.length - 1);
    const [first, last, events] = chart.steps[column];
    const grown = chart.grown[row][column], dropped = chart.dropped[row][column];
    const when = events === 1 ? `step ${last.toLocaleString("en")}` : `${events.toLocaleString("en")} reallocations, steps ${first.toLocaleString("en")} to ${last.toLocaleString("en")}`;
    return { lines: [chart.names[row], when, `grown ${grown.toLocaleString("en")}, dropped ${dropped.toLocaleString("en")}, net ${signed(grown - dropped)}`], rule: (column + 0.5) / chart.steps.length };
  },
};

function watch(figure) {
  const drawing = figure.querySelector(".drawing");
  const rule = document.createElement("div"), values = document.createElement("div");
  rule.className = "rule";
  values.className = "values";
  let chart = null;
  const hide = () => { rule.remove(); values.remove(); };
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("pointermove", (event) => {
    chart ??= JSON.parse(figure.dataset.hover);
    const area = drawing.getBoundingClientRect();
    const [left, top, width, height] = chart.box.map((part, i) => part * (i % 2 ? area.height : area.width));
    const x = (event.clientX - area.left - left) / width, y = (event.clientY - area.top - top) / height;
    if (x < -0.02 || x > 1.02 || y < 0 || y > 1) { hide(); return; }
    const shown = kinds[chart.kind](chart, clamp(x, 0, 1), y);
    drawing.append(rule);
    Object.assign(rule.style, { left: `${left + shown.rule * width}px`, top: `${top}px`, height: `${height}px` });
    values.textContent = shown.lines.join("\n");
    document.body.append(values);
    const box = values.getBoundingClientRect();
    const beside = event.clientX + 16 + box.width < document.documentElement.clientWidth ? event.clientX + 16 : event.clientX - 16 - box.width;
    Object.assign(values.style, { left: `${Math.max(4, beside) + scrollX}px`, top: `${event.clientY + 14 + scrollY}px` });
  });
}

document.querySelectorAll("figure[data-hover]").forEach(watch);

// Printed, nothing is folded away.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

// Draw the figures that the page carries, in the colours of its theme.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud", "toImage"],
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function themed(layout) {
  const changed = structuredClone(layout);
  const ink = colour("--ink"), grid = colour("--grid"), ground = colour("--ground");
  changed.font = { ...changed.font, color: ink };
  changed.hoverlabel = { bgcolor: ground, bordercolor: grid, font: { color: ink } };
  for (const key of Object.keys(changed)) {
    if (/^[xy]axis\d*$/.test(key)) {
      changed[key] = { ...changed[key], gridcolor: grid, linecolor: grid, tickcolor: grid };
    }
  }
  return changed;
}

// What the hover says is made here of what is drawn, so that the file need not hold it twice.
function worded(figure) {
  const texts = figure.layout.meta?.texts;
  for (const trace of figure.data) {
    if (texts && typeof trace.meta === "number") trace.text = texts[trace.meta];
    if (trace.type !== "heatmap" || trace.customdata || !trace.meta) continue;
    const said = (level) => Number((trace.meta.log ? 10 ** level : level).toPrecision(3)).toString();
    trace.customdata = trace.z.map((row) => row.map((level) => (level === null ? "not recorded" : said(level))));
    for (const [row, column, words] of trace.meta.words) trace.customdata[row][column] = words;
  }
  return figure;
}

// The line of a step in a depth profile: that step, or the last before it that the profile holds.
function lineAt(figure, profile, step) {
  const index = Math.max(0, profile.steps.findLastIndex((held) => held <= step));
  const row = profile.rows[index], like = figure.data[profile.line];
  const stack = /^stack \d+, /.exec(like.name)?.[0] ?? "";
  return { y: typeof row === "number" ? figure.data[row].y : row, name: `${stack}step ${profile.steps[index]} (chosen)` };
}

// One bold line a stack, in the ink of the page, that the step control moves.
function boldLines(figure, step) {
  const profiles = figure.layout.meta?.scrubbed?.filter((profile) => profile.steps.length > 1) ?? [];
  const ink = colour("--ink");
  return profiles.map((profile) => {
    const like = figure.data[profile.line];
    return {
      ...like,
      ...lineAt(figure, profile, step),
      mode: "lines+markers",
      line: { ...like.line, color: ink, width: 3 },
      marker: { size: 9, color: ink, symbol: "circle-open" },
    };
  });
}

function downloads(chart, key) {
  const heading = chart.closest("figure").querySelector("h3").textContent;
  const row = document.createElement("div");
  row.className = "downloads";
  for (const format of ["png", "svg"]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = format.toUpperCase();
    button.setAttribute("aria-label", `Download this chart as ${format.toUpperCase()}: ${heading}`);
    button.addEventListener("click", () => save(chart, key, heading, format));
    row.append(button);
  }
  chart.after(row);
}

function save(chart, key, heading, format) {
  const escaped = heading.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const lines = escaped.match(/.{1,90}(?:\s|$)/g) ?? [escaped];
  const top = (chart.layout.margin?.t ?? 30) + 22 * lines.length;
  const layout = {
    ...chart.layout,
    title: { text: lines.join("<br>"), x: 0.01, xanchor: "left", y: 0.98, yanchor: "top", font: { size: 15 } },
    margin: { ...chart.layout.margin, t: top },
    paper_bgcolor: colour("--ground"),
  };
  const height = chart.offsetHeight + 22 * lines.length;
  Plotly.downloadImage({ data: chart.data, layout }, { format, width: chart.offsetWidth, height, scale: 2, filename: key });
}

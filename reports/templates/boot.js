"use strict";
(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
    toImageButtonOptions: { format: "svg" },
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
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

  async function inflated(id) {
    const packed = document.getElementById(id).textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Response(bytes).body.pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function say(text) {
    for (const chart of document.querySelectorAll(".chart")) chart.textContent = text;
  }

  if (!("DecompressionStream" in window)) {
    say("This browser is too old to draw the charts (it lacks DecompressionStream). The numbers stand in the tables.");
    return;
  }
  const script = document.createElement("script");
  script.textContent = await inflated("plotly");
  document.head.append(script);
  if (!window.Plotly) {
    say("The chart library did not start. The numbers stand in the tables.");
    return;
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

  async function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "begun";
    const figure = worded(figures[chart.dataset.figure]);
    await Plotly.newPlot(chart, figure.data, themed(figure.layout), config);
    chart.dataset.drawn = "yes";
  }

  const charts = [...document.querySelectorAll(".chart")];
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          observer.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  charts.forEach((chart) => observer.observe(chart));
  dark.addEventListener("change", () => {
    for (const chart of charts) {
      if (chart.dataset.drawn === "yes") Plotly.relayout(chart, themed(figures[chart.dataset.figure].layout));
    }
  });
  addEventListener("beforeprint", () => charts.forEach(draw));
  document.documentElement.dataset.ready = "yes";
})();

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

  async function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "begun";
    const figure = figures[chart.dataset.figure];
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

(async () => {
  const say = (text) => document.querySelectorAll(".chart").forEach((chart) => (chart.textContent = text));

  async function inflated(id) {
    const packed = document.getElementById(id).textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Response(bytes).body.pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  if (!("DecompressionStream" in window)) {
    say("This browser is too old to draw the charts (it lacks DecompressionStream). The numbers stand in the tables.");
    return;
  }
  const figures = JSON.parse(await inflated("figures"));
  const script = document.createElement("script");
  script.textContent = await inflated("plotly");
  document.head.append(script);
  if (!window.Plotly) {
    say("The chart library did not start. The numbers stand in the tables.");
    return;
  }

  const charts = [...document.querySelectorAll(".chart")];
  const figureOf = (chart) => figures[chart.dataset.figure];
  const visible = new Set();
  const view = controls(figures, () => visible.forEach(settle));

  async function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "begun";
    const figure = worded(figureOf(chart));
    const bold = boldLines(figure, view.step);
    const layout = { ...themed(figure.layout), shapes: frames(figure, view.place, colour("--ink")) };
    await Plotly.newPlot(chart, [...figure.data, ...bold], layout, CONFIG);
    chart.shows = view.stamp();
    downloads(chart, chart.dataset.figure);
    chart.on("plotly_click", ({ points: [point] }) => {
      const place = placeOfPoint(point, figure.layout.meta);
      if (place) view.choose(place);
    });
    chart.dataset.drawn = "yes";
    settle(chart);
  }

  // Bring a drawn chart to the chosen step and block; those out of sight follow when they come into it.
  function settle(chart) {
    if (chart.dataset.drawn !== "yes" || chart.shows === view.stamp()) return;
    chart.shows = view.stamp();
    const figure = figureOf(chart);
    const bold = boldLines(figure, view.step);
    if (bold.length) {
      const places = bold.map((_, index) => figure.data.length + index);
      Plotly.restyle(chart, { y: bold.map((line) => line.y), name: bold.map((line) => line.name) }, places);
    }
    Plotly.relayout(chart, { shapes: frames(figure, view.place, colour("--ink")) });
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        visible[isIntersecting ? "add" : "delete"](target);
        if (isIntersecting) draw(target).then(() => settle(target));
      }
    },
    { rootMargin: "600px" },
  );
  charts.forEach((chart) => observer.observe(chart));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    const ink = colour("--ink");
    for (const chart of charts.filter((drawn) => drawn.dataset.drawn === "yes")) {
      const figure = figureOf(chart), bold = boldLines(figure, view.step).map((_, index) => figure.data.length + index);
      Plotly.relayout(chart, { ...themed(figure.layout), shapes: frames(figure, view.place, ink) });
      if (bold.length) Plotly.restyle(chart, { "line.color": ink, "marker.color": ink }, bold);
    }
  });
  addEventListener("beforeprint", () => charts.forEach(draw));
  document.documentElement.dataset.ready = "yes";
})();

// Hold the chosen step and block, in the controls at the foot of the page and in the address: #anchor&block=3&step=55.
function controls(figures, changed) {
  const bar = document.getElementById("controls");
  const [slider, shown, block, clear, said] = ["step", "step-shown", "block", "clear", "said"].map((id) => document.getElementById(id));
  const profiles = Object.values(figures).flatMap((figure) => figure.layout.meta?.scrubbed ?? []);
  const steps = [...new Set(profiles.flatMap((profile) => profile.steps))].sort((a, b) => a - b);
  const counts = bar.dataset.blocks.split(",").filter(Boolean).map(Number);
  const view = { step: steps.at(-1), place: null, anchor: "" };
  let waiting = false;

  view.stamp = () => `${view.step} ${view.place ? written(view.place) : ""}`;

  function settle() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      changed();
    });
  }

  function address() {
    const parts = [view.anchor, view.place && `block=${written(view.place)}`, view.moved && `step=${view.step}`];
    const hash = parts.filter(Boolean).join("&");
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function show() {
    if (steps.length > 1) {
      slider.value = steps.indexOf(view.step);
      slider.setAttribute("aria-valuetext", `step ${view.step}`);
      shown.textContent = view.step;
    }
    block.value = view.place ? written(view.place) : "";
    clear.disabled = !view.place;
    const name = view.place && (view.place.stack === undefined ? "" : ` of stack ${view.place.stack}`);
    said.textContent = view.place ? `Block ${view.place.block}${name} is framed in charts and tables; Escape clears.` : "";
    for (const link of document.querySelectorAll("[data-place]")) {
      const isChosen = Boolean(view.place) && meets(placeFrom(link.dataset.place), view.place);
      link.classList.toggle("chosen", isChosen);
      isChosen ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    }
    markRows(view.place);
    settle();
  }

  // Tables name the stack where a model has one alone too; the address does not.
  const short = (place) => place && (counts.length > 1 ? place : { block: place.block });

  view.choose = (place) => {
    view.place = short(place);
    address();
    show();
  };

  function goTo(step) {
    view.step = step;
    view.moved = true;
    address();
    slider.setAttribute("aria-valuetext", `step ${step}`);
    shown.textContent = step;
    settle();
  }

  // An address without a block or a step leaves them as they are: a link to a section does not clear them.
  function read() {
    const parts = location.hash.slice(1).split("&");
    const value = (name) => parts.find((part) => part.startsWith(`${name}=`))?.slice(name.length + 1);
    const place = placeFrom(value("block")), step = Number(value("step"));
    view.anchor = parts[0].includes("=") ? "" : parts[0];
    if (place) view.place = short(place);
    if (value("step") !== undefined && steps.length && Number.isFinite(step)) {
      view.step = steps.findLast((held) => held <= step) ?? steps[0];
      view.moved = true;
    }
    address();
    show();
    if (view.anchor && parts.length > 1) document.getElementById(view.anchor)?.scrollIntoView();
  }

  for (const [stack, count] of counts.entries()) {
    for (let index = 0; index < count; index += 1) {
      const option = document.createElement("option");
      option.value = counts.length > 1 ? `${stack}.${index}` : String(index);
      option.textContent = counts.length > 1 ? `stack ${stack}, block ${index}` : String(index);
      block.append(option);
    }
  }
  bar.hidden = !counts.length;
  document.getElementById("steps").hidden = steps.length < 2;
  slider.max = Math.max(0, steps.length - 1);
  slider.addEventListener("input", () => goTo(steps[slider.value]));
  block.addEventListener("change", () => view.choose(placeFrom(block.value)));
  clear.addEventListener("click", () => view.choose(null));
  addEventListener("keydown", (event) => event.key === "Escape" && view.place && view.choose(null));
  addEventListener("hashchange", read);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-place]"), row = event.target.closest("tbody tr");
    const place = short(link ? placeFrom(link.dataset.place) : row && placeOfRow(row));
    if (!place || String(getSelection()).length) return;
    if (link) event.preventDefault();
    view.choose(view.place && written(view.place) === written(place) && !link ? null : place);
  });
  read();
  return view;
}

"use strict";
// The page. `arithmetic.js` and `batch.js` are loaded before it.

const NAMES = { cross_entropy: "Cross-entropy", label_smoothing: "Label smoothing", maxsup: "MaxSup" };
const FORMULAS = {
  cross_entropy: "−log p(true class)",
  label_smoothing: "cross-entropy + α (z of the true class − mean z)",
  maxsup: "cross-entropy + α (largest z − mean z)",
};
const CLASSES = ["cat", "dog", "fox", "owl", "bee"];
const PRESETS = {
  right: { z: [3.0, 0.5, 0.0, -1.0, -0.5], label: 0 },
  wrong: { z: [1.0, 2.5, 0.5, -1.0, 0.0], label: 0 },
  uncertain: { z: [0.3, 0.2, 0.1, -0.1, 0.0], label: 0 },
};
const START = { ...PRESETS.wrong, alpha: 0.1 };
const state = { ...START, z: [...START.z] };

const at = (id) => document.getElementById(id);
const format = (x) => (Math.abs(x) < 0.0005 ? "0.000" : x.toFixed(3)).replace("-", "−");
const percent = (p) => `${Math.round(100 * p)} %`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children);
  return made;
}

// A bar from the middle of its track, half of which `largest` fills, or from its left end.
function bar(x, largest, kind, middle = true) {
  const width = (100 * Math.abs(x)) / largest;
  const style = middle ? `${x < 0 ? "right" : "left"}: 50%; width: ${width / 2}%` : `left: 0; width: ${width}%`;
  return element("div", { class: middle ? "track middle" : "track" }, element("div", { class: `bar ${kind}`, style }));
}

const fullBar = (scale) => element("span", { class: "scale" }, `a full bar is ${scale}`);

// One prediction.

function slider(id, text, min, max, step, change) {
  const input = element("input", { id, type: "range", min, max, step });
  input.addEventListener("input", () => { change(+input.value); draw(); });
  return element("div", { class: "slider" },
    element("label", { for: id }, text), input, element("output", { for: id, id: `${id}-value` }));
}

function gradientTable(name, found, largest) {
  const cells = (g, scale) => [
    element("td", {}, bar(g, scale, g < 0 ? "up" : "down")),
    element("td", { class: "figure" }, format(g)),
  ];
  const scaled = (text, scale) => element("th", { scope: "col", colspan: 2 }, text,
    scale ? fullBar(`±${scale.toFixed(2)}`) : "");
  const rows = found.gradient.map((total, j) => element("tr", {},
    element("th", { scope: "row", class: j === state.label ? "true" : "" }, CLASSES[j]),
    ...(name === "cross_entropy" ? [element("td", { colspan: 2 })] : cells(found.penalty.gradient[j], largest.penalty)),
    ...cells(total, largest.whole)));
  return element("table", { class: "gradients" }, element("thead", {}, element("tr", {}, element("td"),
    name === "cross_entropy" ? scaled("no penalty") : scaled("penalty alone", largest.penalty),
    scaled("whole loss", largest.whole))), element("tbody", {}, ...rows));
}

function lossCard(name, found, largest) {
  const sum = name === "cross_entropy" ? ""
    : ` = ${format(found.value - found.penalty.value)} of cross-entropy + ${format(found.penalty.value)} of penalty`;
  return element("section", { class: "loss", "aria-label": NAMES[name] }, element("h3", {}, NAMES[name]),
    element("p", {}, FORMULAS[name]), element("p", {}, `Loss ${format(found.value)}${sum}`),
    gradientTable(name, found, largest));
}

const moves = (name, g) => (Math.abs(g) < 0.0005 ? `leaves ${name} where it is`
  : `pushes ${name} ${g < 0 ? "up" : "down"} by ${format(Math.abs(g))}`);

// What there is to see, as sentences for two paragraphs.
function verdict(found, predicted) {
  const truth = CLASSES[state.label], top = CLASSES[predicted], right = predicted === state.label;
  const whole = (name) => moves(truth, found[name].gradient[state.label]);
  const up = (name) => format(-found[name].gradient[state.label]);
  const first = `The prediction, ${top}, has a probability of ${percent(softmax(state.z)[predicted])} and is ${right ? "right" : "wrong"}. `;
  if (state.alpha === 0) return [first, "With α = 0 there is no penalty, and the three losses are the same."];
  if (right) {
    return [
      `${first}The true logit is the largest, so label smoothing and MaxSup are the same loss: the penalty pushes ${truth} down and ` +
        "the other logits up.",
      `Cross-entropy alone ${whole("cross_entropy")}; with the penalty, the whole loss ${whole("maxsup")}.`,
    ];
  }
  return [
    `${first}Label smoothing's penalty pushes the true logit, ${truth}, down and the others up, the wrong ${top} among them. MaxSup's ` +
      `penalty pushes ${top} down and the others up, ${truth} among them.`,
    `Cross-entropy is stronger than either, so every whole loss pushes ${truth} up: label smoothing by ${up("label_smoothing")}, ` +
      `cross-entropy alone by ${up("cross_entropy")}, and MaxSup by ${up("maxsup")}.`,
  ];
}

function draw() {
  const found = losses(state.z, state.label, state.alpha), predicted = firstTop(state.z), q = softmax(state.z);
  const largest = (gradients) => Math.max(...gradients.flat().map(Math.abs), 0.005);
  const scales = {
    penalty: largest(Object.values(found).map((loss) => loss.penalty.gradient)),
    whole: largest(Object.values(found).map((loss) => loss.gradient)),
  };
  state.z.forEach((z, j) => {
    at(`z${j}`).value = z;
    at(`z${j}-value`).textContent = `${z.toFixed(1).replace("-", "−")} · ${percent(q[j])}`;
    at(`z${j}`).setAttribute("aria-valuetext", `logit ${z.toFixed(1)}, probability ${percent(q[j])}`);
  });
  at("alpha").value = state.alpha;
  at("alpha-value").textContent = state.alpha.toFixed(2);
  at("label").value = state.label;
  document.querySelectorAll("[data-preset]").forEach((button) => {
    const preset = PRESETS[button.dataset.preset];
    const same = preset.label === state.label && preset.z.every((z, j) => z === state.z[j]);
    button.setAttribute("aria-pressed", same);
  });
  at("losses").replaceChildren(...Object.keys(NAMES).map((name) => lossCard(name, found[name], scales)));
  at("verdict").replaceChildren(...verdict(found, predicted).map((text) => element("p", {}, text)));
  at("verdict").className = predicted === state.label ? "right" : "wrong";
  const parts = decomposition(state.z, state.label, state.alpha);
  at("regularization").textContent = format(parts.regularization);
  at("error_amplification").textContent = format(parts.error_amplification);
  at("sum").textContent = format(parts.regularization + parts.error_amplification);
}

function setUpPrediction() {
  CLASSES.forEach((name, j) => {
    at("sliders").append(slider(`z${j}`, name, -5, 5, 0.1, (z) => { state.z[j] = z; }));
    at("label").append(element("option", { value: j }, name));
  });
  at("sliders").append(slider("alpha", "α", 0, 0.5, 0.01, (alpha) => { state.alpha = alpha; }));
  at("label").addEventListener("change", () => { state.label = +at("label").value; draw(); });
  const put = (values) => { Object.assign(state, values, { z: [...values.z] }); draw(); };
  document.querySelectorAll("[data-preset]").forEach((button) =>
    button.addEventListener("click", () => put(PRESETS[button.dataset.preset])));
  at("reset").addEventListener("click", () => put(START));
  draw();
}

// A batch.

function digit({ pixels, label }) {
  const canvas = element("canvas", { width: 8, height: 8, role: "img", "aria-label": `a handwritten ${label}` });
  const context = canvas.getContext("2d"), image = context.createImageData(8, 8);
  [...pixels].forEach((value, i) => image.data.set([0, 0, 0].fill(17 * parseInt(value, 16)).concat(255), 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawBatch() {
  const alpha = +at("batch-alpha").value, found = batchTerms(BATCH, alpha);
  at("batch-alpha-value").textContent = alpha.toFixed(2);
  const figures = (row) => ["regularization", "error_amplification", "label_smoothing", "maxsup"]
    .map((name) => element("td", { class: "figure" }, format(row[name])));
  at("summary").replaceChildren(...["right", "wrong", "all"].map((name) => element("tr", {},
    element("th", { scope: "row" }, name), element("td", { class: "figure" }, String(found[name].rows)), ...figures(found[name]))));
  at("batch-verdict").textContent = batchVerdict(found, alpha);
  const scale = (name) => Math.max(...found.rows.map((row) => Math.abs(row[name])), 0.001);
  const scales = { regularization: scale("regularization"), error_amplification: scale("error_amplification") };
  Object.entries(scales).forEach(([name, full]) => at(`${name}-scale`).replaceChildren(fullBar(full.toFixed(3))));
  const cells = (row, name, kind) => [
    element("td", { class: "wide-cell" }, bar(row[name], scales[name], kind, false)),
    element("td", { class: "figure" }, format(row[name])),
  ];
  const order = found.rows.map((row, i) => ({ ...row, i }))
    .sort((a, b) => a.error_amplification - b.error_amplification || a.i - b.i);
  at("batch-rows").replaceChildren(...order.map((row) => element("tr", { class: row.predicted === row.label ? "" : "wrong" },
    element("td", {}, digit(BATCH[row.i])),
    element("th", { scope: "row" }, row.predicted === row.label ? `${row.label}` : `${row.label}, read as ${row.predicted}`),
    ...cells(row, "error_amplification", "down"), ...cells(row, "regularization", "up"),
    element("td", { class: "figure" }, format(row.label_smoothing)), element("td", { class: "figure" }, format(row.maxsup)))));
}

function batchVerdict({ wrong }, alpha) {
  if (alpha === 0) return "With α = 0 there is no penalty.";
  return "Where the prediction is right, there is no error amplification, and both penalties are the same. Where it is wrong, error " +
    `amplification takes ${percent(-wrong.error_amplification / wrong.regularization)} off label smoothing's penalty, and what is left ` +
    `holds down the true logit. MaxSup's penalty is ${(wrong.maxsup / wrong.label_smoothing).toFixed(2)} times as large there, and holds ` +
    "down the wrong one.";
}

// The tabs, as the ARIA Authoring Practices have them: arrow keys, Home and End move between them.

function select(tab, focus) {
  document.querySelectorAll("[role=tab]").forEach((other) => {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    at(other.getAttribute("aria-controls")).hidden = !chosen;
  });
  if (focus) tab.focus();
}

function setUpTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(tabs[(to + tabs.length) % tabs.length], true);
    });
  });
  if (location.hash === "#batch") select(at("batch-tab"));
}

setUpPrediction();
at("batch-alpha").addEventListener("input", drawBatch);
drawBatch();
setUpTabs();

"use strict";
// The arithmetic, independent of the page: the tests compare these functions with maxsup_hf.

function softmax(z) {
  const top = Math.max(...z);
  const e = z.map((x) => Math.exp(x - top));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

const mean = (z) => z.reduce((a, b) => a + b, 0) / z.length;
const firstTop = (z) => z.indexOf(Math.max(...z));

// Value and gradient of each loss for one row of logits.
function losses(z, label, alpha) {
  const q = softmax(z), k = z.length, top = firstTop(z);
  const onehot = (i) => z.map((_, j) => (i === j ? 1 : 0));
  const value = -Math.log(q[label]), gradient = q.map((p, j) => p - onehot(label)[j]);
  const penalised = (index) => ({
    value: value + alpha * (z[index] - mean(z)),
    gradient: gradient.map((g, j) => g + alpha * (onehot(index)[j] - 1 / k)),
  });
  return { cross_entropy: { value, gradient }, label_smoothing: penalised(label), maxsup: penalised(top) };
}

// The two terms that label smoothing adds to cross-entropy (Corollary 3.4).
function decomposition(z, label, alpha) {
  const gaps = z.map((x) => z[label] - x);
  const total = (keep) => (alpha / z.length) * gaps.filter(keep).reduce((a, b) => a + b, 0);
  return { regularization: total((gap) => gap > 0), error_amplification: total((gap) => gap < 0) };
}

if (typeof module !== "undefined") module.exports = { losses, decomposition };

// The page.

if (typeof document !== "undefined" && document.getElementById("sliders")) {
  const NAMES = { cross_entropy: "Cross-entropy", label_smoothing: "Label smoothing", maxsup: "MaxSup" };
  const CLASSES = ["cat", "dog", "fox", "owl", "bee"];
  const state = { z: [1.0, 2.5, 0.5, -1.0, 0.0], label: 0, alpha: 0.1 };
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...children);
    return made;
  };
  const format = (x) => (Math.abs(x) < 0.0005 ? "0.000" : x.toFixed(3)).replace("-", "−");

  function slider(id, text, min, max, step, value, change) {
    const output = element("output", { for: id }, format(value));
    const input = element("input", { id, type: "range", min, max, step, value });
    input.addEventListener("input", () => { output.textContent = format(+input.value); change(+input.value); draw(); });
    return element("div", { class: "slider" }, element("label", { for: id }, text), input, output);
  }

  function bars(name, gradient, largest) {
    const rows = gradient.map((g, j) => {
      const share = (50 * Math.abs(g)) / largest;
      const side = g < 0 ? `right: 50%; width: ${share}%` : `left: 50%; width: ${share}%`;
      return element("div", { class: "row" },
        element("span", { class: j === state.label ? "name true" : "name" }, CLASSES[j]),
        element("span", { class: "track" }, element("span", { class: `bar ${g < 0 ? "up" : "down"}`, style: side })),
        element("span", { class: "number" }, format(g)));
    });
    const found = losses(state.z, state.label, state.alpha)[name];
    return element("section", { class: `loss ${name}` },
      element("h3", {}, NAMES[name]), element("p", {}, `loss ${format(found.value)}`), ...rows);
  }

  function draw() {
    const found = losses(state.z, state.label, state.alpha), predicted = firstTop(state.z);
    const largest = Math.max(...Object.values(found).flatMap((loss) => loss.gradient.map(Math.abs)), 1e-9);
    document.getElementById("losses").replaceChildren(
      ...Object.keys(NAMES).map((name) => bars(name, found[name].gradient, largest)));
    const right = predicted === state.label;
    document.getElementById("verdict").textContent = right
      ? `The prediction, ${CLASSES[predicted]}, is right: label smoothing and MaxSup are the same loss, and both pull the top logit down.`
      : `The prediction, ${CLASSES[predicted]}, is wrong: label smoothing pulls the true logit (${CLASSES[state.label]}) down and ` +
        `leaves the wrong one alone; MaxSup pulls the wrong one down.`;
    document.getElementById("verdict").className = right ? "right" : "wrong";
    const parts = decomposition(state.z, state.label, state.alpha);
    document.getElementById("regularization").textContent = format(parts.regularization);
    document.getElementById("error_amplification").textContent = format(parts.error_amplification);
  }

  const sliders = document.getElementById("sliders");
  state.z.forEach((value, j) => sliders.append(
    slider(`z${j}`, CLASSES[j], -5, 5, 0.1, value, (x) => { state.z[j] = x; })));
  sliders.append(slider("alpha", "α", 0, 0.5, 0.01, state.alpha, (x) => { state.alpha = x; }));
  const choice = document.getElementById("label");
  CLASSES.forEach((name, j) => choice.append(element("option", { value: j }, name)));
  choice.addEventListener("change", () => { state.label = +choice.value; draw(); });
  draw();
}

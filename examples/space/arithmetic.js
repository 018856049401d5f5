"use strict";
// The arithmetic of the page, which the tests compare with maxsup_hf.

function softmax(z) {
  const top = Math.max(...z);
  const e = z.map((x) => Math.exp(x - top));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

const mean = (z) => z.reduce((a, b) => a + b, 0) / z.length;
const firstTop = (z) => z.indexOf(Math.max(...z));

// Of each loss, for one row of logits: its value and gradient, and those of what it adds to cross-entropy.
function losses(z, label, alpha) {
  const k = z.length, crossEntropy = -Math.log(softmax(z)[label]);
  const gradient = softmax(z).map((p, j) => p - (j === label ? 1 : 0));
  const withPenalty = (penalty) => ({
    value: crossEntropy + penalty.value,
    gradient: gradient.map((g, j) => g + penalty.gradient[j]),
    penalty,
  });
  const on = (index) => withPenalty({
    value: alpha * (z[index] - mean(z)),
    gradient: z.map((_, j) => alpha * ((j === index ? 1 : 0) - 1 / k)),
  });
  return {
    cross_entropy: withPenalty({ value: 0, gradient: z.map(() => 0) }),
    label_smoothing: on(label),
    maxsup: on(firstTop(z)),
  };
}

// The two terms of label smoothing's penalty (Corollary 3.4 of the paper).
function decomposition(z, label, alpha) {
  const gaps = z.map((x) => z[label] - x);
  const total = (keep) => (alpha / z.length) * gaps.filter(keep).reduce((a, b) => a + b, 0);
  return { regularization: total((gap) => gap > 0), error_amplification: total((gap) => gap < 0) };
}

// Of each row of a batch the two terms and both penalties, and their means over the rows that are right, wrong, and all.
function batchTerms(rows, alpha) {
  const found = rows.map(({ logits, label }) => {
    const of = losses(logits, label, alpha);
    return {
      label,
      predicted: firstTop(logits),
      ...decomposition(logits, label, alpha),
      label_smoothing: of.label_smoothing.penalty.value,
      maxsup: of.maxsup.penalty.value,
    };
  });
  const over = (some) => Object.fromEntries([["rows", some.length], ...["regularization", "error_amplification",
    "label_smoothing", "maxsup"].map((name) => [name, some.length ? mean(some.map((row) => row[name])) : 0])]);
  return {
    rows: found,
    right: over(found.filter((row) => row.predicted === row.label)),
    wrong: over(found.filter((row) => row.predicted !== row.label)),
    all: over(found),
  };
}

if (typeof module !== "undefined") module.exports = { softmax, firstTop, losses, decomposition, batchTerms };

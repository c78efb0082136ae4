// From what a student computes to what is shown: probabilities, and what speaks for a class and against it.

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// Of classes; each on its own where an image may show several.
export function probabilities(data, logits) {
  if (data.independent) return logits.map(sigmoid);
  const highest = Math.max(...logits), powers = logits.map((x) => Math.exp(x - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

// The weight of each answer for a class, what speaks most for it first; see because.py of madkd_hf.
export function reasons(data, aspectLogits, label) {
  return data.questions
    .map((question, q) => ({
      question,
      answer: sigmoid(aspectLogits[q]),
      weight: data.effects[label][q] * (aspectLogits[q] - data.baseline[q]),
    }))
    .sort((a, b) => b.weight - a.weight);
}

export function percent(p) {
  return p < 0.005 ? "under 1%" : p > 0.995 ? "over 99%" : `${Math.round(100 * p)}%`;
}

// An answer in words, with how sure the student is of it.
export function inWords(answer) {
  return answer >= 0.5 ? `Yes, ${percent(answer)}` : `No, ${percent(1 - answer)}`;
}

export function signed(weight) {
  return (weight < 0 ? "−" : "+") + Math.abs(weight).toFixed(2);
}

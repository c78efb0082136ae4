"use strict";
// Whatever comes from the dataset is put into the page as text, never as HTML.
(function () {
  const data = window.MADKD, STEPS = 250, NONE = 255, ON_A_PAGE = 60, MOST_BARS = 3;
  const Q = data.questions.length, n = data.row.length;
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const answers = bytes(data.answers), usual = bytes(data.usual);
  const $ = (id) => document.getElementById(id);
  const twins = new Map();
  for (const [i, j] of data.pairs) for (const [a, b] of [[i, j], [j, i]]) twins.set(a, [...(twins.get(a) || []), b]);

  const made = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const percent = (p) => (p === null ? "" : p < 0.005 ? "under 1%" : p > 0.995 ? "over 99%" : Math.round(100 * p) + "%");
  const probability = (i, q) => (answers[i * Q + q] === NONE ? null : answers[i * Q + q] / STEPS);
  const usually = (i, q) => {
    const step = data.label[i] < 0 ? NONE : usual[data.label[i] * Q + q];
    return step === undefined || step === NONE ? null : step / STEPS;
  };
  const distance = (i, q) => {
    const p = probability(i, q), mean = usually(i, q);
    return p === null || mean === null ? 0 : Math.abs(p - mean);
  };
  const isAnswered = (i) => probability(i, 0) !== null;
  const className = (c) => (c < 0 ? "no class" : data.classes[c]);
  const asked = (q) => data.questions[q].text || data.questions[q].id;
  const isLow = (i) => data.mass[i] !== null && data.mass[i] < data.low_mass;
  const contradicts = (i) => (twins.get(i) || []).some((j) => data.label[j] !== data.label[i] && data.label[i] >= 0 && data.label[j] >= 0);
  const isSuspect = (i) => data.score[i] !== null && data.score[i] > 0;

  function image(i) {
    if (!data.shown[i]) return made("span", "none", "cannot be read");
    const picture = made("img");
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = "";
    picture.src = `thumbs/${data.split[i]}/${Math.floor(data.place[i] / 1000)}/${data.place[i]}.jpg`;
    return picture;
  }

  function bar(i, q) {
    const p = probability(i, q), mean = usually(i, q), line = made("span", "answer"), head = made("span", "question");
    const said = percent(p) + " yes" + (mean === null ? "" : `, usually ${percent(mean)}`);
    head.append(made("span", "", asked(q)), made("span", "", said));
    const track = made("span", "track"), fill = made("span", "fill");
    track.setAttribute("aria-hidden", "true");
    fill.style.width = `${100 * p}%`;
    track.append(fill);
    if (mean !== null) {
      const mark = made("span", "usual");
      mark.style.left = `${100 * mean}%`;
      track.append(mark);
      if (Math.abs(p - mean) > 0.5) line.classList.add("unlike");
    }
    line.append(head, track);
    return line;
  }

  function facts(i) {
    const text = made("span", "text");
    text.append(made("span", "", `Label: ${className(data.label[i])}` + (data.p_label[i] === null ? "" : ` (${percent(data.p_label[i])})`)));
    if (data.suggested[i] >= 0) {
      const agrees = data.suggested[i] === data.label[i];
      text.append(made("span", agrees ? "" : "against", agrees ? "The answers agree" : `Answers say: ${className(data.suggested[i])} (${percent(data.p_suggested[i])})`));
    }
    for (const j of twins.get(i) || []) text.append(made("span", "badge", `same picture: ${className(data.label[j])}, ${data.name[j]}`));
    if (isLow(i)) text.append(made("span", "badge", `low mass: ${data.mass[i].toFixed(2)}`));
    if (!isAnswered(i)) text.append(made("span", "name", "no answers"));
    text.append(made("span", "name", `${data.name[i]} · ${data.splits[data.split[i]]} ${data.row[i]}`));
    return text;
  }

  const byDistance = (i) => Array.from({ length: Q }, (_, q) => q).sort((a, b) => distance(i, b) - distance(i, a) || a - b);

  function card(i, place) {
    const item = made("li"), button = made("button", "card"), text = facts(i);
    button.type = "button";
    if (isAnswered(i)) {
      const chosen = $("question").value === "" ? [] : [Number($("question").value)];
      for (const q of [...chosen, ...byDistance(i).filter((q) => !chosen.includes(q))].slice(0, MOST_BARS)) text.append(bar(i, q));
    }
    button.append(image(i), text);
    button.setAttribute("aria-haspopup", "dialog");
    button.addEventListener("click", () => open(place));
    item.append(button);
    return item;
  }

  let found = [], page = 0, opened = 0;
  const tests = {
    "": () => true,
    suspect: isSuspect,
    same: (i) => twins.has(i),
    contradiction: contradicts,
    low: isLow,
    unanswered: (i) => !isAnswered(i),
  };

  function answerTest() {
    if ($("question").value === "" || $("answer").value === "") return () => true;
    const q = Number($("question").value);
    const test = {
      yes: (p) => p >= 0.5,
      no: (p) => p < 0.5,
      unsure: (p) => p >= 0.25 && p <= 0.75,
      unlike: (p, mean) => mean !== null && Math.abs(p - mean) > 0.5,
    }[$("answer").value];
    return (i) => isAnswered(i) && test(probability(i, q), usually(i, q));
  }

  function sorted(rows) {
    const last = (value, sign) => (value === null ? Infinity : sign * value);
    const q = Number($("question").value || 0);
    const keys = {
      unlike: (i) => last(data.unlike[i], -1),
      low: (i) => last(data.mass[i], 1),
      question: (i) => last(probability(i, q), -1),
      dataset: (i) => data.split[i] * 1e9 + data.place[i],
    };
    const key = keys[$("order").value];
    if (!key) return rows;
    const values = new Map(rows.map((i) => [i, key(i)]));
    return rows.sort((a, b) => (values.get(a) === values.get(b) ? a - b : values.get(a) < values.get(b) ? -1 : 1));
  }

  function apply() {
    $("answer").disabled = $("question").value === "";
    const show = tests[$("show").value], chosen = $("class").value, split = $("split").value, answer = answerTest();
    const name = $("name").value.trim().toLowerCase(), rows = [];
    for (let i = 0; i < n; i++) {
      if (!show(i) || !answer(i)) continue;
      if (chosen !== "" && data.label[i] !== Number(chosen)) continue;
      if (split !== "" && data.split[i] !== Number(split)) continue;
      if (name && !data.name[i].toLowerCase().includes(name)) continue;
      rows.push(i);
    }
    found = sorted(rows);
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / ON_A_PAGE)), start = page * ON_A_PAGE;
    $("results").replaceChildren(...found.slice(start, start + ON_A_PAGE).map((i, k) => card(i, start + k)));
    $("count").textContent = `${found.length.toLocaleString("en")} of ${n.toLocaleString("en")} images`;
    $("page").textContent = `Page ${page + 1} of ${pages}`;
    $("back").disabled = page === 0;
    $("forth").disabled = page + 1 >= pages;
  }

  function turn(by) {
    page += by;
    draw();
    $("results").focus({ preventScroll: true });
    $("count").scrollIntoView();
  }

  function open(place) {
    opened = place;
    const i = found[place], left = made("div"), right = made("div");
    $("one-title").textContent = `${className(data.label[i])}: image ${place + 1} of ${found.length}`;
    left.append(image(i), facts(i));
    if (isAnswered(i)) for (const q of byDistance(i)) right.append(bar(i, q));
    else right.append(made("p", "", "No answers: this image was not labelled."));
    $("one-body").replaceChildren(left, right);
    $("one-back").disabled = place === 0;
    $("one-forth").disabled = place + 1 >= found.length;
    if (!$("one").open) $("one").showModal();
    $("one").scrollTop = 0;
  }

  function step(by) {
    const place = opened + by;
    if (place < 0 || place >= found.length) return;
    open(place);
  }

  function fill(select, names) {
    names.forEach(([value, text]) => {
      const option = made("option", "", text);
      option.value = value;
      select.append(option);
    });
  }

  const counts = data.classes.map(() => 0);
  for (const c of data.label) if (c >= 0) counts[c] += 1;
  const classes = data.classes.map((text, c) => [c, `${text} (${counts[c]})`]);
  fill($("class"), [...classes.sort((a, b) => (a[1] < b[1] ? -1 : 1)), ...(data.label.includes(-1) ? [[-1, "no class"]] : [])]);
  fill($("split"), data.splits.map((text, k) => [k, text]));
  fill($("question"), data.questions.map((question, q) => [q, asked(q)]));
  document.title = $("title").textContent = data.title;
  const suspects = data.score.filter((score) => score !== null && score > 0).length;
  const contradictions = data.pairs.filter(([i]) => contradicts(i)).length;
  $("summary").textContent =
    `${n.toLocaleString("en")} images, ${data.classes.length} classes, ${Q} questions. Of ${suspects.toLocaleString("en")} images ` +
    `the answers speak for another class than the label` + (contradictions ? `; ${contradictions} ${contradictions > 1 ? "pictures are" : "picture is"} there twice with two labels.` : ".");

  $("filters").addEventListener("input", apply);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(apply));
  $("back").addEventListener("click", () => turn(-1));
  $("forth").addEventListener("click", () => turn(1));
  $("one-back").addEventListener("click", () => step(-1));
  $("one-forth").addEventListener("click", () => step(1));
  $("one-close").addEventListener("click", () => $("one").close());
  $("one").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  $("one").addEventListener("close", () => {
    page = Math.floor(opened / ON_A_PAGE);
    draw();
    const card = $("results").children[opened % ON_A_PAGE];
    if (card) card.firstChild.focus();
  });
  $("filters").reset();  // a browser may remember what was chosen before
})();

// Texts come from a student's settings, which strangers wrote: they are put into the page as text, never as HTML.
import { inWords, percent, probabilities, reasons, signed } from "./reasons.js";
import { crop, resize } from "./resize.js";

const MOST_CLASSES = 5, MOST_REASONS = 4;  // shown at once; of reasons, on each side
const $ = (id) => document.getElementById(id);
const made = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const say = (text) => { $("state").textContent = text; };
let data, student, broken = "", result = null, chosen = 0, shows = null, turn = 0;

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  $("loading").hidden = true;
  say("");
}

// A file, in pieces, so that its progress can be told; with `integrity` the browser refuses any other content.
async function download(url, integrity, onPiece) {
  const options = integrity ? { integrity, mode: "cors", credentials: "omit" } : {};
  const answer = await fetch(url, options);
  if (!answer.ok) throw new Error(`${url} cannot be loaded (${answer.status})`);
  const reader = answer.body.getReader(), pieces = [];
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    pieces.push(step.value);
    onPiece(step.value.length);
  }
  return new Blob(pieces);
}

async function load() {
  data = await (await fetch("space.json", { cache: "no-cache" })).json();
  describe();
  const total = data.assets.reduce((sum, asset) => sum + asset.bytes, data.model.bytes);
  let there = 0;
  const onPiece = (bytes) => {
    there = Math.min(total, there + bytes);
    $("progress").value = there / total;
    say(`Loading the model: ${megabytes(there)} of ${megabytes(total)}.`);
  };
  onPiece(0);
  const files = {};
  await Promise.all(data.assets.map(async (asset) => {
    files[asset.role] = await download(asset.url, asset.integrity, onPiece);
  }));
  const script = (blob) => URL.createObjectURL(new Blob([blob], { type: "text/javascript" }));
  const library = await import(script(files.library));
  const { wasm } = library.env.backends.onnx;
  wasm.wasmBinary = await files.runtime.arrayBuffer();
  wasm.wasmPaths = { mjs: script(files.factory) };
  wasm.numThreads = 1;
  await open(library, onPiece);
  $("loading").hidden = true;
  say("Ready: choose an image.");
}

async function open(library, onPiece) {
  const { AutoImageProcessor, AutoModel, RawImage, env } = library;
  RawImage.prototype.resize = async function (width, height, { resample = 2 } = {}) {
    if (this.width === width && this.height === height) return this;
    return new RawImage(resize(this.data, this.width, this.height, width, height, resample), width, height, 3);
  };
  RawImage.prototype.center_crop = async function (width, height) {
    return new RawImage(crop(this.data, this.width, this.height, width, height), width, height, 3);
  };
  env.useBrowserCache = env.useWasmCache = false;  // a student that was published anew is loaded anew
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  env.localModelPath = new URL("./", location.href).href;
  const processor = await AutoImageProcessor.from_pretrained("model");
  let seen = 0;
  const progress_callback = ({ status, loaded, file }) => {
    if (status !== "progress" || !file.endsWith(".onnx")) return;
    onPiece(loaded - seen);
    seen = loaded;
  };
  env.allowRemoteModels = "id" in data.model;
  env.allowLocalModels = !env.allowRemoteModels;
  if ("host" in data.model) env.remoteHost = `${data.model.host}/`;
  const [name, revision] = "id" in data.model ? [data.model.id, data.model.commit] : ["model", "main"];
  const model = await AutoModel.from_pretrained(name, { revision, dtype: "fp32", device: "wasm", progress_callback });
  student = async (pixels, width, height) => {
    const { pixel_values } = await processor(new RawImage(pixels, width, height, 3));
    const { logits, aspect_logits } = await model({ pixel_values });
    const numbers = (tensor) => Array.from(tensor.data);
    return { logits: numbers(logits), answers: aspect_logits && data.questions.length ? numbers(aspect_logits) : null };
  };
}

function describe() {
  document.title = $("title").textContent = data.title;
  const Q = data.questions.length, C = data.classes.length;
  $("summary").textContent = `A small image model that knows ${C} ${C > 1 ? "classes" : "class"}` +
    (Q ? `, and says which of its answers to ${Q} ${Q > 1 ? "questions" : "question"} speak for the one it names.`
       : ". It answers no questions, so it gives no reasons.");
  $("explained").hidden = !Q;
  $("against").textContent = data.against;
  for (const link of data.links) {
    const item = made("li"), anchor = made("a", "", `${link.kind}: ${link.text}`);
    anchor.href = link.url;
    anchor.rel = "noopener";
    item.append(anchor);
    $("links").append(item);
  }
  data.examples.forEach((example, k) => {
    const item = made("li"), button = made("button"), picture = made("img");
    button.type = "button";
    picture.src = example.file;
    picture.alt = `Example ${k + 1}` + (example.shows ? `: ${example.shows}` : "");
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", async () => take(await (await fetch(example.file)).blob(), button));
    button.append(picture);
    item.append(button);
    $("examples").append(item);
  });
  $("examples-part").hidden = !data.examples.length;
}

// Upright, and white where it is transparent: what the student was trained to see.
async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob), { width, height } = bitmap;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const four = context.getImageData(0, 0, width, height).data, pixels = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, to = 0; from < four.length; from += 4, to += 3) {
    pixels[to] = four[from];
    pixels[to + 1] = four[from + 1];
    pixels[to + 2] = four[from + 2];
  }
  return [pixels, width, height];
}

async function take(blob, button = null) {
  const mine = ++turn;
  $("error").hidden = true;
  for (const other of $("examples").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
  let pixels;
  try {
    pixels = await pixelsOf(blob);
  } catch {
    if (mine === turn) fail("This file cannot be read as an image: choose a JPEG, PNG or WebP.");
    return;
  }
  show(blob, pixels[1], button);
  try {
    await ready;
    if (mine !== turn) return;
    if (broken) return fail(broken);
    say("Looking at the image.");
    await new Promise((done) => setTimeout(done, 20));  // so that this is seen: the model takes the page's only thread
    const start = performance.now(), found = await student(...pixels);
    if (mine !== turn) return;
    result = { ...found, probabilities: probabilities(data, found.logits) };
    chosen = result.probabilities.indexOf(Math.max(...result.probabilities));
    draw();
    say(`${data.classes[chosen]}, ${percent(result.probabilities[chosen])}. It took ${Math.round(performance.now() - start)} ms.`);
  } catch (error) {
    if (mine === turn) fail(`The model failed on this image (${error.message}): try another image.`);
  }
}

function show(blob, width, button) {
  if (shows) URL.revokeObjectURL(shows);
  shows = URL.createObjectURL(blob);
  $("shown").src = shows;
  $("shown").alt = button ? button.firstChild.alt : "The image that you chose";
  $("shown").classList.toggle("small", width < 128);
  $("shown").hidden = false;
  $("hint").hidden = true;
}

function draw() {
  const order = result.probabilities.map((p, c) => c).sort((a, b) => result.probabilities[b] - result.probabilities[a]);
  $("classes").replaceChildren(...order.slice(0, MOST_CLASSES).map((c, rank) => {
    const item = made("li"), button = made("button"), line = made("span", `madkd-line${rank ? "" : " madkd-first"}`);
    line.append(made("span", "", data.classes[c]), made("span", "", percent(result.probabilities[c])));
    button.type = "button";
    button.disabled = !result.answers;
    button.dataset.probability = result.probabilities[c];
    if (result.answers) button.setAttribute("aria-pressed", String(c === chosen));
    button.append(line, track(made("span", "madkd-fill"), 100 * result.probabilities[c]));
    button.addEventListener("click", () => {
      chosen = c;
      for (const other of $("classes").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      explain();
    });
    item.append(button);
    return item;
  }));
  explain();
}

function track(fill, width) {
  const outer = made("span", "madkd-track");
  outer.setAttribute("aria-hidden", "true");
  fill.style.width = `${width}%`;
  outer.append(fill);
  return outer;
}

function explain() {
  $("because").hidden = !result.answers;
  if (!result.answers) return;
  const all = reasons(data, result.answers, chosen), largest = Math.max(...all.map((one) => Math.abs(one.weight)), 1e-9);
  $("because-of").textContent = `What speaks for “${data.classes[chosen]}”, and what against it:`;
  const few = all.filter((one, k) => k < MOST_REASONS || k >= all.length - MOST_REASONS);
  const expanded = $("more").getAttribute("aria-expanded") === "true";
  $("more").hidden = few.length === all.length;
  $("more").textContent = expanded ? "Show fewer answers" : `Show all ${all.length} answers`;
  $("reasons").className = "madkd-reasons";
  $("reasons").replaceChildren(...(expanded ? all : few).map((one) => {
    const item = made("li"), line = made("span", "madkd-line"), side = one.weight < 0 ? "against" : "for";
    line.append(made("span", "", one.question), made("span", `madkd-${side}`, `${signed(one.weight)} ${side}`));
    const fill = made("span", `madkd-fill madkd-${side}-fill`);
    Object.assign(item.dataset, { weight: one.weight, answer: one.answer });
    item.append(line, made("span", "madkd-answer", inWords(one.answer)), track(fill, (50 * Math.abs(one.weight)) / largest));
    return item;
  }));
}

function listen() {
  for (const id of ["file", "photo"]) {
    $(id).addEventListener("change", (event) => {
      if (event.target.files[0]) take(event.target.files[0]);
      event.target.value = "";
    });
  }
  const images = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  addEventListener("paste", (event) => { if (images(event.clipboardData)[0]) take(images(event.clipboardData)[0]); });
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  $("more").addEventListener("click", () => {
    $("more").setAttribute("aria-expanded", String($("more").getAttribute("aria-expanded") !== "true"));
    explain();
  });
}

listen();
const ready = load().catch((error) => {
  broken = `The model cannot be loaded (${error.message}): load this page again, or try another browser.`;
  fail(broken);
});

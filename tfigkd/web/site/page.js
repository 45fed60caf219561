// The page of `python -m tfigkd.web`: loads the models of models.json, classifies pictures, shows where models look.

import { agree, gray, inputValues, median, occlusionMap, opaque, probabilities, resize } from "./pixels.js";

const byId = (id) => document.getElementById(id);
const [models, pictures] = [[], []];
// A picture is run again in blocks of some milliseconds, as browsers' clocks have steps of 0.1 ms.
const [BLOCKS, TIMED] = [4, 2];
const LIVE = 250; // milliseconds between two frames of the camera
const SMALLEST = 5e-4; // largest fall of a probability below which a map shows nothing but rounding
const LARGEST = 2 ** 25; // pixels; the browser reduces larger photographs, for which a phone lacks memory

let litert;
let stream = null;

/** Make an element with attributes, texts and children. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Show an error as one line that can be closed. */
function complain(text) {
  const close = make("button", { type: "button", class: "small", "aria-label": "Close this message" }, "Close");
  const line = make("p", {}, make("span", {}, text), close);
  close.addEventListener("click", () => line.remove());
  byId("errors").append(line);
}

const say = (text) => (byId("status").textContent = text);
const reason = (error) => String(error?.message ?? error).split("\n")[0];
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const time = (milliseconds) => `${milliseconds < 10 ? milliseconds.toFixed(2) : milliseconds.toFixed(0)} ms`;
const likeliest = (shares) => shares.indexOf(Math.max(...shares));
/** Let the page be drawn and used between two long computations. */
const breathe = () => new Promise((resolve) => setTimeout(resolve));

// ---------------------------------------------------------------------------------------------- models

async function digest(bytes) {
  if (!crypto.subtle) return null; // a browser has it on https and on this computer alone
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...sum].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is missing (${answer.status}); build the folder anew with tfigkd.web`);
  return answer;
}

/** Load a model, compare it with its entry in models.json, and run it once. */
async function open(about) {
  const bytes = new Uint8Array(await (await fetched(about.file)).arrayBuffer());
  const sum = await digest(bytes);
  if (sum !== null && sum !== about.sha256) {
    throw new Error(`it is not the file of models.json: its checksum differs; build the folder anew`);
  }
  const compiled = await litert.loadAndCompile(bytes, { accelerator: "wasm" });
  const [height, width, channels] = about.shape;
  const model = { about, compiled, height, width, channels, cell: make("td", {}, "–") };
  const outputs = await run(model, new Float32Array(height * width * channels));
  if (outputs.length !== about.count || Math.max(about.count, 2) !== about.classes.length) {
    throw new Error(`it gives ${outputs.length} values, models.json has ${about.classes.length} class names`);
  }
  return model;
}

/** Return the outputs of a model for the values of one image. */
async function run(model, values) {
  const input = new litert.Tensor(values, [1, model.height, model.width, model.channels]);
  const outputs = await model.compiled.run([input]);
  const result = outputs[0].toTypedArray().slice();
  for (const tensor of [input, ...outputs]) tensor.delete();
  return result;
}

/** The pixels of a picture as a model sees them: RGB of its size. */
function seen(model, picture) {
  const rgb = opaque(picture.rgba, model.about.background);
  return resize(rgb, picture.width, picture.height, model.width, model.height, model.about.fit);
}

const values = (model, rgb) => inputValues(model.channels === 1 ? gray(rgb) : rgb, model.about.range);
const shares = async (model, input) => probabilities(await run(model, input), model.about.outputs);

/** Return the probabilities of a picture and the milliseconds that they take. */
async function classify(model, rgb) {
  const input = values(model, rgb);
  const result = await shares(model, input);
  const times = [];
  for (let block = 0; block < BLOCKS; block++) {
    const start = performance.now();
    let [count, passed] = [0, 0];
    while (passed < TIMED) {
      await run(model, input);
      count += 1;
      passed = performance.now() - start;
    }
    times.push(passed / count);
  }
  return { shares: result, milliseconds: Math.min(...times) }; // other blocks have waited for other programs
}

function listModel(model) {
  const { about } = model;
  const { agreement, on, examples } = about.parity;
  const kept = agreement === undefined || on === "noise" ? "–" : percent(agreement);
  const row = make(
    "tr",
    {},
    make("th", { scope: "row" }, about.name),
    model.cell,
    make("td", examples ? { title: `${on}, ${examples} images` } : {}, kept),
    make("td", {}, `${(about.bytes / 1e3).toLocaleString("en", { maximumFractionDigits: 1 })} kB`),
    make("td", {}, about.format ?? "–"),
    make("td", {}, `${model.width}×${model.height}${model.channels === 1 ? " gray" : ""}`),
    make("td", {}, String(about.classes.length)),
  );
  byId("models").append(row);
}

// ---------------------------------------------------------------------------------------------- pictures

/** Decode a picture to RGBA pixels: upright, its color profile ignored, as in training. */
async function decode(blob) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  let bitmap = await createImageBitmap(blob, options);
  const factor = Math.sqrt(LARGEST / (bitmap.width * bitmap.height));
  if (factor < 1) {
    const smaller = { resizeWidth: Math.floor(bitmap.width * factor), resizeQuality: "high" };
    bitmap.close();
    bitmap = await createImageBitmap(blob, { ...options, ...smaller });
  }
  const found = pixelsOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return found;
}

function pixelsOf(source, width, height) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  return { width, height, rgba: context.getImageData(0, 0, width, height).data };
}

/** Draw a picture, at most 400 pixels wide. */
function preview(picture) {
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  canvas.getContext("2d").putImageData(new ImageData(picture.rgba, picture.width, picture.height), 0, 0);
  const factor = Math.min(1, 400 / picture.width, 400 / picture.height);
  const [width, height] = [picture.width, picture.height].map((size) => Math.max(1, Math.round(size * factor)));
  const small = make("canvas", { width, height, role: "img", "aria-label": `Picture ${picture.name}` });
  small.getContext("2d").drawImage(canvas, 0, 0, width, height);
  if (picture.width < 100) small.style.imageRendering = "pixelated";
  return small;
}

let queue = Promise.resolve();
/** Classify files one after the other; returns when all are done. */
function add(files) {
  queue = queue.then(async () => {
    for (const [index, file] of [...files].entries()) {
      say(`Classifying picture ${index + 1} of ${files.length} …`);
      let decoded;
      try {
        if (file.about) decoded = await readExample(file.about);
        else decoded = file.rgba ? file : await decode(file);
      } catch (error) {
        complain(`Cannot read ${file.name}: it is no picture that this browser knows; choose a PNG, JPEG or WebP file.`);
        continue;
      }
      try {
        await addPicture({ ...decoded, name: file.name });
      } catch (error) {
        complain(`Cannot classify ${file.name}: ${reason(error)}.`);
      }
      await breathe();
    }
    say(ready());
  });
  return queue;
}

async function addPicture(picture) {
  picture.answers = [];
  for (const model of models) {
    const rgb = seen(model, picture);
    const answer = { ...(await classify(model, rgb)), model, rgb };
    answer.best = likeliest(answer.shares);
    answer.name = model.about.classes[answer.best];
    picture.answers.push(answer);
  }
  picture.apart = picture.answers.some((one) => picture.answers.some((other) => !agree(one, other)));
  pictures.unshift(picture);
  picture.card = cardOf(picture);
  delete picture.rgba; // of a photograph, these are a hundred megabytes
  byId("results").prepend(picture.card);
  summarize();
}

function cardOf(picture) {
  const look = make("button", { type: "button", class: "small" }, "Where the models look");
  if (models.length === 1) look.textContent = "Where the model looks";
  const remove = make("button", { type: "button", class: "small", "aria-label": `Remove ${picture.name}` }, "Remove");
  const head = make("header", {}, make("h3", {}, picture.name));
  if (picture.apart) head.append(make("span", { class: "mark" }, "The models disagree"));
  head.append(look, remove);
  const answers = make("div", { class: "answers" });
  for (const answer of picture.answers) {
    const title = make("h4", {}, answer.model.about.name, make("span", {}, time(answer.milliseconds)));
    answer.list = make("ol", { "aria-label": `Likeliest classes by ${answer.model.about.name}` });
    answer.place = make("div", {}, title, answer.list);
    fill(answer);
    answers.append(answer.place);
  }
  look.addEventListener("click", () => showMaps(picture, look));
  remove.addEventListener("click", () => {
    pictures.splice(pictures.indexOf(picture), 1);
    picture.card.remove();
    summarize();
    byId(pictures.length ? "clear" : "choose").focus(); // the button that had the focus is no longer there
  });
  const body = make("div", { class: "body" }, preview(picture), answers);
  if (picture.figures?.length) answers.append(make("div", {}, make("h4", {}, "Stored with the run"), ...picture.figures));
  return make("article", { class: picture.apart ? "apart" : "", "aria-label": picture.name }, head, body);
}

/** Write the likeliest classes of an answer. */
function fill(answer) {
  const order = [...answer.shares.keys()].sort((one, other) => answer.shares[other] - answer.shares[one] || one - other);
  const rows = order.slice(0, Number(byId("top").value)).map((index) => {
    const share = answer.shares[index];
    const bar = make("i", { "aria-hidden": "true" });
    bar.style.width = `${100 * share}%`;
    const name = make("span", {}, answer.model.about.classes[index]);
    return make("li", {}, bar, name, make("data", { value: share }, percent(share)));
  });
  answer.list.replaceChildren(...rows);
}

function summarize() {
  const only = byId("apart").checked;
  for (const picture of pictures) picture.card.hidden = only && !picture.apart;
  for (const model of models) {
    const answers = pictures.flatMap((picture) => picture.answers).filter((answer) => answer.model === model);
    const times = answers.map((answer) => answer.milliseconds);
    model.cell.textContent = times.length ? time(median(times)) : "–";
  }
  const count = pictures.length;
  const apart = pictures.filter((picture) => picture.apart).length;
  const pictureCount = `${count} picture${count === 1 ? "" : "s"}`;
  const agreed = models.length < 2 ? "" : `, the models agree on ${count - apart} and disagree on ${apart}`;
  byId("summary").textContent = count ? `${pictureCount}${agreed}.` : "No picture yet.";
  byId("clear").disabled = count === 0;
}

// ---------------------------------------------------------------------------------------------- where models look

async function showMaps(picture, button) {
  button.disabled = true;
  for (const answer of picture.answers) {
    say(`Hiding parts of ${picture.name} from ${answer.model.about.name} …`);
    const { model, rgb } = answer;
    let last = performance.now();
    const score = async (hidden) => {
      if (performance.now() - last > 40) {
        await breathe();
        last = performance.now();
      }
      return (await shares(model, values(model, hidden)))[answer.best];
    };
    try {
      const falls = await occlusionMap(rgb, model.width, model.height, score);
      answer.place.append(drawMap(answer, rgb, falls));
    } catch (error) {
      complain(`Cannot compute the map of ${picture.name}: ${reason(error)}.`);
    }
  }
  say(ready());
}

/** Draw what a model saw in gray, and in orange where hiding it lowers the probability. */
function drawMap(answer, rgb, falls) {
  const { width, height } = answer.model;
  const largest = falls.reduce((one, other) => Math.max(one, other));
  const looks = largest >= SMALLEST;
  const points = (100 * largest).toFixed(largest < 0.01 ? 2 : 1);
  const text = looks
    ? `Orange: hiding this part lowers “${answer.name}”, by at most ${points} percentage points on average.`
    : `Hiding any part lowers “${answer.name}” by less than ${100 * SMALLEST} percentage points.`;
  const label = `Map of ${answer.model.about.name}: where hiding the picture lowers “${answer.name}”`;
  const canvas = overlaid(rgb, width, height, falls.map((fall) => (looks ? Math.max(0, fall / largest) : 0)), label);
  return make("figure", { "data-map": [...falls].join(" ") }, canvas, make("figcaption", {}, text));
}

/** Draw pixels in gray, the more orange the larger a value from 0 to 1 is. */
function overlaid(rgb, width, height, strengths, label) {
  const back = gray(rgb);
  const pixels = new Uint8ClampedArray(4 * width * height);
  strengths.forEach((strength, at) => {
    const pale = 90 + back[at] * 0.55;
    [255, 110, 0].forEach((color, channel) => {
      pixels[4 * at + channel] = pale * (1 - 0.85 * strength) + color * 0.85 * strength;
    });
    pixels[4 * at + 3] = 255;
  });
  const canvas = make("canvas", { width, height, role: "img", "aria-label": label });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  return canvas;
}

// ---------------------------------------------------------------------------------------------- examples of the run

/** Offer the example pictures of the run; each comes with the Integrated Gradients maps that the run has stored. */
function offer(examples) {
  for (const [index, about] of examples.entries()) {
    const name = `Example ${index + 1}, “${about.label}”`;
    const image = make("img", { src: about.picture, alt: name, width: 64, height: 64 });
    const button = make("button", { type: "button", class: "example" }, image);
    button.addEventListener("click", () => add([{ name, about }]));
    byId("example-list").append(button);
  }
  byId("examples").hidden = examples.length === 0;
}

/** Return the pixels of an example, and a figure of each of its stored maps. */
async function readExample(about) {
  const pixels = async (path) => decode(await (await fetched(path)).blob());
  const picture = await pixels(about.picture);
  const rgb = opaque(picture.rgba, [255, 255, 255]);
  const figures = [];
  for (const { of, file } of about.maps) {
    const map = await pixels(file);
    const strengths = [...gray(opaque(map.rgba, [0, 0, 0]))].map((value) => value / 255);
    const label = `Integrated Gradients map of the ${of} for “${about.label}”`;
    const text = `Orange: these pixels contribute to “${about.label}” by the ${of}'s Integrated Gradients.`;
    const canvas = overlaid(rgb, picture.width, picture.height, strengths, label);
    figures.push(make("figure", { "data-of": of }, canvas, make("figcaption", {}, text)));
  }
  return { ...picture, figures };
}

// ---------------------------------------------------------------------------------------------- camera

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("This browser gives the camera to pages on https or on 127.0.0.1 alone; open the page there.");
    return;
  }
  byId("camera").disabled = true; // a second stream would replace the first, which would then stay on
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    byId("video").srcObject = stream;
    await byId("video").play();
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    byId("camera").disabled = false;
    const refused = error.name === "NotAllowedError";
    const what = refused ? "The camera was refused; allow it in the browser's settings" : "No camera can be opened";
    complain(`${what} (${error.name}).`);
    return;
  }
  byId("viewer").hidden = false;
  byId("shoot").focus();
  const lines = models.map((model) => {
    const line = make("dd", {}, "…");
    byId("live").append(make("dt", {}, model.about.name), line);
    return line;
  });
  const now = stream;
  while (stream === now) {
    const start = performance.now();
    for (const [index, model] of models.entries()) {
      const frame = capture();
      if (frame === null || stream !== now) break;
      const input = values(model, seen(model, frame));
      const before = performance.now();
      try {
        const result = await shares(model, input);
        const passed = performance.now() - before;
        const best = likeliest(result);
        lines[index].textContent = `${model.about.classes[best]}, ${percent(result[best])}, ${time(passed)}`;
      } catch (error) {
        lines[index].textContent = `No answer: ${reason(error)}.`; // the next frame may have one
      }
    }
    await new Promise((resolve) => setTimeout(resolve, Math.max(20, LIVE - (performance.now() - start))));
  }
}

function capture() {
  const video = byId("video");
  return video.videoWidth ? pixelsOf(video, video.videoWidth, video.videoHeight) : null;
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("viewer").hidden = true;
  byId("live").replaceChildren();
  byId("camera").disabled = false;
  byId("camera").focus();
}

// ---------------------------------------------------------------------------------------------- start

const ready = () => {
  const count = `${models.length} model${models.length === 1 ? " is" : "s are"} ready.`;
  return models.length ? count : "No model could be loaded.";
};

async function paste() {
  let found = [];
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith("image/"));
      if (type) found.push(new File([await item.getType(type)], "pasted picture", { type }));
    }
  } catch (error) {
    complain(`The clipboard was refused (${error.name}); press Ctrl+V or ⌘V instead.`);
    return;
  }
  if (found.length) add(found);
  else complain("The clipboard has no picture; copy one first.");
}

function listen() {
  const [drop, input] = [byId("drop"), byId("files")];
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const chosen = [...input.files];
    input.value = ""; // so that the same file can be chosen again
    add(chosen);
  });
  byId("paste").addEventListener("click", paste);
  byId("paste").hidden = !navigator.clipboard?.read;
  byId("camera").addEventListener("click", startCamera);
  byId("shoot").addEventListener("click", () => {
    const frame = capture();
    if (frame) add([{ ...frame, name: `Camera, ${new Date().toLocaleTimeString("en-GB")}` }]);
  });
  byId("stop").addEventListener("click", stopCamera);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add([...event.clipboardData.files]);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // else the browser would leave the page for the picture
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) add([...event.dataTransfer.files]);
    });
  }
  byId("top").addEventListener("change", () => pictures.flatMap((picture) => picture.answers).forEach(fill));
  byId("apart").addEventListener("change", summarize);
  byId("clear").addEventListener("click", () => {
    pictures.length = 0;
    byId("results").replaceChildren();
    summarize();
    byId("choose").focus();
  });
  for (const id of ["choose", "paste", "camera"]) byId(id).disabled = false;
}

async function start() {
  say("Loading the models …");
  let list;
  try {
    list = await (await fetched("models.json")).json();
    litert = await import("./litert/index.js");
    // LiteRT writes all that it does as errors to the console; only its errors are
    self.Module = { printErr: (line) => (/^(ERROR|FATAL)/.test(line) ? console.error : console.debug)(line) };
    await litert.loadLiteRt(new URL("litert/", document.baseURI).href);
  } catch (error) {
    complain(`The page cannot start: ${reason(error)}.`);
    say("The page cannot start.");
    return;
  }
  for (const about of list.models) {
    try {
      const model = await open(about);
      models.push(model);
      listModel(model);
    } catch (error) {
      complain(`${about.name} cannot be used: ${reason(error)}.`);
    }
  }
  const most = Math.max(1, ...models.map((model) => model.about.classes.length));
  for (const count of new Set([1, 3, 5, 10].filter((one) => one < most).concat(most))) {
    byId("top").append(make("option", { value: count, selected: count === Math.min(5, most) }, `${count}`));
  }
  byId("only").hidden = models.length < 2;
  if (models.length) {
    listen();
    offer(list.examples);
  }
  say(ready());
  document.documentElement.dataset.ready = String(models.length);
}

start();

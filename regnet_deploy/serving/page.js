// The page of the server. Whatever comes from a file or from the server becomes text nodes, never markup: the policy
// that it is sent with (page.py) forbids the ways in which it could.

const STAGES = [
  ["read", "reading the request"],
  ["decode", "decoding"],
  ["queue", "waiting in the queue"],
  ["inference", "inference"],
  ["other", "the rest of the server"],
  ["way", "network and browser"],
];
const SHOWN = [1, 3, 5, 10, 20, 50];
const NOT_OURS = "something else than this server answered";
const KEPT = 200; // results; older ones give their pictures' memory back

const at = (id) => document.getElementById(id);
const models = []; // as GET card lists them
const entries = new Map(); // list item -> its result, oldest first
const queue = []; // entries to ask about
const tally = { done: 0, failed: 0, of: 0, note: "" };
let isWorking = false;
let loading; // the promise of the model card
let token = null; // in memory only
let asked = null; // the promise of a token while its dialog is open

// Elements and words

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
const percent = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const ms = (time) => `${time.toFixed(time < 10 ? 2 : time < 100 ? 1 : 0)} ms`;

function quantity(number) {
  const [size, prefix] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([least]) => number >= least) ?? [1, " "];
  return Number((number / size).toPrecision(3)) + prefix;
}

function bytes(size) {
  return size < 1e3 ? `${size} bytes` : size < 1e6 ? `${Math.round(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

function say(line) {
  at("status").textContent = line;
}

// The server

class Refusal extends Error {
  constructor(line, status) {
    super(line);
    this.status = status;
  }
}

// Ask the server, for a token too where it wants one, and return the JSON of its answer and the round trip in ms.
async function send(path, options) {
  for (;;) {
    const used = token;
    const headers = used === null ? {} : { authorization: `Bearer ${used}` };
    const start = performance.now();
    let answer;
    let body = null;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
      body = await answer.json();
    } catch (error) {
      if (answer === undefined || !(error instanceof SyntaxError)) {
        throw new Refusal("no answer: the server is not reachable, or closed the connection on a file too large for it");
      }
    }
    const roundTrip = performance.now() - start;
    if (answer.ok && body !== null) return { body, roundTrip };
    const line = typeof body?.error === "string" ? body.error : `the server answered with status ${answer.status}`;
    if (answer.status !== 401) throw new Refusal(line, answer.status);
    if (token !== used) continue; // given while this request was under way
    token = null;
    if (!(await askForToken(used === null ? "" : line))) throw new Refusal(line, 401);
  }
}

function askForToken(line) {
  asked ??= new Promise((resolve) => {
    const dialog = at("token-dialog");
    at("token").value = "";
    at("token-error").textContent = line;
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asked = null;
      at("token").value = "";
      resolve(token !== null);
    }, { once: true });
    dialog.showModal();
    at("token").focus();
  });
  return asked;
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    at("token-error").textContent = "A token consists of printable ASCII characters without spaces.";
    return;
  }
  token = given;
  at("token-dialog").close();
});
at("token-cancel").addEventListener("click", () => at("token-dialog").close());

// The model card

async function loadCard() {
  at("card-again").hidden = true;
  try {
    const { body } = await send("card", {});
    if (!Array.isArray(body.models)) throw new Refusal(NOT_OURS);
    const before = selected();
    models.splice(0, models.length, ...body.models);
    at("server").textContent = body.server;
    fillModels(before);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    at("card-state").className = "error";
    at("card-state").textContent = error.message;
    at("card-again").hidden = false;
  }
}

function selected() {
  return models[at("model").selectedIndex];
}

const isSame = (one, other) => one?.name === other?.name && one?.version === other?.version;
const named = (model) => `${model.name}, version ${model.version}`;

function fillModels(before) {
  const kept = models.findIndex((model) => before && isSame(model, before));
  at("model").replaceChildren(
    ...models.map((model) => element("option", {}, `${named(model)}${model.default ? " (default)" : ""}`)),
  );
  at("model").selectedIndex = Math.max(0, kept >= 0 ? kept : models.findIndex((model) => model.default));
  at("model-choice").hidden = models.length < 2;
  showCard();
}

function showCard() {
  const model = selected();
  at("card").replaceChildren();
  at("shell-part").hidden = model === undefined;
  at("card-state").className = model?.trained === false || model === undefined ? "error" : "";
  at("card-state").textContent = model === undefined ? "The server has no model at present."
    : model.trained === false ? "Not trained: predictions are meaningless." : "";
  at("card-state").hidden = at("card-state").textContent === "";
  if (model === undefined) return;
  for (const [name, ...lines] of facts(model)) at("card").append(element("dt", {}, name), element("dd", {}, ...lines));
  const most = SHOWN.filter((k) => k < model.classes);
  if (model.classes <= 100) most.push(model.classes);
  const k = Number(at("k").value);
  at("k").replaceChildren(...most.map((value) => element("option", { value }, String(value))));
  at("k").value = String(most.findLast((value) => value <= k) ?? most[0]);
  showShell();
}

// Rows of the card: what is not known has none.
function facts(model) {
  const rows = [["name", model.name], ["version", model.version], ["variant", model.variant]];
  rows.push(["runtime", model.runtime], ["device", model.device]);
  if (model.input) rows.push(["input", `${model.input.join(" x ")} pixels`]);
  if (model.classes) rows.push(["classes", model.classes.toLocaleString("en")]);
  if (model.macs != null) rows.push(["MACs", quantity(model.macs).trim()]);
  if (model.parameters != null) rows.push(["parameters", quantity(model.parameters).trim()]);
  const { trained, variant } = model.accuracy ?? {};
  if (trained) rows.push(["top-1", `${(100 * trained.top1).toFixed(2)} % of ${count(trained.images, "validation image")}`]);
  if (variant) {
    const range = `${variant.low.toFixed(2)} to ${variant.high.toFixed(2)}`;
    rows.push(["top-1 lost", `${variant.drop.toFixed(2)} points (${range}) by exporting, on ${count(variant.images, "image")}`]);
  }
  if (model.proof) {
    const { passed, images, max_abs_error: error, top1_agreement: same } = model.proof;
    const figures = [`on ${count(images, "golden image")}`, `same first class on ${(100 * same).toFixed(1)} %`];
    if (error != null) figures.push(`largest error ${error.toExponential(1)}`);
    const word = element("span", { className: passed ? "passed" : "error" }, passed ? "passed" : "FAILED");
    rows.push(["proof", word, ` ${figures.join(", ")}`]);
  }
  return rows.filter(([, value]) => value != null && value !== "");
}

function query() {
  const model = selected();
  const asks = new URLSearchParams({ k: at("k").value });
  if (model) for (const key of ["name", "version"]) asks.set(key === "name" ? "model" : key, model[key]);
  return `classify?${asks}`;
}

function showShell() {
  const secret = token === null ? "" : ' -H "Authorization: Bearer $TOKEN"';
  at("shell").textContent = `curl --data-binary @image.jpg${secret} '${new URL(query(), location.href)}'`;
}

// Results

function add(files, note = "") {
  const made = [...files].map(newEntry);
  if (!made.length) return;
  at("list").prepend(...made.map((entry) => entry.item));
  at("results").hidden = false;
  for (const entry of made) entries.set(entry.item, entry);
  const old = [...entries.values()].slice(0, Math.max(0, entries.size - KEPT));
  old.forEach(drop);
  enqueue(made.filter((entry) => !entry.isGone));
  tally.note ||= note || (old.length ? `Only the last ${KEPT} are kept.` : "");
}

function newEntry(file) {
  const url = URL.createObjectURL(file);
  const name = file.name || "pasted image";
  const image = element("img", { alt: name });
  const picture = element("figure", { className: "picture" }, image);
  image.addEventListener("error", () => {
    picture.classList.add("none");
    picture.replaceChildren("no preview");
  }, { once: true });
  image.src = url;
  const about = element("p", { className: "about" }, bytes(file.size));
  const answer = element("div", {});
  const times = element("div", { className: "times", hidden: true });
  const right = element("div", {}, element("h3", {}, name), about, answer);
  const item = element("li", { className: "result" }, picture, right, times);
  return { file, url, name, item, about, answer, times, isGone: false };
}

function drop(entry) {
  entry.isGone = true;
  entries.delete(entry.item);
  entry.item.remove();
  URL.revokeObjectURL(entry.url);
}

function startCounting() {
  Object.assign(tally, { done: 0, failed: 0, of: 0, note: "" });
}

function enqueue(some) {
  if (!isWorking) startCounting();
  for (const entry of some) {
    entry.item.ariaBusy = "true";
    entry.times.hidden = true;
    entry.answer.replaceChildren(element("p", { className: "waiting" }, "waiting"));
  }
  tally.of += some.length;
  queue.push(...some);
  work();
}

// One at a time: each has the times that one request takes.
async function work() {
  if (isWorking) return;
  isWorking = true;
  let last = "";
  try {
    await loading; // which models there are, and a token where one is needed
    while (queue.length) {
      const entry = queue.shift();
      if (entry.isGone) continue;
      say(tally.of > 1 ? `Classifying ${tally.done + tally.failed + 1} of ${tally.of} images` : "Classifying");
      last = await classify(entry);
    }
  } finally {
    isWorking = false; // whatever went wrong, the next image is not to wait for it
  }
  const failed = tally.failed ? `, ${tally.failed} could not be` : "";
  const line = tally.done + tally.failed > 1 ? `${count(tally.done, "image")} classified${failed}` : last;
  say(tally.note ? `${line}. ${tally.note}` : line);
}

async function classify(entry, isSecond = false) {
  try {
    const { body, roundTrip } = await send(query(), { method: "POST", body: entry.file });
    if (!body.predictions?.length || !body.timing_ms) throw new Refusal(NOT_OURS);
    if (entry.isGone) return "";
    tally.done += 1;
    showAnswer(entry, body, roundTrip);
    if (!models.some((model) => model.name === body.model && model.version === body.version)) loadCard();
    const [first] = body.predictions;
    return `${entry.name}: ${first.label}, ${percent(first.probability)}`;
  } catch (error) {
    if (!(error instanceof Refusal)) error = new Refusal(NOT_OURS); // an answer that makes no sense, such as a proxy's
    if (error.status === 404 && !isSecond) {
      const before = selected(); // which may have made way for another version
      await loadCard();
      if (!isSame(before, selected())) return classify(entry, true);
    }
    if (entry.isGone) return "";
    tally.failed += 1;
    entry.answer.replaceChildren(element("p", { className: "error" }, error.message));
    return `${entry.name} could not be classified: ${error.message}`;
  } finally {
    entry.item.ariaBusy = "false";
  }
}

function showAnswer(entry, body, roundTrip) {
  entry.about.textContent = `${bytes(entry.file.size)}, answered by ${named({ name: body.model, version: body.version })}`;
  const rows = body.predictions.map(({ label, probability }) => {
    const length = element("span");
    length.style.width = `${100 * probability}%`;
    const share = element("span", { className: "share" }, percent(probability));
    const meter = element("span", { className: "meter", ariaHidden: "true" }, length);
    return element("li", {}, element("span", { className: "label" }, label), " ", share, meter);
  });
  entry.answer.replaceChildren(element("ol", { className: "predictions", role: "list", ariaLabel: "Most probable classes" }, ...rows));
  showTimes(entry.times, body.timing_ms, roundTrip);
}

function showTimes(place, told, roundTrip) {
  const staged = ["read", "decode", "queue", "inference"].reduce((sum, stage) => sum + (told[stage] ?? 0), 0);
  const total = told.total ?? staged;
  const times = { ...told, other: Math.max(0, total - staged), way: Math.max(0, roundTrip - total) };
  const stages = STAGES.filter(([stage]) => times[stage] != null);
  const bars = stages.map(([stage]) => {
    const bar = element("span", { className: stage });
    bar.style.flexGrow = String(times[stage]);
    return bar;
  });
  const listed = stages.map(([stage, words]) => {
    return element("div", {}, element("dt", { className: stage }, words), element("dd", {}, ms(times[stage])));
  });
  place.replaceChildren(
    element("p", {}, `Round trip ${ms(roundTrip)}, of which ${ms(total)} in the server`),
    element("div", { className: "stack", ariaHidden: "true" }, ...bars),
    element("dl", { className: "stages" }, ...listed),
  );
  place.hidden = false;
}

// What the user does

at("choose").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    add(event.clipboardData.files);
  }
});

let leaving; // dragover comes every few hundred ms while a drag is over the page
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  document.body.classList.add("over");
  clearTimeout(leaving);
  leaving = setTimeout(() => document.body.classList.remove("over"), 600);
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.remove("over");
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
  const note = files.length < items.length ? "Folders are left out: drop the images that are in them." : "";
  if (note) say(note);
  add(files.filter((file) => file !== null), note);
});

at("model").addEventListener("change", showCard);
at("k").addEventListener("change", showShell);
at("card-again").addEventListener("click", () => {
  loading = loadCard();
});
at("again").addEventListener("click", () => {
  const shown = [...at("list").children].map((item) => entries.get(item));
  enqueue(shown.filter((entry) => !queue.includes(entry)));
});
at("clear").addEventListener("click", () => {
  queue.length = 0;
  [...entries.values()].forEach(drop);
  startCounting();
  at("results").hidden = true;
  say("");
  at("choose").focus(); // the button that had the focus is gone
});

// A browser that finds no icon asks the server for one, and the policy allows pictures of this page only.
const bars = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="#0072b2"><path d="M1 2h14v3H1zm0 5h9v3H1zm0 5h5v3H1z"/></svg>';
const icon = URL.createObjectURL(new Blob([bars], { type: "image/svg+xml" }));
document.head.append(element("link", { rel: "icon", type: "image/svg+xml", href: icon }));

loading = loadCard();

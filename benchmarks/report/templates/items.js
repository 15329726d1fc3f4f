"use strict";
// All items of a benchmark, twenty at a time; texts and images are loaded with the first item of a file that is shown.
const folder = document.querySelector("footer code + code").textContent;
const form = document.getElementById("filter"), list = document.getElementById("items");
const count = form.querySelector("output"), search = form.querySelector("input[type=search]");
const disagree = document.getElementById("disagree"), category = document.querySelector("#category select");
const PER_PAGE = 20, files = new Map(), waiting = new Map();
let head, found = [], page = 0, turn = 0;

function load(name) {
  const script = document.createElement("script");
  script.src = `${folder}/${name}.js`;
  script.onerror = () => { count.textContent = `${script.src} cannot be loaded.`; };
  document.head.append(script);
}
function items(number, content) { files.set(number, content); waiting.get(number)?.forEach((done) => done(content)); }
function file(number) {
  if (files.has(number)) return Promise.resolve(files.get(number));
  return new Promise((done) => {
    if (!waiting.has(number)) { waiting.set(number, []); load(number); }
    waiting.get(number).push(done);
  });
}
function element(name, text, style) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (style) made.className = style;
  return made;
}

function scores(content) {
  head = content;
  const words = head.graded ? ["above the models' mean", "below it"] : ["right", "wrong"];
  head.models.forEach((name) => {
    const label = element("label", `${name} `), select = element("select");
    select.append(new Option("any", ""), new Option(words[0], "1"), new Option(words[1], "-1"));
    label.append(select);
    document.getElementById("models").append(label);
  });
  head.categories.forEach((name, place) => category.append(new Option(name || "none", place)));
  document.getElementById("category").hidden = head.categories.length < 2;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => choose());
  choose();
}
function sign(model, item) {
  const score = head.scores[model][item];
  if (score === null) return 0;
  if (!head.graded) return score > 0 ? 1 : -1;
  const known = head.scores.map((each) => each[item]).filter((each) => each !== null);
  return Math.sign(score - known.reduce((sum, each) => sum + each, 0) / known.length);
}
async function choose() {
  const mine = ++turn, wanted = Array.from(document.querySelectorAll("#models select"), (each) => each.value);
  const words = search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const matches = [];
  for (let item = 0; item < head.category.length; item++) {
    if (category.value !== "" && head.category[item] !== Number(category.value)) continue;
    if (!wanted.every((each, model) => each === "" || sign(model, item) === Number(each))) continue;
    if (disagree.checked) {
      const known = head.scores.map((each) => each[item]).filter((each) => each !== null);
      if (Math.max(...known) - Math.min(...known) < 1e-9) continue;
    }
    if (words.length) {
      const number = Math.floor(item / head.perFile);
      if (!files.has(number)) count.textContent = `searching item ${item.toLocaleString()} …`;
      const text = (await file(number)).items[item % head.perFile].flat().join("\n").toLocaleLowerCase();
      if (mine !== turn) return;
      if (!words.every((word) => text.includes(word))) continue;
    }
    matches.push(item);
  }
  found = matches;
  page = 0;
  show();
}
async function show() {
  const mine = turn, last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1), cards = [];
  const shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  for (const item of shown) cards.push(card(item, await file(Math.floor(item / head.perFile))));
  if (mine !== turn) return;
  list.replaceChildren(...cards);
  const all = head.category.length.toLocaleString();
  count.textContent = `${found.length.toLocaleString()} of ${all} items; page ${page + 1} of ${last + 1}`;
  document.getElementById("previous").disabled = page === 0;
  document.getElementById("next").disabled = page === last;
}
for (const [name, step] of [["previous", -1], ["next", 1]]) {
  document.getElementById(name).addEventListener("click", () => { page += step; show(); });
}
function card(item, content) {
  const [name, image, direction, question, target, answers] = content.items[item % head.perFile];
  const made = element("article", undefined, "example");
  if (content.images[image]) {
    const picture = element("img", undefined, "image");
    picture.alt = `image ${image}`;
    picture.src = `data:image/jpeg;base64,${content.images[image]}`;
    made.append(picture);
  }
  const text = element("div"), answered = element("dl");
  text.append(element("p", question || (direction === "i2t" ? "Which caption is this image's?" : ""), "asked"));
  text.append(element("p", `expected: ${target}`, "expected"), element("p", name, "name"));
  text.querySelectorAll("p").forEach((each) => { each.dir = "auto"; });
  head.models.forEach((model, place) => {
    const row = element("div"), score = head.scores[place][item], sure = !head.graded && score !== null;
    row.className = sure ? (score > 0 ? "right" : "wrong") : "";
    const mark = sure ? (score > 0 ? "✓ " : "✗ ") : "", points = head.graded && score !== null ? ` (${score})` : "";
    row.append(element("dt", model), element("dd", mark + answers[place] + points));
    row.lastChild.dir = "auto";
    answered.append(row);
  });
  text.append(answered);
  made.append(text);
  return made;
}
load("scores");

"use strict";
// Sort the main table by a click on a column's header, and filter its rows and columns.
const table = document.querySelector("table.main");
if (table) {
  const body = table.tBodies[0];
  const headers = Array.from(table.querySelectorAll("tr.headers th"));
  headers.forEach((header, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const lowFirst = index === 0 || header.textContent.includes("↓");
      const before = header.getAttribute("aria-sort");
      const descending = lowFirst ? before === "ascending" : before !== "descending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      for (const heading of body.querySelectorAll("tr.heading")) heading.remove(); // the order is that of all models
      const rows = Array.from(body.rows);
      rows.sort((one, two) => compare(one.cells[index], two.cells[index], sign));
      body.append(...rows);
    });
  });
  filter(table);
  hint(table.parentElement);
}

// Fade the right edge of a table while there is more of it.
function hint(region) {
  const update = () => region.classList.toggle("more", region.scrollLeft + region.clientWidth < region.scrollWidth - 2);
  region.addEventListener("scroll", update, { passive: true });
  const observer = new ResizeObserver(update);
  for (const each of [region, region.firstElementChild]) observer.observe(each);
}

// A click on a number shows the items behind it, of two models side by side.
const stored = document.getElementById("items");
if (stored && table) browse(JSON.parse(stored.textContent));

function browse(data) {
  const section = table.closest("section");
  const dialog = document.getElementById("browser");
  const [first, second, show] = dialog.querySelectorAll("select");
  const [count, list, more] = [dialog.querySelector("output"), dialog.querySelector(".gallery"), dialog.lastElementChild];
  const groups = Array.from(table.querySelectorAll("tr.groups th[data-group]"));
  const names = new Map(groups.map((head) => [head.dataset.group, head.textContent.trim()]));
  let benchmark;
  let left = [];
  let numButtons = 0;
  for (const value of section.querySelectorAll("[data-row] .value")) {
    const name = names.get(value.closest("[data-group]")?.dataset.group);
    const known = data.benchmarks[name];
    const model = (data.rows[value.closest("[data-row]").dataset.row] ?? []).find((row) => known?.rows.includes(row));
    if (model === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(value.firstChild);
    button.setAttribute("aria-label", `${button.textContent.trim()}, items of ${model} on ${name}`);
    button.addEventListener("click", () => open(name, model));
    if (value.closest("table") === table) { // one stop of the tab key; arrows move from there
      button.tabIndex = numButtons++ ? -1 : 0;
      button.addEventListener("keydown", move);
    }
    value.prepend(button);
  }
  for (const select of [first, second, show]) select.addEventListener("change", fill);
  more.addEventListener("click", () => extend());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  function move(event) {
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!across && !down) return;
    event.preventDefault();
    let cell = event.target.closest("td");
    let row = cell.parentElement;
    const index = cell.cellIndex;
    do {
      if (down) row = down > 0 ? row.nextElementSibling : row.previousElementSibling;
      cell = down ? row?.cells[index] : across > 0 ? cell.nextElementSibling : cell.previousElementSibling;
    } while ((down ? row : cell) && !cell?.querySelector("button")?.offsetParent); // hidden ones have none
    const next = cell?.querySelector("button");
    if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  }

  function open(name, model) {
    benchmark = data.benchmarks[name];
    dialog.querySelector("h2").textContent = name;
    const others = benchmark.rows.filter((row) => row !== model);
    first.replaceChildren(...benchmark.rows.map((row) => new Option(row, row, false, row === model)));
    const neighbor = others.includes(data.baselines[model]) ? data.baselines[model] : others[0] ?? "";
    second.replaceChildren(...["", ...benchmark.rows].map((row) => new Option(row || "no other", row, false, row === neighbor)));
    show.value = "all";
    fill();
    dialog.showModal();
  }

  function fill() {
    const [one, two] = [first.value, second.value];
    const judged = benchmark.cards.filter((card) => card.answers[one]).map((card) => {
      const [own, other] = [card.answers[one], card.answers[two]];
      const disagree = Boolean(other) && (own[2] !== other[2] || own[3] !== other[3]);
      return { card, disagree, unread: own[4] || Boolean(other?.[4]), wrong: own[2] === false };
    });
    const chosen = show.value === "all" ? judged : judged.filter((each) => each[show.value]);
    chosen.sort((a, b) => b.disagree + b.unread - (a.disagree + a.unread));
    left = chosen.map((each) => each.card);
    count.textContent = `${left.length} of ${judged.length} items here, ${benchmark.items} in the benchmark`;
    list.replaceChildren();
    list.scrollTop = 0;
    extend();
  }

  function extend() {
    list.append(...left.splice(0, 24).map((card) => draw(card)));
    more.hidden = !left.length;
  }

  function draw(card) {
    const article = element("article", "example");
    if (card.image) article.append(picture(card.image, "the item's image"));
    const text = element("div");
    if (card.question) text.append(element("p", "asked", card.question));
    if (card.expected) text.append(element("p", "expected", `expected: ${card.expected}`));
    const answers = element("dl", "");
    for (const row of new Set([first.value, second.value])) {
      const answer = card.answers[row];
      if (!answer) continue;
      const [said, image, right, score, unread] = answer;
      const cell = element("dd", right === true ? "right" : right === false ? "wrong" : "");
      if (right !== null) cell.append(element("span", "tick", right ? "✓" : "✗"), element("span", "hidden", right ? "right: " : "wrong: "));
      cell.append(image ? picture(image, `result: ${said}`) : said || "(no answer)");
      if (score) cell.append(element("span", "score", ` ${score}`));
      if (unread) cell.append(element("span", "score", " not read"));
      const pair = element("div");
      pair.append(element("dt", "", row), cell);
      answers.append(pair);
    }
    text.append(answers);
    article.append(text);
    return article;
  }

  function picture(id, alt) {
    const image = element("img", "image");
    image.src = data.images[id] ?? document.getElementById(id)?.getAttribute("href") ?? "";
    image.alt = alt;
    return image;
  }
}

function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  if (text) made.dir = "auto";
  return made;
}

function compare(one, two, sign) {
  if (one.tagName === "TH") return sign * one.textContent.localeCompare(two.textContent, undefined, { numeric: true });
  const [first, second] = [one.dataset.value, two.dataset.value];
  if (first === "" || second === "") return (first === "") - (second === ""); // missing values stay at the end
  return sign * (Number(first) - Number(second));
}

function filter(table) {
  const form = document.getElementById("filter");
  if (!form) return;
  const section = table.closest("section");
  const rows = Array.from(section.querySelectorAll("[data-row]"));
  const columns = Array.from(section.querySelectorAll("[data-group]"));
  const text = form.querySelector("input[type=search]");
  const boxes = Array.from(form.querySelectorAll("input[type=checkbox]"));
  const count = form.querySelector("output");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const words = text.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const name = row.dataset.row.toLocaleLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
    }
    for (const heading of section.querySelectorAll("tr.heading")) {
      let row = heading.nextElementSibling;
      while (row && row.hidden) row = row.nextElementSibling;
      heading.hidden = !row || row.className === "heading";
    }
    const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    if (boxes.length) for (const column of columns) column.hidden = !shown.has(column.dataset.group);
    const buttons = Array.from(table.querySelectorAll(".value button"));
    const visible = buttons.filter((button) => button.offsetParent);
    if (visible.length && !visible.some((button) => button.tabIndex === 0)) { // the tab key needs one stop
      for (const button of buttons) button.tabIndex = button === visible[0] ? 0 : -1;
    }
    const all = Array.from(table.tBodies[0].querySelectorAll("[data-row]"));
    count.textContent = `${all.filter((row) => !row.hidden).length} of ${all.length} models`;
  });
}

// Open folded sections for links into them, and for print.
function unfold(target) {
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
}
function follow() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) { unfold(target); target.scrollIntoView(); }
}
addEventListener("hashchange", follow);
follow();
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("#results details:not([open])")) each.dataset.folded = each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of document.querySelectorAll("details[data-folded]")) { each.open = false; delete each.dataset.folded; }
});

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
      const descending = header.getAttribute("aria-sort") !== "descending";
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
  new ResizeObserver(update).observe(region);
}

function compare(one, two, sign) {
  if (one.tagName === "TH") return sign * two.textContent.localeCompare(one.textContent, undefined, { numeric: true });
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

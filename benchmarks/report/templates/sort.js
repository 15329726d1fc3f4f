"use strict";
// Sorting of the main table by a click on a column's head. Without this the table stands as written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.querySelectorAll("tr.heads th"));
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const rows = Array.from(body.rows);
      rows.sort((one, two) => compare(one.cells[place], two.cells[place], sign));
      body.append(...rows);
    });
  });
}

function compare(one, two, sign) {
  if (one.tagName === "TH") return sign * two.textContent.localeCompare(one.textContent);
  const [first, second] = [one.dataset.value, two.dataset.value];
  if (first === "" || second === "") return (first === "") - (second === ""); // gaps stay at the end
  return sign * (Number(first) - Number(second));
}

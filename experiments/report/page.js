"use strict";

/* A heading sorts its table; where there is nothing stays at the end. */
const keyOf = (row, column, isText) => {
  const text = row.cells[column].textContent.trim();
  if (isText) return text.toLowerCase();
  return Number.parseFloat(text.replaceAll(",", ""));
};

const compare = (a, b) => {
  const [noA, noB] = [a, b].map((key) => key === "" || Number.isNaN(key));
  if (noA || noB) return noA === noB ? 0 : "last";
  return a < b ? -1 : Number(a > b);
};

const sortBy = (table, head, column) => {
  const isText = column === 0 || head.classList.contains("text");
  const usual = isText ? "ascending" : "descending";
  const other = isText ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === usual ? other : usual;
  for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  const keys = new Map(rows.map((row) => [row, keyOf(row, column, isText)]));
  rows.sort((a, b) => {
    const found = compare(keys.get(a), keys.get(b));
    if (found === "last") return Number.isNaN(keys.get(a)) || keys.get(a) === "" ? 1 : -1;
    return sign * found;
  });
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      sortBy(table, head, column);
    });
  });
}

/* The contents mark the section that is being read. */
const links = new Map(
  [...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]),
);
const observer = new IntersectionObserver(
  (seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "0px 0px -75% 0px" },
);
for (const heading of document.querySelectorAll("h2[id], h3[id]")) {
  observer.observe(heading);
}

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
const headings = [...document.querySelectorAll("h2[id], h3[id]")].filter((heading) =>
  links.has(heading.id),
);
const MARGIN_PX = 120;

const mark = () => {
  const root = document.documentElement;
  const isAtEnd = scrollY > 0 && scrollY + innerHeight >= root.scrollHeight - 2;
  const passed = headings.filter(
    (heading) => heading.getBoundingClientRect().top < MARGIN_PX,
  );
  const current = (isAtEnd ? headings : passed).at(-1) ?? headings[0];
  for (const [id, link] of links) {
    if (id === current?.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};

addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
mark();

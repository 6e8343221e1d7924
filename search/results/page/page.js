"use strict";
// What a reader has chosen outlives a live page's next version: it is kept here by the ids of tables.
const sorted = {}, filtered = {}, picked = {}, SECONDS = 3;

function value(row, column) {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // empty cells come last either way
  if (typeof a === typeof b) return sign * (a < b ? -1 : a > b ? 1 : 0);
  return typeof a === "number" ? -1 : 1;
}

function sort(table) {
  if (!(table.id in sorted)) return;
  const [column, sign] = sorted[table.id], body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), sign));
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, place) => {
    if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", place !== column ? "none" : sign > 0 ? "ascending" : "descending");
  });
}

function filter(field) {
  const words = field.value.toLowerCase().split(/\s+/), rows = document.getElementById(field.dataset.table).tBodies[0].rows;
  let shown = 0;
  for (const row of rows) {
    row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    shown += !row.hidden;
  }
  field.parentNode.querySelector("[role=status]").textContent = field.value ? `${shown} of ${rows.length} rows` : "";
}

function pick(section) {
  const keys = (picked[section.id] ??= new Set());
  for (const part of section.querySelectorAll("[data-key]")) {
    const own = keys.has(part.dataset.key);
    part.classList.toggle("picked", own);
    part.classList.toggle("dimmed", keys.size > 0 && !own);
    part.querySelector(".pick")?.setAttribute("aria-pressed", own);
  }
}

function prepare() {
  for (const button of document.querySelectorAll(".sort")) {
    button.addEventListener("click", () => {
      const table = button.closest("table"), column = button.closest("th").cellIndex;
      const before = sorted[table.id];
      sorted[table.id] = [column, before && before[0] === column ? -before[1] : 1];
      sort(table);
    });
  }
  for (const field of document.querySelectorAll("input[data-table]")) {
    field.value = filtered[field.id] ?? "";
    field.addEventListener("input", () => { filtered[field.id] = field.value; filter(field); });
    filter(field);
  }
  for (const button of document.querySelectorAll(".pick")) {
    button.addEventListener("click", () => {
      const section = button.closest("section"), keys = (picked[section.id] ??= new Set()), key = button.closest("tr").dataset.key;
      if (!keys.delete(key)) keys.add(key);
      pick(section);
    });
  }
  document.querySelectorAll("table").forEach(sort);
  document.querySelectorAll("section").forEach(pick);
}

async function refresh() {
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    const before = document.querySelector("main"), open = [...before.querySelectorAll("details[open]")].map((each) => each.id);
    const focused = document.activeElement?.id;
    if (fresh.innerHTML !== document.body.seen) {
      document.body.seen = fresh.innerHTML;
      before.replaceWith(fresh);
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      prepare();
      if (focused) document.getElementById(focused)?.focus();
    }
    if (!fresh.hasAttribute("data-ended")) setTimeout(refresh, 1000 * SECONDS);
  } catch {
    document.querySelector(".lead").append(" (no longer served)");
  }
}

prepare();
if ("live" in document.body.dataset && !document.querySelector("main").hasAttribute("data-ended")) setTimeout(refresh, 1000 * SECONDS);

"use strict";
// Sorting of tables, and the counts of the confusion matrix. Nothing here runs before report.js calls it.

/** A cell's value for sorting: a number, a text, or null where there is none. */
function valueOf(cell) {
  const value = cell.dataset.value;
  if (value === undefined || value === "") return null;
  return cell.tagName === "TH" || Number.isNaN(Number(value)) ? value : Number(value);
}

/** Compares two values, in ascending order for sign 1; null comes last whatever the order. */
function compareValues(one, other, sign) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return sign * (one - other);
  return sign * String(one).localeCompare(String(other), undefined, { numeric: true });
}

/** Sorts a table by the column of a button in its head; a second press turns the order around. */
function sortBy(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const now = head.getAttribute("aria-sort");
  const turned = { ascending: "descending", descending: "ascending" };
  const order = turned[now] || button.dataset.first;
  for (const other of head.parentElement.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [valueOf(row.cells[head.cellIndex]), row]);
  rows.sort((one, other) => compareValues(one[0], other[0], order === "ascending" ? 1 : -1));
  body.append(...rows.map((pair) => pair[1]));
}

/** Makes the heads of all sortable tables of a part sort. */
function startSorting(part) {
  for (const button of part.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sortBy(button));
  }
}

/** A count with separators of thousands, as the tables write it. */
function grouped(count) {
  return count.toLocaleString("en-US");
}

/** What a cell of the confusion matrix counts, in words. */
function cellWords(cell, data) {
  const label = cell.parentElement.rowIndex - 1;
  const predicted = cell.cellIndex - 1;
  const total = data.matrix[label].reduce((sum, count) => sum + count, 0);
  const count = data.matrix[label][predicted];
  const share = total ? ` (${((100 * count) / total).toFixed(2)} %)` : "";
  const verb = label === predicted ? "are predicted right" : `are predicted as ${data.names[predicted]}`;
  return `Of ${grouped(total)} pixels labelled ${data.names[label]}, ${grouped(count)}${share} ${verb}.`;
}

/** Where an arrow key leads from a cell of the confusion matrix; null for any other key. */
function neighbour(cell, key) {
  const rows = cell.closest("tbody").rows;
  const row = cell.parentElement.sectionRowIndex;
  const column = cell.cellIndex;
  const last = rows.length;
  const place = {
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    Home: [row, 1],
    End: [row, last],
  }[key];
  if (!place) return null;
  return rows[Math.min(Math.max(place[0], 0), last - 1)].cells[Math.min(Math.max(place[1], 1), last)];
}

/** Shows the counts of the cell that is pointed at or has the focus, and lets arrow keys move the focus. */
function startConfusion(part, data) {
  const body = part.querySelector("table.confusion tbody");
  const status = part.querySelector(".cell-status");
  const show = (event) => {
    const cell = event.target.closest("td");
    if (cell) status.textContent = cellWords(cell, data);
  };
  body.addEventListener("mouseover", show);
  body.addEventListener("focusin", show);
  body.addEventListener("keydown", (event) => {
    const next = neighbour(event.target.closest("td"), event.key);
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

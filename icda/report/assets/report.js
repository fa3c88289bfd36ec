"use strict";
// Starts the page: tabs of sets, sorting, thumbnails and viewers. What only one set needs starts when it is shown.

/** The values that stand in a block of JSON. */
function blockOf(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/** Gives each row of the table of images its thumbnail once it comes near the screen. */
function startThumbnails(part) {
  let thumbnails = null; // parsed when the first is wanted
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      near.unobserve(entry.target);
      thumbnails = thumbnails || blockOf(`thumbnails-${part.dataset.set}`);
      const picture = document.createElement("img");
      picture.alt = "";
      picture.decoding = "async";
      picture.src = `data:image/jpeg;base64,${thumbnails[Number(entry.target.parentElement.dataset.row)]}`;
      entry.target.replaceChildren(picture);
    }
  }, { rootMargin: "300px" });
  for (const cell of part.querySelectorAll("td.thumbnail")) near.observe(cell);
}

/** Starts one set's viewer, and lets the buttons in its table of images open pictures there. */
function startViewer(part, data) {
  const box = part.querySelector(".viewer");
  if (!box) return;
  const viewer = new Viewer(box, part.dataset.set, data);
  viewer.open(Number(box.querySelector(".pick").dataset.image));
  part.querySelector("table.images tbody").addEventListener("click", (event) => {
    const button = event.target.closest("tr").querySelector("button.open");
    if (!button) return;
    viewer.open(Number(button.dataset.image));
    const pick = box.querySelector(`.pick[data-image="${button.dataset.image}"]`);
    pick.focus({ preventScroll: true });
    box.scrollIntoView({ block: "start" });
  });
}

/** Starts one set, once. */
function startSet(part) {
  if (part.dataset.started) return;
  part.dataset.started = "true";
  const data = blockOf(`data-${part.dataset.set}`);
  startSorting(part);
  startConfusion(part, data);
  startThumbnails(part);
  startViewer(part, data);
}

/** Shows the set of a tab, and hides the others. */
function choose(tab, tabs) {
  for (const other of tabs) {
    const part = document.getElementById(other.getAttribute("aria-controls"));
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    part.hidden = !chosen;
    if (chosen) startSet(part);
  }
}

/** Which tab a key leads to from one; undefined for any other key. */
function tabOf(key, place, count) {
  return {
    ArrowRight: (place + 1) % count,
    ArrowLeft: (place + count - 1) % count,
    Home: 0,
    End: count - 1,
  }[key];
}

/** Makes tabs of the sets. */
function startTabs() {
  const tabs = Array.from(document.querySelectorAll('[role="tab"]'));
  tabs.forEach((tab, place) => {
    const part = document.getElementById(tab.getAttribute("aria-controls"));
    part.setAttribute("role", "tabpanel");
    part.setAttribute("aria-labelledby", tab.id);
    part.removeAttribute("aria-label");
    tab.addEventListener("click", () => choose(tab, tabs));
    tab.addEventListener("keydown", (event) => {
      const next = tabOf(event.key, place, tabs.length);
      if (next === undefined) return;
      event.preventDefault();
      choose(tabs[next], tabs);
      tabs[next].focus();
    });
  });
  if (tabs.length) choose(tabs[0], tabs);
  else startSet(document.querySelector(".set"));
}

startTabs();

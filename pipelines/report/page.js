"use strict";
const root = document.documentElement;
const system = window.matchMedia("(prefers-color-scheme: dark)");
root.classList.toggle("dark", system.matches);
system.addEventListener("change", () => root.classList.toggle("dark", system.matches));
document.getElementById("theme").addEventListener("click", () => root.classList.toggle("dark"));
for (const section of document.querySelectorAll(".errors")) {
  const list = section.querySelector(".examples");
  const items = [...list.children];
  const order = section.querySelector(".order");
  const find = section.querySelector(".find");
  const count = section.querySelector(".count");
  const show = () => {
    const key = order.value;
    const value = (item) => (key === "id" ? item.dataset.id : -Number(item.dataset[key]));
    items.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      item.hidden = wanted !== "" && !item.textContent.toLowerCase().includes(wanted);
      shown += item.hidden ? 0 : 1;
      list.append(item);
    }
    count.textContent = shown + " of " + items.length;
  };
  order.addEventListener("change", show);
  find.addEventListener("input", show);
  show();
}
document.addEventListener("play", (event) => {
  for (const player of document.querySelectorAll("audio")) {
    if (player !== event.target) player.pause();
  }
}, true);

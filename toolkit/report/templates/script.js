"use strict";
(() => {
  const dialog = document.getElementById("enlarged");
  const buttons = [...document.querySelectorAll("button.enlarge")];
  let at = 0;

  /* What lies in a closed <details> is passed over, so that closing gives the focus back. */
  const shown = (button) => button.checkVisibility ? button.checkVisibility() : button.offsetParent;

  function show(index) {
    at = index;
    const button = buttons[index];
    const thumb = button.querySelector("img");
    const entry = button.closest(".example").querySelector("p");
    const picture = document.getElementById("enlarged-picture");
    document.getElementById("enlarged-title").textContent = button.dataset.title;
    document.getElementById("enlarged-says").textContent = thumb.alt + ". " + entry.innerText;
    picture.alt = thumb.alt;
    picture.src = button.dataset.large;
  }

  function step(by) {
    for (let next = at + by; next >= 0 && next < buttons.length; next += by) {
      if (shown(buttons[next])) { show(next); return; }
    }
  }

  buttons.forEach((button, index) => button.addEventListener("click", () => {
    show(index);
    dialog.showModal();
  }));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { if (buttons[at]) buttons[at].focus(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
})();

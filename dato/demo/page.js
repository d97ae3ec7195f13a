// What gradio does not do: draw schedules, copy text, and say the speed-up of the slider's point.
(() => {
  "use strict";
  const { copyText, el, scheduleKey, scheduleStrip, scheduleWords } = datoParts;

  function drawSchedules() {
    document.querySelectorAll(".dato .schedule[data-schedule]").forEach((place) => {
      const data = JSON.parse(place.dataset.schedule);
      delete place.dataset.schedule;
      place.replaceChildren(el("p", {}, scheduleWords(data)), scheduleStrip(data), el("p", { class: "muted" }, scheduleKey(data)));
    });
  }

  function nameParts() {
    for (const [selector, title] of Object.entries(datoTitles)) {
      const part = document.querySelector(selector);
      if (part && part.title !== title) part.title = title;
    }
  }

  // The slider's values are the numbers of the points. People see, and screen readers say, the points' speed-ups.
  function nameValues() {
    const slider = document.querySelector("#dato-front input[type=range]");
    const marks = [...document.querySelectorAll(".dato .marks span")];
    if (!slider || !marks.length) return;
    const chosen = marks[Number(slider.value)];
    if (!chosen || slider.getAttribute("aria-valuetext") === chosen.textContent) return;
    slider.setAttribute("aria-valuetext", chosen.textContent);
    marks.forEach((mark) => mark.classList.toggle("chosen", mark === chosen));
  }

  document.addEventListener("input", nameValues);
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".dato button.copy");
    if (button) copyText(button.closest(".use").querySelector("pre").textContent, button, () => {});
    const mark = event.target.closest(".dato .marks span"), slider = document.querySelector("#dato-front input[type=range]");
    if (mark && slider) {
      slider.value = [...mark.parentElement.children].indexOf(mark);
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      slider.focus();
    }
  });
  // A hint that the keyboard or a tap has opened closes with Escape.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement.classList.contains("term")) document.activeElement.blur();
  });
  const look = () => { drawSchedules(); nameParts(); nameValues(); };
  const begin = () => {
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
    look();
  };
  if (document.body) begin(); else addEventListener("DOMContentLoaded", begin);
})();

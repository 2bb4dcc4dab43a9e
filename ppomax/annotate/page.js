// Keys for people who want them; without this file the page works by its buttons alone.
"use strict";
const form = document.getElementById("judge");
const undo = document.getElementById("undo");
const began = Date.now();
const SETTLE = 400; // milliseconds: the second half of a double click or key press must not judge the next item
let sent = false;

const fresh = () => Date.now() - began < SETTLE;
const atEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 40;
const CHOICES = { 1: "left", 2: "tie", 3: "right", ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };

for (const each of [form, undo]) {
  each?.addEventListener("submit", (event) => {
    if (fresh() || sent) event.preventDefault();
    else sent = true;
  });
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const field = event.target;
  if (field.tagName === "TEXTAREA") {
    if (event.key === "Escape") field.blur();
    return;
  }
  if (field.tagName === "INPUT" && event.key.startsWith("Arrow")) return; // moves among the strengths
  const choice = Object.hasOwn(CHOICES, event.key) ? CHOICES[event.key] : null;
  if (event.key === "u" && undo) {
    event.preventDefault();
    undo.requestSubmit();
  } else if (form && choice) {
    if (event.key === "ArrowDown" && !atEnd()) return; // scrolls until all has been seen
    event.preventDefault();
    form.requestSubmit(form.querySelector(`button[value="${choice}"]`));
  } else if (form && (event.key === "s" || event.key === "c")) {
    const radio = form.querySelector(`input[value="${event.key === "s" ? "slight" : "clear"}"]`);
    radio.checked = true;
  } else if (form && event.key === "r") {
    event.preventDefault();
    document.getElementById("reason").focus();
  }
});

window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // a page from the browser's memory may show what is judged already
});

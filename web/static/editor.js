// The editor of captions: keys that save and go on, a count of characters, and a picture that opens large.

const t = globalThis.imprintText;
const byId = (id) => document.getElementById(id);
const text = byId("text");

document.addEventListener("keydown", (event) => {
  const wanted = event.key === "Enter" && (event.ctrlKey || event.metaKey) ? "next"
    : event.altKey ? { PageDown: "next", PageUp: "previous" }[event.key] : undefined;
  const button = wanted && byId(wanted);
  if (!button || button.disabled) return;
  event.preventDefault();
  button.click();
});

const shown = document.querySelector("[data-counts]");
if (text && shown) {
  const tell = () => { shown.textContent = t("{number} of {most} characters", { number: text.value.length, most: text.maxLength }); };
  text.addEventListener("input", tell);
  tell();
  if (new URLSearchParams(location.search).has("picture")) text.focus();
}

document.querySelectorAll("[data-zoom]").forEach((link) => link.addEventListener("click", (event) => {
  event.preventDefault();
  const dialog = document.createElement("dialog"), picture = document.createElement("img"), close = document.createElement("button");
  dialog.className = "zoomed";
  dialog.setAttribute("aria-label", t("The picture, large"));
  picture.src = link.href;
  picture.alt = link.querySelector("img").alt;
  close.textContent = t("Close");
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (inside) => { if (inside.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { dialog.remove(); link.focus(); });
  dialog.append(close, picture);
  document.body.append(dialog);
  dialog.showModal();
}));
